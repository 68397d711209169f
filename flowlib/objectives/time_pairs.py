r"""Which pairs of times $s \le t$ to train a flow map on."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from flowlib._checks import check_positive

__all__ = ["AnnealedTriangle", "TimePairSampler", "dyadic", "to_data", "triangle"]


@runtime_checkable
class TimePairSampler(Protocol):
    """Draws `n` pairs of times."""

    def __call__(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw times `s` and `t`, each `[n]`, of the given type on the given device."""


def triangle(max_gap: float = 1.0) -> TimePairSampler:
    r"""Uniform on $\{0 \le s \le t \le 1,\ t - s \le \text{max gap}\}$.

    With the whole triangle, $(s, t)$ are the smaller and the larger of two uniform times.

    Args:
        max_gap: Largest $t - s$, in (0, 1].

    Returns:
        A sampler.

    Raises:
        ValueError: If `max_gap` is out of range.

    Example:
        >>> s, t = triangle(0.25)(100)
        >>> bool(((s <= t) & (t - s <= 0.25)).all())
        True
    """
    if not 0 < max_gap <= 1:
        raise ValueError(f"max_gap must lie in (0, 1], got {max_gap}")
    area = 1 - (1 - max_gap) ** 2  # of the strip, the triangle's being one

    def sample(
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> tuple[Tensor, Tensor]:
        u = torch.rand(2, n, generator=generator, dtype=dtype, device=device)
        gap = (1 - (1 - area * u[0]).sqrt()).clamp(0, max_gap)  # its density falls like 1 - gap
        s = (1 - gap) * u[1]
        return s, (s + gap).clamp_max(1)

    return sample


class AnnealedTriangle:
    r"""`triangle` with a largest gap that grows linearly from zero to one over the first `calls` draws.

    Short jumps are nearly the velocity, which is learned first; long ones come last (Boffi et al., 2025).

    Args:
        calls: Number of draws until the whole triangle is reached.

    Raises:
        ValueError: If `calls` is not positive.

    Example:
        >>> pairs = AnnealedTriangle(10)
        >>> s, t = pairs(100)
        >>> bool((t - s <= 0.1).all())
        True
        >>> pairs.max_gap
        0.2
    """

    def __init__(self, calls: int) -> None:
        check_positive("calls", calls, integer=True)
        self.calls = calls
        self.done = 0

    @property
    def max_gap(self) -> float:
        """The largest gap of the next draw."""
        return min(1.0, (self.done + 1) / self.calls)

    def __call__(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` pairs and widen the strip."""
        draw = triangle(self.max_gap)
        self.done += 1
        return draw(n, generator=generator, dtype=dtype, device=device)


def dyadic(levels: int) -> TimePairSampler:
    r"""Shortcut models (Frans et al., 2025): gaps $2^{-k}$ from a multiple of the gap, $k = 0 \dots \text{levels} - 1$.

    Args:
        levels: Number of gaps, equally likely.

    Returns:
        A sampler.

    Raises:
        ValueError: If `levels` is not positive.

    Example:
        >>> s, t = dyadic(2)(100, generator=torch.Generator().manual_seed(0))
        >>> sorted(set(zip(s.tolist(), t.tolist())))
        [(0.0, 0.5), (0.0, 1.0), (0.5, 1.0)]
    """
    check_positive("levels", levels, integer=True)

    def sample(
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> tuple[Tensor, Tensor]:
        u = torch.rand(n, generator=generator, dtype=dtype, device=device)
        count = 2 ** torch.randint(levels, (n,), generator=generator, device=device)
        s = (u * count).floor() / count
        return s, s + 1 / count.to(s.dtype)

    return sample


def to_data() -> TimePairSampler:
    r"""Consistency models: $t = 1$ always and $s$ uniform (Song et al., 2023).

    Returns:
        A sampler.

    Example:
        >>> to_data()(3)[1]
        tensor([1., 1., 1.])
    """

    def sample(
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> tuple[Tensor, Tensor]:
        s = torch.rand(n, generator=generator, dtype=dtype, device=device)
        return s, torch.ones_like(s)

    return sample
