"""Straightness, length and cost against closed forms."""

import math

import pytest
import torch

from flowlib import metrics, paths, solvers
from flowlib.distributions import GaussianMixture
from flowlib.fields import MixtureField


def test_straight_even_motion_has_no_straightness_defect() -> None:
    times = torch.linspace(0, 1, 11, dtype=torch.float64)
    x0, x1 = torch.randn(2, 30, 2, dtype=torch.float64)
    line = solvers.Trajectory(times, x0 + times[:, None, None] * (x1 - x0), nfe=10)
    assert metrics.straightness(line) == pytest.approx(0.0, abs=1e-20)
    uneven = solvers.Trajectory(times, x0 + (times**2)[:, None, None] * (x1 - x0), nfe=10)
    assert metrics.straightness(uneven) > 0.1


@pytest.mark.parametrize("r", [0.5, 2.0])
def test_straightness_and_crossing_energy_add_up_to_the_saved_cost(r: float) -> None:
    """For N(0, 1) to N(0, r^2) on the linear path S + V = 2 r, with V = r^2 int 1 / ((1-t)^2 + r^2 t^2) dt."""
    field = MixtureField(GaussianMixture(torch.zeros(1, 1).double(), r**2), paths.linear())
    x0 = torch.ones(1, 1, dtype=torch.float64)  # S scales with x0^2, whose mean is one
    flow = solvers.ode(field, x0, steps=2000, method="rk4")
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    crossing = float(torch.trapezoid(r**2 / ((1 - t) ** 2 + r**2 * t**2), t))
    assert metrics.straightness(flow) + crossing == pytest.approx(2 * r, abs=1e-5)


def test_length_of_a_quarter_circle() -> None:
    angle = torch.linspace(0, math.pi / 2, 1001, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], 1)[:, None]
    trajectory = solvers.Trajectory(torch.linspace(0, 1, 1001, dtype=torch.float64), circle, nfe=1000)
    assert metrics.path_length(trajectory) == pytest.approx(math.pi / 2, rel=1e-6)


def test_transport_cost_is_the_mean_power_of_the_distance() -> None:
    x0, x1 = torch.zeros(4, 1, 2, 2), torch.full((4, 1, 2, 2), 2.0)
    assert metrics.transport_cost(x0, x1) == pytest.approx(16.0)
    assert metrics.transport_cost(x0, x1, power=1) == pytest.approx(4.0)


def test_transport_cost_takes_any_cost() -> None:
    x0, x1 = torch.zeros(3, 2), torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 1.0]])
    cost = metrics.transport_cost(x0, x1, cost=lambda z: z.abs().sum(1) + z[:, 0].exp())
    assert cost == pytest.approx((1 + math.e + 2 + 1 + 4 + math.exp(-3)) / 3)


def test_crossing_energy_of_lines_that_meet() -> None:
    """Two pairs that swap places meet at t = 1/2 with opposite velocities: no field explains both."""
    x0, x1 = torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([[1.0], [-1.0]]).double()
    assert metrics.crossing_energy(lambda x, t: torch.zeros_like(x), x0, x1) == pytest.approx(4.0)
    apart = metrics.crossing_energy(lambda x, t: x / (1 + t), x0, 2 * x0)  # x_t = (1 + t) x0
    assert apart == pytest.approx(0.0, abs=1e-25)


@pytest.mark.bad_input
def test_bad_input() -> None:
    ends = solvers.ode(lambda x, t: x, torch.zeros(2, 2), steps=5, keep=False)
    with pytest.raises(ValueError, match="holds only its ends"):
        metrics.straightness(ends)
    with pytest.raises(ValueError, match="same shape"):
        metrics.transport_cost(torch.zeros(2, 2), torch.zeros(3, 2))
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"cost must return shape \[3\]"):
        metrics.transport_cost(x, x, cost=lambda z: z)
    with pytest.raises(ValueError, match="power must be positive"):
        metrics.transport_cost(x, x, power=0)
    with pytest.raises(ValueError, match="same shape"):
        metrics.crossing_energy(lambda y, t: y, x, x[:2])
    with pytest.raises(ValueError, match="nodes must be positive"):
        metrics.crossing_energy(lambda y, t: y, x, x, nodes=0)
