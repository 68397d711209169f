r"""Schedules: the functions $\alpha_t$ and $\sigma_t$ of a Gaussian path, with their derivatives in closed form."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["EDM", "VE", "VP", "Cosine", "Linear", "MeanReverting", "Schedule"]


class Schedule(ABC):
    r"""The functions $\alpha_t$ and $\sigma_t$ in closed form, elementwise in $t \in [0, 1]$, in the dtype of `t`.

    A schedule keeps its end points exact and says by `smooth_sigma` whether $\dot\sigma$ is finite on all of
    $[0, 1]$; where it is not, $\mathrm d\sigma^2/\mathrm dt$ still is.
    """

    smooth_sigma: ClassVar[bool] = True

    @property
    def prior_std(self) -> float:
        """Standard deviation of the state at $t = 0$, from which sampling starts."""
        return 1.0

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        r"""Data coefficient $\alpha_t$."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        r"""Noise coefficient $\sigma_t$."""

    @abstractmethod
    def alpha_dot(self, t: Tensor) -> Tensor:
        r"""$\mathrm d\alpha_t/\mathrm dt$."""

    @abstractmethod
    def sigma_dot(self, t: Tensor) -> Tensor:
        r"""$\mathrm d\sigma_t/\mathrm dt$; minus infinity at $t = 1$ where `smooth_sigma` is false."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        r"""$\log(\alpha_t^2/\sigma_t^2)$, increasing in $t$; infinite where $\alpha$ or $\sigma$ vanishes."""

    @abstractmethod
    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The time at which the log signal-to-noise ratio takes the given value: the inverse of `log_snr`."""

    def variance_dot(self, t: Tensor) -> Tensor:
        r"""$\mathrm d\sigma_t^2/\mathrm dt = 2\sigma_t\dot\sigma_t$, finite on all of $[0, 1]$."""
        return 2 * self.sigma(t) * self.sigma_dot(t)


