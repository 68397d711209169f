r"""Predictor-corrector sampling (Song et al., 2021, section 4.2).

A *predictor* moves samples from one noise level to the next, a *corrector* moves them within a level by Langevin
steps, which leave $p_t$ invariant but for their own bias. Predictors are written with the exact forward transition
from time $u$ back to an earlier, noisier time $t$,

$$ x_t = a\,x_u + c\,\xi, \qquad a = \alpha_t/\alpha_u, \qquad c^2 = \sigma_t^2 - a^2\sigma_u^2, $$

so that one formula serves every path ($a = 1$ for variance exploding, $a^2 = 1 - \beta_i$ for variance preserving):

| predictor | mean of $x_u$ given $x_t = x$ | noise |
|---|---|---|
| `euler_maruyama` | $x + h(g_t^2 s - f_t x)$ | $\sqrt h\,g_t$ |
| `reverse_diffusion` | $(2 - a)x + c^2 s$ | $c$ |
| `ancestral` | $(x + c^2 s)/a$ | $c\,\sigma_u/\sigma_t$ |
| `probability_flow` | $(2 - a)x + \tfrac12c^2 s$ | 0 |
| `none` | $x$ | 0 |

The ancestral step draws from the law of $x_u$ given $x_t$ and $x_1 = \hat x_1(x_t, t)$: it is DDPM's sampler.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import batch_time, check_choice, check_positive
from flowlib.fields import Field
from flowlib.fields.base import StateFunction, check_field
from flowlib.paths import GaussianPath
from flowlib.solvers.trajectory import States, Trajectory, check_start, forward_grid

__all__ = ["PREDICTORS", "langevin", "predictor_corrector"]

Callback = Callable[[int, Tensor, Tensor], Tensor | None]
Predictor = Callable[[GaussianPath, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def transition(path: GaussianPath, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The factor a and the variance c^2 of the forward transition from u back to t < u."""
    a = path.schedule.alpha(t) / path.schedule.alpha(u)
    return a, (path.schedule.sigma(t) ** 2 - a**2 * path.schedule.sigma(u) ** 2).clamp_min(0)


