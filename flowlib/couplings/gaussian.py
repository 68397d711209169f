"""Optimal transport between Gaussians, in closed form."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_same

__all__ = ["bures_wasserstein2", "gaussian_map"]


def gaussian_map(
    mean0: Float[Tensor, " d"], cov0: Float[Tensor, "d d"], mean1: Float[Tensor, " d"], cov1: Float[Tensor, "d d"]
) -> tuple[Float[Tensor, "d d"], Float[Tensor, " d"]]:
    r"""The optimal map $x \mapsto Ax + b$ from $\mathcal N(m_0, \Sigma_0)$ to $\mathcal N(m_1, \Sigma_1)$.

    $$ A = \Sigma_0^{-1/2}\big(\Sigma_0^{1/2}\Sigma_1\Sigma_0^{1/2}\big)^{1/2}\Sigma_0^{-1/2}, \qquad b = m_1 - Am_0 $$

    is the only symmetric positive semidefinite matrix with $A\Sigma_0A = \Sigma_1$ (Dowson and Landau, 1982; Olkin and
    Pukelsheim, 1982). Move points `[n, d]` with `x @ A.T + b`.

    Args:
        mean0: $m_0$.
        cov0: $\Sigma_0$, symmetric positive definite.
        mean1: $m_1$.
        cov1: $\Sigma_1$, symmetric positive semidefinite.

    Returns:
        $A$ and $b$.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes disagree or a covariance is not symmetric and positive.

    Example:
        >>> gaussian_map(torch.zeros(1), torch.ones(1, 1), torch.ones(1), 4 * torch.ones(1, 1))
        (tensor([[2.]]), tensor([1.]))
    """
    _check_gaussians(mean0, cov0, mean1, cov1)
    values, vectors = torch.linalg.eigh(cov0)
    if not bool(values[0] > 0):
        raise ValueError(f"cov0 must be positive definite, got a smallest eigenvalue {float(values[0]):.3g}")
    root = (vectors * values.sqrt()) @ vectors.T
    inverse = (vectors / values.sqrt()) @ vectors.T
    matrix = inverse @ _root(root @ cov1 @ root) @ inverse
    matrix = (matrix + matrix.T) / 2
    return matrix, mean1 - matrix @ mean0


def bures_wasserstein2(
    mean0: Float[Tensor, " d"], cov0: Float[Tensor, "d d"], mean1: Float[Tensor, " d"], cov1: Float[Tensor, "d d"]
) -> float:
    r"""The Wasserstein-2 distance of two Gaussians, not squared; covariances may be singular.

    $$ W_2^2 = \|m_0 - m_1\|^2
       + \operatorname{tr}\big(\Sigma_0 + \Sigma_1 - 2(\Sigma_0^{1/2}\Sigma_1\Sigma_0^{1/2})^{1/2}\big) . $$

    Args:
        mean0: $m_0$.
        cov0: $\Sigma_0$, symmetric positive semidefinite.
        mean1: $m_1$.
        cov1: $\Sigma_1$, likewise.

    Returns:
        The distance.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes disagree or a covariance is not symmetric and positive semidefinite.

    Example:
        >>> bures_wasserstein2(torch.zeros(1), torch.ones(1, 1), torch.zeros(1), 9 * torch.ones(1, 1))
        2.0
    """
    _check_gaussians(mean0, cov0, mean1, cov1)
    root = _root(cov0)
    cross = torch.linalg.eigvalsh(root @ cov1 @ root).clamp_min(0).sqrt().sum()
    squared = (mean0 - mean1).square().sum() + (cov0.trace() + cov1.trace() - 2 * cross).clamp_min(0)
    return math.sqrt(float(squared))


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def _check_gaussians(mean0: Tensor, cov0: Tensor, mean1: Tensor, cov1: Tensor) -> None:
    check_same("mean0", mean0, "mean1", mean1)
    for index, (mean, cov) in enumerate(((mean0, cov0), (mean1, cov1))):
        name, dim = f"cov{index}", mean.shape[0]
        if cov.dtype != mean.dtype:
            raise TypeError(f"{name} must have the dtype of mean{index}, {mean.dtype}; got {cov.dtype}")
        if cov.shape != (dim, dim):
            raise ValueError(f"{name} must have shape [{dim}, {dim}], got {list(cov.shape)}")
        size = float(cov.abs().max())
        if not float((cov - cov.T).abs().max()) <= 1e-4 * size + 1e-12:  # also refuses NaN
            raise ValueError(f"{name} must be finite and symmetric")
        least = float(torch.linalg.eigvalsh(cov)[0])
        if least < -1e-4 * size:
            raise ValueError(f"{name} must be positive semidefinite, got a smallest eigenvalue {least:.3g}")