@dataclass(frozen=True)
class Linear(Schedule):
    r"""$\alpha_t = t$, $\sigma_t = 1 - t$: straight lines (Lipman et al., 2023; Liu et al., 2023).

    Example:
        >>> import torch
        >>> Linear().log_snr(torch.tensor(0.5))
        tensor(0.)
    """

    def alpha(self, t: Tensor) -> Tensor:
        return t.clone()

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log(t) - torch.log1p(-t))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(log_snr / 2)


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""$\alpha_t = \sin(\pi t/2)$, $\sigma_t = \cos(\pi t/2)$: the trigonometric path, $\alpha^2 + \sigma^2 = 1$.

    The continuous form of the cosine schedule of Nichol and Dhariwal (2021); see Albergo and Vanden-Eijnden (2023).

    Example:
        >>> import torch
        >>> Cosine().sigma(torch.tensor([0.0, 1.0]))
        tensor([1., 0.])
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - t))  # cos(pi t / 2), and exactly 0 at t = 1

    def alpha_dot(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.sigma(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * self.alpha(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log(self.alpha(t)) - torch.log(self.sigma(t)))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(log_snr / 2))


class _OrnsteinUhlenbeck(Schedule):
    r"""Relaxation to a stationary law: $\alpha = e^{-\Theta(r)}$, $\sigma^2 = s^2(1 - \alpha^2)$, $r = 1 - t$.

    The rate is linear, $\theta(r) = \theta_{\min} + (\theta_{\max} - \theta_{\min}) r$, and
    $\Theta(r) = \int_0^r \theta$. Near $r = 0$ the variance grows like $r$, so $\dot\sigma$ is infinite there.
    """

    smooth_sigma: ClassVar[bool] = False

    @abstractmethod
    def _rates(self) -> tuple[float, float, float]:
        """The two ends of the rate and the stationary deviation."""

    def _integral(self, t: Tensor) -> Tensor:
        low, high, _ = self._rates()
        r = 1 - t
        return low * r + (high - low) / 2 * r**2

    def _rate(self, t: Tensor) -> Tensor:
        low, high, _ = self._rates()
        return low + (high - low) * (1 - t)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return self._rates()[2] * torch.sqrt(-torch.expm1(-2 * self._integral(t)))

    def alpha_dot(self, t: Tensor) -> Tensor:
        return self._rate(t) * self.alpha(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return self.variance_dot(t) / (2 * self.sigma(t))

    def variance_dot(self, t: Tensor) -> Tensor:
        return -2 * self._rates()[2] ** 2 * self._rate(t) * torch.exp(-2 * self._integral(t))

    def log_snr(self, t: Tensor) -> Tensor:
        return -torch.log(torch.expm1(2 * self._integral(t))) - 2 * math.log(self._rates()[2])

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        low, high, stationary = self._rates()
        # Theta = log(1 + exp(-log_snr) / s^2) / 2, then the positive root of its quadratic in r
        integral = torch.nn.functional.softplus(-log_snr - 2 * math.log(stationary)) / 2
        return 1 - 2 * integral / (low + torch.sqrt(low**2 + 2 * (high - low) * integral))


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
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(f"need 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")

    def _rates(self) -> tuple[float, float, float]:
        return self.beta_min / 2, self.beta_max / 2, 1.0


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

    def _rates(self) -> tuple[float, float, float]:
        return self.theta_min, self.theta_max, self.sigma_inf


class _Exploding(Schedule):
    """A schedule that adds noise to unscaled data: alpha is 1 throughout."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * torch.log(self.sigma(t))


@dataclass(frozen=True)
class VE(_Exploding):
    r"""Variance exploding: $\alpha = 1$, $\sigma_t = \sigma_{\min}(\sigma_{\max}/\sigma_{\min})^{1-t}$.

    Song et al. (2021). The state at $t = 0$ has standard deviation about $\sigma_{\max}$; at $t = 1$ the noise
    $\sigma_{\min}$ is still there.

    Args:
        sigma_min: Noise at the data end, positive.
        sigma_max: Noise at the source end, larger than `sigma_min`.

    Raises:
        ValueError: If not $0 < \sigma_{\min} < \sigma_{\max}$.

    Example:
        >>> import torch
        >>> VE().sigma(torch.tensor([0.0, 1.0]))
        tensor([5.0000e+01, 1.0000e-02])
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check_noise_range(self.sigma_min, self.sigma_max)

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * torch.exp(-self._log_ratio * t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -self._log_ratio * self.sigma(t)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return (math.log(self.sigma_max) + log_snr / 2) / self._log_ratio

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class EDM(_Exploding):
    r"""$\alpha = 1$, $\sigma_t^{1/\rho}$ linear from $\sigma_{\max}$ to $\sigma_{\min}$ (Karras et al., 2022, eq. 5).

    Args:
        sigma_min: Noise at the data end, positive.
        sigma_max: Noise at the source end, larger than `sigma_min`.
        rho: Exponent, at least 1; larger values spend more time at low noise.

    Raises:
        ValueError: If a parameter is out of range.

    Example:
        >>> import torch
        >>> EDM().sigma(torch.tensor([0.0, 1.0]))
        tensor([8.0000e+01, 2.0000e-03])
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_noise_range(self.sigma_min, self.sigma_max)
        if not self.rho >= 1:
            raise ValueError(f"rho must be at least 1, got {self.rho}")

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    @property
    def _ends(self) -> tuple[float, float]:
        return self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)

    def sigma(self, t: Tensor) -> Tensor:
        start, end = self._ends
        return ((1 - t) * start + t * end) ** self.rho

    def sigma_dot(self, t: Tensor) -> Tensor:
        start, end = self._ends
        return self.rho * (end - start) * ((1 - t) * start + t * end) ** (self.rho - 1)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        start, end = self._ends
        return (start - torch.exp(-log_snr / (2 * self.rho))) / (start - end)


def _check_noise_range(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
