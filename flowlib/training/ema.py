"""An exponential moving average of a network's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["EMA"]


class EMA:
    r"""Averages parameters and buffers, $\bar\theta \leftarrow b_k\bar\theta + (1 - b_k)\theta$.

    The decay warms up as $b_k = \min(b, (1 + k)/(10 + k))$ after $k$ updates, so that a short run is not dominated
    by the initial weights.

    Args:
        module: The network to follow.
        decay: $b$, in [0, 1).

    Raises:
        ValueError: If the decay is out of range.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> ema = EMA(net, decay=0.9)
        >>> with torch.no_grad(): _ = net.weight.add_(1.0)
        >>> ema.update(net)
        >>> with ema.applied(net):
        ...     averaged = net.weight.item()
        >>> averaged < net.weight.item()
        True
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self.state: dict[str, Tensor] = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the network's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = module.state_dict()
        floating = [name for name, value in self.state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[n] for n in floating], [current[n] for n in floating], 1 - decay)
        for name in self.state.keys() - set(floating):
            self.state[name].copy_(current[name])

    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the network's weights with the average."""
        module.load_state_dict(self.state)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Use the averaged weights inside the `with` block, and the network's own again after it."""
        own = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self.copy_to(module)
        try:
            yield
        finally:
            module.load_state_dict(own)
