"""Transport between Gaussians: the push-forward, the distance, and their agreement with samples and POT."""

import ot
import pytest
import torch
from torch import Tensor

from flowlib import couplings


def gaussian(dim: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(dim, generator=generator, dtype=torch.float64), root @ root.T + 0.2 * torch.eye(dim).double()


@pytest.mark.parametrize("dim", [1, 3, 12])
def test_map_is_symmetric_positive_and_carries_one_gaussian_to_the_other(dim: int) -> None:
    (m0, c0), (m1, c1) = gaussian(dim, 0), gaussian(dim, 1)
    matrix, offset = couplings.gaussian_map(m0, c0, m1, c1)
    assert torch.equal(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix)[0] > 0
    torch.testing.assert_close(matrix @ c0 @ matrix.T, c1, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(matrix @ m0 + offset, m1)


@pytest.mark.parametrize("dim", [1, 3, 12])
def test_distance_is_the_cost_of_the_map_and_that_of_pot(dim: int) -> None:
    (m0, c0), (m1, c1) = gaussian(dim, 0), gaussian(dim, 1)
    matrix, _ = couplings.gaussian_map(m0, c0, m1, c1)
    gap = matrix - torch.eye(dim).double()
    cost = (m1 - m0).square().sum() + (gap @ c0 @ gap).trace()
    distance = couplings.bures_wasserstein2(m0, c0, m1, c1)
    assert distance**2 == pytest.approx(float(cost), rel=1e-9)
    assert distance == pytest.approx(float(ot.gaussian.bures_wasserstein_distance(m0, m1, c0, c1)), rel=1e-8)


def test_map_agrees_with_pot() -> None:
    (m0, c0), (m1, c1) = gaussian(4, 2), gaussian(4, 3)
    matrix, offset = couplings.gaussian_map(m0, c0, m1, c1)
    theirs, shift = ot.gaussian.bures_wasserstein_mapping(m0, m1, c0, c1)
    torch.testing.assert_close(matrix, theirs)
    torch.testing.assert_close(offset, shift.flatten())


def test_commuting_covariances_are_stretched_axis_by_axis() -> None:
    zero, c0, c1 = torch.zeros(2).double(), torch.diag(torch.tensor([4.0, 9.0])).double(), torch.eye(2).double()
    matrix, _ = couplings.gaussian_map(zero, c0, zero, c1)
    torch.testing.assert_close(matrix, torch.diag(torch.tensor([1 / 2, 1 / 3])).double())
    assert couplings.bures_wasserstein2(zero, c0, zero, c1) == pytest.approx(5**0.5)


def test_distance_to_a_point_and_to_itself() -> None:
    mean, cov = gaussian(3, 0)
    zero = torch.zeros(3, 3).double()
    assert couplings.bures_wasserstein2(mean, zero, mean, cov) ** 2 == pytest.approx(float(cov.trace()))
    assert couplings.bures_wasserstein2(mean, cov, mean, cov) < 1e-6


@pytest.mark.bad_input
def test_bad_input() -> None:
    zero, eye = torch.zeros(2), torch.eye(2)
    with pytest.raises(ValueError, match="cov0 must be positive definite"):
        couplings.gaussian_map(zero, torch.zeros(2, 2), zero, eye)
    with pytest.raises(ValueError, match=r"cov1 must have shape \[2, 2\]"):
        couplings.bures_wasserstein2(zero, eye, zero, torch.eye(3))
    with pytest.raises(ValueError, match="cov1 must be positive semidefinite"):
        couplings.bures_wasserstein2(zero, eye, zero, -eye)
    with pytest.raises(ValueError, match="cov0 must be finite and symmetric"):
        couplings.bures_wasserstein2(zero, torch.tensor([[1.0, 0.5], [0.0, 1.0]]), zero, eye)
    with pytest.raises(TypeError, match="cov0 must have the dtype"):
        couplings.bures_wasserstein2(zero, eye.double(), zero, eye)
