"""Two-time flow maps against the Gaussian's closed form, finite differences and reverse-mode differentiation."""

import pytest
import torch
from torch import Tensor

from flowlib import nets, paths, solvers
from flowlib.fields import FunctionFlowMap, GaussianField, NetworkFlowMap

MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
STD = torch.tensor([2.0, 0.6, 0.1], dtype=torch.float64)


def exact() -> FunctionFlowMap:
    return FunctionFlowMap(lambda x, s, t: nets.gaussian_average(x, s, t, MEAN, STD)[0], paths.linear())


def field() -> GaussianField:
    return GaussianField(MEAN, paths.linear(), STD**2, torch.eye(3, dtype=torch.float64))


def network(generator: torch.Generator, classes: int | None = None) -> NetworkFlowMap:
    net = nets.TwoTimeMLP(MEAN, STD, width=16, depth=2, classes=classes, waves=(1, 2)).double()
    for p in net.parameters():
        p.data = 0.4 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return NetworkFlowMap(net, paths.linear())


def batch(generator: torch.Generator, n: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    u = torch.rand(2, n, generator=generator, dtype=torch.float64).sort(0).values
    return 2 * torch.randn(n, 3, generator=generator, dtype=torch.float64), u[0], u[1]


def test_gaussian_map_is_the_flow_of_the_gaussian_field(generator: torch.Generator) -> None:
    x, s, t = batch(generator)
    moved = torch.stack([field().flow(x[i : i + 1], s[i], t[i])[0] for i in range(len(x))])
    torch.testing.assert_close(exact().flow(x, s, t), moved, rtol=0, atol=1e-12)
    torch.testing.assert_close(exact().velocity(x, t), field().velocity(x, t), rtol=0, atol=1e-11)
    torch.testing.assert_close(exact().data(x, t), field().data(x, t), rtol=0, atol=1e-10)


def test_diagonal_of_the_gaussian_map_is_half_the_logarithmic_derivative_of_its_variance(
    generator: torch.Generator,
) -> None:
    x, _, t = batch(generator)
    c = t[:, None] ** 2 * STD**2 + (1 - t[:, None]) ** 2
    rate = (2 * t[:, None] * STD**2 - 2 * (1 - t[:, None])) / (2 * c)
    torch.testing.assert_close(exact().velocity(x, t), MEAN + rate * (x - t[:, None] * MEAN), rtol=0, atol=1e-11)


def test_a_map_of_no_time_is_the_identity_bit_for_bit_and_leaves_with_its_velocity(generator: torch.Generator) -> None:
    flow_map, (x, s, _) = network(generator), batch(generator)
    assert torch.equal(flow_map.flow(x, s, s), x)
    speed = flow_map.tangent(x, s, s, dt=1.0)[1]
    torch.testing.assert_close(speed, flow_map.velocity(x, s), rtol=0, atol=1e-13)


def test_tangents_are_central_differences_and_reverse_mode_derivatives(generator: torch.Generator) -> None:
    flow_map, (x, s, t) = network(generator), batch(generator)
    dx, h = torch.randn(x.shape, generator=generator, dtype=torch.float64), 1e-5
    for options in ({"dt": 1.0}, {"ds": 1.0}, {"dx": dx}, {"dx": dx, "ds": 1.0, "dt": -0.5}):
        value, derivative = flow_map.tangent(x, s, t, **options)
        step = {"dx": torch.zeros_like(x), "ds": 0.0, "dt": 0.0} | options
        ends = [
            flow_map.jump(x + sign * h * step["dx"], s + sign * h * step["ds"], t + sign * h * step["dt"])
            for sign in (1, -1)
        ]
        torch.testing.assert_close(derivative, (ends[0] - ends[1]) / (2 * h), rtol=1e-3, atol=1e-8)
        torch.testing.assert_close(value, flow_map.jump(x, s, t))
    # reverse mode: the gradient of every output with respect to its own time
    time = t.clone().requires_grad_()
    out = flow_map.jump(x, s, time)
    rows = [torch.autograd.grad(out[:, j].sum(), time, retain_graph=True)[0] for j in range(3)]
    torch.testing.assert_close(flow_map.tangent(x, s, t, dt=1.0)[1], torch.stack(rows, 1), rtol=1e-10, atol=1e-10)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda a, b, c: flow_map.jump(a[None], b[None], c[None])[0]))(x, s, t)
    torch.testing.assert_close(
        flow_map.tangent(x, s, t, dx=dx)[1], torch.einsum("bij,bj->bi", jacobian, dx), rtol=1e-9, atol=1e-9
    )


