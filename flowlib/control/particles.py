r"""Weighted particles that follow a tilt (Skreta et al., 2025).

A guided field has the score of $\pi_t \propto \prod_ip_{i,t}^{w_i}$, but its flow does not carry $\pi_t$ along: the
continuity equation lacks the source $h_t$ of `CombinedField.source`. Particles that gather $\int h_t\,\mathrm dt$ as
the logarithm of a weight put it back.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_state
from flowlib.control.guidance import CombinedField
from flowlib.solvers import Trajectory, time_grid
from flowlib.solvers.sde import Eta, eta_squared

__all__ = ["tilted"]


def tilted(
    field: CombinedField,
    x0: Float[Tensor, "batch *event"],
    *,
    steps: int | None = None,
    times: Tensor | None = None,
    eta: Eta = "damped",
    generator: torch.Generator | None = None,
    **conditions: Any,
) -> Trajectory:
    r"""Sample $\pi_1 \propto \prod_ip_i^{w_i}$ itself, for guidance $p_u\,(p_c/p_u)^w$, by weighted particles.

    The batch is one population. Particles move by the guided SDE with noise level $\eta$ and gather the logarithmic
    weight $\int h_t\,\mathrm dt$ (`CombinedField.source`). When the effective sample size falls below half, and at
    the end, they are resampled systematically: heavy particles are copied, light ones die (Skreta et al., 2025).

    Args:
        field: The guided field. Its scales must be constant.
        x0: States at the first time, draws of the common source of all terms; the larger the batch, the better.
        steps: Number of equal steps from 0 to 1.
        times: The grid instead of `steps`, strictly increasing.
        eta: The noise level, as for `solvers.sde`. More noise lets particles find their place faster and parts copies
            (with 0 they stay together), but a step must stay small against $1/\eta^2$ times the variance of a mode:
            a constant of one or two wants a few hundred steps, the default is milder.
        generator: Random generator.
        **conditions: Passed to the fields; the same for the whole population.

    Returns:
        The trajectory's two ends, the last one resampled (so that some rows are equal), and the evaluations.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid, a scale depends on time, conditions differ within the batch, or the
            terms do not start from one law, which needs $\alpha < 0.01\,\sigma$ at the first time.

    Example:
        >>> from flowlib import control, data, fields, paths
        >>> ring, spot = data.toys.eight_gaussians(), data.toys.eight_gaussians(std=0.1)
        >>> sharp, wide = (fields.MixtureField(law, paths.linear()) for law in (spot, ring))
        >>> tilted(control.guided(sharp, wide, 2.0), torch.randn(50, 2), steps=20)
        Trajectory(2 times from 0 to 1, batch=50, event=(2,), nfe=40)
    """
    if not isinstance(field, CombinedField):
        raise TypeError(f"field must be a CombinedField, made by guided or the like; got {type(field).__name__}")
    if any(callable(scale) for scale in field.scales):
        raise ValueError("the scales of field must be numbers: with a scale that changes, the tilt changes with time")
    check_state("x0", x0)
    for name, value in conditions.items():
        if isinstance(value, Tensor) and value.ndim > 0 and not bool((value == value[:1]).all()):
            raise ValueError(f"{name} must be the same for the whole batch, which is one population")
    grid = time_grid(x0, steps, times)
    start = field.path.schedule.log_snr(grid[0])
    if grid[0] > grid[-1] or float(start) > -9:
        raise ValueError(
            "times must increase from a time where alpha < 0.01 sigma, so that all terms start from one law; "
            f"got a log-SNR of {float(start):.3g} at t = {float(grid[0]):g}"
        )
    field.check_times("velocity", grid[:-1])
    field.path.check_conversion(grid[:-1], "velocity", "score")
    rate, x, nfe = eta_squared(field, eta), x0, 0
    log_weights = torch.zeros(x.shape[0], dtype=x.dtype, device=x.device)
    with torch.no_grad():
        for t, u in zip(grid[:-1].unbind(), grid[1:].unbind(), strict=True):
            v, h = field.velocity_and_source(x, t, **conditions)
            s = field.path.apply_conversion(v, x, t, "velocity", "score")
            nfe += field.evaluations(t)
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x = x + (u - t) * (v + rate(t) / 2 * s) + ((u - t) * rate(t)).sqrt() * noise
            log_weights = log_weights + (u - t) * h
            weights = log_weights.softmax(0)
            if 1 / weights.square().sum() < x.shape[0] / 2 or u == grid[-1]:
                x, log_weights = x[_systematic(weights, generator)], torch.zeros_like(log_weights)
    return Trajectory(grid[[0, -1]], torch.stack([x0, x]), nfe)


def _systematic(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """Indices of a resampled population: one uniform number, then equal steps through the cumulated weights."""
    n = weights.shape[0]
    offset = torch.rand((), generator=generator, dtype=weights.dtype, device=weights.device)
    places = (torch.arange(n, dtype=weights.dtype, device=weights.device) + offset) / n
    return torch.searchsorted(weights.cumsum(0), places).clamp_max(n - 1)
