"""Clips of a shape that bounces in a box: video whose law of motion is known exactly."""

import torch
from torch import Tensor

from flowlib._checks import check_positive

__all__ = ["SHAPES", "bouncing", "draw"]

SHAPES = ("disc", "square", "ring", "bar")
"""The classes of `bouncing`."""


def bouncing(
    n: int, frames: int = 8, size: int = 8, *, classes: int = 1, speed: float = 0.25,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    r"""Clips of one shape each, of constant speed in a random direction, reflected by walls at $\pm\frac12$.

    Args:
        n: Number of clips.
        frames: Frames of a clip.
        size: Height and width in pixels; the picture spans [-1, 1].
        classes: How many of `SHAPES`; labels are drawn uniformly.
        speed: Distance between two frames, away from walls.
        generator: Source of randomness.

    Returns:
        Clips `[n, frames, 1, size, size]` in [-1, 1], labels `[n]`, and centres `[n, frames, 2]` (row, column).

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> clips, labels, centres = bouncing(3, frames=5)
        >>> clips.shape, bool((centres.abs() <= 0.5).all())
        (torch.Size([3, 5, 1, 8, 8]), True)
    """
    for name, value in (("n", n), ("frames", frames), ("size", size)):
        check_positive(name, value, integer=True)
    check_positive("speed", speed)
    if not 1 <= classes <= len(SHAPES):
        raise ValueError(f"classes must lie in 1..{len(SHAPES)}, got {classes}")
    start = torch.rand(n, 1, 2, generator=generator) - 0.5
    angle = 2 * torch.pi * torch.rand(n, 1, generator=generator)
    y = torch.randint(classes, (n,), generator=generator)
    move = speed * torch.stack([angle.sin(), angle.cos()], -1) * torch.arange(frames)[:, None]
    centres = 0.5 - ((start + move + 0.5) % 2 - 1).abs()  # a triangle wave: reflections
    return draw(centres, y[:, None].expand(n, frames), size), y, centres


def draw(centres: Tensor, y: Tensor, size: int) -> Tensor:
    """Pictures `[..., 1, size, size]` in [-1, 1] of shapes `y` at `centres` `[..., 2]`, with soft edges.

    Example:
        >>> draw(torch.zeros(2), torch.tensor(0), 8)[0, 4, 2:6] > 0
        tensor([True, True, True, True])
    """
    axis = (torch.arange(size, dtype=centres.dtype) + 0.5) * 2 / size - 1
    a, b = ((axis - centres[..., i, None]).abs() for i in (0, 1))
    a, b = a[..., :, None].expand(*a.shape, size), b[..., None, :].expand(*b.shape[:-1], size, size)
    radius = (a.square() + b.square()).sqrt()
    inside = torch.stack(  # distance from the edge, positive inside
        [0.4 - radius, 0.35 - torch.maximum(a, b), 0.15 - (radius - 0.35).abs(), torch.minimum(0.15 - a, 0.45 - b)], -3
    )
    y = y[..., None, None, None].expand(*y.shape, 1, size, size)
    return (size / 2 * inside.gather(-3, y)).clamp(-1, 1)
