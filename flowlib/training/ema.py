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
        module: The network to follow; its parameters must stay where they are (move it to its device first).
        decay: $b$, in [0, 1).

    Raises:
        ValueError: If the decay is out of range.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> ema = EMA(net, decay=0.9)
        >>> with torch.no_grad(): _ = net.weight.add_(1.0)
        >>> ema.update()
        >>> with ema.applied():
        ...     averaged = net.weight.item()
        >>> averaged < net.weight.item()
        True
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self.module = module
        live = module.state_dict(keep_vars=True)
        self.state: dict[str, Tensor] = {name: value.detach().clone() for name, value in live.items()}
        floating = [name for name in live if live[name].is_floating_point()]
        self._averages = [_local(self.state[name]) for name in floating]
        self._live = [live[name] for name in floating]
        self._others = [(self.state[name], live[name]) for name in live.keys() - set(floating)]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(self._averages, [_local(value) for value in self._live], 1 - decay)
        for average, value in self._others:
            average.copy_(value)

    def copy_to_network(self) -> None:
        """Overwrite the network's weights with the average."""
        self.module.load_state_dict(self.state)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the averaged weights inside the `with` block, and the network's own again after it."""
        own = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.copy_to_network()
        try:
            yield
        finally:
            self.module.load_state_dict(own)


def _local(value: Tensor) -> Tensor:
    """The part of a sharded tensor that lies in this process; an ordinary tensor itself."""
    return value.to_local() if hasattr(value, "to_local") else value
