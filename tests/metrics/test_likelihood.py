"""Bits per dimension."""

import math

import pytest
import torch

from flowlib import metrics


def test_uniform_density_on_the_cube_needs_the_bits_of_a_level() -> None:
    levels = 256
    log_density = torch.full((3,), -5 * math.log(2.0))  # uniform on [-1, 1]^5
    bits = metrics.bits_per_dim(log_density, 5, bin_width=2 / levels)
    torch.testing.assert_close(bits, torch.full((3,), 8.0))


def test_the_usual_offset_of_images_is_seven_bits() -> None:
    assert abs(float(metrics.bits_per_dim(torch.zeros(1), 10, bin_width=2 / 256)) - 7) < 1e-6


@pytest.mark.bad_input
def test_dims_must_be_a_positive_integer() -> None:
    with pytest.raises(ValueError, match="dims"):
        metrics.bits_per_dim(torch.zeros(1), 0)
    with pytest.raises(ValueError, match="bin_width"):
        metrics.bits_per_dim(torch.zeros(1), 1, bin_width=0.0)
