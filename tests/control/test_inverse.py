"""FLAIR: the prior's gradient against closed forms, the carried noise, the data steps, the calibration, the whole."""

import math

import pytest
import torch
from torch import Tensor, nn

from flowlib import control, metrics, paths, solvers
from flowlib.distributions import GaussianMixture
from flowlib.fields import FunctionField, MixtureField, NetworkField

F64 = torch.float64
LINEAR = paths.linear()


def gaussian(dim: int = 3, seed: int = 0) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(1, dim, dim, generator=generator, dtype=F64)
    mean = torch.randn(1, dim, generator=generator, dtype=F64)
    return GaussianMixture(mean, root @ root.mT + 0.3 * torch.eye(dim, dtype=F64))


def three_bumps() -> GaussianMixture:
    means = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [0.5, -1.5]], dtype=F64)
    return GaussianMixture(means, torch.tensor([0.1, 0.2, 0.15], dtype=F64))


def first(x: Tensor) -> Tensor:
    return x[:, :1]


def levels(count: int = 20, stop: float = 0.82) -> Tensor:
    return torch.linspace(0, stop, count + 2, dtype=F64)[1:-1]


def solve(field, mu: Tensor, y: Tensor, seed: int = 0, **changes):
    times = changes.pop("times", levels())
    measure = changes.pop("measure", first)
    settings = {
        "times": times,
        "pull": torch.full_like(times, 0.8),
        "data_rates": torch.full_like(times, 0.5),
        "tolerance": 0.0,
        "generator": torch.Generator().manual_seed(seed),
    }
    return control.flair(field, measure, y, mu, **settings | changes)


