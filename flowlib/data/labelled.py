"""A labelled data set in memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowlib._checks import check_positive, check_state

__all__ = ["Labelled"]


@dataclass(frozen=True)
class Labelled:
    """States with integer labels.

    Args:
        x: States `[N, *event]`, floating point and finite.
        y: Labels `[N]`, int64.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If lengths differ, the set is empty or a state is not finite.

    Example:
        >>> import torch
        >>> digits = Labelled(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 1, 2]))
        >>> x, conditions = digits.sample(3)
        >>> x.shape, conditions["y"].shape
        (torch.Size([3, 1, 8, 8]), torch.Size([3]))
        >>> len(digits.of_class(1))
        2
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        check_state("x", self.x)
        if self.y.dtype != torch.int64:
            raise TypeError(f"y must be int64, got {self.y.dtype}")
        if self.y.shape != self.x.shape[:1]:
            raise ValueError(f"y must have shape [{self.x.shape[0]}], got {list(self.y.shape)}")

    def __len__(self) -> int:
        return self.x.shape[0]

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw `n` items with replacement.

        Returns:
            States `[n, *event]` and the conditions `{"y": labels [n]}`.
        """
        check_positive("n", n, integer=True)
        index = torch.randint(len(self), (n,), generator=generator, device=self.x.device)
        return self.x[index], {"y": self.y[index]}

    def to(self, device: torch.device | str) -> "Labelled":
        """A copy on another device; batches are then drawn there."""
        return Labelled(self.x.to(device), self.y.to(device))

    def of_class(self, label: int) -> "Labelled":
        """The items of one class.

        Raises:
            ValueError: If there are none.
        """
        chosen = self.y == label
        if not bool(chosen.any()):
            raise ValueError(f"no item has the label {label}")
        return Labelled(self.x[chosen], self.y[chosen])
