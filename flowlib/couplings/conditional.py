r"""Optimal pairing that respects conditions.

A class-conditional model starts from noise that knows nothing of its class. If pairing is free to send noise to the
nearest data of *any* class, the noise that a class sees in training is no longer the whole source, and sampling a
class from all of it is wrong (Cheng and Schwing, 2025). Here the noise in row i keeps the condition of row i, and is
paired only with data of that condition (labels), or of a near one (vectors).
"""

import torch
from torch import Tensor

from flowlib._checks import check_positive
from flowlib.couplings.exact import assignment
from flowlib.couplings.pairs import Coupling, Pairs, check_pairable

__all__ = ["condition_aware_ot"]


def condition_aware_ot(*, by: str = "y", strength: float | None = None) -> Coupling:
    r"""Pair by the permutation that minimises the squared distance among those that keep the condition.

    For integer labels only rows of one label are exchanged, so noise stays independent of the label whatever the
    batch. For a condition that is a vector $c$ the permutation minimises
    $\sum_i \|x_0^i - x_1^{\pi(i)}\|^2 + \kappa\|c^i - c^{\pi(i)}\|^2$ with $\kappa$ the `strength`: zero forgets the
    condition, infinity forbids all exchange.

    Args:
        by: Name of the condition, as the objective gets it: `"y"`, `"context"`, ...
        strength: $\kappa$, positive; needed for vectors, meaningless for labels.

    Returns:
        A coupling; the objective hands it the conditions of the batch.

    Raises:
        ValueError: If `strength` is not positive. The coupling raises one if the condition is missing, has another
            number of rows, or `strength` does not go with its kind.

    Example:
        >>> x0, x1 = torch.tensor([[0.0], [5.0], [1.0]]), torch.tensor([[6.0], [1.0], [0.0]])
        >>> condition_aware_ot()(x0, x1, y=torch.tensor([0, 0, 1])).index       # the last row is alone in its class
        tensor([1, 0, 2])
    """
    if strength is not None:
        check_positive("strength", strength)

    def couple(x0: Tensor, x1: Tensor, *, generator: torch.Generator | None = None, **conditions: Tensor) -> Pairs:
        check_pairable(x0, x1)
        condition = conditions.get(by)
        if condition is None:
            raise ValueError(f"condition_aware_ot pairs by {by!r}, which was not given; got {sorted(conditions)}")
        if condition.shape[:1] != x1.shape[:1]:
            raise ValueError(f"{by} must have {x1.shape[0]} rows, got shape {list(condition.shape)}")
        if condition.is_floating_point():
            if strength is None:
                raise ValueError(f"{by} is a vector: give strength, the weight of its squared distance in the cost")
            extra = strength**0.5 * condition.flatten(1).to(x0)
            index = assignment(torch.cat([x0.flatten(1), extra], 1), torch.cat([x1.flatten(1), extra], 1))
        else:
            if strength is not None:
                raise ValueError(f"{by} holds labels, which are never mixed: leave strength out")
            index = _within(condition, x0, x1)
        return Pairs(x0, x1[index], index)

    return couple


def _within(labels: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
    """The optimal permutation among those that keep every label: one small problem a label."""
    index = torch.empty(labels.shape[0], dtype=torch.int64, device=x0.device)
    for label in sorted(set(labels.tolist())):
        rows = torch.nonzero(labels == label)[:, 0]
        index[rows] = rows[assignment(x0[rows], x1[rows])]
    return index