# --- the prior's gradient (card, checks 1, 2, 4) ----------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_velocity_error_is_noise_error_and_data_error_rescaled(t: float, generator: torch.Generator) -> None:
    """(mu - e) - v = (mu - x1hat)/(1 - t) = (x0hat - e)/t, and e - mu = -x/t + e/t with x = t mu + (1 - t) e."""
    field = MixtureField(three_bumps(), LINEAR)
    mu, e = (torch.randn(50, 2, generator=generator, dtype=F64) for _ in range(2))
    x = t * mu + (1 - t) * e
    error = (mu - e) - field.velocity(x, t)
    torch.testing.assert_close(error, (mu - field.data(x, t)) / (1 - t), rtol=0, atol=1e-12)
    torch.testing.assert_close(error, (field.noise(x, t) - e) / t, rtol=0, atol=1e-12)
    torch.testing.assert_close(e - mu, -x / t + e / t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_mean_velocity_error_is_the_gradient_of_kl_for_a_gaussian_prior(t: float, generator: torch.Generator) -> None:
    """E G = (1 - t) C^-1 (mu - m), grad KL(q_t || p_t) = t^2/(1 - t) E G, and sampling agrees within 3 errors."""
    prior = gaussian()
    eye = torch.eye(3, dtype=F64)
    spread = t**2 * prior.covariance + (1 - t) ** 2 * eye
    mu = torch.tensor([0.3, -1.0, 2.0], dtype=F64, requires_grad=True)
    q = torch.distributions.MultivariateNormal(t * mu, (1 - t) ** 2 * eye)
    p = torch.distributions.MultivariateNormal(t * prior.mean, spread)
    (gradient,) = torch.autograd.grad(torch.distributions.kl_divergence(q, p), mu)
    at = mu.detach()
    expected = (1 - t) * torch.linalg.solve(spread, at - prior.mean)
    torch.testing.assert_close(gradient, t**2 / (1 - t) * expected, rtol=1e-10, atol=1e-12)

    e = torch.randn(20_000, 3, generator=generator, dtype=F64)
    samples = (at - e) - MixtureField(prior, LINEAR).velocity(t * at + (1 - t) * e, t)
    error = (samples.mean(0) - expected).abs() / (samples.std(0) / math.sqrt(len(e)))
    assert float(error.max()) < 3


def test_gradient_of_kl_needs_no_jacobian_for_a_mixture(generator: torch.Generator) -> None:
    """For a mixture, grad_mu E[-log p_t(t mu + (1 - t) e)] by autograd is t^2/(1 - t) times the mean of G."""
    t, prior = 0.6, three_bumps()
    field = MixtureField(prior, LINEAR)
    e = torch.randn(500, 2, generator=generator, dtype=F64)
    e = torch.cat([e, -e])
    mu = torch.tensor([0.2, 0.4], dtype=F64, requires_grad=True)
    marginal = GaussianMixture(t * prior.means, t**2 * prior.eigenvalues[:, 0] + (1 - t) ** 2)
    (gradient,) = torch.autograd.grad(-marginal.log_prob(t * mu + (1 - t) * e).mean(), mu)
    at = mu.detach()
    mean = ((at - e) - field.velocity(t * at + (1 - t) * e, t)).mean(0)
    torch.testing.assert_close(gradient, t**2 / (1 - t) * mean, rtol=1e-10, atol=1e-12)


def test_without_data_the_mean_contracts_by_a_known_factor() -> None:
    """Gaussian prior, fresh noise, kappa < 1: E mu - m shrinks by 1 - kappa u^2/C_u in (0, 1) a step."""
    m, s, n = 0.7, 0.5, 40_000
    field = MixtureField(GaussianMixture(torch.tensor([[m]], dtype=F64), s), LINEAR)
    times, kappa = levels(6), 0.9
    means: list[float] = []
    start = torch.full((n, 1), 3.0, dtype=F64)
    solve(
        field, start, torch.zeros(n, 1, dtype=F64), times=times, pull=torch.full_like(times, kappa),
        share=torch.zeros_like(times), data_rates=torch.zeros_like(times), data_steps=1,
        callback=lambda i, x, mu: means.append(float(mu.mean())),
    )  # fmt: skip
    expected = 3.0 - m
    for t, mean in zip(times.tolist(), means, strict=True):
        factor = 1 - kappa * (1 - t) ** 2 / (t**2 * s + (1 - t) ** 2)
        assert 0 < factor < 1
        expected *= factor
        assert abs(mean - m - expected) < 4 * math.sqrt(1.0 / n)


# --- carried noise (check 3) ------------------------------------------------------------------------------------------


def test_carried_noise_has_the_stated_mean_and_covariance(generator: torch.Generator) -> None:
    a, t, n = 0.6, 0.3, 100_000
    kept = torch.tensor([[1.0, -2.0]], dtype=F64).expand(n, 2)
    mu = torch.tensor([0.5, 0.5], dtype=F64)
    x = t * mu + (1 - t) * control.carried_noise(kept, a, generator=generator)
    variance = (1 - t) ** 2 * (1 - a**2)
    error = (x.mean(0) - t * mu - (1 - t) * a * kept[0]).abs() / math.sqrt(variance / n)
    assert float(error.max()) < 4
    torch.testing.assert_close(torch.cov(x.T), variance * torch.eye(2, dtype=F64), rtol=0.02, atol=0.01 * variance)


def test_carried_noise_is_old_at_one_and_fresh_at_zero() -> None:
    kept = torch.full((4, 3), 5.0, dtype=F64)
    assert torch.equal(control.carried_noise(kept, 1.0), kept)
    one, two = (torch.Generator().manual_seed(7) for _ in range(2))
    fresh = torch.randn(4, 3, generator=two, dtype=F64)
    torch.testing.assert_close(control.carried_noise(kept, 0.0, generator=one), fresh)


def test_carrying_all_noise_with_unit_pull_is_euler_on_the_flow(generator: torch.Generator) -> None:
    """a = 1 and kappa = 1: the noisy states are those of Euler's method for the probability-flow ODE."""
    field = MixtureField(three_bumps(), LINEAR)
    times = levels(12)
    mu = torch.randn(5, 2, generator=generator, dtype=F64)
    states: list[Tensor] = []
    solve(
        field, mu, torch.zeros(5, 1, dtype=F64), times=times, pull=torch.ones_like(times),
        share=torch.ones_like(times), data_rates=torch.zeros_like(times), data_steps=1,
        callback=lambda i, x, _: states.append(x),
    )  # fmt: skip
    euler = solvers.ode(field, states[0], times=times, method="euler").states
    torch.testing.assert_close(torch.stack(states), euler, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("a", [0.0, 0.5, 0.9, 0.999])
def test_carried_noise_restores_the_variance_that_fresh_noise_loses(a: float) -> None:
    """A held level of a Gaussian prior: stationary variance C (1 + a)/(1 + a + rho (1 - a)), rho = t^2 s/C."""
    t, s = 0.6, 0.8
    C = t**2 * s + (1 - t) ** 2
    rho = t**2 * s / C
    x = torch.ones(1, 1, dtype=F64)
    field = MixtureField(GaussianMixture(torch.zeros(1, 1, dtype=F64), s), LINEAR)
    slope = float(t * field.data(x, t) + (1 - t) * a * field.noise(x, t))
    stationary = (1 - t) ** 2 * (1 - a**2) / (1 - slope**2)
    assert stationary == pytest.approx(C * (1 + a) / (1 + a + rho * (1 - a)), rel=1e-12)


# --- data steps (checks 6, 9, 10) -------------------------------------------------------------------------------------


def test_one_step_of_the_right_rate_solves_a_tight_frame(generator: torch.Generator) -> None:
    """A A^T = c I: a step of rate 1/(2c) lands on A mu = y, and moves nothing in the kernel of A."""
    c = 0.25
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=F64)).Q
    A = math.sqrt(c) * basis[:3]
    mu, y = (torch.randn(4, d, generator=generator, dtype=F64) for d in (6, 3))
    for weight in (1.0, 0.3):  # the paper multiplies the loss by lambda w, so the rate is lr lambda w
        lr = 1 / (2 * c * weight)
        found, used = control.data_consistency(lambda x: x @ A.mT, y, mu, rate=lr * weight, steps=15, tolerance=1e-20)
        assert float((found @ A.mT - y).abs().max()) < 1e-10
        assert float(((found - mu) @ basis[3:].mT).abs().max()) < 1e-12
        assert used.tolist() == [1] * 4


