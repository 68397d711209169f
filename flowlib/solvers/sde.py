r"""Solvers of the one-parameter family of SDEs that share the path's marginals.

For every $\eta_t \ge 0$ the process

$$ \mathrm dx = \Big[v(x, t) + \frac{\eta_t^2}{2} s(x, t)\Big]\mathrm dt + \eta_t\,\mathrm dW $$

has the marginals $p_t$ of the path (Song et al., 2021, appendix D; Albergo et al., 2023, theorem 2.8): $\eta = 0$ is
the probability-flow ODE and $\eta^2 = g^2$ the reverse-time SDE of Anderson (1982).
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_choice
from flowlib.fields import Field
from flowlib.fields.base import check_field
from flowlib.solvers.trajectory import States, Trajectory, forward_grid

__all__ = ["SDE_METHODS", "eta_squared", "sde"]

SDE_METHODS = ("euler_maruyama", "heun")
Eta = Literal["damped", "reverse"] | float | Callable[[Tensor], Tensor]


def eta_squared(field: Field, eta: Eta) -> Callable[[Tensor], Tensor]:
    r"""The function $t \mapsto \eta_t^2$ behind the argument `eta` of `sde`.

    Args:
        field: The field, whose path gives the named choices.
        eta: `"reverse"`: $\eta^2 = g^2 = 2\sigma D/\alpha$, infinite where $\alpha = 0$. `"damped"`:
            $\eta^2 = \alpha g^2 = 2\sigma D$, finite everywhere and equal to $g^2$ near the data ($2(1 - t)$ on the
            linear path). A number: constant $\eta$. A function: $\eta_t$ of a 0-d time.

    Returns:
        A function of a 0-d time.

    Raises:
        ValueError: If the name is unknown or the number negative.

    Example:
        >>> from flowlib import data, fields, paths
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.linear())
        >>> eta_squared(field, "damped")(torch.tensor(0.25))
        tensor(1.5000)
    """
    path = field.path
    if isinstance(eta, str):
        check_choice("eta", eta, ("damped", "reverse"))
        if eta == "reverse":
            return lambda t: path.drift_diffusion(t)[1]
        schedule = path.schedule

        def damped(t: Tensor) -> Tensor:
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            return 2 * schedule.alpha_dot(t) * sigma**2 - alpha * schedule.variance_dot(t)

        return damped
    if callable(eta):
        return lambda t: eta(t) ** 2
    if not eta >= 0:
        raise ValueError(f"eta must not be negative, got {eta}")
    return lambda t: torch.full_like(t, eta**2)


def sde(
    field: Field,
    x0: Float[Tensor, "batch *event"],
    *,
    steps: int | None = None,
    method: str = "euler_maruyama",
    eta: Eta = "damped",
    times: Tensor | None = None,
    generator: torch.Generator | None = None,
    keep: bool = True,
    **conditions: Any,
) -> Trajectory:
    r"""Sample the SDE of the family with noise level $\eta$, from noise to data.

    `"euler_maruyama"` has weak order 1 (one evaluation a step). `"heun"`, a predictor-corrector step that reuses
    its noise, has weak order 2 because the noise does not depend on the state (two evaluations; Kloeden and Platen,
    1992, chapter 15). A step that ends where $\sigma = 0$ is an Euler-Maruyama step, since the score there need not
    exist.

    Args:
        field: The field; velocity and score come from one evaluation of its own prediction.
        x0: States at the first time.
        steps: Number of equal steps from 0 to 1.
        method: `"euler_maruyama"` or `"heun"`.
        eta: The noise level; see `eta_squared`.
        times: The grid instead of `steps`, strictly increasing. `"reverse"` on a path with $\alpha_0 = 0$ must start
            later than 0.
        generator: Random generator.
        keep: Keep all states; `False` keeps the two ends.
        **conditions: Passed to the field.

    Returns:
        The trajectory, with the number of function evaluations.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid, times decrease, or the field's velocity, its score or $\eta$ has no
            limit at a time that is needed.

    Example:
        >>> from flowlib import data, fields, paths
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.linear())
        >>> sde(field, torch.randn(3, 2), steps=50).nfe
        50
    """
    check_choice("method", method, SDE_METHODS)
    check_field("field", field, "its score is")
    grid = forward_grid(x0, steps, times, "this family")
    field.check_times("velocity", grid[:-1])
    field.check_times("score", grid[:-1])
    variance = eta_squared(field, eta)
    rates = [variance(t) for t in grid.unbind()[:-1]]
    _check_rates(rates, grid)
    singular_end = float(field.path.schedule.sigma(grid[-1])) == 0.0
    rates.append(rates[-1] if singular_end else variance(grid[-1]))

    nfe = 0

    def drift(x: Tensor, t: Tensor, rate: Tensor) -> Tensor:
        nonlocal nfe
        nfe += field.evaluations(t)
        v, s = _velocity_and_score(field, x, t, conditions)
        return v + rate / 2 * s

    x, states, clock = x0, States(x0, keep), grid.unbind()
    with torch.no_grad():
        for i in range(len(clock) - 1):
            t, u = clock[i], clock[i + 1]
            h = u - t
            z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            last = singular_end and i == len(clock) - 2
            if method == "euler_maruyama" or last:
                x = x + h * drift(x, t, rates[i]) + (h * rates[i]).sqrt() * z
            else:
                noise = (h * (rates[i] + rates[i + 1]) / 2).sqrt() * z  # the variance of the integral, to order two
                k1 = drift(x, t, rates[i])
                k2 = drift(x + h * k1 + noise, u, rates[i + 1])
                x = x + h / 2 * (k1 + k2) + noise
            states.add(x)
    return states.trajectory(grid, nfe)


def _velocity_and_score(field: Field, x: Tensor, t: Tensor, conditions: dict[str, Any]) -> tuple[Tensor, Tensor]:
    value = field.evaluate(x, t, **conditions)
    path, own = field.path, field.predicts
    return path.apply_conversion(value, x, t, own, "velocity"), path.apply_conversion(value, x, t, own, "score")


def _check_rates(rates: list[Tensor], grid: Tensor) -> None:
    for rate, t in zip(rates, grid.unbind(), strict=False):
        if rate.ndim or not math.isfinite(float(rate)) or float(rate) < 0:
            raise ValueError(f"eta must give a finite number at each time, got eta^2 = {rate} at t = {float(t):g}")
