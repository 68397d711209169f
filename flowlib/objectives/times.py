r"""At which times to train: samplers of $t$ with the weights that undo them where that is wanted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_positive

__all__ = ["TimeSampler", "Times", "importance", "logit_normal", "low_discrepancy", "uniform"]


@dataclass(frozen=True)
class Times:
    """Sampled times.

    Attributes:
        t: Times `[n]` in [0, 1].
        weight: Factor of each sample in the loss, `[n]`; `None` for one.
    """

    t: Float[Tensor, " n"]
    weight: Float[Tensor, " n"] | None = None


@runtime_checkable
class TimeSampler(Protocol):
    """Draws `n` times."""

    def __call__(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Times:
        """Draw times of the given type on the given device."""


def uniform(low: float = 0.0, high: float = 1.0) -> TimeSampler:
    """Uniform times.

    Args:
        low: Smallest time.
        high: Largest time; the draws are below it.

    Returns:
        A sampler.

    Raises:
        ValueError: If not 0 <= low < high <= 1.

    Example:
        >>> uniform(0.2, 0.4)(3).t.shape
        torch.Size([3])
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"need 0 <= low < high <= 1, got {low} and {high}")

    def sample(
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Times:
        t = low + (high - low) * torch.rand(n, generator=generator, dtype=dtype, device=device)
        return Times(_below(high, t) if low > 0 else t)  # only the sum can round up to `high`

    return sample


def low_discrepancy(low: float = 0.0, high: float = 1.0) -> TimeSampler:
    r"""Evenly spread times, $t_k = \text{low} + (\text{high} - \text{low})\,\mathrm{frac}(u + k/n)$; $u$ is uniform.

    Each time alone is uniform, so means are unbiased; together they are $n$ equal steps apart, so that a mean over them
    varies much less than over independent times (Kingma et al., 2021, appendix I.1).

    Args:
        low: Smallest time.
        high: Largest time; the draws are below it.

    Returns:
        A sampler; the times come in increasing order up to one jump.

    Raises:
        ValueError: If not 0 <= low < high <= 1.

    Example:
        >>> t = low_discrepancy()(4).t.sort().values
        >>> bool(torch.allclose(t.diff(), torch.full((3,), 0.25)))
        True
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"need 0 <= low < high <= 1, got {low} and {high}")

    def sample(
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Times:
        u = torch.rand(1, generator=generator, dtype=dtype, device=device)
        k = torch.arange(n, dtype=u.dtype, device=u.device)
        return Times(_below(high, low + (high - low) * ((u + k / n) % 1)))

    return sample


def logit_normal(mean: float = 0.0, std: float = 1.0) -> TimeSampler:
    r"""$t = 1/(1 + e^{-z})$ with $z \sim \mathcal N(\text{mean}, \text{std}^2)$: more draws in the middle.

    The loss is *not* reweighted: the density of the times acts as a loss weight (Esser et al., 2024, section 3.1).

    Args:
        mean: Location of the logit; positive favours the data end.
        std: Scale of the logit, positive.

    Returns:
        A sampler.

    Raises:
        ValueError: If `std` is not positive.

    Example:
        >>> bool(((logit_normal()(100).t > 0) & (logit_normal()(100).t < 1)).all())
        True
    """
    check_positive("std", std)

    def sample(
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Times:
        z = mean + std * torch.randn(n, generator=generator, dtype=dtype, device=device)
        return Times(_below(1.0, torch.sigmoid(z)))

    return sample


def importance(
    density: Callable[[Tensor], Tensor], *, low: float = 0.0, high: float = 1.0, resolution: int = 1000
) -> TimeSampler:
    r"""Draw $t$ with probability proportional to `density`, and weight each draw so that expectations stay uniform.

    With $p(t) \propto$ density on $[\text{low}, \text{high}]$, the weight is $1/((\text{high} - \text{low}) p(t))$, so
    $E_p[w(t) h(t)]$ is the uniform mean of any $h$: the same loss with less variance if the density follows the
    size of the gradient. The density is taken constant on `resolution` cells and inverted exactly there.

    Args:
        density: A positive function of a tensor of times, not necessarily normalised.
        low: Smallest time.
        high: Largest time; the draws are below it.
        resolution: Number of cells.

    Returns:
        A sampler.

    Raises:
        ValueError: If the interval is empty or the density is not positive and finite on it.

    Example:
        >>> times = importance(lambda t: 1 + t)(1000, generator=torch.Generator().manual_seed(0))
        >>> bool((times.weight * times.t).mean().sub(0.5).abs() < 0.05)
        True
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"need 0 <= low < high <= 1, got {low} and {high}")
    check_positive("resolution", resolution, integer=True)
    edges = torch.linspace(low, high, resolution + 1, dtype=torch.float64)
    mass = density((edges[1:] + edges[:-1]) / 2)
    if mass.shape != (resolution,) or not bool((torch.isfinite(mass) & (mass > 0)).all()):
        raise ValueError("density must be positive and finite at every time and keep the shape of its argument")
    mass = mass.double() / mass.double().sum()

    def sample(
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Times:
        cell = torch.multinomial(mass.to(device), n, replacement=True, generator=generator)
        within = torch.rand(n, generator=generator, dtype=dtype, device=device)
        width = (high - low) / resolution
        t = _below(high, (low + width * (cell + within)).to(within.dtype))
        return Times(t, (1 / (resolution * mass.to(device)[cell])).to(within.dtype))

    return sample


def _below(high: float, t: Tensor) -> Tensor:
    """Keep rounding from reaching `high`, where a score or a weight may be infinite."""
    return t.clamp_max(high * (1 - torch.finfo(t.dtype).eps))