def test_data_steps_stop_at_the_noise_floor_or_at_the_limit(generator: torch.Generator) -> None:
    A = torch.randn(5, 8, generator=generator, dtype=F64)
    rate = 0.5 / float(torch.linalg.matrix_norm(A, 2)) ** 2
    y = torch.randn(6, 5, generator=generator, dtype=F64)
    y[0] = 0.0  # satisfied from the start
    mu = torch.zeros(6, 8, dtype=F64)
    for steps, tolerance in ((500, 0.01), (3, 0.01), (40, 0.1)):
        found, used = control.data_consistency(lambda x: x @ A.mT, y, mu, rate=rate, steps=steps, tolerance=tolerance)
        squares = (found @ A.mT - y).square().sum(1)
        assert bool(((squares <= tolerance * 5) | (used == steps)).all())
        assert int(used[0]) == 0
        assert torch.equal(found[0], mu[0])
        # nobody takes one step too many
        before, _ = control.data_consistency(
            lambda x: x @ A.mT, y[1:], mu[1:], rate=rate, steps=int(used[1:].min()) - 1, tolerance=0.0
        )
        shortest = used[1:].argmin()
        assert float((before[shortest] @ A.mT - y[1:][shortest]).square().sum()) > tolerance * 5


def test_items_of_a_batch_do_not_see_each_other(generator: torch.Generator) -> None:
    A = torch.randn(3, 4, generator=generator, dtype=F64)
    y, mu = torch.randn(5, 3, generator=generator, dtype=F64), torch.randn(5, 4, generator=generator, dtype=F64)
    settings = {"rate": 0.02, "steps": 30, "tolerance": 0.05}
    together, _ = control.data_consistency(lambda x: (x @ A.mT).tanh(), y, mu, **settings)
    alone = [control.data_consistency(lambda x: (x @ A.mT).tanh(), y[i : i + 1], mu[i : i + 1], **settings)[0]
             for i in range(5)]  # fmt: skip
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)


