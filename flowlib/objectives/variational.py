r"""The variational bound of a diffusion model: a negative log-likelihood in nats, in three terms.

For latents $x_{t_0}, \dots, x_{t_T}$ on the path, from noise to almost clean (Sohl-Dickstein et al., 2015; Ho et al.,
2020; Kingma et al., 2021),

$$ -\log p(x_1) \le \underbrace{\mathrm{KL}(q(x_{t_0} \mid x_1)\,\|\,p(x_{t_0}))}_{\text{prior}}
   + \underbrace{\sum_i E\,\mathrm{KL}(q(x_{t_{i+1}} \mid x_{t_i}, x_1)\,\|\,
     q(x_{t_{i+1}} \mid x_{t_i}, \hat x_1))}_{\text{diffusion}}
   + \underbrace{E[-\log p(x_1 \mid x_{t_T})]}_{\text{reconstruction}} . $$

`discrete_bound` evaluates the sum, `continuous_bound` its limit $T \to \infty$.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_positive, check_same, check_state, check_unit_interval, expand_time
from flowlib.distributions import normal_log_density
from flowlib.fields import Field
from flowlib.objectives.times import low_discrepancy

__all__ = ["Bound", "Decoder", "continuous_bound", "discrete_bound", "gaussian_decoder", "grey_level_decoder"]

Decoder = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Bound:
    r"""An upper bound of $-\log p(x_1)$ for each sample, in nats.

    Attributes:
        prior: Divergence of the noisiest latent from the prior, `[n]`.
        diffusion: Divergence of the steps between the latents, `[n]`; an unbiased estimate.
        reconstruction: Cost of the data given the cleanest latent, `[n]`; an unbiased estimate.
    """

    prior: Float[Tensor, " n"]
    diffusion: Float[Tensor, " n"]
    reconstruction: Float[Tensor, " n"]

    @property
    def total(self) -> Float[Tensor, " n"]:
        """The bound, `[n]`: the sum of its terms; `metrics.bits_per_dim(-bound.total, d)` turns it into bits."""
        return self.prior + self.diffusion + self.reconstruction


def gaussian_decoder(x1: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    r"""$\log\mathcal N(x_1; \text{mean}, \text{std}^2 I)$: the likelihood of continuous data.

    Args:
        x1: Data `[n, *event]`.
        mean: Predicted data, same shape.
        std: Standard deviation, 0-d.

    Returns:
        Log-densities `[n]`.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes differ; nothing is broadcast.

    Example:
        >>> gaussian_decoder(torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor(1.0))
        tensor([-0.9189])
    """
    check_same("x1", x1, "mean", mean)
    return normal_log_density((x1 - mean).flatten(1), std.reshape(1) ** 2)


def grey_level_decoder(bin_width: float, *, low: float = -1.0, high: float = 1.0) -> Decoder:
    r"""The discretised normal of DDPM for data on the levels `low`, `low + bin_width`, ..., `high`.

    Each entry has the probability of its bin under $\mathcal N(\text{mean}, \text{std}^2)$; the two end bins are open,
    so that the probabilities of the levels sum to one (Ho et al., 2020, eq. 13).

    Args:
        bin_width: Distance of two levels, positive.
        low: Lowest level.
        high: Highest level.

    Returns:
        A decoder: a function of data `[n, *event]`, their predicted mean and a 0-d standard deviation.

    Raises:
        ValueError: If `bin_width` is not positive, or `low` does not lie below `high`.

    Example:
        >>> decode = grey_level_decoder(1.0)          # levels -1, 0 and 1
        >>> level = torch.tensor([[-1.0], [0.0], [1.0]])
        >>> decode(level, torch.zeros(3, 1), torch.tensor(0.7)).exp().sum()
        tensor(1.)
    """
    check_positive("bin_width", bin_width)
    if not low < high:
        raise ValueError(f"low must lie below high, got {low} and {high}")
    half = bin_width / 2

    def decode(x1: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        check_same("x1", x1, "mean", mean)
        below = torch.where(x1 < low + half, -math.inf, (x1 - half - mean) / std)
        above = torch.where(x1 > high - half, math.inf, (x1 + half - mean) / std)
        # the same probability on the side where both tails are small
        flip = below + above > 0
        below, above = torch.where(flip, -above, below), torch.where(flip, -below, above)
        log_above, log_below = torch.special.log_ndtr(above), torch.special.log_ndtr(below)
        log_mass: Tensor = log_above + torch.log1p(-torch.exp(log_below - log_above))
        return log_mass.flatten(1).sum(1)

    return decode


def discrete_bound(
    field: Field,
    x1: Float[Tensor, "n *event"],
    times: Tensor,
    *,
    decoder: Decoder = gaussian_decoder,
    generator: torch.Generator | None = None,
    **conditions: Any,
) -> Bound:
    r"""The bound of the ancestral sampler on a grid of latents, with the posterior's variance in each step.

    A step's divergence is that of two normals with one variance,
    $\tfrac12(\mathrm{SNR}_{t_{i+1}} - \mathrm{SNR}_{t_i})\|x_1 - \hat x_1(x_{t_i}, t_i)\|^2$. Every step is evaluated,
    each with its own draw of noise; the decoder's mean is the prediction $\hat x_1(x_{t_T}, t_T)$ and its deviation
    $\sigma_{t_T}/\alpha_{t_T}$.

    Args:
        field: The model.
        x1: Data.
        times: The latents' times `[T + 1]`, strictly increasing, with $\sigma > 0$ at the last.
        decoder: The likelihood of data given their prediction; see `gaussian_decoder` and `grey_level_decoder`.
        generator: Random generator.
        **conditions: Passed to the field.

    Returns:
        The terms, in nats for each sample.

    Raises:
        ValueError: If times are not increasing, or $\sigma = 0$ or the data prediction has no limit at one of them.

    Example:
        >>> from flowlib import data, fields, paths
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.linear())
        >>> discrete_bound(field, torch.ones(3, 2), torch.linspace(0, 0.99, 50)).total.shape
        torch.Size([3])
    """
    check_state("x1", x1)
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() > 0).all()):
        raise ValueError(f"times must be a strictly increasing vector of at least two times, got {times}")
    times = _checked_times(field, times.to(x1))
    predict, schedule = field.function("data"), field.path.schedule
    snr = (schedule.alpha(times) / schedule.sigma(times)) ** 2
    diffusion = x1.new_zeros(x1.shape[0])
    with torch.no_grad():
        for (t, _), (snr_t, snr_u) in zip(
            itertools.pairwise(times.unbind()), itertools.pairwise(snr.unbind()), strict=True
        ):
            error = predict(_noised(field, x1, t, generator), t, **conditions) - x1
            diffusion = diffusion + (snr_u - snr_t) / 2 * error.square().flatten(1).sum(1)
        return Bound(
            _prior(field, x1, times[0]),
            diffusion,
            _reconstruction(field, x1, times[-1], decoder, generator, conditions),
        )


def continuous_bound(
    field: Field,
    x1: Float[Tensor, "n *event"],
    *,
    low: float,
    high: float,
    draws: int = 1,
    decoder: Decoder = gaussian_decoder,
    generator: torch.Generator | None = None,
    **conditions: Any,
) -> Bound:
    r"""The bound for infinitely many latents between the times `low` and `high` (Kingma et al., 2021, eqs. 15
    and 18).

    $$ \tfrac12\int\frac{\mathrm d\,\mathrm{SNR}}{\mathrm dt}E\|x_1 - \hat x_1\|^2\,\mathrm dt
       = \tfrac12\int E\|x_0 - \hat x_0\|^2\,\mathrm d\log\mathrm{SNR} $$

    The second form is estimated, with log signal-to-noise ratios spread evenly (`low_discrepancy`) over the samples and
    draws. It depends on the schedule through its two ends alone.

    Args:
        field: The model.
        x1: Data.
        low: Time of the noisiest latent; its signal must not be zero.
        high: Time of the cleanest latent; its noise must not be zero.
        draws: Points of the integral for each sample.
        decoder: As for `discrete_bound`.
        generator: Random generator.
        **conditions: Passed to the field.

    Returns:
        The terms, in nats for each sample.

    Raises:
        ValueError: If not 0 <= low < high <= 1, or the log signal-to-noise ratio is infinite at an end.

    Example:
        >>> from flowlib import data, fields, paths
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.linear())
        >>> continuous_bound(field, torch.ones(3, 2), low=0.01, high=0.99).total.shape
        torch.Size([3])
    """
    check_state("x1", x1)
    check_positive("draws", draws, integer=True)
    if not 0 <= low < high <= 1:
        raise ValueError(f"need 0 <= low < high <= 1, got {low} and {high}")
    ends = _checked_times(field, torch.tensor([low, high], dtype=torch.float64).to(x1))
    predict, schedule = field.function("data"), field.path.schedule
    start, stop = schedule.log_snr(ends)
    if not math.isfinite(start):
        raise ValueError(f"alpha must be positive at low, got alpha = 0 at t = {low}; start a little later")

    n = x1.shape[0]
    position = low_discrepancy()(n * draws, generator=generator, dtype=x1.dtype, device=x1.device).t
    clock = schedule.time_of_log_snr(start + (stop - start) * position).clamp(low, high).reshape(draws, n)
    diffusion = x1.new_zeros(n)
    with torch.no_grad():
        for t in clock:
            factor = expand_time(schedule.alpha(t) / schedule.sigma(t), x1)  # x0 - noise prediction
            error = factor * (predict(_noised(field, x1, t, generator), t, **conditions) - x1)
            diffusion = diffusion + (stop - start) / (2 * draws) * error.square().flatten(1).sum(1)
        return Bound(
            _prior(field, x1, ends[0]), diffusion, _reconstruction(field, x1, ends[1], decoder, generator, conditions)
        )


def _checked_times(field: Field, times: Tensor) -> Tensor:
    check_unit_interval("times", times)
    if bool((field.path.schedule.sigma(times) == 0).any()):
        raise ValueError("sigma must be positive at every latent, got sigma = 0 at one of them; end a little earlier")
    field.check_times("data", times)
    return times


def _noised(field: Field, x1: Tensor, t: Tensor, generator: torch.Generator | None) -> Tensor:
    x0 = torch.randn(x1.shape, generator=generator, dtype=x1.dtype, device=x1.device)
    return field.path.apply_interpolation(x0, x1, t)


def _prior(field: Field, x1: Tensor, t: Tensor) -> Tensor:
    """KL of N(mu + alpha (x1 - mu), sigma^2) from the prior N(mu, prior_std^2), in closed form."""
    schedule, center = field.path.schedule, field.path.center
    prior_variance = field.path.prior_std**2
    ratio = schedule.sigma(t) ** 2 / prior_variance
    shift = (schedule.alpha(t) * (x1 - center)).square() / prior_variance
    return 0.5 * (ratio + shift - 1 - torch.log(ratio)).flatten(1).sum(1)


def _reconstruction(
    field: Field, x1: Tensor, t: Tensor, decoder: Decoder, generator: torch.Generator | None, conditions: dict[str, Any]
) -> Tensor:
    mean = field.function("data")(_noised(field, x1, t, generator), t, **conditions)
    return -decoder(x1, mean, field.path.schedule.sigma(t) / field.path.schedule.alpha(t))
