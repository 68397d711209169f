"""A multilayer perceptron for vectors: the network of the 2-D experiments."""

import torch
from torch import Tensor, nn

from flowlib.nets.embeddings import LabelEmbedding, TimeEmbedding, check_input

__all__ = ["MLP"]


class MLP(nn.Module):
    """State, Fourier features of time and, if asked, a class vector, through residual-free SiLU layers.

    Args:
        dim: Size of the state; or the shape of the state, which is flattened inside.
        width: Hidden width.
        depth: Number of hidden layers, at least one.
        classes: Number of classes for conditioning; `None` for none.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> net = MLP(dim=2, classes=10)
        >>> net(torch.zeros(5, 2), torch.tensor(0.5), y=torch.arange(5)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, dim: int | tuple[int, ...], width: int = 128, depth: int = 3, classes: int | None = None
    ) -> None:
        super().__init__()
        self.event = (dim,) if isinstance(dim, int) else tuple(dim)
        size = int(torch.Size(self.event).numel())
        if min(*self.event, size) < 1 or width < 1 or depth < 1:
            raise ValueError(f"dim, width and depth must be positive, got {dim}, {width} and {depth}")
        self.classes = classes
        self.time = TimeEmbedding(width)
        self.labels = LabelEmbedding(classes, width) if classes is not None else None
        self.first = nn.Linear(size, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nn.Linear(width, size)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict for states `[batch, *event]` at times `t`, 0-d or `[batch]`; returns the shape of `x`."""
        t = check_input(x, t, self.event, y, self.classes, like=self.first.weight)
        h = self.first(x.flatten(1)) + self.time(t)  # (B, W)
        if self.labels is not None:
            h = h + self.labels(y, x.shape[0])
        h = nn.functional.silu(h)
        for layer in self.hidden:
            h = nn.functional.silu(layer(h))
        out: Tensor = self.last(h).reshape(x.shape)
        return out