def test_without_the_prior_it_is_landweber(generator: torch.Generator) -> None:
    """Pull zero, constant rate h/2: mu_n is A^+ y + (I - h A^T A)^n (mu_0 - A^+ y)."""
    A = torch.randn(3, 5, generator=generator, dtype=F64)
    h = 1 / float(torch.linalg.matrix_norm(A, 2)) ** 2
    y, mu = torch.randn(2, 3, generator=generator, dtype=F64), torch.randn(2, 5, generator=generator, dtype=F64)
    times = levels(4)
    found = solve(
        MixtureField(gaussian(5), LINEAR), mu, y, measure=lambda x: x @ A.mT, times=times,
        pull=torch.zeros_like(times), data_rates=torch.full_like(times, h / 2), data_steps=3,
    )  # fmt: skip
    fixed = y @ torch.linalg.pinv(A).mT
    power = torch.linalg.matrix_power(torch.eye(5, dtype=F64) - h * A.mT @ A, 12)
    torch.testing.assert_close(found.latent, fixed + (mu - fixed) @ power, rtol=1e-10, atol=1e-10)
    assert found.data_steps.tolist() == [[3, 3]] * 4


def test_network_is_never_differentiated_but_the_decoder_is() -> None:
    """The network's pass saves no tensor; the decoder's weights are saved for the gradient of the data."""
    net, decoder = nn.Linear(2, 2).double(), nn.Sequential(nn.Linear(2, 4), nn.Tanh()).double()
    saved: list[Tensor] = []
    during: list[int] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            before = len(saved)
            out: Tensor = net(x).tanh() + 0 * t[:, None]
            during.append(len(saved) - before)
            assert not out.requires_grad
            return out

    mu, y, times = torch.zeros(3, 2, dtype=F64), 0.5 * torch.ones(3, 4, dtype=F64), levels(5)
    field = NetworkField(Watched(), LINEAR)
    start = float((decoder(mu) - y).square().sum().detach())
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.detach()) or x, lambda x: x):
        found = solve(field, mu, y, measure=lambda x: x, decoder=decoder, times=times, pull=0.01 * times)
    assert during == [0] * 5
    assert any(x.shape[-2:] in (decoder[0].weight.shape, decoder[0].weight.mT.shape) for x in saved)
    assert float(found.residual.sum()) < 0.9 * start
    assert not found.latent.requires_grad
    assert not found.image.requires_grad


# --- the whole (check 5) ----------------------------------------------------------------------------------------------


def test_one_weighted_loss_ends_at_the_posterior_mean_when_precisions_match(generator: torch.Generator) -> None:
    """Small steps, Gaussian prior s I, linear A: the stationary mean is ridge, with the precision sum_u kappa u^2/C_u.

    With the data's weight chosen so that this is (noise variance)/s it is the exact posterior mean.
    """
    s, noise, n = 0.6, 0.4, 1500
    A = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=F64)
    y = torch.tensor([[1.0, -0.7]], dtype=F64)
    prior = GaussianMixture(torch.tensor([[0.2, -0.1, 0.4]], dtype=F64), s)
    times = levels(8)
    kappa = 0.01
    u = 1 - times
    pulled = float((kappa * u**2 / (times**2 * s + u**2)).mean())  # the prior's mean contraction a step
    rate = pulled * s / noise**2 / 2  # 2 rate / pulled = s / noise^2
    mu = torch.zeros(n, 3, dtype=F64)
    field = MixtureField(prior, LINEAR)
    for sweep in range(120):
        mu = solve(
            field, mu, y.expand(n, 2), seed=sweep, measure=lambda x: x @ A.mT, times=times,
            pull=torch.full_like(times, kappa), data_rates=torch.full_like(times, rate), data_steps=1,
            share=torch.zeros_like(times),
        ).latent  # fmt: skip
    exact = prior.condition(A, y[0], noise).mean
    ridge = torch.linalg.solve(
        A.mT @ A + noise**2 / s * torch.eye(3, dtype=F64), A.mT @ y[0] + noise**2 / s * prior.mean
    )
    torch.testing.assert_close(exact, ridge, rtol=1e-9, atol=1e-9)
    assert float((mu.mean(0) - exact).abs().max()) < 1e-2


