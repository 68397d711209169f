"""Couplings: permutations that are optimal, plans that are Sinkhorn's, and labels that follow."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from flowlib import couplings, data


def batch(n: int, dim: int, clustered: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + dim)
    x0 = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    if clustered:
        return x0, data.toys.eight_gaussians(4.0, 0.1, dtype=torch.float64).sample(n, generator=generator)
    return x0, 1 + 0.5 * torch.randn(n, dim, generator=generator, dtype=torch.float64)


def direct_cost(x0: Tensor, x1: Tensor) -> np.ndarray:
    return (x0.flatten(1)[:, None] - x1.flatten(1)).square().sum(2).numpy()


@pytest.mark.parametrize(("n", "dim", "clustered"), [(1, 2, False), (64, 2, True), (257, 3, False), (300, 40, False)])
def test_exact_pairing_is_an_optimal_permutation(n: int, dim: int, clustered: bool) -> None:
    """(300, 40) takes the warm start from rough duals."""
    x0, x1 = batch(n, dim, clustered)
    pairs = couplings.exact_ot(x0, x1)
    assert torch.equal(pairs.index.sort().values, torch.arange(n))
    assert torch.equal(pairs.x1, x1[pairs.index])
    assert torch.equal(pairs.x0, x0)
    cost = direct_cost(x0, x1)
    rows, columns = linear_sum_assignment(cost)
    ours = cost[np.arange(n), pairs.index.numpy()].sum()
    assert ours == pytest.approx(cost[rows, columns].sum(), rel=1e-9)


def test_exact_pairing_agrees_with_pot() -> None:
    x0, x1 = batch(200, 2, clustered=True)
    cost = direct_cost(x0, x1)
    pairs = couplings.exact_ot(x0, x1)
    assert float((pairs.x1 - x0).square().sum(1).mean()) == pytest.approx(ot.emd2([], [], cost), rel=1e-9)


@pytest.mark.parametrize("case", ["all equal", "two halves", "far apart"])
def test_ties_still_give_a_permutation(case: str) -> None:
    x0, x1 = batch(300, 20)
    if case == "all equal":
        x0, x1 = torch.zeros_like(x0), torch.zeros_like(x1)
    elif case == "two halves":
        x1[150:] = x1[:150]
    else:
        x1 = x1 + 1e6
    assert torch.equal(couplings.exact_ot(x0, x1).index.sort().values, torch.arange(300))


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e6])
def test_exact_pairing_does_not_depend_on_the_unit(scale: float) -> None:
    x0, x1 = batch(200, 2, clustered=True)
    cost = direct_cost(x0, x1)
    rows, columns = linear_sum_assignment(cost)
    index = couplings.exact_ot(scale * x0, scale * x1).index.numpy()
    assert cost[np.arange(200), index].sum() == pytest.approx(cost[rows, columns].sum(), rel=1e-9)


def test_in_one_dimension_exact_pairing_sorts() -> None:
    x0, x1 = batch(100, 1)
    pairs = couplings.exact_ot(x0, x1)
    order = x0[:, 0].argsort()
    assert (pairs.x1[order, 0].diff() >= 0).all()


def test_images_are_paired_like_vectors() -> None:
    x0, x1 = batch(20, 16)
    a = couplings.exact_ot(x0, x1).index
    b = couplings.exact_ot(x0.reshape(20, 1, 4, 4), x1.reshape(20, 1, 4, 4)).index
    assert torch.equal(a, b)


def test_independent_pairs_are_untouched() -> None:
    x0, x1 = batch(5, 2)
    pairs = couplings.independent(x0, x1)
    assert pairs.x0 is x0
    assert pairs.x1 is x1
    assert pairs.index is None


def test_squared_distances_are_those_of_the_differences() -> None:
    x0, x1 = batch(30, 7)
    np.testing.assert_allclose(couplings.squared_distances(x0, x1).numpy(), direct_cost(x0, x1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 5.0])
def test_sinkhorn_plan_agrees_with_pot(epsilon: float) -> None:
    x0, x1 = batch(40, 2)
    cost = torch.from_numpy(direct_cost(x0, x1[:30]))
    weights = torch.arange(1, 41, dtype=torch.float64) / 820
    plan = couplings.sinkhorn_plan(cost, epsilon, a=weights, iterations=20_000, tolerance=1e-10)
    theirs = ot.sinkhorn(
        weights.numpy(), np.full(30, 1 / 30), cost.numpy(), epsilon, method="sinkhorn_log", numItermax=20_000,
        stopThr=1e-11,
    )  # fmt: skip
    np.testing.assert_allclose(plan.numpy(), theirs, atol=1e-6 / 40)
    torch.testing.assert_close(plan.sum(1), weights, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(plan.sum(0), torch.full((30,), 1 / 30, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_sinkhorn_limits() -> None:
    """Large epsilon forgets the cost; small epsilon reaches the optimal cost, without underflow."""
    x0, x1 = batch(30, 2)
    cost = torch.from_numpy(direct_cost(x0, x1))
    product = torch.full((30, 30), 1 / 900, dtype=torch.float64)
    torch.testing.assert_close(couplings.sinkhorn_plan(cost, 1e6), product, rtol=1e-4, atol=0)
    sharp = couplings.sinkhorn_plan(cost, 0.003, iterations=100_000, tolerance=1e-4)
    assert torch.isfinite(sharp).all()
    assert float((sharp * cost).sum()) == pytest.approx(ot.emd2([], [], cost.numpy()), rel=0.02)


def test_sinkhorn_draws_partners_from_the_rows_of_the_plan() -> None:
    x0 = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    x1 = torch.tensor([[0.2], [1.3]], dtype=torch.float64)
    plan = couplings.sinkhorn_plan(couplings.squared_distances(x0, x1), 0.5)
    pair = couplings.sinkhorn(0.5)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([pair(x0, x1, generator=generator).index for _ in range(3000)]).double()
    expected = plan[:, 1] / plan.sum(1)
    standard_error = (expected * (1 - expected) / 3000).sqrt()
    assert ((draws.mean(0) - expected).abs() < 4 * standard_error).all()


def test_one_seed_gives_one_pairing() -> None:
    x0, x1 = batch(20, 2)
    a, b = (couplings.sinkhorn(0.5)(x0, x1, generator=torch.Generator().manual_seed(1)).index for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.bad_input
class TestBadInput:
    x = torch.zeros(3, 2)

    @pytest.mark.parametrize("couple", [couplings.independent, couplings.exact_ot, couplings.sinkhorn(0.1)])
    def test_batches(self, couple) -> None:
        with pytest.raises(ValueError, match="x0 and x1 must have the same shape"):
            couple(torch.zeros(4, 2), self.x)
        with pytest.raises(TypeError, match="same dtype"):
            couple(self.x.double(), self.x)
        with pytest.raises(ValueError, match="x1 has NaN"):
            couple(self.x, self.x + math.nan)
        with pytest.raises(ValueError, match="x0 is empty"):
            couple(torch.zeros(0, 2), torch.zeros(0, 2))

    def test_parameters(self) -> None:
        with pytest.raises(ValueError, match="epsilon must be positive"):
            couplings.sinkhorn(0.0)
        with pytest.raises(TypeError, match="iterations must be an int"):
            couplings.sinkhorn(0.1, iterations=1.5)
        with pytest.raises(ValueError, match=r"a must have shape \[2\]"):
            couplings.sinkhorn_plan(torch.zeros(2, 3), 1.0, a=torch.ones(3) / 3)
        with pytest.raises(TypeError, match="a must have the dtype of the cost"):
            couplings.sinkhorn_plan(torch.zeros(2, 3), 1.0, a=torch.ones(2).double() / 2)
        with pytest.raises(ValueError, match="same shape"):
            couplings.assignment(torch.zeros(2, 3), torch.zeros(3, 3))
        with pytest.raises(ValueError, match="b must be positive and sum to 1"):
            couplings.sinkhorn_plan(torch.zeros(2, 3), 1.0, b=torch.ones(3))

    def test_no_convergence(self) -> None:
        x0, x1 = batch(30, 2)
        cost = couplings.squared_distances(x0, x1)
        with pytest.raises(ValueError, match="did not reach tolerance=1e-09 in 3 iterations"):
            couplings.sinkhorn_plan(cost, 0.001, iterations=3)
