"""Nearest neighbours and tests of copying against closed forms, enumeration and scipy."""

import itertools
import math

import pytest
import torch
from scipy import spatial, stats
from torch import Tensor

from flowlib import fields, metrics, paths
from flowlib.distributions import Empirical, GaussianMixture
from flowlib.metrics import memorisation


def points(n: int, dim: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def on_a_line(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_neighbours_are_those_of_a_search_tree() -> None:
    x, reference = points(60), points(80, seed=1)
    distances, index = metrics.nearest_neighbours(x, reference, k=3)
    theirs, their_index = spatial.cKDTree(reference.numpy()).query(x.numpy(), k=3)
    assert distances.numpy() == pytest.approx(theirs, rel=1e-12)
    assert (index.numpy() == their_index).all()


def test_a_copy_is_at_distance_zero_far_from_the_origin() -> None:
    reference = (points(50, 64) + 1e4).float()
    distances, index = metrics.nearest_neighbours(reference[7:9], reference)
    assert distances.tolist() == [[0.0], [0.0]]
    assert index[:, 0].tolist() == [7, 8]


def test_chunks_do_not_change_the_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    x, reference = points(50), points(43, seed=1)
    whole = metrics.nearest_neighbours(x, reference, k=2)
    monkeypatch.setattr(memorisation, "_CHUNK", 7)
    parts = metrics.nearest_neighbours(x, reference, k=2)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


@pytest.mark.parametrize("threshold", [0.2, 1 / 3, 1.0])
def test_memorised_fraction_between_two_atoms_has_a_closed_form(threshold: float) -> None:
    """Between atoms 0 and 1, d1/d2 = x/(1 - x) < c on x < c/(1 + c), and the same from the right."""
    x = ((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000)[:, None]
    measured = metrics.memorised_fraction(x, on_a_line(0.0, 1.0), threshold=threshold)
    assert measured == pytest.approx(2 * threshold / (1 + threshold), abs=2e-4)


def test_copies_are_memorised_and_a_duplicated_training_point_does_not_hide_them() -> None:
    train = points(40)
    assert metrics.memorised_fraction(train, train) == 1.0
    assert metrics.memorised_fraction(train, torch.cat([train, train])) == 1.0


def test_new_points_in_high_dimension_are_not_memorised() -> None:
    assert metrics.memorised_fraction(points(200, 64), points(200, 64, seed=1)) == 0.0


@pytest.mark.parametrize("distances", [[1, 2, 3, 4, 5, 6, 7, 8], [1, 1, 1, 4, 4, 6, 7, 7]])
def test_copying_z_has_mean_zero_and_variance_one_over_all_orders(distances: list[float]) -> None:
    """The exact null law: given the pooled distances every choice of the generated ones is equally likely."""
    pooled, train = on_a_line(*distances), on_a_line(0.0)
    values = []
    for chosen in itertools.combinations(range(8), 3):
        rest = [i for i in range(8) if i not in chosen]
        values.append(metrics.copying_z(pooled[list(chosen)], pooled[rest], train))
    z = torch.tensor(values, dtype=torch.float64)
    assert float(z.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(z.square().mean()) == pytest.approx(1.0, rel=1e-12)


def test_copying_z_has_the_tail_of_scipys_rank_test() -> None:
    x, held_out, train = points(70) * 0.8, points(50, seed=1), points(90, seed=2)
    distances = [metrics.nearest_neighbours(sample, train)[0][:, 0].numpy() for sample in (x, held_out)]
    tail = stats.mannwhitneyu(*distances, alternative="less", method="asymptotic", use_continuity=False).pvalue
    assert stats.norm.cdf(metrics.copying_z(x, held_out, train)) == pytest.approx(tail, rel=1e-10)


def test_copies_reach_the_smallest_value_of_copying_z() -> None:
    """U = 0, and with n copies tied at distance zero the variance loses their group."""
    train, held_out = points(30), points(20, seed=1)
    ties = (30**3 - 30) / (50 * 49)
    expected = -(30 * 20 / 2) / math.sqrt(30 * 20 / 12 * (51 - ties))
    assert metrics.copying_z(train, held_out, train) == pytest.approx(expected, rel=1e-12)


def test_copying_z_of_an_honest_sampler_is_standard_normal() -> None:
    z = torch.tensor(
        [
            metrics.copying_z(points(40, seed=i), points(30, seed=i + 1), points(50, seed=i + 2))
            for i in range(0, 900, 3)
        ]
    )
    assert abs(float(z.mean())) < 4 / math.sqrt(300)
    assert float(z.var()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / 300))


def test_copying_z_without_any_order_is_zero() -> None:
    assert metrics.copying_z(on_a_line(1.0, 1.0), on_a_line(1.0), on_a_line(0.0)) == 0.0


def test_denoising_error_of_the_exact_field_is_the_posterior_variance() -> None:
    """For N(0, v) the error is v sigma^2 / (alpha^2 v + sigma^2) at each time."""
    field = fields.MixtureField(GaussianMixture(torch.zeros(1, 4, dtype=torch.float64), 0.5), paths.linear())
    times = torch.tensor([0.0, 0.4, 0.9], dtype=torch.float64)
    x1 = math.sqrt(0.5) * points(20_000, 4)
    errors = metrics.denoising_error(field, x1, times, generator=torch.Generator().manual_seed(9))
    expected = 0.5 * (1 - times) ** 2 / (times**2 * 0.5 + (1 - times) ** 2)
    assert errors.shape == (3, 20_000)
    assert bool(((errors.mean(1) - expected).abs() < 4 * errors.std(1) / math.sqrt(20_000)).all())


def test_denoising_error_at_time_zero_is_the_distance_to_the_mean() -> None:
    atoms, new = points(12), points(5, seed=1)
    errors = metrics.denoising_error(
        fields.MixtureField(Empirical(atoms), paths.linear()), new, torch.zeros(1).double()
    )
    assert errors[0].numpy() == pytest.approx((new - atoms.mean(0)).square().mean(1).numpy(), rel=1e-12)


def test_denoising_error_near_time_one_is_the_distance_to_the_nearest_atom() -> None:
    atoms, new = points(12), points(5, seed=1)
    field = fields.MixtureField(Empirical(atoms), paths.linear())
    errors = metrics.denoising_error(field, new, torch.tensor([1 - 1e-5], dtype=torch.float64), draws=2)
    nearest = metrics.nearest_neighbours(new, atoms)[0][:, 0]
    assert errors[0].numpy() == pytest.approx((nearest**2 / 3).numpy(), rel=1e-9)


def test_denoising_error_hands_conditions_to_the_field() -> None:
    field = fields.FunctionField(lambda x, t, y: y[:, None].to(x.dtype).expand(x.shape), paths.linear(), "data")
    errors = metrics.denoising_error(field, torch.ones(3, 2), torch.tensor([0.5]), draws=3, y=torch.arange(3))
    assert errors.tolist() == [[1.0, 0.0, 1.0]]


@pytest.mark.bad_input
class TestBadInput:
    def test_neighbours(self) -> None:
        with pytest.raises(ValueError, match="k must not exceed the size of the reference, 4; got 5"):
            metrics.nearest_neighbours(points(3), points(4), k=5)
        with pytest.raises(ValueError, match="same event shape"):
            metrics.nearest_neighbours(points(3), points(4, 2))
        with pytest.raises(TypeError, match="same dtype"):
            metrics.nearest_neighbours(points(3), points(4).float())
        with pytest.raises(ValueError, match="reference has NaN"):
            metrics.nearest_neighbours(points(3), points(4) * math.nan)

    def test_tests_of_copying(self) -> None:
        with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\], got 2"):
            metrics.memorised_fraction(points(3), points(4), threshold=2.0)
        with pytest.raises(ValueError, match="threshold must be positive"):
            metrics.memorised_fraction(points(3), points(4), threshold=0.0)
        with pytest.raises(ValueError, match="k must not exceed"):
            metrics.memorised_fraction(points(3), points(1))
        with pytest.raises(ValueError, match="same event shape"):
            metrics.copying_z(points(3), points(3, 2), points(4))

    def test_denoising_error(self) -> None:
        field = fields.MixtureField(Empirical(points(4)), paths.linear())
        with pytest.raises(ValueError, match="keep t below 1"):
            metrics.denoising_error(field, points(3), torch.ones(1).double())
        with pytest.raises(ValueError, match=r"times must have shape \[T\]"):
            metrics.denoising_error(field, points(3), torch.tensor(0.5).double())
        with pytest.raises(ValueError, match="draws must be positive"):
            metrics.denoising_error(field, points(3), torch.zeros(1).double(), draws=0)
        with pytest.raises(TypeError, match="dtype of the states"):
            metrics.denoising_error(field, points(3), torch.zeros(1))
