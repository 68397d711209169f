"""Steering: the FlowChef loop, its baselines, and the Jacobian that gradient skipping leaves out."""

from functools import partial

import pytest
import torch
from torch import Tensor

from flowlib import control, metrics, nets, paths, solvers
from flowlib.distributions import GaussianMixture
from flowlib.fields import Field, FunctionField, GaussianField, MixtureField, NetworkField

N = 20


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(dim: int = 4, components: int = 3) -> GaussianMixture:
    """Correlated components, none of them isotropic."""
    roots = randn(components, dim, dim, seed=1)
    eye = torch.eye(dim, dtype=torch.float64)
    return GaussianMixture(2 * randn(components, dim, seed=2), roots @ roots.mT / dim + 0.1 * eye)


def prior(path: paths.GaussianPath | None = None) -> MixtureField:
    return MixtureField(mixture(), path or paths.linear())


def gaussian() -> GaussianField:
    """One Gaussian with variances 3, 0.5, 0.2, 0.2 along the axes."""
    values, vectors = torch.tensor([3.0, 0.5], dtype=torch.float64), torch.eye(4, dtype=torch.float64)[:, :2]
    return GaussianField(randn(1, 4)[0], paths.linear(), values, vectors, 0.2)


A = randn(2, 4, seed=3)
Y = randn(5, 2, seed=4)
X0 = randn(5, 4, seed=5)


def measure(x: Tensor) -> Tensor:
    return x @ A.T


LOSS = control.least_squares(measure, Y)


def written_out(field: Field, x: Tensor, step: float, inner: int = 1) -> Tensor:
    """The published loop, in the order in which it is published."""
    for i in range(N):
        t = i / N
        v = field.velocity(x, t)
        for _ in range(inner):
            r = measure(x + (1 - t) * v) - Y
            x = x - step * r @ A
        x = x + v / N
    return x


def test_without_a_step_the_sampler_is_the_plain_one_bit_for_bit() -> None:
    field = prior()
    for guide in (control.steered, control.backpropagated):
        guided = guide(field, LOSS, step=0.0, steps=N)
        assert torch.equal(solvers.ode(guided, X0, steps=N).states, solvers.ode(field, X0, steps=N).states)


@pytest.mark.parametrize("inner", [1, 3])
def test_euler_on_the_steered_field_is_the_published_loop(inner: int) -> None:
    field = prior()
    steered = control.steered(field, LOSS, step=0.05, steps=N, inner=inner)
    torch.testing.assert_close(
        solvers.ode(steered, X0, steps=N).end, written_out(field, X0, 0.05, inner), rtol=1e-12, atol=1e-12
    )


def displacement(x: Tensor, t: float, **options: object) -> Tensor:
    """What one evaluation corrects, before the move."""
    guided = control.steered(prior(), LOSS, steps=N, **options)
    return (guided.velocity(x, t) - prior().velocity(x, t)) / N


@pytest.mark.parametrize("inner", [1, 4])
def test_with_frozen_velocity_the_residual_is_multiplied_by_a_matrix(inner: int) -> None:
    """r+ = (I - s A A^T)^K r."""
    t, s = 0.3, 0.07
    before = measure(prior().data(X0, t)) - Y
    after = before + measure(displacement(X0, t, step=s, inner=inner))
    factor = torch.linalg.matrix_power(torch.eye(2, dtype=torch.float64) - s * A @ A.T, inner)
    torch.testing.assert_close(after, before @ factor.T, rtol=1e-12, atol=1e-12)


def test_one_step_removes_the_residual_where_a_times_its_transpose_is_a_multiple_of_one() -> None:
    pool = control.measurements.downsample(2, (1, 4, 4))  # A A^T = I / 4
    field = FunctionField(lambda x, t: torch.sin(x) - t * x, paths.linear(), predicts="velocity")
    x, y, t = randn(3, 1, 4, 4), randn(3, 1, 2, 2, seed=1), 0.4
    steered = control.steered(field, control.least_squares(pool, y), step=4.0, steps=N)
    correction = (steered.velocity(x, t) - field.velocity(x, t)) / N
    torch.testing.assert_close(pool(field.data(x, t) + correction), y, rtol=0, atol=1e-12)


