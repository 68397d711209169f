"""What a coupling returns, and the coupling that does nothing."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowlib._checks import check_same, check_state

__all__ = ["Coupling", "Pairs", "independent"]


@dataclass(frozen=True)
class Pairs:
    """Paired samples.

    Attributes:
        x0: Noise `[batch, *event]`, as it came.
        x1: Data `[batch, *event]`, row i the partner of row i of `x0`.
        index: Which row of the original data each partner is, `[batch]`, so that labels can follow; `None` if the
            order is unchanged.
        weight: Weight of each pair in the loss, `[batch]`; `None` for equal weights.
    """

    x0: Tensor
    x1: Tensor
    index: Int[Tensor, " batch"] | None = None
    weight: Float[Tensor, " batch"] | None = None


@runtime_checkable
class Coupling(Protocol):
    """Pairs a batch of noise with a batch of data."""

    def __call__(
        self, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None = None, **conditions: Tensor
    ) -> Pairs:
        """Pair the rows of `x0` with rows of `x1`; the conditions are those of the data rows."""


def independent(x0: Tensor, x1: Tensor, *, generator: torch.Generator | None = None, **conditions: Tensor) -> Pairs:
    """Keep the rows as they came: noise and data drawn independently stay independent.

    Args:
        x0: Noise `[batch, *event]`.
        x1: Data, same shape.
        generator: Not used.
        **conditions: Not used.

    Returns:
        The pairs.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes or devices differ.

    Example:
        >>> independent(torch.zeros(2, 1), torch.ones(2, 1)).index is None
        True
    """
    check_pairable(x0, x1)
    return Pairs(x0, x1)


def check_pairable(x0: Tensor, x1: Tensor) -> None:
    """Check that two batches can be paired row by row; every coupling asks for the same."""
    check_state("x0", x0)
    check_state("x1", x1)
    check_same("x0", x0, "x1", x1)
