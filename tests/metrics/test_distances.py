"""Distances between samples against closed forms, scipy and POT."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy import linalg, stats
from torch import Tensor

from flowlib import metrics
from flowlib.metrics import distances


def points(n: int, dim: int = 2, seed: int = 0, shift: float = 0.0) -> Tensor:
    return shift + torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_wasserstein_of_a_translation_is_its_length() -> None:
    x = points(50)
    assert metrics.wasserstein2(x, x + torch.tensor([3.0, 4.0])) == pytest.approx(5.0, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_distances_scale_with_the_unit(scale: float) -> None:
    x, y = points(60), points(50, seed=1, shift=1.0)
    assert metrics.wasserstein2(scale * x, scale * y) == pytest.approx(scale * metrics.wasserstein2(x, y), rel=1e-9)


@pytest.mark.parametrize("name", ["wasserstein2", "energy_distance", "mmd", "frechet_distance"])
def test_distances_do_not_depend_on_the_origin(name: str) -> None:
    x, y, metric = points(60), points(50, seed=1, shift=1.0), getattr(metrics, name)
    assert metric(x + 1e6, y + 1e6) == pytest.approx(metric(x, y), rel=1e-6)


def test_default_bandwidth_is_the_median_distance() -> None:
    x, y = points(60), points(50, seed=1, shift=1.0)
    median = float(torch.nn.functional.pdist(torch.cat([x, y])).median())
    assert metrics.mmd(x, y) == pytest.approx(metrics.mmd(x, y, bandwidth=median), rel=1e-9)


def test_wasserstein_on_the_line_pairs_sorted_points() -> None:
    x, y = points(80, 1), points(80, 1, seed=1, shift=1.0) * 2
    expected = (x.sort(0).values - y.sort(0).values).square().mean().sqrt()
    assert metrics.wasserstein2(x, y) == pytest.approx(float(expected), rel=1e-10)


def test_wasserstein_of_unequal_samples_is_the_linear_program() -> None:
    x, y = points(12), points(7, seed=1)
    plan = ot.emd(np.full(12, 1 / 12), np.full(7, 1 / 7), ot.dist(x.numpy(), y.numpy()))
    expected = math.sqrt((plan * ot.dist(x.numpy(), y.numpy())).sum())
    assert metrics.wasserstein2(x, y) == pytest.approx(expected, rel=1e-10)


def test_sliced_distance_agrees_with_pot_on_the_same_directions() -> None:
    x, y = points(100, 3), points(100, 3, seed=1, shift=0.5)
    ours = metrics.sliced_wasserstein2(x, y, projections=64, generator=torch.Generator().manual_seed(2))
    directions = torch.randn(3, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    theirs = ot.sliced_wasserstein_distance(
        x.numpy(), y.numpy(), projections=(directions / directions.norm(dim=0)).numpy(), p=2
    )
    assert ours == pytest.approx(float(theirs), rel=1e-8)


def test_sliced_distance_of_unequal_samples_uses_quantile_functions() -> None:
    """In one dimension every direction is the same, so it is the exact distance."""
    x, y = points(12, 1), points(7, 1, seed=1)
    assert metrics.sliced_wasserstein2(x, y, projections=3) == pytest.approx(metrics.wasserstein2(x, y), rel=1e-10)


def test_energy_distance_is_the_unbiased_version_of_scipys() -> None:
    x, y = points(40, 1), points(30, 1, seed=1, shift=1.0)
    biased = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    within = [torch.cdist(z, z).sum() * (1 / len(z) ** 2 - 1 / (len(z) * (len(z) - 1))) for z in (x, y)]
    assert metrics.energy_distance(x, y) == pytest.approx(biased + float(sum(within)), rel=1e-9)


@pytest.mark.parametrize("metric", [metrics.energy_distance, lambda x, y: metrics.mmd(x, y, bandwidth=1.0)])
def test_estimates_have_mean_zero_for_equal_laws(metric) -> None:
    values = torch.tensor([metric(points(60, seed=2 * i), points(60, seed=2 * i + 1)) for i in range(200)])
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(200)
    assert float(values.min()) < 0  # unbiased estimates scatter around zero


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = points(50), points(43, seed=1)
    whole = metrics.energy_distance(x, y), metrics.mmd(x, y, bandwidth=0.7), metrics.precision_recall(x, y)
    monkeypatch.setattr(distances, "_CHUNK", 7)
    parts = metrics.energy_distance(x, y), metrics.mmd(x, y, bandwidth=0.7), metrics.precision_recall(x, y)
    assert parts[:2] == pytest.approx(whole[:2], rel=1e-10)
    assert parts[2] == whole[2]


def test_frechet_distance_is_its_formula() -> None:
    x, y = points(200, 4), points(150, 4, seed=1, shift=0.3) @ torch.diag(torch.arange(1.0, 5.0).double())
    a, b = torch.cov(x.T).numpy(), torch.cov(y.T).numpy()
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_of_commuting_gaussians() -> None:
    x = points(500, 2)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T  # covariance exactly I
    assert metrics.frechet_distance(x, 3 * x + 1) == pytest.approx(2 + 2 * (3 - 1) ** 2, rel=1e-9)


def test_frechet_distance_survives_fewer_points_than_features() -> None:
    assert metrics.frechet_distance(points(5, 20), points(5, 20)) == pytest.approx(0.0, abs=1e-6)


def test_precision_and_recall_of_known_cases() -> None:
    x = points(100)
    assert metrics.precision_recall(x, x) == (1.0, 1.0)
    assert metrics.precision_recall(x, x + 100) == (0.0, 0.0)
    both = torch.cat([x, x + 100])
    precision, recall = metrics.precision_recall(x, both)  # one of two clusters: precise, half recalled
    assert precision == 1.0
    assert recall == pytest.approx(0.5, abs=0.02)


def test_metrics_take_images() -> None:
    x, y = points(20, 16), points(20, 16, seed=1)
    shape = (20, 1, 4, 4)
    assert metrics.wasserstein2(x.reshape(shape), y.reshape(shape)) == metrics.wasserstein2(x, y)


@pytest.mark.bad_input
class TestBadInput:
    @pytest.mark.parametrize(
        "name", ["wasserstein2", "sliced_wasserstein2", "energy_distance", "mmd", "frechet_distance"]
    )
    def test_samples(self, name: str) -> None:
        metric = getattr(metrics, name)
        with pytest.raises(ValueError, match="same event shape"):
            metric(points(5), points(5, 3))
        with pytest.raises(TypeError, match="same dtype"):
            metric(points(5), points(5).float())
        with pytest.raises(ValueError, match="y has NaN"):
            metric(points(5), points(5) * math.nan)
        with pytest.raises(ValueError, match="x is empty"):
            metric(points(0), points(5))

    def test_parameters(self) -> None:
        with pytest.raises(ValueError, match="at least 2 points"):
            metrics.energy_distance(points(1), points(5))
        with pytest.raises(ValueError, match="k must be smaller"):
            metrics.precision_recall(points(5), points(5), k=5)
        with pytest.raises(ValueError, match="bandwidth must be positive"):
            metrics.mmd(points(5), points(5), bandwidth=0.0)
        with pytest.raises(ValueError, match="projections must be positive"):
            metrics.sliced_wasserstein2(points(5), points(5), projections=0)
