"""Clips from a causal network, frame after frame, with a cache of the frames before."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowlib import solvers
from flowlib._checks import check_positive
from flowlib.fields import Field, FunctionField, NetworkField
from flowlib.nets import VideoDiT

__all__ = ["rollout"]


@torch.no_grad()
def rollout(
    field: NetworkField,
    x0: Tensor,
    *,
    steps: int = 20,
    method: str = "heun",
    times: Tensor | None = None,
    y: Tensor | None = None,
    given: Tensor | None = None,
    guide: Callable[[Field], Field] | None = None,
) -> Tensor:
    r"""Solve one ODE a frame, each given the finished frames before it: $\prod_f p(x^f \mid x^{<f})$.

    The frames before are in a cache of keys and values, so a frame costs the same however many there were, if the
    network has a window. Without a window the cache holds all frames.

    Args:
        field: A field whose network is a `VideoDiT`.
        x0: Noise of every frame, `[clips, frames, channels, height, width]`; any number of frames.
        steps: Solver steps a frame.
        method: Solver, one of `solvers.METHODS`.
        times: The solver's grid instead of `steps`.
        y: Labels of the clips, `[clips]`.
        given: First frames that are known, `[clips, n, channels, height, width]`: they are continued.
        guide: From the field of the next frame to the one that is solved, for example
            `lambda f: control.classifier_free(f, 2.0)`.

    Returns:
        The clips, shaped like `x0`.

    Raises:
        TypeError: If the network is no `VideoDiT`.
        ValueError: If shapes do not fit.

    Example:
        >>> from flowlib import nets, paths
        >>> field = NetworkField(nets.VideoDiT(4, size=8, width=32, depth=1, heads=2), paths.linear())
        >>> rollout(field, torch.randn(2, 6, 1, 8, 8), steps=2).shape
        torch.Size([2, 6, 1, 8, 8])
    """
    network = field.net
    if not isinstance(network, VideoDiT):
        raise TypeError(f"field must have a VideoDiT as its network, got {type(network).__name__}")
    if x0.ndim != 5 or tuple(x0.shape[2:]) != network.event:
        raise ValueError(
            f"x0 must have shape [clips, frames, {', '.join(map(str, network.event))}], got {list(x0.shape)}"
        )
    clips, frames = x0.shape[:2]
    check_positive("frames", frames, integer=True)
    known = 0 if given is None else given.shape[1]
    if given is not None and (given.shape[0] != clips or given.shape[2:] != x0.shape[2:] or known > frames):
        raise ValueError(f"given must hold first frames of x0, of shape {list(x0.shape)}; got {list(given.shape)}")
    caches = network.caches(clips, slots=frames)

    def next_frame(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return network.predict(x, t, caches, y=y)

    own: Field = FunctionField(next_frame, field.path, field.predicts)
    own = own if guide is None else guide(own)
    labels: dict[str, Any] = {} if y is None else {"y": y}
    out = []
    for f in range(frames):
        if given is not None and f < known:
            x = given[:, f]
        else:
            start = x0[:, f].contiguous()
            x = solvers.ode(
                own, start, steps=steps if times is None else None, times=times, method=method, keep=False, **labels
            ).end
        network.remember(x, caches, y=y)
        out.append(x)
    return torch.stack(out, 1)