def test_matches_the_paper_written_out() -> None:
    """The card's loop in velocity form, with its own noise order, gives the same latents."""
    field, times = MixtureField(three_bumps(), LINEAR), levels(9)
    lam, lr, steps, tolerance = 0.5, 0.4, 4, 1e-3
    w = torch.linspace(0.8, 0.6, 9, dtype=F64)
    y, mu = torch.tensor([[0.9], [-1.2]], dtype=F64), torch.zeros(2, 2, dtype=F64)
    generator = torch.Generator().manual_seed(3)
    kept, mine = torch.randn(2, 2, generator=generator, dtype=F64), mu
    for j, t in enumerate(times):
        u = 1 - t
        e = (1 - u) * kept + (1 - (1 - u) ** 2).sqrt() * torch.randn(2, 2, generator=generator, dtype=F64)
        x = (1 - u) * mine + u * e
        v = field.velocity(x, t)
        kept = x - t * v
        mine = mine - lam * w[j] * ((mine - e) - v)
        for _ in range(steps):
            r = mine[:, :1] - y
            step = torch.cat([2 * r, torch.zeros_like(r)], 1)
            mine = mine - lr * lam * w[j] * step * (r.square().sum(1, keepdim=True) > tolerance)
    found = solve(
        field, mu, y, seed=3, times=times, pull=lam * w / (1 - times), data_rates=lr * lam * w,
        data_steps=steps, tolerance=tolerance,
    )  # fmt: skip
    torch.testing.assert_close(found.latent, mine, rtol=1e-12, atol=1e-12)
    assert found.nfe == 9


def test_labels_reach_the_field() -> None:
    field = FunctionField(lambda x, t, y: y[:, None] + 0 * x, LINEAR, predicts="data")
    times, labels = levels(3), torch.tensor([1.0, 2.0], dtype=F64)
    found = control.flair(
        field, first, torch.zeros(2, 1, dtype=F64), torch.zeros(2, 2, dtype=F64), times=times,
        pull=torch.ones_like(times), data_rates=torch.zeros_like(times), tolerance=0.0, y=labels,
    )  # fmt: skip
    torch.testing.assert_close(found.latent[:, 1], labels)


# --- calibration (checks 7, 8) ----------------------------------------------------------------------------------------


