"""Costs of moving one sample to another."""

from jaxtyping import Float
from torch import Tensor

__all__ = ["squared_distances"]


def squared_distances(x0: Tensor, x1: Tensor) -> Float[Tensor, "n m"]:
    """All squared Euclidean distances between two batches of states, without the `[n, m, d]` differences.

    Args:
        x0: States `[n, *event]`.
        x1: States `[m, *event]`.

    Returns:
        The matrix `[n, m]`, never negative.

    Example:
        >>> import torch
        >>> squared_distances(torch.zeros(1, 2), torch.ones(3, 2))
        tensor([[2., 2., 2.]])
    """
    a, b = x0.flatten(1), x1.flatten(1)
    center = b.mean(0)
    a, b = a - center, b - center  # less cancellation
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)
