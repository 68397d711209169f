"""What a solver returns, and the checks all solvers share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowlib._checks import check_positive, check_state, check_unit_interval
from flowlib.fields import Field

__all__ = ["States", "Trajectory", "check_start", "forward_grid", "time_grid"]

VelocityFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Trajectory:
    """States along a solve.

    Attributes:
        times: The times kept, `[S + 1]`, from start to end (decreasing for an inversion).
        states: The states there, `[S + 1, batch, *event]`.
        nfe: Number of function evaluations, each for the whole batch; a guided field makes more than one a call.

    Example:
        >>> Trajectory(torch.tensor([0.0, 1.0]), torch.zeros(2, 5, 3), nfe=1)
        Trajectory(2 times from 0 to 1, batch=5, event=(3,), nfe=1)
    """

    times: Tensor
    states: Tensor
    nfe: int

    @property
    def start(self) -> Tensor:
        """The first state, `[batch, *event]`."""
        return self.states[0]

    @property
    def end(self) -> Tensor:
        """The last state, `[batch, *event]`."""
        return self.states[-1]

    def __len__(self) -> int:
        return self.times.shape[0]

    def __repr__(self) -> str:
        return (
            f"Trajectory({len(self)} times from {float(self.times[0]):g} to {float(self.times[-1]):g}, "
            f"batch={self.states.shape[1]}, event={tuple(self.states.shape[2:])}, nfe={self.nfe})"
        )


def time_grid(x: Tensor, steps: int | None, times: Tensor | None, *, backward: bool = False) -> Tensor:
    """The grid of a solve: `steps` equal steps over [0, 1], or the `times` given.

    Args:
        x: The states, whose dtype and device the grid takes.
        steps: Number of steps.
        times: A strictly monotone tensor of at least two times in [0, 1].
        backward: Whether `steps` runs from 1 to 0.

    Returns:
        Times `[S + 1]`.

    Raises:
        TypeError: If `times` is not a floating-point tensor, or `steps` not an integer.
        ValueError: If both or neither are given, or the times are not strictly monotone in [0, 1].

    Example:
        >>> time_grid(torch.zeros(1, 2), 4, None)
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000])
    """
    if (steps is None) == (times is None):
        raise ValueError(f"give either steps or times, got steps={steps} and times={times}")
    if times is None:
        assert steps is not None
        check_positive("steps", steps, integer=True)
        grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        return (grid.flip(0) if backward else grid).to(x)
    if not isinstance(times, Tensor) or not times.is_floating_point():
        raise TypeError("times must be a floating-point tensor")
    if times.ndim != 1 or times.shape[0] < 2:
        raise ValueError(f"times must be a vector of at least two times, got shape {list(times.shape)}")
    check_unit_interval("times", times)
    differences = times.to(x).diff()
    if not (bool((differences > 0).all()) or bool((differences < 0).all())):
        raise ValueError(f"times must be strictly increasing or strictly decreasing in {x.dtype}")
    return times.to(x)


class CountedVelocity:
    """The velocity of a field, or a plain function, that counts its calls.

    Args:
        field: A field, or a function `(x, t, **conditions) -> velocity` with a 0-d `t`.
        conditions: Passed to every call.
        times: Times at which a field is asked; a `ValueError` says where its velocity has no limit.
    """

    def __init__(self, field: Field | VelocityFunction, conditions: dict[str, Any], times: Tensor) -> None:
        if isinstance(field, Field):
            field.check_times("velocity", times)
            self.function: VelocityFunction = field.function("velocity")
            self.cost: Callable[[Tensor], int] = field.evaluations
        elif callable(field):
            self.function = field
            self.cost = lambda t: 1
        else:
            raise TypeError(f"field must be a Field or a function of (x, t), got {type(field).__name__}")
        self.conditions = conditions
        self.nfe = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Evaluate and count."""
        self.nfe += self.cost(t)
        return self.function(x, t, **self.conditions)


def check_start(x0: Tensor) -> None:
    """Check the state a solve starts from; the same for every solver."""
    check_state("x0", x0)


def forward_grid(x0: Tensor, steps: int | None, times: Tensor | None, sampler: str) -> Tensor:
    """Check the start of a sampler that runs from noise to data, and its grid; see `time_grid`.

    Args:
        x0: The states at the first time.
        steps: Number of steps.
        times: The grid instead.
        sampler: The sampler's name, for the message.

    Raises:
        TypeError, ValueError: As `check_start` and `time_grid`; also if times decrease.
    """
    check_start(x0)
    grid = time_grid(x0, steps, times)
    if grid[0] > grid[-1]:
        raise ValueError(f"times must increase: {sampler} runs from noise to data")
    return grid


class States:
    """The states of a solve as it goes: all of them, or the first and the newest.

    Args:
        x0: The first.
        keep: Whether all are kept.

    Example:
        >>> states = States(torch.zeros(1, 2), keep=False)
        >>> for value in (1.0, 2.0, 3.0): states.add(torch.full((1, 2), value))
        >>> states.trajectory(torch.linspace(0, 1, 4), nfe=3).end
        tensor([[3., 3.]])
    """

    def __init__(self, x0: Tensor, keep: bool) -> None:
        self.keep, self.kept = keep, [x0]

    def add(self, x: Tensor) -> None:
        """Note the next state."""
        if not self.keep:
            del self.kept[1:]
        self.kept.append(x)

    def trajectory(self, grid: Tensor, nfe: int) -> Trajectory:
        """What was kept, on the solve's grid."""
        return Trajectory(grid if self.keep else grid[[0, -1]], torch.stack(self.kept), nfe)
