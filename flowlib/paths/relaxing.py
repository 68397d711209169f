r"""Schedules of forward SDEs whose drift pulls towards a centre: variance preserving, sub-VP, mean reverting."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowlib.paths.schedules import Schedule

__all__ = ["VP", "MeanReverting", "SubVP"]


class _Relaxing(Schedule):
    r"""The drift $-\theta(r)x$ with a linear rate: $\alpha = e^{-\Theta(r)}$, $\Theta(r) = \int_0^r\theta$.

    $r = 1 - t$ and $\theta(r) = \theta_{\min} + (\theta_{\max} - \theta_{\min}) r$.
    """

    @abstractmethod
    def _rates(self) -> tuple[float, float]:
        """The rate at the data end and at the noise end."""

    def _integral(self, t: Tensor) -> Tensor:
        low, high = self._rates()
        r = 1 - t
        return low * r + (high - low) / 2 * r**2

    def _rate(self, t: Tensor) -> Tensor:
        low, high = self._rates()
        return low + (high - low) * (1 - t)

    def _time_of_integral(self, integral: Tensor) -> Tensor:
        low, high = self._rates()
        # the positive root of the quadratic in r
        return 1 - 2 * integral / (low + torch.sqrt(low**2 + 2 * (high - low) * integral))

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._integral(t))

    def alpha_dot(self, t: Tensor) -> Tensor:
        return self._rate(t) * self.alpha(t)


class _OrnsteinUhlenbeck(_Relaxing):
    r"""Relaxation to a stationary law: $\sigma^2 = s^2(1 - \alpha^2)$ with $s$ = `prior_std`.

    Near $r = 0$ the variance grows like $r$, so $\dot\sigma$ is infinite there.
    """

    smooth_sigma: ClassVar[bool] = False

    def sigma(self, t: Tensor) -> Tensor:
        return self.prior_std * torch.sqrt(-torch.expm1(-2 * self._integral(t)))

    def sigma_dot(self, t: Tensor) -> Tensor:
        return self.variance_dot(t) / (2 * self.sigma(t))

    def variance_dot(self, t: Tensor) -> Tensor:
        return -2 * self.prior_std**2 * self._rate(t) * torch.exp(-2 * self._integral(t))

    def log_snr(self, t: Tensor) -> Tensor:
        return -torch.log(torch.expm1(2 * self._integral(t))) - 2 * math.log(self.prior_std)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        # Theta = log(1 + exp(-log_snr) / s^2) / 2
        return self._time_of_integral(torch.nn.functional.softplus(-log_snr - 2 * math.log(self.prior_std)) / 2)


@dataclass(frozen=True)
class VP(_OrnsteinUhlenbeck):
    r"""Variance preserving with linear $\beta$: $\alpha = e^{-B/2}$, $\sigma^2 = 1 - e^{-B}$ (Song et al., 2021).

    $B(r) = \beta_{\min} r + \tfrac12(\beta_{\max} - \beta_{\min}) r^2$ with $r = 1 - t$.

    Args:
        beta_min: $\beta$ at the data end, positive.
        beta_max: $\beta$ at the noise end, at least `beta_min`.

    Raises:
        ValueError: If not $0 < \beta_{\min} \le \beta_{\max}$.

    Example:
        >>> import torch
        >>> VP().alpha(torch.tensor([0.0, 1.0]))
        tensor([0.0066, 1.0000])
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _check_betas(self.beta_min, self.beta_max)

    def _rates(self) -> tuple[float, float]:
        return self.beta_min / 2, self.beta_max / 2


@dataclass(frozen=True)
class SubVP(_Relaxing):
    r"""Sub-variance preserving: $\alpha = e^{-B/2}$, $\sigma = 1 - e^{-B}$ (Song et al., 2021).

    The drift is that of `VP` with the same $B$, the diffusion $g^2 = \beta(1 - e^{-2B})$ vanishes at the data, and the
    variance is the square of the one of `VP`, hence never larger. $\dot\sigma$ is finite on all of $[0, 1]$.

    Args:
        beta_min: $\beta$ at the data end, positive.
        beta_max: $\beta$ at the noise end, at least `beta_min`.

    Raises:
        ValueError: If not $0 < \beta_{\min} \le \beta_{\max}$.

    Example:
        >>> import torch
        >>> SubVP().sigma(torch.tensor([0.5, 1.0]))
        tensor([0.9209, 0.0000])
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _check_betas(self.beta_min, self.beta_max)

    def _rates(self) -> tuple[float, float]:
        return self.beta_min / 2, self.beta_max / 2

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-2 * self._integral(t))

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -2 * self._rate(t) * torch.exp(-2 * self._integral(t))

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * torch.log(2 * torch.sinh(self._integral(t)))  # alpha / sigma = 1 / (2 sinh(B/2))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return self._time_of_integral(torch.asinh(torch.exp(-log_snr / 2) / 2))


@dataclass(frozen=True)
class MeanReverting(_OrnsteinUhlenbeck):
    r"""Ornstein-Uhlenbeck relaxation to a centre $\mu$: $\mathrm dx = \theta(\mu - x)\mathrm dr + g\,\mathrm dW$.

    $g^2 = 2 \sigma_\infty^2 \theta$, so the stationary law is $\mathcal N(\mu, \sigma_\infty^2 I)$. The centre
    belongs to the path (`mean_reverting`); in $y = x - \mu$ this is a scaled variance-preserving schedule.
    The default rates end at $\alpha_0 = e^{-5.3} \approx 0.005$ (Luo et al., 2023, use the same end value).

    Args:
        sigma_inf: Stationary standard deviation $\sigma_\infty$, positive.
        theta_min: Rate at the data end, positive.
        theta_max: Rate at the noise end, at least `theta_min`.

    Raises:
        ValueError: If a parameter is out of range.

    Example:
        >>> import torch
        >>> MeanReverting(sigma_inf=0.2).sigma(torch.tensor([0.0, 1.0]))
        tensor([0.2000, 0.0000])
    """

    sigma_inf: float = 1.0
    theta_min: float = 0.05
    theta_max: float = 10.55

    def __post_init__(self) -> None:
        if not 0 < self.theta_min <= self.theta_max:
            raise ValueError(f"need 0 < theta_min <= theta_max, got {self.theta_min} and {self.theta_max}")
        if not self.sigma_inf > 0:
            raise ValueError(f"sigma_inf must be positive, got {self.sigma_inf}")

    @property
    def prior_std(self) -> float:
        return self.sigma_inf

    def _rates(self) -> tuple[float, float]:
        return self.theta_min, self.theta_max


def _check_betas(beta_min: float, beta_max: float) -> None:
    if not 0 < beta_min <= beta_max:
        raise ValueError(f"need 0 < beta_min <= beta_max, got {beta_min} and {beta_max}")