def euler_maruyama(path: GaussianPath, x: Tensor, s: Tensor, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The reverse SDE, frozen over the step."""
    (f, g2), h = path.drift_diffusion(t), u - t
    return x + h * (g2 * s - f * x), (h * g2).sqrt()


def reverse_diffusion(path: GaussianPath, x: Tensor, s: Tensor, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The discretised forward step, its drift and its noise reversed."""
    a, c2 = transition(path, t, u)
    return (2 - a) * x + c2 * s, c2.sqrt()


def ancestral(path: GaussianPath, x: Tensor, s: Tensor, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior of the forward transition, with the data replaced by its prediction."""
    a, c2 = transition(path, t, u)
    return (x + c2 * s) / a, c2.sqrt() * path.schedule.sigma(u) / path.schedule.sigma(t)


def probability_flow(path: GaussianPath, x: Tensor, s: Tensor, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """As `reverse_diffusion` with half the score and no noise."""
    a, c2 = transition(path, t, u)
    return (2 - a) * x + c2 / 2 * s, torch.zeros_like(t)


_PREDICTORS: dict[str, Predictor] = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral": ancestral,
    "probability_flow": probability_flow,
}
PREDICTORS = (*_PREDICTORS, "none")


def predictor_corrector(
    field: Field,
    x0: Float[Tensor, "batch *event"],
    *,
    steps: int | None = None,
    times: Tensor | None = None,
    predictor: str = "reverse_diffusion",
    corrector_steps: int = 1,
    snr: float = 0.16,
    step_size: float | None = None,
    denoise: bool = True,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    keep: bool = True,
    **conditions: Any,
) -> Trajectory:
    r"""At each time but the last: Langevin steps at that noise level, then one predictor step to the next.

    The Langevin step size at time $t$ is $e = 2a^2\big(\rho\,\|z\|/\|s\|\big)^2$ with the ratio $\rho$ = `snr`, norms
    averaged over the batch, and $a = \alpha_t/\alpha_u$ of the coming step: 1 for variance exploding, and $a^2$ is the
    paper's $1 - \beta_i$, which in this form stays positive on the coarsest grid.

    Args:
        field: The field; its score is used.
        x0: States at the first time.
        steps: Number of equal steps from 0 to 1.
        times: The grid instead of `steps`, strictly increasing; it must start where $\alpha_t > 0$. The score is not
            needed at the last time.
        predictor: One of `PREDICTORS`; see the table above. `"none"` leaves all to the corrector.
        corrector_steps: Langevin steps at each time; 0 for the predictor alone.
        snr: $\rho$, positive.
        step_size: A fixed $e$ instead of the rule.
        denoise: Return the mean of the last predictor step instead of a draw.
        generator: Random generator.
        callback: Called after every update, predictor or corrector, as `callback(i, t, x)` with the number of the
            step and the time at which the state now is; a tensor it returns replaces the state.
        keep: Keep the state at each time; `False` keeps the two ends.
        **conditions: Passed to the field.

    Returns:
        The trajectory; evaluations of predictor and corrector both count.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid, times decrease, or the score or the forward SDE has no limit at a time
            that is needed.

    Example:
        >>> from flowlib import data, fields, paths
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.ve(0.02, 6.0))
        >>> predictor_corrector(field, 6 * torch.randn(3, 2), steps=50).nfe
        100
    """
    check_choice("predictor", predictor, PREDICTORS)
    if not isinstance(corrector_steps, int) or corrector_steps < 0:
        raise ValueError(f"corrector_steps must be an int of at least 0, got {corrector_steps!r}")
    _check_langevin(field, snr, step_size)
    grid = forward_grid(x0, steps, times, "predictor-corrector sampling")
    field.check_times("score", grid[:-1])
    field.path.drift_diffusion(grid[:-1])  # raises where alpha is zero
    score, path = field.function("score"), field.path
    x, states, clock, nfe = x0, States(x0, keep), grid.unbind(), 0

    def after(i: int, t: Tensor, x: Tensor) -> Tensor:
        changed = callback(i, t, x) if callback is not None else None
        return x if changed is None else changed

    with torch.no_grad():
        for i in range(len(clock) - 1):
            t, u = clock[i], clock[i + 1]
            a, _ = transition(path, t, u)
            for _ in range(corrector_steps):
                x = after(i, t, _langevin_step(score, x, t, a, snr, step_size, generator, conditions))
                nfe += field.evaluations(t)
            if predictor != "none":
                s = score(x, t, **conditions)
                mean, std = _PREDICTORS[predictor](path, x - path.center, s, t, u)
                x = mean + path.center
                nfe += field.evaluations(t)
                if not (denoise and i == len(clock) - 2):
                    x = x + std * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
                x = after(i, u, x)
            states.add(x)
    return states.trajectory(grid, nfe)


def langevin(
    field: Field,
    x: Float[Tensor, "batch *event"],
    t: float | Tensor,
    *,
    steps: int,
    snr: float = 0.16,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
    **conditions: Any,
) -> Float[Tensor, "batch *event"]:
    r"""Langevin dynamics inside one noise level: $x \leftarrow x + e\,s(x, t) + \sqrt{2e}\,z$.

    It keeps $p_t$ up to a bias of order $e$; for $p_t = \mathcal N(0, 1)$ the stationary variance is
    $1/(1 - e/2)$ with a fixed $e$.

    Args:
        field: The field; its score is used.
        x: States.
        t: The time of the level, a float or a 0-d tensor.
        steps: Number of steps, each one evaluation.
        snr: As in `predictor_corrector`, with $a = 1$.
        step_size: A fixed $e$ instead of the rule.
        generator: Random generator.
        **conditions: Passed to the field.

    Returns:
        The states after the last step.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid, or the score has no limit at `t`.

    Example:
        >>> from flowlib import data, fields, paths
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.vp())
        >>> langevin(field, torch.randn(3, 2), 0.5, steps=10, step_size=0.1).shape
        torch.Size([3, 2])
    """
    check_positive("steps", steps, integer=True)
    _check_langevin(field, snr, step_size)
    check_start(x)
    t = batch_time(t, x)
    field.check_times("score", t)
    score, one = field.function("score"), torch.ones_like(t)
    with torch.no_grad():
        for _ in range(steps):
            x = _langevin_step(score, x, t, one, snr, step_size, generator, conditions)
    return x


def _langevin_step(
    score: StateFunction, x: Tensor, t: Tensor, a: Tensor, snr: float, step_size: float | None,
    generator: torch.Generator | None, conditions: dict[str, Any],
) -> Tensor:  # fmt: skip
    s: Tensor = score(x, t, **conditions)
    z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    if step_size is None:
        norm_s, norm_z = (y.flatten(1).norm(dim=1).mean() for y in (s, z))
        e = 2 * a**2 * (snr * norm_z / norm_s) ** 2
    else:
        e = torch.full_like(a, step_size)
    moved: Tensor = x + e * s + (2 * e).sqrt() * z
    return moved


def _check_langevin(field: Field, snr: float, step_size: float | None) -> None:
    check_field("field", field, "its score is")
    check_positive("snr", snr)
    if step_size is not None:
        check_positive("step_size", step_size)
