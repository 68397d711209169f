"""Perturbed fields: the error that was added is the error that is there, and swirls leave densities alone."""

import math

import pytest
import torch
from torch import Tensor

from flowlib import metrics, nets, paths, solvers
from flowlib.distributions import GaussianMixture
from flowlib.fields import FunctionField, MixtureField, NetworkField, PerturbedField, swirl

TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)


def exact() -> MixtureField:
    means = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [1.0, -1.2]], dtype=torch.float64)
    spread = torch.tensor([[0.3, 0.6], [0.5, 0.3], [0.4, 0.4]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return MixtureField(GaussianMixture(means, spread, weights), paths.linear())


def states(n: int = 40, dim: int = 2) -> Tensor:
    return 1.5 * torch.randn(n, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def bounded(x: Tensor, t: Tensor) -> Tensor:
    """A position-dependent antisymmetric matrix."""
    return (2 * torch.sin(x[:, 0] - 0.5 * x[:, 1]) + x[:, 1].cos())[:, None, None] * TURN.to(x)


@pytest.mark.parametrize("t", [0.0, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("A", [3 * TURN, bounded], ids=["constant", "varying"])
def test_swirl_has_no_weighted_divergence(A: object, t: float) -> None:
    field, x = exact(), states()
    r = swirl(field.function("score"), A)
    assert float(r(x, torch.tensor(t).double()).detach().square().sum(1).mean()) > 0.1
    assert float(metrics.weighted_divergence(r, field.function("score"), x, t).abs().max()) < 1e-8


def test_constant_swirl_is_tangential_and_has_no_plain_divergence() -> None:
    field, x, t = exact(), states(), torch.tensor(0.6).double()
    r, trace = solvers.divergence(swirl(field.function("score"), TURN), x, t)
    assert float((r * field.score(x, t)).sum(1).abs().max()) < 1e-10
    assert float(trace.abs().max()) < 1e-9
    _, varying = solvers.divergence(swirl(field.function("score"), bounded), x, t)
    assert float(varying.abs().max()) > 0.5  # invisible, and yet not divergence-free


def test_varying_swirl_of_a_constant_matrix_is_the_constant_swirl() -> None:
    score, x, t = exact().function("score"), states(), torch.tensor(0.5).double()
    fixed = lambda x, t: TURN.expand(x.shape[0], 2, 2) + 0 * x[:, :1, None]
    torch.testing.assert_close(swirl(score, fixed)(x, t), swirl(score, TURN)(x, t))


def test_a_matrix_of_the_time_alone_needs_no_slopes() -> None:
    score, x, t = exact().function("score"), states(), torch.tensor(0.5).double()
    r = swirl(score, lambda x, t: (t * TURN).expand(x.shape[0], 2, 2))
    torch.testing.assert_close(r(x, t), 0.5 * swirl(score, TURN)(x, t))
    with torch.no_grad():
        torch.testing.assert_close(r(x, t), 0.5 * score(x, t) @ TURN.T)
    assert float(metrics.weighted_divergence(r, score, x, 0.5).abs().max()) < 1e-10


def test_swirl_in_three_dimensions_and_under_no_grad() -> None:
    def A(x: Tensor, t: Tensor) -> Tensor:
        full = torch.einsum("bi,ijk->bjk", x.sin(), torch.arange(27.0, dtype=x.dtype).reshape(3, 3, 3).cos())
        return full - full.mT

    score = lambda x, t: -x
    x, t = states(dim=3), torch.tensor(0.5).double()
    assert float(metrics.weighted_divergence(swirl(score, A), score, x, t).abs().max()) < 1e-10
    with torch.no_grad():
        quiet = swirl(score, A)(x, t)
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, swirl(score, A)(x, t).detach())


@pytest.mark.parametrize("kind", paths.PREDICTIONS)
def test_perturbation_reaches_every_prediction_in_its_own_unit(kind: str) -> None:
    field, x, t = exact(), states(), torch.tensor(0.4).double()
    r = swirl(field.function("score"), TURN)
    _, factor = field.path.coefficients(t, "velocity", kind)
    error = getattr(PerturbedField(field, r), kind)(x, t) - getattr(field, kind)(x, t)
    torch.testing.assert_close(error, factor * r(x, t))


def test_conditions_reach_the_field_that_is_perturbed() -> None:
    torch.manual_seed(0)
    net = NetworkField(nets.MLP(2, width=8, classes=3), paths.linear())
    field, x = PerturbedField(net, lambda x, t: torch.ones_like(x)), torch.zeros(3, 2)
    y = torch.tensor([0, 1, 2])
    torch.testing.assert_close(field.velocity(x, 0.5, y=y), net.velocity(x, 0.5, y=y) + 1)


@pytest.mark.parametrize("A", [3 * TURN, bounded], ids=["constant", "varying"])
def test_likelihood_is_the_same_and_codes_differ(A: object) -> None:
    field = exact()
    stirred = PerturbedField(field, swirl(field.function("score"), A))
    x = field.distribution.sample(60, generator=torch.Generator().manual_seed(2))
    log_prob, there = solvers.log_likelihood(stirred, x, steps=100)
    assert float((log_prob - field.distribution.log_prob(x)).abs().max()) < 1e-4
    code = solvers.invert(field, x, steps=100, method="rk4").end
    assert float((there.end - code).norm(dim=1).mean()) > 0.3
    back = solvers.ode(stirred, there.end, steps=100, method="rk4").end
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("c", [0.5, 2.0, 5.0])
def test_swirl_keeps_the_weights_of_the_components(c: float) -> None:
    field, n = exact(), 3000
    stirred = PerturbedField(field, swirl(field.function("score"), c * TURN))
    start = torch.randn(n, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = solvers.ode(stirred, start, steps=60, method="rk4", keep=False).end
    shares = field.responsibilities(x, 1.0)
    error = (shares.mean(0) - field.distribution.weights).abs()
    assert (error < 3.5 * shares.std(0) / math.sqrt(n)).all()


def test_sde_of_a_swirled_field_keeps_the_density() -> None:
    field, n = exact(), 3000
    stirred = PerturbedField(field, swirl(field.function("score"), TURN))
    generator = torch.Generator().manual_seed(4)
    start = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    times = torch.linspace(0, 0.98, 200, dtype=torch.float64)
    x = solvers.sde(stirred, start, times=times, method="heun", generator=generator, keep=False).end
    distances = [
        metrics.energy_distance(x, field.sample(n, 0.98, generator=torch.Generator().manual_seed(10 + i)))
        for i in range(3)
    ]
    floors = [
        metrics.energy_distance(
            field.sample(n, 0.98, generator=torch.Generator().manual_seed(20 + i)),
            field.sample(n, 0.98, generator=torch.Generator().manual_seed(30 + i)),
        )
        for i in range(6)
    ]
    assert abs(sum(distances)) / 3 < 3 * sum(abs(floor) for floor in floors) / 6


def test_times_without_a_conversion_are_refused() -> None:
    noise = FunctionField(lambda x, t: x, paths.linear(), predicts="noise")
    field, x = PerturbedField(noise, lambda x, t: x), torch.zeros(2, 2)
    with pytest.raises(ValueError, match="velocity cannot be computed from the noise"):
        field.velocity(x, 0.0)
    with pytest.raises(ValueError, match="score cannot be computed from the velocity"):
        field.score(x, 1.0)


@pytest.mark.bad_input
def test_bad_input() -> None:
    score = exact().function("score")
    with pytest.raises(ValueError, match="A must be antisymmetric"):
        swirl(score, torch.eye(2))
    with pytest.raises(ValueError, match="A must be a square matrix"):
        swirl(score, torch.zeros(2, 3))
    t = torch.tensor(0.5).double()
    with pytest.raises(ValueError, match="A must be antisymmetric"):
        swirl(score, lambda x, t: x[:, :, None] * x[:, None, :])(states(), t)
    with pytest.raises(ValueError, match=r"perturbation\(x, t\) and x must have the same shape"):
        PerturbedField(exact(), lambda x, t: torch.ones(2).double()).velocity(states(), 0.5)
    with pytest.raises(TypeError, match=r"perturbation\(x, t\) and x must have the same dtype"):
        PerturbedField(exact(), lambda x, t: x.float()).velocity(states(), 0.5)
    with pytest.raises(ValueError, match=r"A\(x, t\) must have shape"):
        swirl(score, lambda x, t: x)(states(), t)
