"""Exact fields are gradients to rounding; known rotations have known asymmetry and circulation; estimates converge."""

import math

import pytest
import torch
from torch import Tensor

from flowlib import metrics, nets, paths
from flowlib.distributions import Empirical, GaussianMixture
from flowlib.fields import MixtureField, NetworkField, PerturbedField, swirl

TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(dim: int = 2) -> GaussianMixture:
    means = 1.5 * torch.randn(3, dim, generator=seeded(0), dtype=torch.float64)
    root = torch.randn(3, dim, dim, generator=seeded(1), dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    return GaussianMixture(means, root @ root.mT + 0.2 * torch.eye(dim, dtype=torch.float64), weights)


def states(n: int = 20, dim: int = 2) -> Tensor:
    return 1.5 * torch.randn(n, dim, generator=seeded(2), dtype=torch.float64)


def linear(dim: int, seed: int = 3) -> tuple[Tensor, object]:
    matrix = torch.randn(dim, dim, generator=seeded(seed), dtype=torch.float64)
    return matrix, lambda x, t: (x.flatten(1) @ matrix.T).reshape(x.shape)


@pytest.mark.parametrize("kind", paths.PREDICTIONS)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_exact_predictions_are_gradients(kind: str, t: float) -> None:
    f, x = MixtureField(mixture(), paths.linear()).function(kind), states()
    assert float(metrics.jacobian_asymmetry(f, x, t).max()) < 1e-10
    assert float(metrics.circulation(f, x, t, 0.5, points=128).abs().max()) < 1e-10
    triangle = torch.stack([x, x + 0.4 * x.roll(1, 0), x + 0.4 * x.roll(2, 0), x])
    assert float(metrics.line_integral(f, triangle, t, points=60).abs().max()) < 1e-9


def test_exact_field_of_a_data_set_is_a_gradient() -> None:
    field = MixtureField(Empirical(torch.randn(12, 1, 3, 3, generator=seeded(4), dtype=torch.float64)), paths.linear())
    x = torch.randn(5, 1, 3, 3, generator=seeded(5), dtype=torch.float64)
    assert float(metrics.jacobian_asymmetry(field.function("noise"), x, 0.6).max()) < 1e-10
    loops = metrics.circulation(field.function("noise"), x, 0.6, 0.3, generator=seeded(6))
    assert float(loops.abs().max()) < 1e-10


def test_asymmetry_of_a_matrix() -> None:
    matrix, f = linear(5)
    expected = torch.linalg.norm(matrix - matrix.T) / (2 * torch.linalg.norm(matrix))
    got = metrics.jacobian_asymmetry(f, states(dim=5), 0.5)
    torch.testing.assert_close(got, expected.expand(20))


def test_asymmetry_is_one_for_rotations_and_ignores_scale() -> None:
    x = states()
    torch.testing.assert_close(metrics.jacobian_asymmetry(lambda x, t: x @ TURN.T, x, 0.5), torch.ones(20).double())
    _, f = linear(2)
    torch.testing.assert_close(
        metrics.jacobian_asymmetry(lambda x, t: -7 * f(x, t), x, 0.5), metrics.jacobian_asymmetry(f, x, 0.5)
    )


def test_probed_norms_average_to_the_dense_ones() -> None:
    """All sign vectors of three dimensions: the mean over them is exact; random ones agree within their error."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).double()
    x = states(4, 3)
    skew, whole = metrics.jacobian_norms(lambda x, t: net(x), x, 0.5)
    draws = [
        metrics.jacobian_norms(lambda x, t: net(x), x, 0.5, probes=1, generator=seeded(100 + i)) for i in range(400)
    ]
    for i, exact in enumerate((skew, whole)):
        single = torch.stack([draw[i] for draw in draws])
        standard_error = single.std(0) / math.sqrt(len(single))
        assert float(single.std(0).min()) > 0
        assert ((single.mean(0) - exact).abs() < 4 * standard_error).all()
    many = metrics.jacobian_asymmetry(lambda x, t: net(x), x, 0.5, probes=4000, generator=seeded(7))
    torch.testing.assert_close(many, (skew / whole).sqrt(), rtol=0.05, atol=0)


def test_probes_of_images_and_conditions() -> None:
    torch.manual_seed(0)
    field = NetworkField(nets.MLP((1, 4, 4), width=16, classes=3), paths.linear(), predicts="noise").double()
    x = torch.randn(6, 1, 4, 4, generator=seeded(8), dtype=torch.float64)
    y = torch.arange(6) % 3
    f = field.function("noise")
    dense = torch.stack(metrics.jacobian_norms(f, x, 0.5, y=y))
    probed = torch.stack(metrics.jacobian_norms(f, x, 0.5, probes=3000, generator=seeded(9), y=y))
    torch.testing.assert_close(probed, dense, rtol=0.1, atol=0)
    assert float((dense - torch.stack(metrics.jacobian_norms(f, x, 0.5, y=1 - y.clamp(max=1)))).abs().max()) > 0


def test_circulation_of_a_rotation_is_twice_the_area() -> None:
    loops = metrics.circulation(lambda x, t: 3 * x @ TURN.T, states(), 0.5, 0.7, plane=torch.eye(2).double())
    torch.testing.assert_close(loops, torch.full((20,), 3 * 2 * math.pi * 0.7**2).double())


def test_circulation_approaches_curl_times_area_with_order_four() -> None:
    def f(x: Tensor, t: Tensor) -> Tensor:
        return torch.stack([torch.sin(2 * x[:, 1]), x[:, 0] ** 3], 1)

    x = states()
    curl = 3 * x[:, 0] ** 2 - 2 * torch.cos(2 * x[:, 1])
    gaps = [
        (metrics.circulation(f, x, 0.5, r, plane=torch.eye(2).double()) - curl * math.pi * r**2).abs().mean()
        for r in (0.2, 0.1)
    ]
    assert math.log2(float(gaps[0] / gaps[1])) == pytest.approx(4, abs=0.1)


def test_normalised_circulation_is_at_most_one_and_reached_by_a_centred_rotation() -> None:
    centre = torch.zeros(1, 2, dtype=torch.float64)
    f = lambda x, t: 5 * x @ TURN.T
    assert float(metrics.circulation(f, centre, 0.5, 0.3, normalise=True).abs()) == pytest.approx(1)
    _, g = linear(6)
    loops = metrics.circulation(g, states(dim=6), 0.5, 0.3, normalise=True, generator=seeded(10))
    assert float(loops.abs().max()) < 1


def test_line_integral_of_a_gradient_is_the_difference_of_its_potential() -> None:
    field, t = MixtureField(mixture(), paths.linear()), 0.7
    a, b, c = (0.5 * part for part in states(30).chunk(3))
    expected = field.log_prob(c, t) - field.log_prob(a, t)
    for corners in (torch.stack([a, c]), torch.stack([a, b, c])):
        got = metrics.line_integral(field.function("score"), corners, t, points=60)
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)


def test_weighted_divergence_is_that_of_the_flux() -> None:
    field, x, t = MixtureField(mixture(), paths.linear()), states().requires_grad_(), 0.6
    _, r = linear(2)
    flux = field.log_prob(x, t).exp()[:, None] * r(x, t)
    trace = sum(torch.autograd.grad(flux[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
    expected = (trace / field.log_prob(x, t).exp()).detach()
    got = metrics.weighted_divergence(r, field.function("score"), x.detach(), t)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_guided_swirls_have_the_stated_divergence() -> None:
    """div(pi_w r_w)/pi_w = w (1 - w) s_c^T (A_u - A_c) s_u for r = A s in each branch."""
    other = GaussianMixture(mixture().means + 0.7, 0.6)
    u = MixtureField(mixture(), paths.linear()).function("score")
    c = MixtureField(other, paths.linear()).function("score")
    x, t, w = states(), torch.tensor(0.6, dtype=torch.float64), 2.5
    for a_u, a_c in ((1.5, -0.5), (1.0, 1.0)):
        r_u, r_c = swirl(u, a_u * TURN), swirl(c, a_c * TURN)
        mixed = lambda x, t, r_u=r_u, r_c=r_c: (1 - w) * r_u(x, t) + w * r_c(x, t)
        got = metrics.weighted_divergence(mixed, lambda x, t: (1 - w) * u(x, t) + w * c(x, t), x, t)
        expected = w * (1 - w) * (a_u - a_c) * torch.einsum("bi,ij,bj->b", c(x, t), TURN, u(x, t))
        assert float((got - expected).abs().max()) < 1e-8
        assert (float(expected.abs().max()) > 1) == (a_u != a_c)


def test_helmholtz_fit_recovers_a_gradient_and_a_swirl() -> None:
    """For N(0, C), Bx splits exactly: gradients of quadratics are symmetric, and A C^-1 x is invisible."""
    C = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    x = torch.randn(40_000, 2, generator=seeded(11), dtype=torch.float64) @ torch.linalg.cholesky(C).T
    hessian = torch.tensor([[0.5, -0.3], [-0.3, 0.2]], dtype=torch.float64)
    gradient, stirring = x @ hessian, -x @ torch.linalg.inv(C) @ TURN.T
    quadratics = lambda x: torch.stack([x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2, x[:, 0], x[:, 1]], 1)
    part, rest = metrics.helmholtz_fit(gradient + stirring, x, quadratics)
    torch.testing.assert_close(part + rest, gradient + stirring)
    assert float((part * rest).sum(1).mean().abs()) < 1e-10
    scale = float(stirring.square().sum(1).mean())
    assert float((part - gradient).square().sum(1).mean()) < 1e-3 * scale
    only, nothing = metrics.helmholtz_fit(gradient, x, quadratics)
    torch.testing.assert_close(only, gradient)
    assert float(nothing.abs().max()) < 1e-9


def test_helmholtz_fit_accepts_functions_without_a_gradient() -> None:
    x = states(200)
    basis = lambda x: torch.cat([torch.ones_like(x[:, :1]) + 0 * x[:, :1], x, x], 1)  # rank deficient
    part, _ = metrics.helmholtz_fit(torch.ones_like(x), x, basis)
    torch.testing.assert_close(part, torch.ones_like(x))


def test_perturbed_field_fails_the_tests_the_exact_one_passes() -> None:
    exact = MixtureField(mixture(), paths.linear())
    stirred = PerturbedField(exact, swirl(exact.function("score"), 2 * TURN))
    skew = metrics.jacobian_asymmetry(stirred.function("score"), states(), 0.5)
    loops = metrics.circulation(stirred.function("score"), states(), 0.5, 0.5)
    assert float(skew.min()) > 1e-3
    assert float(loops.abs().mean()) > 0.1


def test_results_follow_the_dtype_of_the_input() -> None:
    f, x = (lambda x, t: x.flip(1) * torch.tensor([1.0, 2.0], dtype=x.dtype)), torch.ones(3, 2)
    assert metrics.jacobian_asymmetry(f, x, 0.5, probes=2).dtype == torch.float32
    assert metrics.circulation(f, x, torch.full((3,), 0.5), 0.1).dtype == torch.float32
    assert metrics.line_integral(f, torch.stack([x, 2 * x]), 0.5).dtype == torch.float32


@pytest.mark.bad_input
def test_bad_input() -> None:
    f, x = (lambda x, t: -x), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="probes must be positive"):
        metrics.jacobian_norms(f, x, 0.5, probes=0)
    with pytest.raises(ValueError, match="does not depend on x"):
        metrics.jacobian_norms(lambda x, t: torch.ones_like(x), x, 0.5)
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        metrics.jacobian_asymmetry(f, x, 1.5)
    with pytest.raises(ValueError, match="radius must be positive"):
        metrics.circulation(f, x, 0.5, 0.0)
    with pytest.raises(ValueError, match="points must be at least 3"):
        metrics.circulation(f, x, 0.5, 1.0, points=2)
    with pytest.raises(ValueError, match="not parallel"):
        metrics.circulation(f, x, 0.5, 1.0, plane=torch.ones(2, 2))
    with pytest.raises(ValueError, match="plane must have shape"):
        metrics.circulation(f, x, 0.5, 1.0, plane=torch.ones(3, 2))
    with pytest.raises(ValueError, match="at least two entries"):
        metrics.circulation(f, torch.zeros(3, 1), 0.5, 1.0)
    with pytest.raises(ValueError, match="corners must have shape"):
        metrics.line_integral(f, x, 0.5)
    with pytest.raises(ValueError, match="corners has NaN or infinite"):
        metrics.line_integral(f, torch.stack([x, math.nan * x]), 0.5)
    with pytest.raises(ValueError, match=r"basis\(x\) must have shape"):
        metrics.helmholtz_fit(x, x, lambda x: x.sum(1))
    with pytest.raises(ValueError, match="same shape"):
        metrics.helmholtz_fit(x[:2], x, lambda x: x)
