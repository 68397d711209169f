"""Estimates between Gaussian samples against the laws' closed forms, optimal maps, and definitions by brute force."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowlib import metrics

SEEDS = 40


def normal(n: int, dim: int, seed: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(n, dim, generator=generator, dtype=torch.float64)


def is_unbiased(metric: Callable[[Tensor, Tensor], float], expected: float) -> bool:
    """Whether the mean over seeds, N(0, 1) against N(1, 4), is within four standard errors of `expected`."""
    values = torch.tensor([metric(normal(300, 1, s), normal(200, 1, 1000 + s, 1.0, 2.0)) for s in range(SEEDS)])
    return abs(float(values.mean()) - expected) < 4 * float(values.std()) / math.sqrt(SEEDS)


def test_energy_distance_of_gaussians_is_that_of_folded_normals() -> None:
    def folded(mean: float, std: float) -> float:
        """E|Z| for Z ~ N(mean, std^2)."""
        tail = mean * math.erf(mean / (std * math.sqrt(2)))
        return std * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / (2 * std**2)) + tail

    expected = 2 * folded(1, math.sqrt(5)) - folded(0, math.sqrt(2)) - folded(0, math.sqrt(8))
    assert is_unbiased(metrics.energy_distance, expected)


def test_mmd_of_gaussians_is_that_of_convolved_kernels() -> None:
    h = 0.8

    def kernel(mean: float, variance: float) -> float:
        """E exp(-Z^2 / 2h^2) for Z ~ N(mean, variance)."""
        return h / math.sqrt(h**2 + variance) * math.exp(-(mean**2) / (2 * (h**2 + variance)))

    expected = kernel(0, 2) + kernel(0, 8) - 2 * kernel(1, 5)
    assert is_unbiased(lambda x, y: metrics.mmd(x, y, bandwidth=h), expected)


def test_wasserstein_to_the_image_of_a_convex_gradient_is_the_displacement() -> None:
    """x -> Ax with A symmetric positive is optimal (Brenier)."""
    x, matrix = normal(150, 2, 0), torch.tensor([[2.0, 0.5], [0.5, 0.7]], dtype=torch.float64)
    assert metrics.wasserstein2(x, x @ matrix) == pytest.approx(metrics.transport_cost(x, x @ matrix) ** 0.5, rel=1e-9)


def test_wasserstein_is_below_a_rotations_displacement() -> None:
    """A rotation is a straight coupling but no optimal one."""
    x, rotation = normal(150, 2, 0), torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    assert metrics.wasserstein2(x, x @ rotation) < 0.5 * metrics.transport_cost(x, x @ rotation) ** 0.5


def test_repeating_every_point_changes_no_wasserstein_distance() -> None:
    x, y = normal(30, 2, 0), normal(30, 2, 1, mean=1.0)
    assert metrics.wasserstein2(x, y.repeat(2, 1)) == pytest.approx(metrics.wasserstein2(x, y), rel=1e-9)
    sliced = [
        metrics.sliced_wasserstein2(x, z, projections=32, generator=torch.Generator().manual_seed(0))
        for z in (y, y.repeat(2, 1))
    ]
    assert sliced[0] == pytest.approx(sliced[1], rel=1e-9)


def test_sliced_distance_never_exceeds_the_exact_one() -> None:
    x, y = normal(80, 3, 0), normal(80, 3, 1, std=2.0)
    assert metrics.sliced_wasserstein2(x, y) <= metrics.wasserstein2(x, y)


def test_precision_and_recall_agree_with_their_definition() -> None:
    generated, real = normal(40, 2, 0), normal(60, 2, 1, mean=0.8)

    def covered(points: Tensor, centres: Tensor, k: int) -> float:
        radii = [sorted(math.dist(c, o) for o in centres.tolist())[k] for c in centres.tolist()]  # [0] is the point
        inside = [
            any(math.dist(p, c) <= r for c, r in zip(centres.tolist(), radii, strict=True)) for p in points.tolist()
        ]
        return sum(inside) / len(inside)

    expected = covered(generated, real, 2), covered(real, generated, 2)
    assert metrics.precision_recall(generated, real, k=2) == pytest.approx(expected)
