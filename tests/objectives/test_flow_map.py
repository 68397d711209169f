"""The losses of flow maps: the exact map is their zero, and each gradient flows where it should and nowhere else."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from flowlib import nets, objectives, paths
from flowlib.fields import FlowMap, FunctionFlowMap, GaussianField, NetworkFlowMap

MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
STD = torch.tensor([2.0, 0.6], dtype=torch.float64)
RESIDUALS = {
    "lagrangian": objectives.lagrangian_residual,
    "eulerian": objectives.eulerian_residual,
    "mean_flow": objectives.mean_flow_residual,
    "progressive": objectives.progressive_residual,
}
KINDS = list(RESIDUALS)


def exact() -> FunctionFlowMap:
    return FunctionFlowMap(lambda x, s, t: nets.gaussian_average(x, s, t, MEAN, STD)[0], paths.linear())


def field() -> GaussianField:
    return GaussianField(MEAN, paths.linear(), STD**2, torch.eye(2, dtype=torch.float64))


def network(generator: torch.Generator) -> NetworkFlowMap:
    net = nets.TwoTimeMLP(MEAN, STD, width=16, depth=2).double()
    for p in net.parameters():
        p.data = 0.4 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return NetworkFlowMap(net, paths.linear())


def batch(generator: torch.Generator, n: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    u = torch.rand(2, n, generator=generator, dtype=torch.float64).sort(0).values
    return 2 * torch.randn(n, 2, generator=generator, dtype=torch.float64), u[0], u[1]


def gradients(value: Tensor, model: nn.Module) -> list[Tensor]:
    grads = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), grads, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_residual_of_the_exact_map_is_zero(kind: str, generator: torch.Generator) -> None:
    x, s, t = batch(generator)
    assert float(RESIDUALS[kind](exact(), x, s, t).abs().max()) < 1e-10


@pytest.mark.parametrize("kind", ["lagrangian", "eulerian"])
def test_residual_of_the_exact_map_with_the_exact_field_as_teacher_is_zero(
    kind: str, generator: torch.Generator
) -> None:
    x, s, t = batch(generator)
    assert float(RESIDUALS[kind](exact(), x, s, t, teacher=field()).abs().max()) < 1e-10


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_progressive_residual_times_the_gap_is_the_semigroup_residual(share: float, generator: torch.Generator) -> None:
    flow_map, (x, s, t) = network(generator), batch(generator)
    middle = share * s + (1 - share) * t
    semigroup = flow_map.jump(x, s, t) - flow_map.jump(flow_map.jump(x, s, middle), middle, t)
    residual = objectives.progressive_residual(flow_map, x, s, t, share=share)
    torch.testing.assert_close((t - s)[:, None] * residual, semigroup, rtol=0, atol=1e-11)


def test_mean_flow_residual_is_minus_the_eulerian_one(generator: torch.Generator) -> None:
    """And it is u - v - (t - s)(du/ds + grad u v), multiplied out with derivatives of u itself."""
    flow_map, (x, s, t) = network(generator), batch(generator)
    mean_flow = objectives.mean_flow_residual(flow_map, x, s, t)
    torch.testing.assert_close(mean_flow, -objectives.eulerian_residual(flow_map, x, s, t), rtol=0, atol=1e-11)
    v = flow_map.velocity(x, s)
    along = torch.func.jvp(lambda a, b: flow_map.average(a, b, t), (x, s), (v, torch.ones_like(s)))[1]
    direct = flow_map.average(x, s, t) - v - (t - s)[:, None] * along
    torch.testing.assert_close(mean_flow, direct, rtol=0, atol=1e-11)


def test_lagrangian_gradient_is_that_of_a_regression_on_a_frozen_number(generator: torch.Generator) -> None:
    flow_map, (x, s, t) = network(generator), batch(generator)
    value = objectives.lagrangian_residual(flow_map, x, s, t).square().sum()
    end, speed = flow_map.tangent(x, s, t, dt=1.0)
    frozen = flow_map.velocity(end, t).detach()
    assert_equal(gradients(value, flow_map), gradients((speed - frozen).square().sum(), flow_map))


def test_eulerian_gradient_is_that_of_a_regression_on_a_frozen_number(generator: torch.Generator) -> None:
    flow_map, (x, s, t) = network(generator), batch(generator)
    value = objectives.eulerian_residual(flow_map, x, s, t).square().sum()
    carried = flow_map.tangent(x, s, t, dx=flow_map.velocity(x, s))[1].detach()
    speed = flow_map.tangent(x, s, t, ds=1.0)[1]
    assert_equal(gradients(value, flow_map), gradients((speed + carried).square().sum(), flow_map))


@pytest.mark.parametrize("kind", ["mean_flow", "progressive"])
def test_gradients_flow_through_one_average_velocity_only(kind: str, generator: torch.Generator) -> None:
    flow_map, (x, s, t) = network(generator), batch(generator)
    residual = RESIDUALS[kind](flow_map, x, s, t)
    average = flow_map.average(x, s, t)
    target = (average - residual).detach()
    assert_equal(gradients(residual.square().sum(), flow_map), gradients((average - target).square().sum(), flow_map))


@pytest.mark.parametrize("kind", ["lagrangian", "eulerian", "progressive"])
def test_a_teacher_gets_no_gradient_and_as_a_copy_changes_nothing(kind: str, generator: torch.Generator) -> None:
    flow_map, (x, s, t) = network(generator), batch(generator)
    teacher = copy.deepcopy(flow_map)
    alone = RESIDUALS[kind](flow_map, x, s, t)
    taught = RESIDUALS[kind](flow_map, x, s, t, teacher=teacher)
    torch.testing.assert_close(taught, alone)
    assert_equal(gradients(taught.square().sum(), flow_map), gradients(alone.square().sum(), flow_map))
    assert all(bool((g == 0).all()) for g in gradients(taught.square().sum(), teacher))


class Line(nn.Module, FlowMap):
    """u_{s,t}(x) = (a + c (t - s)) x: two parameters, so that gradients can be written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.path = paths.linear()
        self.a = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.c = nn.Parameter(torch.tensor(-0.3, dtype=torch.float64))

    def average(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return (self.a + self.c * (t - s))[..., None] * x


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_linear_map_equal_the_hand_derivation(kind: str, generator: torch.Generator) -> None:
    r"""With h = t - s the map is (1 + a h + c h^2) x and its diagonal a x. Residual rho x, its derivatives by (a, c):

    Lagrangian: rho = a + 2 c h - a (1 + a h + c h^2), d = (1, 2 h);
    Eulerian: rho = -(a + 2 c h) + (1 + a h + c h^2) a, d = (-1, -2 h);
    MeanFlow: minus the Eulerian rho, d = (1, h);
    progressive at 1/2: rho = a + c h - m/2 - m/2 (1 + m h/2) with m = a + c h/2, d = (1, h).
    """
    line = Line()
    x, s, t = batch(generator, 1)
    a, c, h = line.a.item(), line.c.item(), float(t - s)
    m = a + c * h / 2
    eulerian = -(a + 2 * c * h) + (1 + a * h + c * h**2) * a
    by_hand = {
        "lagrangian": (a + 2 * c * h - a * (1 + a * h + c * h**2), 1, 2 * h),
        "eulerian": (eulerian, -1, -2 * h),
        "mean_flow": (-eulerian, 1, h),
        "progressive": (a + c * h - m / 2 - m / 2 * (1 + m * h / 2), 1, h),
    }
    rho, da, dc = by_hand[kind]
    norm = float(x.square().sum())
    value = RESIDUALS[kind](line, x, s, t).square().sum()
    assert math.isclose(float(value), rho**2 * norm, rel_tol=1e-10)
    grads = torch.autograd.grad(value, [line.a, line.c])
    assert math.isclose(float(grads[0]), 2 * rho * da * norm, rel_tol=1e-10)
    assert math.isclose(float(grads[1]), 2 * rho * dc * norm, rel_tol=1e-10)


def test_the_velocity_of_a_pair_may_stand_for_its_mean_in_mean_flow_but_not_in_lagrangian(
    generator: torch.Generator,
) -> None:
    """Mean residuals of the exact map in a thin slice of x: zero for MeanFlow, not for the Lagrangian trap."""
    n = 400_000
    x0 = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    x1 = 2 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    s, t = (torch.full((n,), value, dtype=torch.float64) for value in (0.4, 0.9))
    x = (1 - s[:, None]) * x0 + s[:, None] * x1
    flow_map = FunctionFlowMap(
        lambda x, s, t: nets.gaussian_average(x, s, t, x.new_zeros(1), x.new_full((1,), 2.0))[0], paths.linear()
    )
    mean_flow = objectives.mean_flow_residual(flow_map, x, s, t, velocity=x1 - x0)
    trap = flow_map.tangent(x, s, t, dt=1.0)[1] - (x1 - x0)
    # a regression on x: the conditional mean of both is linear in x for Gaussians
    slopes = [(r * x).mean() / x.square().mean() for r in (mean_flow, trap)]
    errors = [float((r * x).std() / x.square().mean() / n**0.5) for r in (mean_flow, trap)]
    assert abs(float(slopes[0])) < 4 * errors[0]
    assert abs(float(slopes[1])) > 20 * errors[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_batch_on_the_diagonal_is_flow_matching(kind: str, generator: torch.Generator) -> None:
    flow_map = network(generator)
    x0, x1 = torch.randn(2, 30, 2, generator=generator, dtype=torch.float64)
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    ours = objectives.self_distillation(flow_map, kind, diagonal=1.0)(x0, x1, generator=seeds[0]).total
    theirs = objectives.flow_matching(flow_map)(x0, x1, generator=seeds[1]).total
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    assert_equal(gradients(ours, flow_map), gradients(theirs, flow_map))


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_batch_mean_of_both_parts(kind: str, generator: torch.Generator) -> None:
    flow_map = network(generator)
    x0, x1 = torch.randn(2, 40, 2, generator=generator, dtype=torch.float64)
    loss = objectives.self_distillation(flow_map, kind)(x0, x1, generator=generator)
    torch.testing.assert_close(loss.total, 0.75 * loss.terms["diagonal"] + 0.25 * loss.terms["residual"])


@pytest.mark.parametrize("kind", KINDS)
def test_exact_map_pays_only_the_floor_of_flow_matching(kind: str, generator: torch.Generator) -> None:
    x0, x1 = torch.randn(2, 40, 2, generator=generator, dtype=torch.float64)
    x1 = MEAN + STD * x1
    teacher = exact() if kind == "progressive" else field()
    self_taught = objectives.self_distillation(exact(), kind)(x0, x1, generator=generator)
    for diagonal, terms in ((0.0, {"residual"}), (0.5, {"diagonal", "residual"})):
        objective = objectives.self_distillation(exact(), kind, diagonal=diagonal, teacher=teacher)
        taught = objective(x0, x1, generator=generator)
        assert float(taught.total) < 1e-20
        assert taught.terms.keys() == terms
    assert float(self_taught.terms["diagonal"]) > 0.1
    if kind != "mean_flow":  # its velocities of pairs have a floor of their own
        assert float(self_taught.terms["residual"]) < 1e-20


def test_learned_weight_has_its_minimum_at_the_logarithm_of_the_error() -> None:
    r = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)
    w = torch.linspace(-8, 8, 160_001, dtype=torch.float64)[:, None]
    value, at = ((-w).exp() * r + w).min(0)
    torch.testing.assert_close(value, 1 + r.log(), rtol=0, atol=1e-8)
    torch.testing.assert_close(w[at, 0], r.log(), rtol=0, atol=1e-4)


def test_learned_weight_starts_as_the_plain_loss_and_enters_as_stated(generator: torch.Generator) -> None:
    flow_map, weight = network(generator), objectives.LearnedWeight().double()
    x0, x1 = torch.randn(2, 40, 2, generator=generator, dtype=torch.float64)

    def value(w: object) -> Tensor:
        seed = torch.Generator().manual_seed(1)
        return objectives.self_distillation(flow_map, "lagrangian", weight=w)(x0, x1, generator=seed).total

    torch.testing.assert_close(value(weight), value(None))
    constant = lambda s, t: torch.full_like(s, math.log(2.0))
    torch.testing.assert_close(value(constant), value(None) / 2 + math.log(2.0))


def test_triangle_is_uniform_and_a_strip_of_it_is_its_part(generator: torch.Generator) -> None:
    s, t = objectives.triangle()(200_000, generator=generator, dtype=torch.float64)
    assert bool(((s >= 0) & (s <= t) & (t <= 1)).all())
    # the smaller and the larger of two uniform times: means 1/3 and 2/3, covariance 1/36
    assert abs(float(s.mean()) - 1 / 3) < 0.003
    assert abs(float(t.mean()) - 2 / 3) < 0.003
    assert abs(float(torch.cov(torch.stack([s, t]))[0, 1]) - 1 / 36) < 0.001
    near = (t - s) <= 0.2
    assert abs(float(near.double().mean()) - 0.36) < 0.005
    u, v = objectives.triangle(0.2)(200_000, generator=generator, dtype=torch.float64)
    assert float((v - u).max()) <= 0.2
    for ours, part in ((u, s[near]), (v, t[near]), (v - u, (t - s)[near])):
        spread = float(ours.std()) / len(part) ** 0.5
        assert abs(float(ours.mean() - part.mean())) < 6 * spread


def test_annealed_gaps_grow_linearly_and_stay_at_the_whole_triangle(generator: torch.Generator) -> None:
    pairs = objectives.AnnealedTriangle(4)
    gaps = [float((t - s).max()) for s, t in (pairs(4000, generator=generator) for _ in range(6))]
    for gap, bound in zip(gaps, (0.25, 0.5, 0.75, 1.0, 1.0, 1.0), strict=True):
        assert 0.9 * bound < gap <= bound


def test_dyadic_pairs_are_halved_by_their_middle_into_dyadic_pairs(generator: torch.Generator) -> None:
    s, t = objectives.dyadic(4)(5000, generator=generator, dtype=torch.float64)
    level = -(t - s).log2()
    assert set(level.tolist()) == {0.0, 1.0, 2.0, 3.0}
    assert bool(((s * 2**level) % 1 == 0).all())
    assert float(t.max()) == 1.0
    for k in range(4):
        assert abs(float((level == k).double().mean()) - 0.25) < 0.03


def test_to_data_ends_at_one(generator: torch.Generator) -> None:
    s, t = objectives.to_data()(1000, generator=generator)
    assert bool((t == 1).all())
    assert 0 <= float(s.min()) < 0.01 < 0.99 < float(s.max()) < 1


@pytest.mark.bad_input
def test_bad_input(generator: torch.Generator) -> None:
    flow_map, x = network(generator), torch.zeros(4, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="kind must be one of 'lagrangian', 'eulerian', 'mean_flow', 'progressive'"):
        objectives.self_distillation(flow_map, "newton")
    with pytest.raises(ValueError, match=r"diagonal must lie in \[0, 1\], got 1.5"):
        objectives.self_distillation(flow_map, "lagrangian", diagonal=1.5)
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\]"):
        objectives.self_distillation(flow_map, "progressive", share=-1.0)
    with pytest.raises(TypeError, match="must be a FlowMap, got GaussianField"):
        objectives.self_distillation(flow_map, "progressive", teacher=field())
    with pytest.raises(ValueError, match="x0 and x1 must have the same shape"):
        objectives.self_distillation(flow_map, "lagrangian")(x, x[:3])
    with pytest.raises(ValueError, match=r"max_gap must lie in \(0, 1\]"):
        objectives.triangle(0.0)
    with pytest.raises(ValueError, match="calls must be positive"):
        objectives.AnnealedTriangle(0)
    with pytest.raises(TypeError, match="levels must be an int"):
        objectives.dyadic(1.5)


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
