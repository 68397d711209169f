"""Teleportation and perturbations against the closed forms of a Gaussian."""

import math

import pytest
import torch

from flowlib import paths, solvers
from flowlib.distributions import GaussianMixture
from flowlib.fields import FunctionField, GaussianField, MixtureField


def gaussian(path: paths.GaussianPath) -> GaussianField:
    root = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.tensor([2.0, 0.5, 0.2], dtype=torch.float64)
    return GaussianField(torch.tensor([1.0, 0.0, -0.5]).double(), path, values, torch.linalg.qr(root)[0])


X0 = torch.randn(10, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.8])
def test_teleporting_an_exactly_gaussian_model_changes_nothing(name: str, t: float) -> None:
    field = gaussian(paths.by_name(name))
    whole = solvers.ode(field, X0, steps=200, method="rk4").end
    jumped = solvers.teleport(field, X0, field, t, steps=200, method="rk4")
    assert float((jumped.end - whole).abs().max()) < 1e-8
    assert jumped.nfe == 800
    assert float(jumped.times[0]) == pytest.approx(t)


def test_remaining_steps_on_edm_are_those_of_its_own_grid() -> None:
    """Equal steps in t from t* are Karras' rule with sigma_max replaced by sigma(t*)."""
    field = gaussian(paths.edm())
    jumped = solvers.teleport(field, 80 * X0, field, 0.4, steps=5)
    sigma = field.path.schedule.sigma(jumped.times)
    powers = sigma ** (1 / 7)
    karras = torch.linspace(float(powers[0]), 0.002 ** (1 / 7), 6, dtype=torch.float64) ** 7
    torch.testing.assert_close(sigma, karras)


@pytest.mark.parametrize(("weights", "order"), [([0.5, 0.5], 4), ([0.3, 0.7], 3)])
def test_error_of_the_jump_starts_with_the_first_cumulant_beyond_the_second(weights: list[float], order: int) -> None:
    """On the linear path it grows like t^3 for a skewed law and like t^4 for a symmetric one."""
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    mixture = GaussianMixture(means, 0.05, torch.tensor(weights, dtype=torch.float64))
    field = MixtureField(mixture, paths.linear())
    matched = GaussianField(mixture.mean, field.path, residual=float(mixture.covariance))
    x0 = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    gaps = []
    for t in (0.01, 0.02):
        grid = torch.linspace(0, t, 51, dtype=torch.float64)
        exact = solvers.ode(field, x0, times=grid, method="rk4", keep=False).end
        gaps.append(float((exact - matched.flow(x0, 0.0, t)).abs().mean()))
    assert math.log2(gaps[1] / gaps[0]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("t", [0.0, 0.4, 0.9])
def test_a_kick_grows_by_the_propagator(t: float) -> None:
    field = gaussian(paths.linear())
    kick = torch.randn(10, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    grid = torch.linspace(t, 1, 301, dtype=torch.float64)
    change = solvers.perturb(field, X0, kick, times=grid, method="rk4")
    torch.testing.assert_close(change, kick @ field.propagator(t, 1.0), rtol=0, atol=1e-8)


def test_conditions_reach_the_field() -> None:
    field = FunctionField(lambda x, t, rate: rate * x, paths.linear())
    one = torch.ones(1, 1, dtype=torch.float64)
    change = solvers.perturb(field, one, one, times=torch.linspace(0, 1, 400).double(), method="rk4", rate=-2.0)
    torch.testing.assert_close(change, torch.full((1, 1), -2.0).double().exp())


@pytest.mark.bad_input
def test_bad_input() -> None:
    field = gaussian(paths.linear())
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\), got 1.0"):
        solvers.teleport(field, X0, field, 1.0, steps=3)
    with pytest.raises(ValueError, match="must share a path"):
        solvers.teleport(field, X0, gaussian(paths.vp()), 0.5, steps=3)
    reverting = [gaussian(paths.mean_reverting(center, 0.5)) for center in (0.0, 1.0)]
    with pytest.raises(ValueError, match="must share a path"):
        solvers.teleport(reverting[0], X0, reverting[1], 0.5, steps=3)
    with pytest.raises(ValueError, match="steps must be positive"):
        solvers.teleport(field, X0, field, 0.5, steps=0)
    with pytest.raises(ValueError, match="kick and x must have the same shape"):
        solvers.perturb(field, X0, X0[:2], times=torch.tensor([0.0, 1.0]))
