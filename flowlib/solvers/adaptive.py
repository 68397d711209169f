r"""Exponential steps that choose their own length: an embedded pair of DDIM and the exponential midpoint.

Both share the evaluation at the start of the step. With $E$ the norm of their difference in units of the tolerance the
next step is $h\min(5, \max(0.2, 0.9E^{-1/2}))$, up to a bound, since the difference is of second order in $h$ (Hairer,
Norsett and Wanner, 1993, section II.4; DPM-Solver-12 of Lu et al., 2022a, in the data form).
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_positive
from flowlib.fields import Field
from flowlib.fields.base import check_field
from flowlib.solvers.exponential import CountedField, Knots, moments
from flowlib.solvers.trajectory import Trajectory, check_start

__all__ = ["adaptive_exponential"]

_MOST_STEPS = 10_000


def adaptive_exponential(
    field: Field,
    x0: Float[Tensor, "batch *event"],
    *,
    start: float = 0.0,
    end: float = 1.0,
    rtol: float = 1e-2,
    atol: float = 1e-2,
    first: float = 0.1,
    longest: float = 1.0,
    **conditions: Any,
) -> Trajectory:
    r"""Solve the probability-flow ODE from `start` to `end` with steps in $\lambda$ of adapted length.

    The whole batch takes the same steps. The error of a sample is the root mean square over its entries, the error of
    the batch the largest of them. An accepted step costs 2 evaluations, a rejected one 1.

    Args:
        field: The field; its data prediction is used.
        x0: States at time `start`.
        start: First time; $\alpha$ must not vanish there.
        end: Last time, later than `start`; $\sigma$ must not vanish there. A DDIM step from there to 1 returns
            $\hat x_1$.
        rtol: Tolerance relative to the entries of the state.
        atol: Tolerance in absolute terms.
        first: Length in $\lambda$ of the first step that is tried.
        longest: Length in $\lambda$ of the longest step. Without a bound the estimate can be fooled: a step from high
            noise to low noise lands near $\hat x_1$, and a prediction made there returns the point itself, so that both
            methods agree on a wrong end.
        **conditions: Passed to the field.

    Returns:
        The trajectory at the times of the accepted steps.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid, $\lambda$ is infinite at an end, a prediction is not finite, or the steps
            become too many.

    Example:
        >>> from flowlib import data, fields, paths
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.vp())
        >>> run = adaptive_exponential(field, torch.zeros(3, 2), end=0.99)
        >>> float(run.times[-1])
        0.99...
    """
    check_field("field", field, "its data prediction is")
    check_start(x0)
    for name, number in (("rtol", rtol), ("atol", atol), ("first", first), ("longest", longest)):
        check_positive(name, number)
    if not 0 <= start < end <= 1:
        raise ValueError(f"need 0 <= start < end <= 1, got start={start} and end={end}")
    schedule, center = field.path.schedule, field.path.center
    ends = torch.tensor([start, end], dtype=torch.float64)
    lam, last = (float(level) / 2 for level in schedule.log_snr(ends))
    if not bool(torch.isfinite(schedule.log_snr(ends)).all()):
        raise ValueError(
            f"log(alpha/sigma) is {lam:g} at start={start:g} and {last:g} at end={end:g}; both must be finite"
        )
    field.check_times("data", ends)
    count = CountedField(field, conditions)

    def time_of(level: float) -> Tensor:
        return schedule.time_of_log_snr(torch.tensor(2 * level, dtype=torch.float64)).clamp(start, end).to(x0)

    def advance(x: Tensor, value: Tensor, t: Tensor, u: Tensor) -> Tensor:
        knots = Knots.of(field.path, torch.stack([t, u]), "data")
        (m0,) = moments(knots.length(0), 1)
        return center + knots.decay[1] / knots.decay[0] * (x - center) + knots.gain[1] * m0 * (value - center)

    x, h = x0, float(first)
    t: Tensor = ends[0].to(x0)
    times, states = [t], [x0]
    with torch.no_grad():
        value = count("data", x, t)
        for _ in range(_MOST_STEPS):
            h = min(h, longest)
            final = lam + 1.01 * h >= last  # do not leave a sliver
            h = last - lam if final else h
            u = ends[1].to(x0) if final else time_of(lam + h)
            middle = time_of(lam + h / 2)
            low = advance(x, value, t, u)
            high = advance(x, count("data", advance(x, value, t, middle), middle), t, u)
            scale = atol + rtol * torch.maximum(x.abs(), high.abs())
            error = float(((high - low) / scale).square().flatten(1).mean(1).sqrt().max())
            if not math.isfinite(error):
                raise ValueError(
                    f"the data prediction is not finite on the step from time {float(t):g} to {float(u):g}"
                )
            if error <= 1:
                x, t, lam = high, u, lam + h
                times.append(t)
                states.append(x)
                if final:
                    return Trajectory(torch.stack(times), torch.stack(states), count.nfe)
                value = count("data", x, t)
            h *= min(5.0, max(0.2, 0.9 * max(error, 1e-12) ** -0.5))
    raise ValueError(f"more than {_MOST_STEPS} steps at rtol={rtol} and atol={atol}; loosen them")
