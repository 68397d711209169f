r"""Inverse problems with a flow prior: FLAIR (Erbach et al., 2025, arXiv 2506.02680).

What is known is $y = A(D(z)) + \rho n$ with a measurement $A$, a decoder $D$ and normal noise $n$. One latent $\mu$ is
moved in turns by the prior and by the data. With $x_t = \alpha_t\mu + \sigma_t e$ the prior's turn is

$$ \mu \leftarrow \mu - \kappa_t\,\big(\mu - \hat x_1(x_t, t)\big), \qquad 0 \le \kappa_t < 2, $$

a gradient step on $\mathrm{KL}(q_t \,\Vert\, p_t)$ with $q_t = \mathcal N(\alpha_t\mu, \sigma_t^2 I)$ that needs no
Jacobian of the network. The data's turn descends on $\lVert A(D(\mu)) - y\rVert^2$ until it is as small as the
noise makes it. The noise is carried from level to level, $e = a_t\,\hat x_0 + \sqrt{1 - a_t^2}\,\xi$ with $a_t = t$.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowlib._checks import check_positive, check_same, check_state, check_unit_interval, expand_time
from flowlib.fields import Field

__all__ = ["Restoration", "calibrated_weights", "carried_noise", "data_consistency", "flair"]

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Restoration:
    """What `flair` found.

    Attributes:
        latent: $\\mu$, `[batch, *event]`.
        image: $D(\\mu)$; the latent itself without a decoder.
        residual: $\\lVert A(D(\\mu)) - y\\rVert^2$ for each item, `[batch]`.
        data_steps: Gradient steps on the data at each level, `[levels, batch]`.
        nfe: Evaluations of the field, each for the whole batch.
    """

    latent: Tensor
    image: Tensor
    residual: Tensor
    data_steps: Tensor
    nfe: int


def calibrated_weights(
    errors: Float[Tensor, " L"], levels: Float[Tensor, " L"], times: Float[Tensor, " T"]
) -> Float[Tensor, " T"]:
    r"""Weights of the prior from its measured error: $w_j = L_j^{-1}$ over their mean, read at the nearest level.

    $L_j = \mathbb E\lVert v(x_t, t) - (x_1 - x_0)\rVert^2$ at time $t_j$, on images the field was not trained on; on
    the linear path it is `metrics.denoising_error` divided by $(1 - t)^2$. Only ratios of errors matter. The weights
    have mean one over the calibration's levels.

    Args:
        errors: $L_j$, positive.
        levels: The times $t_j$ at which they were measured, in any order.
        times: The times at which weights are wanted.

    Returns:
        One weight for each of `times`.

    Raises:
        ValueError: If shapes disagree, an error is not positive and finite, or a time leaves [0, 1].

    Example:
        >>> import torch
        >>> calibrated_weights(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.1, 0.9]))
        tensor([1.5000, 0.5000])
    """
    if errors.ndim != 1 or errors.shape != levels.shape:
        raise ValueError(
            f"errors and levels must be vectors of one length, got {list(errors.shape)} and {list(levels.shape)}"
        )
    if not bool(((errors > 0) & torch.isfinite(errors)).all()):
        raise ValueError(f"errors must be positive and finite, got values from {errors.min():g} to {errors.max():g}")
    check_unit_interval("levels", levels)
    check_unit_interval("times", times)
    weights = 1 / errors
    nearest = (times[:, None] - levels).abs().argmin(1)
    return (weights / weights.mean())[nearest]


def carried_noise(
    noise: Float[Tensor, "batch *event"], share: float | Tensor, *, generator: torch.Generator | None = None
) -> Float[Tensor, "batch *event"]:
    r"""Deterministic trajectory adjustment: $a\hat e + \sqrt{1 - a^2}\,\xi$ with fresh normal $\xi$.

    Standard normal again if $\hat e$ is standard normal; the old noise for $a = 1$, fresh noise for $a = 0$.

    Args:
        noise: $\hat e$, the noise prediction at the level before.
        share: $a$ in [0, 1].
        generator: Random generator.

    Returns:
        Noise of the same shape.

    Raises:
        ValueError: If `share` leaves [0, 1].

    Example:
        >>> import torch
        >>> carried_noise(torch.ones(1, 2), 1.0)
        tensor([[1., 1.]])
    """
    a = torch.as_tensor(share, dtype=noise.dtype, device=noise.device)
    check_unit_interval("share", a)
    fresh = torch.randn(noise.shape, generator=generator, dtype=noise.dtype, device=noise.device)
    return a * noise + (1 - a**2).sqrt() * fresh


def data_consistency(
    measure: Map,
    y: Tensor,
    mu: Float[Tensor, "batch *event"],
    *,
    rate: float | Tensor,
    steps: int,
    tolerance: float,
    decoder: Map | None = None,
) -> tuple[Float[Tensor, "batch *event"], Int[Tensor, " batch"]]:
    r"""Gradient steps on the sum of squares $\lVert A(D(\mu)) - y\rVert^2$ until it is at most $m$ times `tolerance`.

    Here $m$ is the number of measurements of an item. Each item stops by itself. With `tolerance` the variance of the
    measurement's noise this is the discrepancy principle: data are not fitted below their noise.

    Args:
        measure: $A$, differentiable, each item by itself.
        y: Measurements `[batch, ...]`.
        mu: Latents.
        rate: Step size.
        steps: Most steps.
        tolerance: Mean squared residual at which an item is done, not negative.
        decoder: $D$, differentiable, each item by itself; the identity if `None`.

    Returns:
        The new latents, and how many steps each took.

    Raises:
        ValueError: If the measurement's shape is not that of `y`.
        FloatingPointError: If the residual is no longer finite, because the rate is too large.

    Example:
        >>> import torch
        >>> half = lambda x: x[:, :1]
        >>> mu, used = data_consistency(half, torch.ones(1, 1), torch.zeros(1, 2), rate=0.5, steps=9, tolerance=1e-4)
        >>> mu, used      # one step of rate 1/2 solves an orthonormal problem
        (tensor([[1., 0.]]), tensor([1]))
    """
    used = torch.zeros(mu.shape[0], dtype=torch.long, device=mu.device)
    for _ in range(steps):
        with torch.enable_grad():
            at = mu.detach().requires_grad_()
            squares = _squares(measure, decoder, at, y)
            active = squares > tolerance * y[0].numel()
            if not bool(active.any()):
                break
            (gradient,) = torch.autograd.grad(squares.sum(), at)
        mu = torch.where(expand_time(active, mu), mu - rate * gradient, mu)
        used += active
    return mu.detach(), used


def flair(
    field: Field,
    measure: Map,
    y: Tensor,
    mu: Float[Tensor, "batch *event"],
    /,
    *,
    times: Float[Tensor, " levels"],
    pull: Float[Tensor, " levels"],
    data_rates: Float[Tensor, " levels"],
    tolerance: float,
    data_steps: int = 15,
    share: Float[Tensor, " levels"] | None = None,
    decoder: Map | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    **conditions: Any,
) -> Restoration:
    r"""Restore images from measurements with a frozen field; the module's page has the algorithm.

    In the paper's terms `pull` is $\kappa = \lambda w/(1 - t)$ and `data_rates` is its learning rate times $\lambda w$;
    `calibrated_weights` makes $w$. Rows of a batch do not see each other: to draw several restorations of one
    measurement, repeat it. The first four arguments have no keyword, so that `y=` labels can go to the field.

    Args:
        field: The prior, on any Gaussian path without a centre; used without gradients.
        measure: $A$, differentiable, each item by itself; for example one of `control.measurements`.
        y: Measurements `[batch, ...]`.
        mu: Where to start, `[batch, *event]`: the encoding of a pseudo-inverse.
        times: From noise to data, increasing, below one; `torch.linspace(0, 0.82, 52)[1:-1]` in the paper.
        pull: $\kappa$ at each level, in [0, 2).
        data_rates: Step size of the data's gradient steps at each level.
        tolerance: Variance of the measurement's noise.
        data_steps: Most gradient steps on the data at each level.
        share: $a$, the share of carried noise at each level; `times` if `None`, zeros for fresh noise.
        decoder: $D$, differentiable, each item by itself; the identity if `None`.
        generator: Random generator.
        callback: Called as `callback(i, x, mu)` after level i with the noisy state and the latent.
        **conditions: Passed to the field.

    Returns:
        Latents, images, residuals and counts.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes disagree, times do not increase within [0, 1), or a pull leaves [0, 2): beyond 2 the
            prior's step overshoots by more than its distance and the iteration diverges.
        FloatingPointError: If a residual is no longer finite.

    Example:
        >>> from flowlib import fields, paths
        >>> from flowlib.distributions import GaussianMixture
        >>> prior = GaussianMixture(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), 0.01)
        >>> times = torch.linspace(0, 0.82, 22)[1:-1]
        >>> found = flair(fields.MixtureField(prior, paths.linear()), lambda x: x[:, :1], torch.ones(1, 1),
        ...               torch.zeros(1, 2), times=times, pull=torch.ones(20), data_rates=0.5 * torch.ones(20),
        ...               tolerance=1e-4, generator=torch.Generator().manual_seed(0))
        >>> found.nfe, bool((found.latent - 1).abs().max() < 0.1)
        (20, True)
    """
    share = times if share is None else share
    _check_levels(field, y, mu, times, pull, data_rates, share)
    check_positive("data_steps", data_steps, integer=True)
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    path, known = field.path, field.predicts
    noise = torch.randn(mu.shape, generator=generator, dtype=mu.dtype, device=mu.device)
    used = []
    with torch.no_grad():
        for i, t in enumerate(times):
            x = path.apply_interpolation(carried_noise(noise, share[i], generator=generator), mu, t)
            prediction = field.evaluate(x, t, **conditions)
            noise = path.apply_conversion(prediction, x, t, known, "noise")
            mu = mu - pull[i] * (mu - path.apply_conversion(prediction, x, t, known, "data"))
            mu, count = data_consistency(
                measure, y, mu, rate=data_rates[i], steps=data_steps, tolerance=tolerance, decoder=decoder
            )
            used.append(count)
            if callback is not None:
                callback(i, x, mu)
        image = mu if decoder is None else decoder(mu)
        return Restoration(mu, image, _squares(measure, decoder, mu, y), torch.stack(used), len(times))


def _squares(measure: Map, decoder: Map | None, mu: Tensor, y: Tensor) -> Tensor:
    """The squared residual of each item; raises if it is not finite."""
    measured = measure(mu if decoder is None else decoder(mu))
    if measured.shape != y.shape:
        raise ValueError(f"the measurement has shape {list(measured.shape)}, but y has {list(y.shape)}")
    squares = (measured - y).square().flatten(1).sum(1)
    if not bool(torch.isfinite(squares).all()):
        raise FloatingPointError("the data residual is not finite: lower the data's step size or the pull")
    return squares


def _check_levels(
    field: Field, y: Tensor, mu: Tensor, times: Tensor, pull: Tensor, data_rates: Tensor, share: Tensor
) -> None:
    check_state("y", y)
    check_state("mu", mu)
    if y.shape[0] != mu.shape[0]:
        raise ValueError(f"y and mu must have one batch size, got {y.shape[0]} and {mu.shape[0]}")
    for name, level in (("times", times), ("pull", pull), ("data_rates", data_rates), ("share", share)):
        if level.shape != times.shape or level.ndim != 1:
            raise ValueError(f"{name} must have one value for each of the levels, got shape {list(level.shape)}")
        check_same(name, level, "mu", mu.flatten()[:1].expand(level.shape))
    if not bool((times.diff() > 0).all()) or not float(times[-1]) < 1:
        raise ValueError("times must increase from noise to data and stay below 1")
    field.check_times("data", times)
    field.check_times("noise", times)
    if not bool(((pull >= 0) & (pull < 2)).all()):
        raise ValueError(
            f"pull must lie in [0, 2), got values from {pull.min():.3g} to {pull.max():.3g}; "
            "calibrate on held-out data or clamp it"
        )
