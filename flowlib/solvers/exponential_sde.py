r"""Exponential integrators of the sampling SDE: SDE-DPM-Solver++ of order 1 and its two-step variant.

With $\nu = \eta_t/g_t$ constant, the family $\mathrm dx = [v + \tfrac12\eta^2 s]\mathrm dt + \eta\,\mathrm dW$ has the
exact step

$$ x_u = \frac{\sigma_u}{\sigma_t}e^{-\nu^2h}x_t
       + \alpha_u(1 + \nu^2)\int_0^h e^{-(1 + \nu^2)(h - s)}\,\hat x_1\,\mathrm ds
       + \sigma_u\sqrt{1 - e^{-2\nu^2h}}\;\xi . $$

The integral is the one of the ODE with $h$ replaced by $(1 + \nu^2)h$, so both share their weights. $\nu = 0$ is the
ODE, $\nu = 1$ the reverse-time SDE, and then order 1 is ancestral sampling (Lu et al., 2022b, section 5).
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib.fields import Field
from flowlib.fields.base import check_field
from flowlib.solvers.exponential import Knots, moments
from flowlib.solvers.trajectory import States, Trajectory, forward_grid

__all__ = ["exponential_sde"]


def exponential_sde(
    field: Field,
    x0: Float[Tensor, "batch *event"],
    *,
    steps: int | None = None,
    times: Tensor | None = None,
    order: int = 1,
    nu: float = 1.0,
    generator: torch.Generator | None = None,
    keep: bool = True,
    **conditions: Any,
) -> Trajectory:
    r"""Sample the SDE with a constant ratio $\nu = \eta/g$ by exponential steps; one evaluation a step.

    `order=1` freezes $\hat x_1$ over a step: weak order 1, and any $\nu$ is exact for a single data point. `order=2`
    extrapolates $\hat x_1$ from two values, with the weights of DPM-Solver++(2M): the effect of a step's noise on
    $\hat x_1$, which the step itself cannot see, enters with the next one, and the variance of a Gaussian converges
    with order 2. A step onto $\sigma = 0$ adds no noise and lands on $\hat x_1$.

    Args:
        field: The field; its data prediction is used.
        x0: States at the first time.
        steps: Number of equal steps from 0 to 1.
        times: The grid instead of `steps`, strictly increasing.
        order: 1 or 2.
        nu: $\nu \ge 0$.
        generator: Random generator.
        keep: Keep all states; `False` keeps the two ends.
        **conditions: Passed to the field.

    Returns:
        The trajectory, with the number of function evaluations.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid, times decrease, or the data prediction has no limit at a time that is
            needed.

    Example:
        >>> from flowlib import data, fields, paths
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.linear())
        >>> exponential_sde(field, torch.randn(3, 2), steps=20, order=2).nfe
        20
    """
    check_field("field", field, "its data prediction is")
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}")
    if not nu >= 0:
        raise ValueError(f"nu must not be negative, got {nu}")
    grid = forward_grid(x0, steps, times, "this family")
    field.check_times("data", grid[:-1])
    predict, center = field.function("data"), field.path.center
    knots = Knots.of(field.path, grid, "data")

    x, states, clock, before = x0, States(x0, keep), grid.unbind(), None
    with torch.no_grad():
        for i in range(len(clock) - 1):
            value, h = predict(x, clock[i], **conditions), knots.length(i)
            mean, m0 = value, 1.0
            if not math.isinf(h):
                (m0,) = moments((1 + nu**2) * h, 1)
                if order == 2 and before is not None and not math.isinf(knots.length(i - 1)):
                    mean = value + h / knots.length(i - 1) / 2 * (value - before)
            fade = knots.decay[i + 1] / knots.decay[i] * math.exp(-(nu**2) * h if nu > 0 else 0.0)
            x = center + fade * (x - center) + knots.gain[i + 1] * m0 * (mean - center)
            spread = knots.decay[i + 1] * math.sqrt(-math.expm1(-2 * nu**2 * h)) if nu > 0 else 0.0
            if spread > 0:
                x = x + spread * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            before = value
            states.add(x)
    nfe = sum(field.evaluations(t) for t in clock[:-1])
    return states.trajectory(grid, nfe)
