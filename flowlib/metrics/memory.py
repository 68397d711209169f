"""What a computation keeps for its backward pass, counted instead of read from the operating system."""

from collections.abc import Iterable
from types import TracebackType

import torch
from torch import Tensor

__all__ = ["SavedTensors"]


class SavedTensors:
    """Counts the tensors that autograd saves inside a `with` block, and the bytes alive at once.

    A storage that several operations save counts once while any of them holds it. Graphs made inside can be
    differentiated once, not twice, because what they saved is detached.

    Args:
        ignore: Tensors whose storages do not count, for example a network's parameters, which exist anyway.

    Attributes:
        count: Tensors saved, those of `ignore` left out.
        peak: Largest number of bytes held at one moment.

    Example:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> with SavedTensors() as saved:
        ...     y = x.exp().sin().sum()       # exp keeps its result, and sin its argument: one storage
        >>> saved.count, saved.peak
        (2, 4000)
        >>> with SavedTensors() as saved, torch.no_grad():
        ...     y = x.exp().sin().sum()
        >>> saved.count, saved.peak
        (0, 0)
    """

    def __init__(self, ignore: Iterable[Tensor] = ()) -> None:
        self.count = 0
        self.peak = 0
        self._now = 0
        self._holders: dict[int, int] = {}
        self._ignored = {tensor.untyped_storage().data_ptr() for tensor in ignore}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> "SavedTensors":
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _pack(self, tensor: Tensor) -> "_Held":
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place in self._ignored:
            return _Held(tensor, None, 0)
        self.count += 1
        self._holders[place] = self._holders.get(place, 0) + 1
        if self._holders[place] == 1:
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
        return _Held(tensor, self, place)

    def _release(self, place: int, size: int) -> None:
        self._holders[place] -= 1
        if self._holders[place] == 0:
            del self._holders[place]
            self._now -= size


class _Held:
    """A saved tensor that tells its counter when autograd lets go of it."""

    def __init__(self, tensor: Tensor, counter: SavedTensors | None, place: int) -> None:
        self.tensor = tensor.detach()  # keeping an operation's own output would be a cycle
        self.counter = counter
        self.place = place

    def __del__(self) -> None:
        if self.counter is not None:
            self.counter._release(self.place, self.tensor.untyped_storage().nbytes())


def _unpack(held: _Held) -> Tensor:
    return held.tensor
