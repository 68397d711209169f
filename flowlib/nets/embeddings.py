"""Embeddings of time and class labels, shared by every network."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["LabelEmbedding", "TimeEmbedding", "check_input", "once"]


def once(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """A function of times `[batch]`, row by row; of one time expanded to the batch it is computed once.

    Rows of a tensor that asks for gradients stay apart.

    Example:
        >>> once(torch.exp, torch.zeros(()).expand(3))
        tensor([1., 1., 1.])
    """
    if t.stride(0) != 0 or t.requires_grad:
        return function(t)
    out = function(t[:1])
    return out.expand(t.shape[0], *out.shape[1:])


class TimeEmbedding(nn.Module):
    r"""Fourier features of time, $(\cos 2\pi f_j t, \sin 2\pi f_j t)$, followed by a two-layer map.

    The frequencies are fixed and log-spaced from 1/4 to `max_frequency`, so the slowest feature is monotone on
    $[0, 1]$ and the map needs no random draw (compare Tancik et al., 2020, whose frequencies are random).

    Args:
        width: Size of the output.
        features: Number of frequencies.
        max_frequency: The fastest one, in cycles over the whole path.

    Example:
        >>> TimeEmbedding(16)(torch.zeros(3)).shape
        torch.Size([3, 16])
    """

    frequencies: Tensor

    def __init__(self, width: int, features: int = 16, max_frequency: float = 8.0) -> None:
        super().__init__()
        exponents = torch.linspace(math.log(0.25), math.log(max_frequency), features)
        self.register_buffer("frequencies", 2 * math.pi * exponents.exp())
        self.layers = nn.Sequential(nn.Linear(2 * features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed times `[batch]`; returns `[batch, width]`. One time expanded to the batch is embedded once."""
        return once(self._embed, t)

    def _embed(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies  # (B, F)
        out: Tensor = self.layers(torch.cat([angles.cos(), angles.sin()], 1))
        return out


class LabelEmbedding(nn.Module):
    """A learned vector for each class, and one more for "no class" (the null condition that guidance uses).

    Args:
        classes: Number of classes.
        width: Size of the vectors.

    Example:
        >>> embed = LabelEmbedding(10, 16)
        >>> embed(torch.tensor([3, -1]), 2).shape      # -1 is "no class"
        torch.Size([2, 16])
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor | None, batch: int) -> Tensor:
        """Embed labels.

        Args:
            y: Labels `[batch]` of an integer type; -1, or `None` for the whole batch, is the null condition.
            batch: Number of samples.

        Returns:
            Vectors `[batch, width]`.

        Raises:
            TypeError: If labels are not integers.
            ValueError: If their shape is wrong or one is outside -1 ... classes - 1.
        """
        if y is None:
            y = torch.full((batch,), -1, device=self.table.weight.device)
        if y.is_floating_point() or y.dtype == torch.bool:
            raise TypeError(f"y must hold integer labels, got {y.dtype}")
        if y.shape != (batch,):
            raise ValueError(f"y must have shape [{batch}], got {list(y.shape)}")
        # read on the CPU only: elsewhere it would wait for the device, whose own index check catches the error
        if (
            y.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and bool(((y < -1) | (y >= self.classes)).any())
        ):
            raise ValueError(f"y must lie between -1 (no class) and {self.classes - 1}, got {y.min()} to {y.max()}")
        out: Tensor = self.table(torch.where(y < 0, self.classes, y))
        return out


def check_input(
    x: Tensor, t: Tensor, event: tuple[int, ...], y: Tensor | None, classes: int | None, like: Tensor
) -> Tensor:
    """Check a network's input and expand a 0-d time.

    Args:
        x: States `[batch, *event]`.
        t: Times, 0-d or `[batch]`.
        event: The event shape the network was built for.
        y: Labels, or `None`.
        classes: The number of classes the network was built for, or `None`.
        like: One of the network's parameters, whose dtype and device the input must have.

    Returns:
        Times `[batch]`.

    Raises:
        TypeError: If the dtype of states or times is not that of the parameters.
        ValueError: If a shape or device is wrong, or labels come to a network without classes.

    Example:
        >>> check_input(torch.zeros(3, 2), torch.tensor(0.5), (2,), None, None, like=torch.zeros(1))
        tensor([0.5000, 0.5000, 0.5000])
    """
    if tuple(x.shape[1:]) != event:
        raise ValueError(f"x must have event shape {list(event)}, got {list(x.shape[1:])}")
    if y is not None and classes is None:
        raise ValueError("y was given, but this network was built without classes")
    if t.ndim > 1 or (t.ndim == 1 and t.shape[0] != x.shape[0]):
        raise ValueError(f"t must be 0-d or of shape [{x.shape[0]}], got {list(t.shape)}")
    for name, value in (("x", x), ("t", t)):
        if value.dtype != like.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"{name} must have the dtype of the network's parameters, {like.dtype}; got {value.dtype}")
        if value.device != like.device:
            raise ValueError(f"{name} must be on the network's device, {like.device}; got {value.device}")
    return t.expand(x.shape[0])
