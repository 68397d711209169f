"""Mode mixture: counts that can be done by hand, and the tail of the chi distribution."""

import math

import pytest
import torch

from flowlib import data, metrics
from flowlib.metrics import digits, mode_mixture_ratio, outside_modes


def test_two_classes_at_or_above_the_threshold_make_a_mixed_sample() -> None:
    rows = torch.tensor([[0.5, 0.5, 0.0], [0.75, 0.25, 0.0], [0.625, 0.25, 0.125], [1.0, 0.0, 0.0]])
    expected = {0.5: 1 / 4, 0.375: 1 / 4, 0.25: 3 / 4, 0.125: 3 / 4}
    assert {theta: mode_mixture_ratio(rows, theta) for theta in expected} == expected


def test_ratio_of_random_probabilities_is_the_law_of_the_second_largest() -> None:
    """Two classes, p uniform on [0, 1]: both reach theta with probability 1 - 2 theta."""
    p = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    rows = torch.stack([p, 1 - p], 1)
    for theta in (0.1, 0.25, 0.4):
        assert mode_mixture_ratio(rows, theta) == pytest.approx(1 - 2 * theta, abs=2e-4)


def test_share_outside_eight_gaussians_is_the_tail_of_the_chi_distribution() -> None:
    mixture = data.toys.eight_gaussians(2.0, 0.1, dtype=torch.float64)
    n, expected = 200_000, math.exp(-2)
    x = mixture.sample(n, generator=torch.Generator().manual_seed(0))
    share = outside_modes(x, mixture.means, 0.2)
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def test_points_between_neighbouring_centres_are_outside_and_centres_are_not() -> None:
    centres = data.toys.eight_gaussians(2.0, 0.1).means
    between = (centres + centres.roll(1, 0)) / 2
    half = 2 * math.sin(math.pi / 8)
    assert outside_modes(centres, centres, 0.4) == 0
    assert outside_modes(between, centres, half - 1e-3) == 1
    assert outside_modes(torch.cat([between, centres]), centres, half + 1e-3) == 0


def test_images_are_flattened() -> None:
    images = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    assert outside_modes(images, images[:1], 7.9) == 0.5
    assert outside_modes(images, images[:1], 8.1) == 0


def test_class_probabilities_agree_with_the_predicted_class() -> None:
    x = data.digits.load("test").x
    probabilities = digits.probabilities(x)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(x)))
    assert torch.equal(probabilities.argmax(1), digits.predict(x))
    assert mode_mixture_ratio(probabilities, 0.1) < 0.1
    mixed = (data.digits.load("test").of_class(0).x[:20] + data.digits.load("test").of_class(1).x[:20]) / 2
    assert mode_mixture_ratio(digits.probabilities(mixed), 0.1) > mode_mixture_ratio(probabilities, 0.1)
    assert metrics.mode_mixture_ratio is mode_mixture_ratio


@pytest.mark.bad_input
def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"theta must lie in \(0, 0.5\], got 0.6"):
        mode_mixture_ratio(torch.eye(3), 0.6)
    with pytest.raises(ValueError, match="sum to 1 in each row"):
        mode_mixture_ratio(torch.ones(3, 3), 0.2)
    with pytest.raises(ValueError, match="must not be negative"):
        mode_mixture_ratio(torch.tensor([[1.5, -0.5]]), 0.2)
    with pytest.raises(ValueError, match="radius must be positive"):
        outside_modes(torch.zeros(2, 2), torch.zeros(1, 2), 0.0)
    with pytest.raises(TypeError, match="same dtype"):
        outside_modes(torch.zeros(2, 2), torch.zeros(1, 2).double(), 1.0)
    with pytest.raises(ValueError, match=r"x must have shape \[n, 1, 8, 8\]"):
        digits.probabilities(torch.zeros(3, 64))