def test_skipped_gradient_is_the_gradient_with_the_velocity_detached() -> None:
    t, x = 0.3, X0.clone().requires_grad_()
    data = x + (1 - t) * prior().velocity(x, t).detach()
    (by_autograd,) = torch.autograd.grad(LOSS(data, torch.tensor(t)).sum(), x)
    analytic = (measure(prior().data(X0, t)) - Y) @ A
    torch.testing.assert_close(by_autograd, analytic, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(displacement(X0, t, step=0.1), -0.1 * analytic, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", [paths.linear(), paths.cosine(), paths.vp(), paths.ve(0.02, 10.0)], ids=str)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_data_jacobian_is_the_posterior_covariance_over_the_noise(path: paths.GaussianPath, t: float) -> None:
    """J_t = alpha / sigma^2 Cov[x1 | x_t], symmetric and positive semi-definite."""
    field, x = prior(path), 2 * X0
    alpha, sigma = (float(f(torch.tensor(t, dtype=torch.float64))) for f in (path.schedule.alpha, path.schedule.sigma))
    jacobian = control.data_jacobian(field, x, t)
    identity = alpha * torch.eye(4, dtype=torch.float64)
    posterior = [mixture().condition(identity, row, sigma).covariance for row in x]  # x_t = alpha x1 + sigma noise
    torch.testing.assert_close(jacobian, alpha / sigma**2 * torch.stack(posterior), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(jacobian, jacobian.mT, rtol=0, atol=1e-10 * float(jacobian.abs().max()))
    assert float(torch.linalg.eigvalsh(jacobian).min()) >= -1e-10


@pytest.mark.parametrize("t", [0.05, 0.3, 0.7, 0.95])
def test_data_jacobian_of_a_gaussian_never_turns_a_gradient_round(t: float) -> None:
    """J = t S (t^2 S + (1 - t)^2 I)^{-1}; the cosine of g and J g is positive, and one if S is isotropic."""
    values, (vectors, _) = torch.tensor([4.0, 1.0, 0.1], dtype=torch.float64), torch.linalg.qr(randn(3, 3))
    field = GaussianField(randn(1, 3)[0], paths.linear(), values, vectors)
    S, eye = vectors @ values.diag() @ vectors.T, torch.eye(3, dtype=torch.float64)
    J = control.data_jacobian(field, randn(2, 3), t)
    torch.testing.assert_close(
        J, (t * S @ torch.linalg.inv(t**2 * S + (1 - t) ** 2 * eye)).expand_as(J), rtol=1e-10, atol=1e-10
    )
    g = randn(500, 3, seed=6)
    cosine = torch.cosine_similarity(g, g @ J[0])
    assert 0 < float(cosine.min()) < float(cosine.max()) <= 1 + 1e-12
    isotropic = GaussianField(randn(1, 3)[0], paths.linear(), residual=2.0)
    cosine = torch.cosine_similarity(g, g @ control.data_jacobian(isotropic, randn(1, 3), t)[0])
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-12)


def test_data_and_noise_predictions_both_move_by_the_correction() -> None:
    t, velocity = 0.3, prior().velocity(X0, 0.3)
    moved = X0 + displacement(X0, t, step=0.1)
    path, correction = paths.linear(), -0.1 * ((measure(prior().data(X0, t)) - Y) @ A)
    for kind in ("data", "noise"):
        shift = path.convert(velocity, moved, t, "velocity", kind) - path.convert(velocity, X0, t, "velocity", kind)
        torch.testing.assert_close(shift, correction, rtol=0, atol=1e-12)


class Watched(torch.nn.Module):
    """A network that counts its calls and the tensors autograd saves inside them."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.calls, self.saved = nets.MLP(4).double(), 0, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        with metrics.SavedTensors(ignore=self.parameters()) as saved:
            out: Tensor = self.net(x, t)
        self.saved += saved.count
        return out


def test_no_graph_of_the_network_and_one_evaluation_a_step() -> None:
    net = Watched()
    field = NetworkField(net, paths.linear())
    steered = solvers.ode(control.steered(field, LOSS, step=0.1, steps=N, inner=4), X0, steps=N)
    assert steered.nfe == net.calls == N
    assert net.saved == 0
    assert solvers.ode(control.backpropagated(field, LOSS, step=0.1, steps=N), X0, steps=N).nfe == N
    assert net.calls == 2 * N
    assert net.saved > 0
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_sampler_has_a_limit_if_step_times_steps_is_kept() -> None:
    """Halving step size and step doubles the accuracy: the difference to the finest solve is O(1/N)."""
    field = gaussian()

    def end(steps: int) -> Tensor:
        steered = control.steered(field, LOSS, step=2.0 / steps, steps=steps)
        return solvers.ode(steered, X0, steps=steps, keep=False).end

    finest = end(3200)
    errors = torch.stack([(end(steps) - finest).norm() for steps in (100, 200, 400)])
    ratios = errors[:-1] / errors[1:]
    assert bool(((ratios > 1.8) & (ratios < 2.3)).all()), ratios
    assert float((end(200) - end(100)).abs().max()) < 0.1


def test_editing_nothing_recovers_the_reference() -> None:
    field, reference = prior(), mixture().sample(5, generator=torch.Generator().manual_seed(7))
    loss = control.edit_loss(reference, torch.zeros(4).bool(), source_until=1.0)
    edited = solvers.ode(control.steered(field, loss, step=0.9, steps=100), X0, steps=100).end
    assert float((edited - reference).abs().max()) < 1e-2


def test_editing_has_two_phases() -> None:
    reference, x1 = randn(5, 4, seed=8), randn(5, 4, seed=9)
    edit = torch.tensor([True, True, False, False])
    loss = control.edit_loss(reference, edit, source_until=0.4)
    both = (x1 - reference).square()
    for t, expected in ((0.39, both.sum(1) / 2), (0.4, both[:, 2:].sum(1) / 2)):
        torch.testing.assert_close(loss(x1, torch.tensor(t, dtype=torch.float64)), expected)


def test_true_gradient_is_the_skipped_one_times_the_jacobian() -> None:
    t = 0.4
    g = (measure(prior().data(X0, t)) - Y) @ A
    expected = torch.einsum("bij,bi->bj", control.data_jacobian(prior(), X0, t), g)
    guided = control.backpropagated(prior(), LOSS, step=0.1, steps=N)
    correction = (guided.velocity(X0, t) - prior().velocity(X0, t)) / N
    torch.testing.assert_close(correction, -0.1 * expected, rtol=1e-10, atol=1e-10)


def test_skipping_first_reduces_the_loss_by_the_gradient_in_the_metric_of_the_jacobian() -> None:
    """dL = -s g^T J g + O(s^2), never positive for an exact field; |J^T g|^2 for the true gradient."""
    t = 0.4
    jacobian, g = control.data_jacobian(prior(), X0, t), (measure(prior().data(X0, t)) - Y) @ A
    pulled = torch.einsum("bij,bi->bj", jacobian, g)
    time = torch.tensor(t, dtype=torch.float64)

    def slope(direction: Tensor, h: float = 1e-6) -> Tensor:
        values = [LOSS(prior().data(X0 + sign * h * direction, t), time) for sign in (1, -1)]
        return (values[0] - values[1]) / (2 * h)

    torch.testing.assert_close(slope(-g), -(g * pulled).sum(1), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(slope(-pulled), -pulled.square().sum(1), rtol=1e-6, atol=1e-7)
    assert bool((slope(-g) < 0).all())


def test_an_optimiser_made_anew_forgets_the_scale_of_the_loss() -> None:
    """One step of a fresh Adam is lr times the sign of the gradient; torch's SGD is the plain step."""
    t = 0.4
    g = (measure(prior().data(X0, t)) - Y) @ A
    adam = displacement(X0, t, step=0.02, optimiser=torch.optim.Adam)
    torch.testing.assert_close(adam, -0.02 * g.sign(), rtol=1e-5, atol=1e-9)
    sgd = displacement(X0, t, step=0.02, inner=3, optimiser=torch.optim.SGD)
    torch.testing.assert_close(sgd, displacement(X0, t, step=0.02, inner=3), rtol=1e-12, atol=1e-14)


def test_steering_ends_when_it_is_told_to() -> None:
    steered = control.steered(prior(), LOSS, step=0.1, steps=N, until=0.5)
    times = torch.tensor([0.1, 0.49, 0.5, 0.7, 0.9], dtype=torch.float64)
    changed = (steered.velocity(X0, times) - prior().velocity(X0, times)).abs().sum(1) > 0
    assert changed.tolist() == [True, True, False, False, False]


def test_a_predictor_makes_the_correction_and_the_field_the_move() -> None:
    still = FunctionField(lambda x, t: torch.zeros_like(x), paths.linear(), predicts="velocity")
    steered = control.steered(prior(), LOSS, step=0.1, steps=N, predictor=still)
    expected = prior().velocity(X0, 0.3) - N * 0.1 * (measure(X0) - Y) @ A
    torch.testing.assert_close(steered.velocity(X0, 0.3), expected)


def test_the_gradient_in_the_start_is_the_one_through_the_whole_solve() -> None:
    """One SGD step of size h moves x0 by -h grad L(X(x0)), X the Euler map of a Gaussian: linear, known."""
    field = gaussian()
    factors = torch.ones(4, dtype=torch.float64)  # of the Euler map along each axis
    for i in range(N):
        t = i / N
        S = torch.tensor([3.0, 0.5, 0.2, 0.2], dtype=torch.float64)
        factors = factors * (1 + (t * S - (1 - t)) / (t**2 * S + (1 - t) ** 2) / N)
    end = solvers.ode(field, X0, steps=N).end
    expected = X0 - 0.01 * factors * ((measure(end) - Y) @ A)
    sgd = partial(torch.optim.SGD, lr=0.01)
    run = control.optimise_start(field, LOSS, X0, steps=N, iterations=2, optimiser=sgd)
    torch.testing.assert_close(run.start, expected, rtol=1e-10, atol=1e-10)
    assert run.nfe == 3 * N


def test_optimising_the_start_fits_what_can_be_fitted_and_never_returns_a_worse_start() -> None:
    lbfgs = partial(torch.optim.LBFGS, line_search_fn="strong_wolfe", max_iter=20)
    run = control.optimise_start(prior(), LOSS, X0, steps=N, iterations=3, optimiser=lbfgs)
    one = torch.ones((), dtype=torch.float64)
    plain = LOSS(solvers.ode(prior(), X0, steps=N).end, one)
    assert bool((LOSS(run.end, one) <= plain).all())
    assert float(LOSS(run.end, one).max()) < 1e-4 * float(plain.min())
    wild = partial(torch.optim.SGD, lr=1e4)
    worse = control.optimise_start(prior(), LOSS, X0, steps=N, iterations=3, optimiser=wild)
    assert bool((LOSS(worse.end, one) <= plain + 1e-12).all())


@pytest.mark.bad_input
def test_bad_input() -> None:
    with pytest.raises(TypeError, match="field must be a Field"):
        control.steered(lambda x, t: x, LOSS, step=0.1, steps=N)
    with pytest.raises(TypeError, match="predictor must be a Field"):
        control.steered(prior(), LOSS, step=0.1, steps=N, predictor=lambda x, t: x)
    with pytest.raises(ValueError, match="step must not be negative, got -1"):
        control.backpropagated(prior(), LOSS, step=-1.0, steps=N)
    with pytest.raises(ValueError, match="inner must be positive"):
        control.steered(prior(), LOSS, step=0.1, steps=N, inner=0)
    with pytest.raises(ValueError, match=r"until must lie in \[0, 1\]"):
        control.steered(prior(), LOSS, step=0.1, steps=N, until=1.5)
    with pytest.raises(ValueError, match=r"loss must return shape \[5\], one value a state; got \[\]"):
        control.steered(prior(), lambda x1, t: x1.sum(), step=0.1, steps=N).velocity(X0, 0.5)
    with pytest.raises(ValueError, match="must have the same shape"):
        control.steered(prior(), control.least_squares(measure, Y[:2]), step=0.1, steps=N).velocity(X0, 0.5)
    with pytest.raises(TypeError, match="edit must be boolean"):
        control.edit_loss(X0, torch.ones(4), source_until=0.5)
    with pytest.raises(ValueError, match=r"edit must have shape \[4\], got \[3\]"):
        control.edit_loss(X0, torch.ones(3).bool(), source_until=0.5)
    with pytest.raises(ValueError, match="source_until"):
        control.edit_loss(X0, torch.ones(4).bool(), source_until=2.0)
