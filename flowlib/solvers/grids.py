r"""Time grids: equal steps of a clock.

A grid decides where a solver's error is made. All usual grids are equal steps of some monotone function of time:

| clock | equal steps of | remark |
|---|---|---|
| `time` | $t$ | depends on the path |
| `log_snr` | $\lambda = \log(\alpha/\sigma)$ | needs finite ends |
| `angle` | $\arctan(\alpha/\sigma)$ | the cosine grid; both ends of a path may be pure |
| `rho` | $-(\sigma/\alpha)^{1/\rho}$ | Karras et al. (2022), eq. 5; needs noise that is finite in units of the signal |

The last three depend on the signal-to-noise ratio alone, so they mean the same on every path.
"""

import math

import torch
from torch import Tensor

from flowlib._checks import check_choice, check_positive, check_unit_interval
from flowlib.paths import GaussianPath

__all__ = ["CLOCKS", "clock_grid", "shift_times"]

CLOCKS = ("time", "log_snr", "angle", "rho")


def clock_grid(
    path: GaussianPath,
    steps: int,
    clock: str = "log_snr",
    *,
    start: float = 0.0,
    end: float = 1.0,
    rho: float = 7.0,
    jump: bool = False,
) -> Tensor:
    r"""A grid of `steps` steps that are equal in a clock.

    Args:
        path: The path on which the grid is used.
        steps: Number of steps.
        clock: One of `CLOCKS`.
        start: First time, $0 \le$ `start` $<$ `end`.
        end: Time where the clock stops, at most 1.
        rho: $\rho$ of the clock `"rho"`: 1 is equal steps of the noise, large values approach `"log_snr"`.
        jump: Spend the last of the `steps` on one step from `end` to time 1, which for a data prediction lands on
            $\hat x_1$; as Karras et al. append $\sigma = 0$.

    Returns:
        Increasing times `[steps + 1]`, float64, first and last exactly as asked.

    Raises:
        TypeError: If `steps` is not an integer.
        ValueError: If an argument is out of range, or the clock has no finite value at one of the ends.

    Example:
        >>> from flowlib import paths
        >>> clock_grid(paths.linear(), 4, "angle")
        tensor([0.0000, 0.2929, 0.5000, 0.7071, 1.0000], dtype=torch.float64)
        >>> clock_grid(paths.linear(), 4, "rho", start=0.01, end=0.99, jump=True)
        tensor([0.0100, 0.0666, 0.5203, 0.9900, 1.0000], dtype=torch.float64)
    """
    check_positive("steps", steps, integer=True)
    check_choice("clock", clock, CLOCKS)
    check_positive("rho", rho)
    if not 0 <= start < end <= 1:
        raise ValueError(f"need 0 <= start < end <= 1, got start={start} and end={end}")
    if jump and (steps < 2 or end == 1):
        raise ValueError(f"jump needs end < 1 and at least two steps, got end={end} and steps={steps}")
    inner = steps - int(jump)
    ends = torch.tensor([start, end], dtype=torch.float64)
    lam = path.schedule.log_snr(ends) / 2
    if clock == "time":
        values = ends
    elif clock == "log_snr":
        values = lam
    elif clock == "angle":
        values = torch.atan(lam.exp())
    else:
        values = -torch.exp(-lam / rho)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"clock={clock!r} is infinite at one of start={start:g} and end={end:g}, "
            f"where log(alpha/sigma) is {lam[0]:.4g} and {lam[1]:.4g}; move that end inwards"
        )
    even = values[0] + (values[1] - values[0]) * torch.linspace(0, 1, inner + 1, dtype=torch.float64)
    if clock == "time":
        times = even
    else:
        level = {"log_snr": even, "angle": even.tan().log(), "rho": -rho * (-even).clamp_min(0).log()}[clock]
        times = path.schedule.time_of_log_snr(2 * level)
    times[0], times[-1] = start, end
    return torch.cat([times, times.new_ones(1)]) if jump else times


def shift_times(path: GaussianPath, times: Tensor, factor: float) -> Tensor:
    r"""Move the inner times of a grid to where $\sigma/\alpha$ is `factor` times larger.

    On the linear path $1 - t$ becomes $\text{factor}(1 - t)/(1 + (\text{factor} - 1)(1 - t))$, the shift by which grids
    and training times are adapted to the resolution of images (Esser et al., 2024, section 5.3.2). On a path of finite
    noise the ends stay where they are.

    Args:
        path: The path.
        times: Times in [0, 1], any shape.
        factor: Positive; above 1 it spends more of the grid at high noise.

    Returns:
        The times, shaped alike.

    Raises:
        ValueError: If a time leaves [0, 1] or `factor` is not positive.

    Example:
        >>> from flowlib import paths
        >>> shift_times(paths.linear(), torch.tensor([0.0, 0.5, 1.0]), 3.0)
        tensor([0.0000, 0.2500, 1.0000])
    """
    check_unit_interval("times", times)
    check_positive("factor", factor)
    moved = path.schedule.time_of_log_snr(path.schedule.log_snr(times) - 2 * math.log(factor))
    return torch.where((times == 0) | (times == 1), times, moved.clamp(0, 1))
