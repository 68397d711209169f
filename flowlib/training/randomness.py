"""Random numbers that depend on where they are used, not on who uses them or when."""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["order", "seed_of"]


def seed_of(*place: int | str) -> int:
    """A seed in [0, 2^63) for a place such as (seed, step, micro-batch): a hash, so that neighbours are unrelated.

    Example:
        >>> seed_of(0, 1, 2) == seed_of(0, 1, 2), seed_of(0, 1, 2) == seed_of(0, 12, 2)
        (True, False)
    """
    digest = hashlib.blake2b("/".join(map(str, place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def order(size: int, seed: int, first: int, count: int) -> list[int]:
    """Places `first` to `first + count` of an endless reading order: one permutation of the data after another.

    Args:
        size: Number of items.
        seed: Of the permutations.
        first: Place to start at, from 0.
        count: Number of places.

    Example:
        >>> sorted(order(5, 0, 0, 5))
        [0, 1, 2, 3, 4]
        >>> order(5, 0, 3, 4) == order(5, 0, 0, 10)[3:7]
        True
    """
    places, out = range(first, first + count), []
    for epoch in range(first // size, (first + count - 1) // size + 1):
        low, high = max(places.start, epoch * size), min(places.stop, (epoch + 1) * size)
        out += _permutation(size, seed, epoch)[low - epoch * size : high - epoch * size].tolist()
    return out


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed_of(seed, epoch, "order")))