def test_weights_have_mean_one_and_are_one_for_a_constant_error(generator: torch.Generator) -> None:
    grid = torch.linspace(0, 1, 100, dtype=F64)
    errors = torch.rand(100, generator=generator, dtype=F64) + 0.1
    weights = control.calibrated_weights(errors, grid, grid)
    assert float(weights.mean()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(weights * errors, (weights * errors)[:1].expand(100))
    constant = control.calibrated_weights(torch.full_like(grid, 3.0), grid, levels())
    torch.testing.assert_close(constant, torch.ones(20, dtype=F64), rtol=0, atol=1e-12)


def test_weights_are_read_at_the_nearest_level(generator: torch.Generator) -> None:
    grid = torch.linspace(0, 1, 11, dtype=F64)[torch.randperm(11, generator=generator)]
    errors = torch.rand(11, generator=generator, dtype=F64) + 0.1
    times = torch.tensor([0.0, 0.149, 0.151, 0.42, 1.0], dtype=F64)
    all_weights = control.calibrated_weights(errors, grid, grid)
    for time, weight in zip(times, control.calibrated_weights(errors, grid, times), strict=True):
        best = min(range(11), key=lambda k: abs(float(grid[k] - time)))
        assert float(weight) == float(all_weights[best])


def test_flow_matching_error_is_the_denoising_error_over_noise_squared(generator: torch.Generator) -> None:
    """Isotropic Gaussian of variance s: L(t) = s/(t^2 s + (1 - t)^2) an entry, measured through the denoising error."""
    s = 0.7
    prior = GaussianMixture(torch.zeros(1, 8, dtype=F64), s)
    times = torch.tensor([0.1, 0.4, 0.8], dtype=F64)
    error = metrics.denoising_error(MixtureField(prior, LINEAR), prior.sample(4000, generator=generator), times,
                                    generator=generator)  # fmt: skip
    measured = error.mean(1) / (1 - times) ** 2
    spread = error.std(1) / (1 - times) ** 2 / math.sqrt(4000)
    assert float(((measured - s / (times**2 * s + (1 - times) ** 2)).abs() / spread).max()) < 4


@pytest.mark.bad_input
def test_pull_of_two_or_more_is_refused() -> None:
    field = MixtureField(three_bumps(), LINEAR)
    times = levels()
    mu, y = torch.zeros(1, 2, dtype=F64), torch.zeros(1, 1, dtype=F64)
    weights = 0.5 * torch.ones_like(times)
    weights[-1] = 2 * (1 - times[-1])
    with pytest.raises(ValueError, match=r"pull must lie in \[0, 2\).* to 2"):
        solve(field, mu, y, pull=weights / (1 - times))
    with pytest.raises(ValueError, match="pull must lie"):
        solve(field, mu, y, pull=-torch.ones_like(times))


def test_beyond_two_the_iteration_diverges() -> None:
    """Why the guard: all data at zero, so mu shrinks by |1 - kappa| a level: below one only for kappa < 2."""
    field = FunctionField(lambda x, t: 0 * x, LINEAR, predicts="data")
    start, y, times = torch.ones(1, 2, dtype=F64), torch.zeros(1, 1, dtype=F64), levels(10)
    for kappa in (0.5, 1.9, 1.999):
        found = solve(field, start, y, times=times, pull=torch.full_like(times, kappa), tolerance=1e9)
        torch.testing.assert_close(found.latent, ((1 - kappa) ** 10) * start)
        assert float(found.latent.abs().max()) < 1


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": levels().flip(0)}, "times must increase"),
        ({"times": torch.linspace(0.5, 1, 20, dtype=F64)}, "stay below 1"),
        ({"pull": torch.ones(3, dtype=F64)}, "pull must have one value for each"),
        ({"share": torch.ones(3, dtype=F64)}, "share must have one value for each"),
        ({"data_rates": torch.ones(3, dtype=F64)}, "data_rates must have one value for each"),
        ({"tolerance": -1.0}, "tolerance must not be negative"),
        ({"data_steps": 0}, "data_steps must be positive"),
        ({"measure": lambda x: x}, r"the measurement has shape \[1, 2\], but y has \[1, 1\]"),
    ],
)
def test_bad_settings_are_named(changes: dict, message: str) -> None:
    field = MixtureField(three_bumps(), LINEAR)
    with pytest.raises(ValueError, match=message):
        solve(field, torch.zeros(1, 2, dtype=F64), torch.ones(1, 1, dtype=F64), **changes)


@pytest.mark.bad_input
def test_bad_states_are_named() -> None:
    field, y = MixtureField(three_bumps(), LINEAR), torch.ones(1, 1, dtype=F64)
    with pytest.raises(TypeError, match="pull and mu must have the same dtype"):
        solve(field, torch.zeros(1, 2, dtype=F64), y, pull=torch.ones(20))
    with pytest.raises(ValueError, match="one batch size, got 1 and 2"):
        solve(field, torch.zeros(2, 2, dtype=F64), y)
    with pytest.raises(ValueError, match="no limit"):
        solve(FunctionField(lambda x, t: x, LINEAR, predicts="noise"), torch.zeros(1, 2, dtype=F64), y,
              times=torch.linspace(0, 0.8, 20, dtype=F64))  # fmt: skip
    with pytest.raises(FloatingPointError, match="lower the data's step size"):
        solve(field, torch.zeros(1, 2, dtype=F64), y, data_rates=torch.full((20,), 1e30, dtype=F64))


@pytest.mark.bad_input
def test_bad_calibration_is_named() -> None:
    grid = torch.linspace(0, 1, 3)
    with pytest.raises(ValueError, match="vectors of one length"):
        control.calibrated_weights(torch.ones(2), grid, grid)
    with pytest.raises(ValueError, match="errors must be positive"):
        control.calibrated_weights(torch.tensor([1.0, 0.0, 1.0]), grid, grid)
    with pytest.raises(ValueError, match="times must lie in"):
        control.calibrated_weights(torch.ones(3), grid, grid + 1)
    with pytest.raises(ValueError, match="share must lie in"):
        control.carried_noise(torch.zeros(1, 2), 1.5)
