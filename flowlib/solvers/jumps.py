"""Sampling with a flow map: a few jumps instead of many steps."""

import itertools
from typing import Any

import torch
from torch import Tensor

from flowlib.fields import FlowMap
from flowlib.solvers.trajectory import Trajectory, check_start, time_grid

__all__ = ["jumps"]


@torch.no_grad()
def jumps(
    flow_map: FlowMap, x0: Tensor, *, steps: int | None = None, times: Tensor | None = None, **conditions: Any
) -> Trajectory:
    r"""$x_{k+1} = \psi_{t_k,t_{k+1}}(x_k)$: exact for an exact map, whatever the number of jumps.

    Args:
        flow_map: The map.
        x0: States at the first time, `[batch, *event]`.
        steps: Number of equal jumps over [0, 1].
        times: Their times instead, strictly monotone in [0, 1]; decreasing times invert the map where it was trained
            for that.
        **conditions: Passed to every evaluation.

    Returns:
        The trajectory; `nfe` is the number of jumps, each counted as the map counts its evaluations.

    Raises:
        TypeError: If `x0` is not floating point.
        ValueError: If the states or times are invalid.

    Example:
        >>> from flowlib import fields, paths
        >>> drift = fields.FunctionFlowMap(lambda x, s, t: torch.ones_like(x), paths.linear())
        >>> jumps(drift, torch.zeros(1, 2), steps=4).states[:, 0, 0]
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000])
    """
    check_start(x0)
    grid = time_grid(x0, steps, times)
    states = [x0]
    for s, t in itertools.pairwise(grid):
        states.append(flow_map.jump(states[-1], s, t, **conditions))
    return Trajectory(grid, torch.stack(states), nfe=sum(flow_map.evaluations(s) for s in grid[:-1]))
