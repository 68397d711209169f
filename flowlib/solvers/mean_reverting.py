r"""MR Sampler: semi-analytic steps for mean-reverting diffusions (Li et al., 2025).

On the path $x_t = \mu + \alpha_t(x_1 - \mu) + \sigma_t x_0$ let $\lambda = \log(\alpha/\sigma)$ and
$h = \lambda_u - \lambda_t$, and let $\nu = \eta/g$ be constant: 0 is the probability-flow ODE, 1 the reverse-time SDE.
Variation of constants gives two exact forms of a step from $t$ to $u$, with fresh noise $\xi \sim \mathcal N(0, I)$:

$$ x_u - \mu &= \frac{\sigma_u}{\sigma_t}e^{-\nu^2h}(x_t - \mu)
   + \alpha_u\int_0^h\kappa e^{-\kappa(h - s)}(\hat x_1 - \mu)\,\mathrm ds + \sigma_u\sqrt{1 - e^{-2\nu^2h}}\;\xi, \\
   x_u - \mu &= \frac{\alpha_u}{\alpha_t}(x_t - \mu)
   - \kappa\,\sigma_u\int_0^he^{h - s}\hat x_0\,\mathrm ds + \nu\,\sigma_u\sqrt{e^{2h} - 1}\;\xi,
   \qquad \kappa = 1 + \nu^2 . $$

A method of order $k$ replaces the prediction by the polynomial in $\lambda$ through its last $k$ values and integrates
that exactly, at one evaluation a step.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import batch_time, check_choice, check_same, check_state, expand_time
from flowlib.fields import Field
from flowlib.fields.base import check_field
from flowlib.paths import GaussianPath, MeanReverting
from flowlib.solvers.exponential import weights
from flowlib.solvers.trajectory import States, Trajectory, forward_grid

__all__ = ["angular_velocity", "data_from_angular", "mr_sampler", "mr_step"]

Form = Literal["data", "noise"]
FORMS: tuple[Form, ...] = ("data", "noise")
FEW_STEPS = 10
"""With fewer steps than this the order is lowered towards the end, as it is at the start."""


def mr_step(
    path: GaussianPath,
    x: Tensor,
    predictions: Sequence[Tensor],
    times: Sequence[float | Tensor],
    u: float | Tensor,
    *,
    form: Form = "data",
    nu: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    r"""One step of MR Sampler, of the order of the number of predictions.

    Written out, the data form of order one is, with $\nu = 0$,

    $$ x_u = \tfrac{\sigma_u}{\sigma_t}x_t + \alpha_u(1 - e^{-h})\hat x_1
             + \mu\big[1 - \tfrac{\sigma_u}{\sigma_t} + \tfrac{\sigma_u}{\sigma_t}\alpha_t - \alpha_u\big]. $$

    A step onto $\sigma_u = 0$ is infinitely long in $\lambda$. It returns the newest data prediction, and it needs the
    data form; `mr_sampler` sees to that.

    Args:
        path: The path; its centre is $\mu$.
        x: State at the first of `times`.
        predictions: Data or noise predictions along the trajectory, the newest first.
        times: Their times, the newest first, strictly decreasing, where $\alpha > 0$.
        u: The end of the step, cleaner than `times[0]`.
        form: Whether the predictions are of `"data"` or of `"noise"`.
        nu: $\nu = \eta/g \ge 0$.
        noise: $\xi$, shaped like `x`; needed where $\nu > 0$ and $\sigma_u > 0$.

    Returns:
        The state at time `u`.

    Raises:
        ValueError: If lengths disagree, a number is out of range, times are not in order, or the noise is missing.

    Example:
        >>> from flowlib import paths
        >>> path, x = paths.mean_reverting(center=2.0, sigma_inf=0.5), torch.full((1, 2), 2.0)
        >>> mr_step(path, x, [x], [0.2], 0.7)         # state and prediction at the centre: nothing moves
        tensor([[2., 2.]])
    """
    check_choice("form", form, FORMS)
    if not predictions or len(predictions) != len(times):
        raise ValueError(f"predictions and times must have one length >= 1, got {len(predictions)} and {len(times)}")
    if not nu >= 0:
        raise ValueError(f"nu must not be negative, got {nu}")
    schedule, mu = path.schedule, path.center
    clock = torch.tensor([float(s) for s in (u, *times)], dtype=torch.float64)
    if not bool((clock.diff() < 0).all()):
        raise ValueError(
            f"u must come after times, and these must decrease; got u = {float(u):g} after {clock[1:].tolist()}"
        )
    alpha: list[float] = schedule.alpha(clock).tolist()
    sigma: list[float] = schedule.sigma(clock).tolist()
    lam: list[float] = (schedule.log_snr(clock) / 2).tolist()
    if min(alpha[1:]) == 0.0:
        raise ValueError(f"alpha must not vanish at times, got alpha = {alpha[1:]} at {clock[1:].tolist()}")
    if sigma[0] == 0.0:
        if form == "noise":
            raise ValueError("a step onto sigma = 0 needs form='data'")
        return predictions[0]
    h = lam[0] - lam[1]
    nodes = [(value - lam[1]) / h for value in lam[1:]]
    kappa = 1 + nu * nu
    if form == "data":
        decay, gain = sigma[0] / sigma[1] * math.exp(-nu * nu * h), alpha[0]
        factors = weights(nodes, kappa * h)
        spread = sigma[0] * math.sqrt(-math.expm1(-2 * nu * nu * h))
        rest = 1 - decay + gain * math.expm1(-kappa * h)  # the coefficient of mu: all of them sum to one
    else:
        decay, gain = alpha[0] / alpha[1], kappa * sigma[0]
        factors = weights(nodes, -h)
        spread = nu * sigma[0] * math.sqrt(math.expm1(2 * h))
        rest = 1 - decay
    out = decay * x + rest * mu
    for factor, value in zip(factors, predictions, strict=True):
        out = out + gain * factor * value
    if spread == 0.0:
        return out
    if noise is None:
        raise ValueError(f"noise is needed where nu > 0, got None with nu = {nu}")
    return out + spread * noise


def mr_sampler(
    field: Field,
    x0: Float[Tensor, "batch *event"],
    *,
    steps: int | None = None,
    times: Tensor | None = None,
    order: int = 2,
    form: Form = "data",
    nu: float = 0.0,
    generator: torch.Generator | None = None,
    keep: bool = True,
    **conditions: Any,
) -> Trajectory:
    r"""Sample a mean-reverting diffusion, from the centre plus noise to data; one evaluation a step.

    The centre is that of the field's path and may differ from sample to sample; other paths are sampled as well, from
    a time where $\alpha > 0$. The first steps have a lower order, for want of earlier predictions, and with fewer than
    ten steps so have the last ones. A step onto $\sigma = 0$ returns the data prediction; end a little earlier to have
    the last step count in the order. For the SDE, order 2 removes the leading error of mean and variance on Gaussian
    data.

    Args:
        field: The field; its data or noise prediction is used, whatever it predicts itself.
        x0: States at the first time, draws of `field.path.sample_prior`.
        steps: Number of equal steps from 0 to 1.
        times: The grid instead of `steps`, strictly increasing. Even steps of $\lambda$ suit an order above one.
        order: 1, 2 or 3.
        form: The prediction that is held polynomial over a step, `"data"` or `"noise"`.
        nu: $\nu = \eta/g \ge 0$: 0 for the ODE, 1 for the SDE.
        generator: Random generator.
        keep: Keep all states; `False` keeps the two ends.
        **conditions: Passed to the field, for example the degraded image.

    Returns:
        The trajectory, with the number of function evaluations.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid, times decrease, or the prediction has no limit at a time that is needed.

    Example:
        >>> from flowlib import data, fields, paths
        >>> mu = torch.tensor([0.5, 0.0])
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.mean_reverting(mu, sigma_inf=0.5))
        >>> x0 = field.path.sample_prior((3, 2))
        >>> mr_sampler(field, x0, steps=10).nfe
        10
    """
    check_field("field", field, "its predictions are")
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    check_choice("form", form, FORMS)
    if not nu >= 0:
        raise ValueError(f"nu must not be negative, got {nu}")
    grid = forward_grid(x0, steps, times, "MR Sampler")
    path, count = field.path, len(grid) - 1
    onto_data = float(path.schedule.sigma(grid[-1])) == 0.0
    forms: list[Form] = [form] * (count - 1) + ["data" if onto_data else form]
    for kind in FORMS:
        used = torch.tensor([name == kind for name in forms], device=grid.device)
        if bool(used.any()):
            field.check_times(kind, grid[:-1][used])

    x, states, clock = x0, States(x0, keep), grid.unbind()
    predictions: list[Tensor] = []
    with torch.no_grad():
        for i in range(count):
            if forms[i] != form:
                predictions.clear()
            predictions.insert(0, field.function(forms[i])(x, clock[i], **conditions))
            k = min(order, len(predictions), count - i if count < FEW_STEPS else order)
            del predictions[order:]
            noise = None
            if nu > 0 and not (onto_data and i == count - 1):
                noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            past = [clock[i - j] for j in range(k)]
            x = mr_step(path, x, predictions[:k], past, clock[i + 1], form=forms[i], nu=nu, noise=noise)
            states.add(x)
    nfe = sum(field.evaluations(t) for t in clock[:-1])
    return states.trajectory(grid, nfe)


def angular_velocity(
    path: GaussianPath, x0: Float[Tensor, "batch *event"], x1: Float[Tensor, "batch *event"], t: float | Tensor
) -> Float[Tensor, "batch *event"]:
    r"""$V = \mathrm d x/\mathrm d\varphi = \sigma_\infty\cos\varphi\;x_0 - \sin\varphi\,(x_1 - \mu)$.

    On the mean-reverting path $\alpha = \cos\varphi$ and $\sigma = \sigma_\infty\sin\varphi$. Of a pair this is the
    target of a network that predicts $V$; of the two predictions at one state it is the prediction of $V$. It is
    finite on the whole path, unlike the velocity in $t$.

    Args:
        path: A mean-reverting path.
        x0: Noise, or its prediction.
        x1: Data, or its prediction.
        t: Time in [0, 1].

    Returns:
        $V$, shaped like `x1`.

    Raises:
        TypeError: If dtypes differ, or the path is not mean reverting.
        ValueError: If shapes or times are invalid.

    Example:
        >>> from flowlib import paths
        >>> angular_velocity(paths.mean_reverting(sigma_inf=0.2), torch.ones(1, 1), torch.zeros(1, 1), 1.0)
        tensor([[0.2000]])
    """
    cosine, sine, sigma_inf = _angle(path, x1, t)
    check_same("x0", x0, "x1", x1)
    return sigma_inf * cosine * x0 - sine * (x1 - path.center)


def data_from_angular(
    path: GaussianPath, x: Float[Tensor, "batch *event"], angular: Float[Tensor, "batch *event"], t: float | Tensor
) -> Float[Tensor, "batch *event"]:
    r"""The data prediction $\hat x_1 = \mu + \cos\varphi\,(x - \mu) - \sin\varphi\,V$ of a prediction of $V$.

    Args:
        path: A mean-reverting path.
        x: States.
        angular: $V$ at `x` and `t`; see `angular_velocity`.
        t: Time in [0, 1].

    Returns:
        The data prediction, shaped like `x`.

    Raises:
        TypeError: If dtypes differ, or the path is not mean reverting.
        ValueError: If shapes or times are invalid.

    Example:
        >>> from flowlib import paths
        >>> path, t = paths.mean_reverting(center=1.0, sigma_inf=0.2), 0.4
        >>> x0, x1 = torch.full((1, 1), 0.5), torch.full((1, 1), 3.0)
        >>> data_from_angular(path, path.interpolate(x0, x1, t), angular_velocity(path, x0, x1, t), t)
        tensor([[3.]])
    """
    cosine, sine, _ = _angle(path, x, t)
    check_same("angular", angular, "x", x)
    return path.center + cosine * (x - path.center) - sine * angular


def _angle(path: GaussianPath, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor, float]:
    r"""$\cos\varphi$ and $\sin\varphi$ against states, and $\sigma_\infty$."""
    check_state("x", x, finite=False)
    if not isinstance(path.schedule, MeanReverting):
        raise TypeError(f"path must be mean reverting, got a {type(path.schedule).__name__} schedule")
    t, sigma_inf = batch_time(t, x), path.schedule.sigma_inf
    return expand_time(path.schedule.alpha(t), x), expand_time(path.schedule.sigma(t), x) / sigma_inf, sigma_inf
