"""The theorems of rectified flow on fields that are known exactly."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from numpy.polynomial.legendre import leggauss
from scipy.optimize import brentq
from torch import Tensor

from flowlib import data, metrics, paths, solvers
from flowlib.distributions import GaussianMixture
from flowlib.fields import FunctionField, MixtureField

NODES, WEIGHTS = (torch.as_tensor(a).double() for a in leggauss(40))
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2


def turn(angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def gaussian_velocity(cross: Tensor, target: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """E[x1 - x0 | x_t] for jointly Gaussian pairs: Cov(x0) = I, Cov(x1) = target, Cov(x1, x0) = cross."""
    eye = torch.eye(len(target)).double()

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        v = (1 - t) ** 2 * eye + t * (1 - t) * (cross + cross.T) + t**2 * target
        c = (1 - t) * (cross - eye) + t * (target - cross.T)
        return x @ torch.linalg.solve(v, c.T)

    return velocity


def flow_matrix(velocity: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A with z1 = A z0, for a linear field."""
    return solvers.ode(velocity, torch.eye(2).double(), steps=400, method="rk4", keep=False).end.T


@pytest.mark.parametrize("r", [0.5, 2.0])
def test_gaussian_line_closed_forms(r: float) -> None:
    """N(0, 1) to N(0, r^2): Z1 = r Z0, cost 1 + r^2 to (r - 1)^2, S + V = 2 r with V = pi r / 2."""
    field = MixtureField(GaussianMixture(torch.zeros(1, 1).double(), r**2), paths.linear())
    x0 = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]).double()  # four pairs with the moments of the law
    x1 = torch.tensor([[r], [-r], [r], [-r]]).double()
    crossing = metrics.crossing_energy(field, x0, x1, nodes=64)
    assert crossing == pytest.approx(math.pi * r / 2, abs=1e-8)
    z1 = solvers.ode(field, x0, steps=400, method="rk4", keep=False).end
    torch.testing.assert_close(z1, r * x0, atol=1e-8, rtol=0)
    z = x0 * ((1 - NODES) ** 2 + r**2 * NODES**2).sqrt()  # [4, nodes], along the exact trajectory
    speeds = torch.stack([field.velocity(z[:, k : k + 1], t)[:, 0] for k, t in enumerate(NODES)], 1)
    bend = float((WEIGHTS * (speeds - (r - 1) * x0).square()).sum(1).mean())
    assert bend + crossing == pytest.approx(2 * r, abs=1e-8)
    saved = metrics.transport_cost(x0, x1) - metrics.transport_cost(x0, r * x0)
    assert saved == pytest.approx(2 * r, abs=1e-12)


@pytest.mark.parametrize("r", [0.5, 2.0])
def test_reflow_of_the_gaussian_line_is_exact_in_one_step(r: float) -> None:
    field = FunctionField(lambda x, t: (r - 1) * x / (1 - t + r * t), paths.linear())
    x0 = torch.linspace(-3, 3, 13).double()[:, None]
    torch.testing.assert_close(solvers.ode(field, x0, steps=1).end, r * x0, atol=1e-10, rtol=0)
    assert metrics.crossing_energy(field, x0, r * x0) < 1e-20
    assert metrics.straightness(solvers.ode(field, x0, steps=20)) < 1e-20


@pytest.mark.parametrize("angle", [0.5, 2.0, 3.0])
def test_a_rotation_is_straight_and_not_optimal(angle: float) -> None:
    rotation = turn(angle)
    velocity = gaussian_velocity(rotation, torch.eye(2).double())
    x0 = math.sqrt(2) * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).double()  # covariance I
    x1 = x0 @ rotation.T
    assert metrics.crossing_energy(velocity, x0, x1) < 1e-20
    flow = solvers.ode(velocity, x0, steps=10)
    assert metrics.straightness(flow) < 1e-20
    torch.testing.assert_close(flow.end, x1, atol=1e-12, rtol=0)  # Rectify changes nothing
    cost = metrics.transport_cost(x0, flow.end)
    # E|x|^2 = d = 2, so the cost is 2 * 2 (1 - cos); the optimal coupling of equal laws is the identity, cost 0
    assert cost == pytest.approx(4 * (1 - math.cos(angle)), abs=1e-12)


def test_reflow_on_exact_fields_keeps_marginals_and_never_raises_the_cost() -> None:
    """A correlated Gaussian pair in the plane, rectified three times in closed form."""
    target = torch.tensor([[3.0, 0.8], [0.8, 0.5]]).double()
    root = torch.linalg.cholesky(target)
    cross = 0.6 * root @ turn(1.1)  # Cov(x1, x0) of x1 = cross x0 + independent noise
    costs = [2 + float(target.trace()) - 2 * float(cross.trace())]
    for _ in range(3):
        cross = flow_matrix(gaussian_velocity(cross, target))  # (Z0, A Z0) has Cov(Z1, Z0) = A
        torch.testing.assert_close(cross @ cross.T, target, atol=1e-7, rtol=0)
        costs.append(2 + float(target.trace()) - 2 * float(cross.trace()))
    assert costs[0] > costs[1] + 0.1
    assert all(after <= before + 1e-7 for before, after in itertools.pairwise(costs))
    assert costs[3] == pytest.approx(costs[1], abs=1e-7)  # straight after one rectification, as linear flows are
    # the linear flow of independent pairs is the optimal map; this coupling rotates, and stays above it
    values, vectors = torch.linalg.eigh(target)
    optimal = float((values.sqrt() - 1).square().sum())
    independent = flow_matrix(gaussian_velocity(torch.zeros(2, 2).double(), target))
    torch.testing.assert_close(independent, vectors * values.sqrt() @ vectors.T, atol=1e-7, rtol=0)
    assert costs[3] > optimal + 0.05