def test_tangents_can_be_differentiated_with_respect_to_the_parameters(generator: torch.Generator) -> None:
    """The gradient of |d/dt psi|^2 is that of reverse mode over reverse mode."""
    flow_map, (x, s, t) = network(generator), batch(generator, 8)
    weights = list(flow_map.parameters())
    one = torch.autograd.grad(flow_map.tangent(x, s, t, dt=1.0)[1].square().sum(), weights)
    time = t.clone().requires_grad_()
    out = flow_map.jump(x, s, time)
    rows = [torch.autograd.grad(out[:, j].sum(), time, create_graph=True)[0] for j in range(3)]
    two = torch.autograd.grad(torch.stack(rows, 1).square().sum(), weights)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16])
def test_jumps_of_the_exact_map_do_not_depend_on_their_number(steps: int, generator: torch.Generator) -> None:
    x = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    sampled = solvers.jumps(exact(), x, steps=steps)
    assert sampled.nfe == steps
    torch.testing.assert_close(sampled.end, MEAN + STD * x, rtol=0, atol=1e-12)


def test_jumps_back_invert_jumps_forth(generator: torch.Generator) -> None:
    x = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    grid = torch.tensor([0.0, 0.1, 0.7, 1.0], dtype=torch.float64)
    there = solvers.jumps(exact(), x, times=grid).end
    torch.testing.assert_close(solvers.jumps(exact(), there, times=grid.flip(0)).end, x, rtol=0, atol=1e-10)


def test_a_flow_map_is_a_field_for_every_solver(generator: torch.Generator) -> None:
    x = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    solved = solvers.ode(exact(), x, steps=400, method="rk4", keep=False).end
    torch.testing.assert_close(solved, exact().flow(x, 0.0, 1.0), rtol=0, atol=1e-6)


def test_untrained_network_is_the_flow_map_of_independent_gaussians(generator: torch.Generator) -> None:
    flow_map = NetworkFlowMap(nets.TwoTimeMLP(MEAN, STD, width=8).double(), paths.linear())
    x, s, t = batch(generator)
    torch.testing.assert_close(flow_map.flow(x, s, t), exact().flow(x, s, t), rtol=0, atol=1e-12)


def test_labels_reach_the_network(generator: torch.Generator) -> None:
    flow_map, (x, s, t) = network(generator, classes=3), batch(generator, 4)
    y = torch.tensor([0, 1, 2, -1])
    together = flow_map.tangent(x, s, t, dt=1.0, y=y)[1]
    alone = [flow_map.tangent(x[i : i + 1], s[i : i + 1], t[i : i + 1], dt=1.0, y=y[i : i + 1])[1] for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(flow_map.flow(x, s, t, y=y)[3:], flow_map.flow(x[3:], s[3:], t[3:]))
    assert not torch.allclose(together, flow_map.tangent(x, s, t, dt=1.0)[1])
    sampled = solvers.jumps(flow_map, x, steps=2, y=y)
    half = torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(sampled.end, flow_map.flow(flow_map.flow(x, 0.0, half, y=y), half, 1.0, y=y))


@pytest.mark.bad_input
def test_bad_input() -> None:
    x = torch.zeros(4, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"s must lie in \[0, 1\]"):
        exact().flow(x, -0.1, 0.5)
    with pytest.raises(ValueError, match="t must be a float, a 0-d tensor or of shape"):
        exact().flow(x, 0.1, torch.zeros(3, dtype=torch.float64))
    with pytest.raises(TypeError, match="x must have a floating-point dtype"):
        exact().flow(x.long(), 0.1, 0.5)
    with pytest.raises(ValueError, match="give either steps or times"):
        solvers.jumps(exact(), x)
    with pytest.raises(ValueError, match="one event shape"):
        nets.TwoTimeMLP(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="width and depth must be positive"):
        nets.TwoTimeMLP(torch.zeros(2), torch.ones(2), width=0)
    with pytest.raises(ValueError, match=r"x must have event shape \[3\]"):
        nets.TwoTimeMLP(torch.zeros(3), torch.ones(3))(torch.zeros(1, 2), torch.zeros(1), torch.ones(1))
