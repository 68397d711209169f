"""A network that is a gradient by construction."""

import torch
from torch import Tensor, nn

from flowlib.nets.embeddings import TimeEmbedding, check_input

__all__ = ["PotentialMLP"]


class PotentialMLP(nn.Module):
    r"""$f_\theta(x, t) = \nabla_x\varphi_\theta(x, t)$ with a perceptron $\varphi_\theta$ to the real numbers.

    Its Jacobian is a Hessian, hence symmetric up to rounding, whatever the weights. One call costs a forward and a
    backward pass, a training step differentiates that once more: two to three times the price of `MLP`
    (compare Salimans and Ho, 2021).

    Args:
        dim: Size of the state; or the shape of the state, which is flattened inside.
        width: Hidden width.
        depth: Number of hidden layers, at least one.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> net = PotentialMLP(dim=2)
        >>> with torch.no_grad():
        ...     net(torch.zeros(5, 2), torch.tensor(0.5)).shape
        torch.Size([5, 2])
    """

    def __init__(self, dim: int | tuple[int, ...], width: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.event = (dim,) if isinstance(dim, int) else tuple(dim)
        size = int(torch.Size(self.event).numel())
        if min(*self.event, size) < 1 or width < 1 or depth < 1:
            raise ValueError(f"dim, width and depth must be positive, got {dim}, {width} and {depth}")
        self.time = TimeEmbedding(width)
        self.first = nn.Linear(size, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nn.Linear(width, 1, bias=False)

    def potential(self, x: Tensor, t: Tensor) -> Tensor:
        r"""$\varphi_\theta$ at states `[batch, *event]` and times `t`, 0-d or `[batch]`; returns `[batch]`."""
        t = check_input(x, t, self.event, None, None, like=self.first.weight)
        h = nn.functional.silu(self.first(x.flatten(1)) + self.time(t))  # (B, W)
        for layer in self.hidden:
            h = nn.functional.silu(layer(h))
        out: Tensor = self.last(h)[:, 0]
        return out

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The gradient of the potential; returns the shape of `x`. Recorded only where gradients are."""
        record = torch.is_grad_enabled()
        with torch.enable_grad():
            place = x if x.requires_grad else x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.potential(place, t).sum(), place, create_graph=record)
        return gradient
