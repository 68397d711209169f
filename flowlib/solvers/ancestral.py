r"""Ancestral sampling of DDPM, DDIM, and the family between them (Ho et al., 2020; Song et al., 2021a).

A step from $t$ to the cleaner time $u$ keeps a part of the predicted noise and draws the rest anew:

$$ x_u = \alpha_u\hat x_1 + \sqrt{\sigma_u^2 - c^2}\,\hat x_0 + c\,\xi, \qquad \xi \sim \mathcal N(0, I), \qquad
   c = \eta\,\sigma_u\sqrt{1 - \mathrm{SNR}_t/\mathrm{SNR}_u} . $$

For exact predictions of a single data point every $\eta$ gives the law of $x_u$. $\eta = 0$ is DDIM; $\eta = 1$ draws
from the posterior $q(x_u \mid x_t, \hat x_1)$ (`GaussianPath.posterior`), the step of DDPM.
"""

import itertools
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_choice
from flowlib.fields import Field
from flowlib.fields.base import check_field
from flowlib.solvers.exponential import data_step
from flowlib.solvers.trajectory import States, Trajectory, forward_grid

__all__ = ["ancestral"]


def ancestral(
    field: Field,
    x0: Float[Tensor, "batch *event"],
    *,
    steps: int | None = None,
    times: Tensor | None = None,
    eta: float = 1.0,
    variance: Literal["posterior", "forward"] = "posterior",
    generator: torch.Generator | None = None,
    keep: bool = True,
    **conditions: Any,
) -> Trajectory:
    r"""Sample from noise to data by ancestral steps; one evaluation a step.

    A step that ends where $\sigma = 0$ adds no noise: it returns $\alpha_u\hat x_1$. The first step may start at
    $\alpha = 0$ if the field has a data prediction there.

    Args:
        field: The field; its data prediction is used.
        x0: States at the first time.
        steps: Number of equal steps from 0 to 1.
        times: The grid instead of `steps`, strictly increasing.
        eta: From 0 (DDIM, deterministic) to 1 (DDPM).
        variance: `"posterior"` adds the noise of the formula above. `"forward"` keeps its mean but adds
            $\eta^2\sigma_t^2(1 - \mathrm{SNR}_t/\mathrm{SNR}_u)$, the variance of the forward step from $u$ to $t$
            times $\eta^2$: the larger of DDPM's two choices, $\beta_t$ instead of $\tilde\beta_t$.
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
        >>> ancestral(field, torch.randn(3, 2), steps=50).nfe
        50
    """
    check_field("field", field, "its data prediction is")
    check_choice("variance", variance, ("posterior", "forward"))
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    grid = forward_grid(x0, steps, times, "ancestral sampling")
    field.check_times("data", grid[:-1])
    predict, path, schedule = field.function("data"), field.path, field.path.schedule

    x, states = x0, States(x0, keep)
    with torch.no_grad():
        for t, u in itertools.pairwise(grid.unbind()):
            _, b, posterior_variance = path.posterior(t, u)
            sigma_u = schedule.sigma(u)
            fresh = eta**2 * posterior_variance
            x = data_step(path, x, predict(x, t, **conditions), t, u, (sigma_u**2 - fresh).sqrt())
            if variance == "forward":
                fresh = eta**2 * schedule.sigma(t) ** 2 * b / schedule.alpha(u)
            if eta > 0 and sigma_u > 0:
                x = x + fresh.sqrt() * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            states.add(x)
    nfe = sum(field.evaluations(t) for t in grid[:-1])
    return states.trajectory(grid, nfe)
