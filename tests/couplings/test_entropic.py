"""Sinkhorn without the matrix of costs: the same plan, duality, conditionals, and the contraction of the iteration."""

import itertools
import math

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from flowlib import couplings


def points(n: int = 60, m: int = 45, dim: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    x1 = 1 + 0.5 * torch.randn(m, dim, generator=generator, dtype=torch.float64)
    a, b = (torch.rand(size, generator=generator, dtype=torch.float64) + 0.2 for size in (n, m))
    return x0, x1, a / a.sum(), b / b.sum()


@pytest.mark.parametrize("block", [7, 59, 60, None])
@pytest.mark.parametrize("epsilon", [0.05, 1.0])
def test_blocks_give_the_plan_of_the_matrix(block: int | None, epsilon: float) -> None:
    x0, x1, a, b = points()
    cost = couplings.squared_distances(x0, x1)
    expected = couplings.sinkhorn_plan(cost, epsilon, a=a, b=b, iterations=20_000, tolerance=1e-11)
    plan = couplings.sinkhorn_potentials(
        x0, x1, epsilon, a=a, b=b, iterations=20_000, tolerance=1e-11, block=block
    )  # fmt: skip
    torch.testing.assert_close(plan.dense(), expected, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(plan.transport_cost(), (expected * cost).sum(), rtol=1e-9, atol=0)
    torch.testing.assert_close(plan.conditional_mean(x1), expected @ x1 / expected.sum(1, keepdim=True))


def test_float32_agrees_with_float64_as_far_as_its_scores_do() -> None:
    """A score of C / epsilon has 24 bits, so the plan is good to about 1e-7 max C / epsilon."""
    x0, x1, _, _ = points()
    for epsilon in (1.0, 0.1):
        exact = couplings.sinkhorn_potentials(x0, x1, epsilon, iterations=20_000, tolerance=1e-9)
        short = couplings.sinkhorn_potentials(x0.float(), x1.float(), epsilon, iterations=20_000, tolerance=1e-6)
        assert short.f.dtype == torch.float32
        difference = float((short.dense().double() - exact.dense()).abs().sum()) / 2
        assert difference < 1e-5 * float(couplings.squared_distances(x0, x1).max()) / epsilon


def test_online_plan_agrees_with_pot() -> None:
    x0, x1, a, b = points()
    plan = couplings.sinkhorn_potentials(x0, x1, 0.3, a=a, b=b, iterations=20_000, tolerance=1e-12, block=16)
    cost = couplings.squared_distances(x0, x1).numpy()
    theirs = ot.sinkhorn(a.numpy(), b.numpy(), cost, 0.3, method="sinkhorn_log", numItermax=20_000, stopThr=1e-13)
    np.testing.assert_allclose(plan.dense().numpy(), theirs, rtol=1e-6, atol=1e-12)


def test_duality_gap_closes() -> None:
    """The dual value equals cost + epsilon KL at the solution and is below it, and below any plan's, before."""
    x0, x1, a, b = points()
    cost, product = couplings.squared_distances(x0, x1), a[:, None] * b
    plan = couplings.sinkhorn_potentials(x0, x1, 0.3, a=a, b=b, iterations=20_000, tolerance=1e-12)
    dense = plan.dense()
    primal = (dense * cost).sum() + 0.3 * (dense * (dense / product).log()).sum()
    torch.testing.assert_close(plan.value(), primal, rtol=1e-10, atol=0)
    early = couplings.sinkhorn_potentials(x0, x1, 0.3, a=a, b=b, tolerance=0.2)
    assert early.iterations < plan.iterations
    assert early.value() < plan.value()
    assert plan.value() < (product * cost).sum()  # the product plan has no entropy cost


def test_error_bounds_the_row_marginal_and_columns_are_exact() -> None:
    x0, x1, a, b = points()
    for tolerance in (0.1, 1e-3, 1e-6):
        plan = couplings.sinkhorn_potentials(x0, x1, 0.1, a=a, b=b, iterations=10_000, tolerance=tolerance, block=8)
        dense = plan.dense()
        assert float((dense.sum(1) - a).abs().sum()) / 2 <= plan.error < tolerance
        torch.testing.assert_close(dense.sum(0), b, rtol=1e-9, atol=0)


def test_a_batch_of_costs_is_solved_like_each_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    a = torch.softmax(torch.randn(2, 3, 5, generator=generator, dtype=torch.float64), -1)
    plan = couplings.sinkhorn_cost_potentials(cost, 0.1, a=a)
    assert plan.draw(generator=generator).shape == (2, 3, 5)
    for i in range(2):
        for j in range(3):
            alone = couplings.sinkhorn_cost_potentials(cost[i, j], 0.1, a=a[i, j])
            torch.testing.assert_close(plan.dense()[i, j], alone.dense(), rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(plan.transport_cost()[i, j], alone.transport_cost(), rtol=1e-6, atol=0)
            torch.testing.assert_close(plan.value()[i, j], alone.value(), rtol=1e-6, atol=0)


def test_a_far_column_whose_mass_underflows_is_still_reached() -> None:
    """At epsilon = 0.01 the first pass gives the far point a mass of exp(-40000)."""
    x0 = torch.tensor([[0.0], [1.0], [20.0]], dtype=torch.float64)
    x1 = torch.tensor([[0.1], [1.1], [40.0]], dtype=torch.float64)
    plan = couplings.sinkhorn_potentials(x0, x1, 0.01, tolerance=1e-3)
    torch.testing.assert_close(plan.dense(), torch.eye(3).double() / 3, rtol=0, atol=1e-3)


def test_draws_follow_the_conditionals_across_blocks() -> None:
    x0, x1, a, b = points(5, 4)
    plan = couplings.sinkhorn_potentials(x0, x1, 0.5, a=a, b=b, block=2)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([plan.draw(generator=generator) for _ in range(4000)])
    share = torch.nn.functional.one_hot(draws, 4).double().mean(0)
    conditional = plan.dense() / plan.dense().sum(1, keepdim=True)
    standard_error = (conditional * (1 - conditional) / 4000).sqrt()
    assert ((share - conditional).abs() < 4.5 * standard_error + 1e-4).all()


def test_iteration_contracts_at_birkhoffs_rate() -> None:
    """Hilbert distance of the potentials to the solution shrinks by at least tanh^2(diameter / 4) in an iteration."""
    x0, x1, a, b = points(12, 10)
    cost = couplings.squared_distances(x0, x1)
    epsilon = 2.0

    def potential(iterations: int, tolerance: float) -> Tensor:
        try:
            return couplings.sinkhorn_cost_potentials(
                cost, epsilon, a=a, b=b, iterations=iterations, tolerance=tolerance
            ).g / epsilon  # fmt: skip
        except ValueError as error:
            raise AssertionError("not solved") from error

    solution = potential(10_000, 1e-15)
    gaps = []
    for tolerance in (0.5, 0.05, 0.005, 0.0005):
        plan = couplings.sinkhorn_cost_potentials(cost, epsilon, a=a, b=b, tolerance=tolerance)
        difference = plan.g / epsilon - solution
        gaps.append((plan.iterations, float(difference.max() - difference.min())))
    spread = -cost / epsilon
    cross = spread[:, None, :, None] + spread[None, :, None, :] - spread[:, None, None, :] - spread[None, :, :, None]
    bound = math.tanh(float(cross.max()) / 4) ** 2
    for (k, before), (later, after) in itertools.pairwise(gaps):
        assert after <= bound ** (later - k) * before * (1 + 1e-6)


def test_a_batch_needs_no_matrix() -> None:
    """The coupling of 3000 points works in blocks smaller than the batch."""
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(3000, 2, generator=generator), 3 + torch.randn(3000, 2, generator=generator)
    pairs = couplings.sinkhorn(1.0, tolerance=1e-2)(x0, x1, generator=generator)
    assert torch.equal(pairs.x1, x1[pairs.index])
    cost, independent = (pairs.x1 - x0).square().sum(1).mean(), (x1 - x0).square().sum(1).mean()
    assert float(cost) == pytest.approx(18 + 1, abs=1.0)  # the shift, and the blur of epsilon
    assert cost < independent - 2


@pytest.mark.bad_input
def test_bad_input() -> None:
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="x0 and x1 must have the same event shape"):
        couplings.sinkhorn_potentials(x, torch.zeros(4, 3), 1.0)
    with pytest.raises(ValueError, match="block must be positive"):
        couplings.sinkhorn_potentials(x, x, 1.0, block=0)
    with pytest.raises(ValueError, match="tolerance must be positive"):
        couplings.sinkhorn_cost_potentials(torch.zeros(2, 2), 1.0, tolerance=0.0)
    with pytest.raises(ValueError, match=r"b must have shape \[5, 3\]"):
        couplings.sinkhorn_cost_potentials(torch.zeros(5, 2, 3), 1.0, b=torch.ones(3) / 3)
    with pytest.raises(ValueError, match=r"torch\.float32 cannot resolve this tolerance"):
        couplings.sinkhorn_plan(torch.tensor([[0.0, 1.0], [2.0, 0.3]]), 0.1, iterations=2)
    with pytest.raises(ValueError, match="did not reach tolerance"):
        couplings.sinkhorn_potentials(x, x + 1, 1e-3, iterations=2)