def test_in_one_dimension_rectify_is_the_quantile_map() -> None:
    mixture = GaussianMixture(
        torch.tensor([[-2.0], [0.5], [3.0]]).double(), 0.2, torch.tensor([0.3, 0.45, 0.25]).double()
    )
    x0 = torch.linspace(-2.5, 2.5, 61).double()[:, None]
    field = MixtureField(mixture, paths.linear())
    z1 = solvers.ode(field, x0, method="adaptive", rtol=1e-9, atol=1e-9, keep=False).end
    assert (z1.diff(dim=0) > 0).all()
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())

    def quantile(u: float) -> float:
        def excess(y: float) -> float:
            return float((mixture.weights * normal.cdf((y - mixture.means[:, 0]) / 0.2**0.5)).sum()) - u

        return float(brentq(excess, -8, 9, xtol=1e-10))

    expected = torch.tensor([quantile(float(normal.cdf(x))) for x in x0[:, 0]]).double()
    torch.testing.assert_close(z1[:, 0], expected, atol=1e-4, rtol=0)


def test_exact_rectification_in_the_plane_keeps_the_law_and_lowers_every_convex_cost() -> None:
    mixture = data.toys.eight_gaussians(4.0, 0.3, dtype=torch.float64)
    field = MixtureField(mixture, paths.linear())
    generator = torch.Generator().manual_seed(0)
    n = 4000
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x1 = mixture.sample(n, generator=generator)
    flow = solvers.ode(field, x0, steps=200, method="heun")
    z1 = flow.end
    fresh = mixture.sample(n, generator=generator)
    # two samples of one law: (2/n) times (energy distance statistic) has mean and spread of order E|X - Y| / n
    floors = [metrics.energy_distance(mixture.sample(n, generator=generator), fresh) for _ in range(3)]
    assert metrics.energy_distance(z1, fresh) < max(floors) + 20 / n
    costs: list[dict] = [
        {"power": 1},
        {"power": 2},
        {"power": 4},
        {"cost": lambda z: z.abs().sum(1)},
        {"cost": lambda z: torch.cosh(z[:, 0]) + z[:, 1].relu()},
    ]
    for options in costs:
        assert metrics.transport_cost(x0, z1, **options) < metrics.transport_cost(x0, x1, **options)
    # E|X1 - X0|^2 - E|Z1 - Z0|^2 = S + V, the pairs' numbers within four standard errors
    crossing = metrics.crossing_energy(field, x0, x1, nodes=24)
    bend = metrics.straightness(flow)
    before, after = (x1 - x0).square().sum(1), (z1 - x0).square().sum(1)
    error = float((before - after).std() / n**0.5) + 0.01 * bend
    assert float(before.mean() - after.mean()) == pytest.approx(bend + crossing, abs=4 * error)


def test_one_step_of_independent_pairs_has_no_variance() -> None:
    mixture = data.toys.eight_gaussians(4.0, 0.3, dtype=torch.float64)
    x0 = torch.randn(500, 2, dtype=torch.float64)
    end = solvers.ode(MixtureField(mixture, paths.linear()), x0, steps=1).end
    assert float(end.var(0).max()) < 1e-10
    torch.testing.assert_close(end[0], mixture.mean, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("field", "variance"), [("independent", 4.0), ("reflowed", 3.44)])
def test_the_sde_needs_independent_pairs(field: str, variance: float) -> None:
    """N(0, 1) to N(0, 4), eta = 1 - t: after reflow (t v - x)/(1 - t) is not the score, and the law is lost."""
    r = 2.0
    exact = MixtureField(GaussianMixture(torch.zeros(1, 1).double(), r**2), paths.linear())
    reflowed = FunctionField(lambda x, t: (r - 1) * x / (1 - t + r * t), paths.linear())
    chosen = {"independent": exact, "reflowed": reflowed}[field]
    generator = torch.Generator().manual_seed(0)
    n = 40_000
    x0 = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    end = solvers.sde(chosen, x0, steps=100, method="heun", eta=lambda t: 1 - t, generator=generator, keep=False).end
    measured, error = float(end.var()), variance * math.sqrt(2 / n)
    assert measured == pytest.approx(variance, abs=4 * error + 0.005)
    assert (abs(measured - r**2) < 0.1) == (field == "independent")


def test_the_fixed_point_of_a_curved_interpolant_keeps_marginals_and_is_not_straight() -> None:
    """x_t = cos x0 + sin x1 with x1 = x0 in the plane: the law is N(0, I) at each end, the flow moves out and back."""
    x0 = torch.randn(200, 2, dtype=torch.float64)
    angle = lambda t: math.pi / 2 * t
    speed = lambda x, t: (
        math.pi / 2 * (torch.cos(angle(t)) - torch.sin(angle(t))) / (torch.cos(angle(t)) + torch.sin(angle(t))) * x
    )
    flow = solvers.ode(speed, x0, steps=200, method="rk4")
    torch.testing.assert_close(flow.end, x0, atol=1e-8, rtol=0)
    size = float(x0.square().sum(1).mean())
    # int |x'|^2 = (pi/2)^2 int (cos - sin)^2 = (pi/2)^2 (1 - 2/pi)
    assert metrics.straightness(flow) == pytest.approx((math.pi / 2) ** 2 * (1 - 2 / math.pi) * size, rel=1e-4)
