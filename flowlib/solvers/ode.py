r"""Solvers of the probability-flow ODE $\dot x = v(x, t)$.

Each method is a few lines that advance one step; the loop, the checks and the counting are shared. Orders below are
orders of the global error in the step size, for a smooth velocity:

| method | order | evaluations a step | remark |
|---|---|---|---|
| `euler` | 1 | 1 | |
| `ddim` | 1 | 1 | exponential Euler: exact if the data prediction is constant (`flowlib.solvers.exponential`) |
| `dpm_2`, `dpmpp_2s` | 2 | 2 | exponential midpoint on the noise or the data prediction |
| `dpmpp_2m`, `deis_2` | 2 | 1 | exponential Adams-Bashforth |
| `dpmpp_3m`, `deis_3` | 3 | 1 | the same through three values; the first step takes 2 evaluations |
| `unipc_2`, `unipc_3` | 3 | 1 | exponential predictor-corrector |
| `ab2` | 2 | 1 | Adams-Bashforth; its first step is a midpoint step (2 evaluations) |
| `midpoint` | 2 | 2 | |
| `heun` | 2 | 2 | |
| `rk4` | 4 | 4 | |
| `adaptive` | 5 | 6, and more where it is rejected | Dormand-Prince through torchdiffeq; `rtol`, `atol` |

The exponential ones need a `Field` and a grid that suits $\lambda$ (`flowlib.solvers.clock_grid`). Use `heun` or
`midpoint` when in doubt, `dpmpp_2m` or `unipc_2` at few evaluations, `rk4` and `adaptive` for references and
likelihoods. Only `heun`, `rk4` and `adaptive` evaluate the field at the last time.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_choice, check_positive
from flowlib.fields import Field
from flowlib.solvers.exponential import EXPONENTIAL, CountedField, exponential_stepper
from flowlib.solvers.trajectory import CountedVelocity, States, Trajectory, VelocityFunction, check_start, time_grid

__all__ = ["METHODS", "invert", "ode"]

Callback = Callable[[int, Tensor, Tensor], Tensor | None]
Velocity = Callable[[Tensor, Tensor], Tensor]
Stepper = Callable[[Tensor, Tensor, Tensor], Tensor]

METHODS = ("euler", "midpoint", "heun", "rk4", "ab2", *EXPONENTIAL, "adaptive")
_USES_END = ("heun", "rk4", "adaptive")


def euler(v: Velocity) -> Stepper:
    """x + h v(x, t)."""

    def step(x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        return x + (u - t) * v(x, t)

    return step


def midpoint(v: Velocity) -> Stepper:
    """An Euler half-step, then a whole step with the velocity found there."""

    def step(x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        h = u - t
        middle = x + h / 2 * v(x, t)
        return x + h * v(middle, t + h / 2)

    return step


def heun(v: Velocity) -> Stepper:
    """An Euler step, then the mean of the velocities at both ends."""

    def step(x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        h = u - t
        k1 = v(x, t)
        k2 = v(x + h * k1, u)
        return x + h / 2 * (k1 + k2)

    return step


def rk4(v: Velocity) -> Stepper:
    """The classical Runge-Kutta method."""

    def step(x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        h = u - t
        k1 = v(x, t)
        k2 = v(x + h / 2 * k1, t + h / 2)
        k3 = v(x + h / 2 * k2, t + h / 2)
        k4 = v(x + h * k3, u)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    return step


def ab2(v: Velocity) -> Stepper:
    """Adams-Bashforth: extrapolate the velocity linearly from this step and the one before, of any sizes."""
    before: tuple[Tensor, Tensor] | None = None

    def step(x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        nonlocal before
        h, k = u - t, v(x, t)
        if before is None:
            out = x + h * v(x + h / 2 * k, t + h / 2)  # midpoint, to start at order two
        else:
            previous_h, previous_k = before
            ratio = h / (2 * previous_h)
            out = x + h * ((1 + ratio) * k - ratio * previous_k)
        before = h, k
        return out

    return step


_STEPPERS: dict[str, Callable[[Velocity], Stepper]] = {
    "euler": euler, "midpoint": midpoint, "heun": heun, "rk4": rk4, "ab2": ab2,
}  # fmt: skip


def ode(
    field: Field | VelocityFunction,
    x0: Float[Tensor, "batch *event"],
    *,
    steps: int | None = None,
    method: str = "euler",
    times: Tensor | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    callback: Callback | None = None,
    keep: bool = True,
    differentiable: bool = False,
    **conditions: Any,
) -> Trajectory:
    r"""Solve $\dot x = v(x, t)$ from the first time to the last.

    Args:
        field: A field, or a plain function `(x, t, **conditions) -> velocity` with a 0-d time.
        x0: States at the first time; for sampling, draws of `path.sample_prior`.
        steps: Number of equal steps from 0 to 1. With `"adaptive"`, the number of intervals at whose ends states are
            reported; the solver chooses its own steps inside.
        method: One of `METHODS`; see the table above.
        times: The grid instead of `steps`: strictly increasing, or decreasing to run backward.
        rtol: Relative tolerance of `"adaptive"`.
        atol: Absolute tolerance of `"adaptive"`.
        callback: Called after each step as `callback(i, t, x)`; a tensor it returns replaces the state.
            Not with `"adaptive"`.
        keep: Keep all states; `False` keeps the two ends.
        differentiable: Let gradients flow through the solve; otherwise nothing is recorded.
        **conditions: Labels `y=` and the like, passed to the field.

    Returns:
        The trajectory, with the number of function evaluations.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid, or the field has no velocity at a time the method needs (for example a
            noise prediction on the linear path at t = 0).

    Example:
        >>> from flowlib import data, fields, paths
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.linear())
        >>> ode(field, torch.zeros(3, 2), steps=10, method="heun").nfe
        20
    """
    check_choice("method", method, METHODS)
    check_start(x0)
    check_positive("rtol", rtol)
    check_positive("atol", atol)
    if steps is None and times is None and method == "adaptive":
        steps = 1
    grid = time_grid(x0, steps, times)
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        if method in EXPONENTIAL:
            if not isinstance(field, Field):
                raise TypeError(f"method={method!r} needs a Field, because it uses the path's alpha and sigma")
            predict = CountedField(field, conditions)
            return run(exponential_stepper(method, predict, field, grid), predict, x0, grid, callback, keep)
        v = CountedVelocity(field, conditions, grid if method in _USES_END else grid[:-1])
        if method == "adaptive":
            if callback is not None:
                raise ValueError("callback cannot be used with method='adaptive', which chooses its own steps")
            return _adaptive(v, x0, grid, rtol, atol, keep)
        return run(_STEPPERS[method](v), v, x0, grid, callback, keep)


def run(
    step: Stepper,
    counter: CountedVelocity | CountedField,
    x: Tensor,
    grid: Tensor,
    callback: Callback | None,
    keep: bool,
) -> Trajectory:
    """The loop every fixed-step method shares."""
    times = grid.unbind()
    states = States(x, keep)
    for i in range(len(times) - 1):
        x = step(x, times[i], times[i + 1])
        if callback is not None:
            changed = callback(i, times[i + 1], x)
            x = x if changed is None else changed
        states.add(x)
    return states.trajectory(grid, counter.nfe)


def invert(
    field: Field | VelocityFunction,
    x1: Float[Tensor, "batch *event"],
    *,
    steps: int | None = None,
    method: str = "heun",
    times: Tensor | None = None,
    **options: Any,
) -> Trajectory:
    """Solve the ODE backward, from data to noise.

    Args:
        field: As for `ode`.
        x1: Data, the states at the last time.
        steps: Number of equal steps from 1 to 0.
        method: As for `ode`.
        times: The grid instead of `steps`, in either order; it is run from its largest time to its smallest.
        **options: As for `ode`.

    Returns:
        The trajectory from data to noise, times decreasing; its `.end` is the noise.

    Raises:
        TypeError: As `ode`.
        ValueError: As `ode`.

    Example:
        >>> from flowlib import data, fields, paths
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.linear())
        >>> there = invert(field, torch.ones(1, 2), steps=50)
        >>> back = ode(field, there.end, steps=50, method="heun")
        >>> bool((back.end - 1).abs().max() < 1e-3)
        True
    """
    check_start(x1)
    grid = time_grid(x1, steps, times, backward=True) if times is not None or steps is not None else None
    if grid is None and method == "adaptive":
        grid = time_grid(x1, 1, None, backward=True)
    if grid is None:
        raise ValueError("give either steps or times, got neither")
    return ode(field, x1, times=grid if grid[0] > grid[-1] else grid.flip(0), method=method, **options)


def _adaptive(v: CountedVelocity, x0: Tensor, grid: Tensor, rtol: float, atol: float, keep: bool) -> Trajectory:
    from torchdiffeq import odeint

    low, high = float(grid.min()), float(grid.max())

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        return v(x, t.clamp(low, high))  # a stage may overshoot the end by round-off

    grid = grid if keep else grid[[0, -1]]
    # stepping onto the grid's times keeps the solver inside [0, 1], instead of past the end and interpolating back
    states = odeint(velocity, x0, grid, rtol=rtol, atol=atol, method="dopri5", options={"step_t": grid})
    return Trajectory(grid, states, v.nfe)
