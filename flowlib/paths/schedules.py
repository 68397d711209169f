r"""Schedules: the functions $\alpha_t$ and $\sigma_t$ of a Gaussian path, with their derivatives in closed form."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["EDM", "VE", "Cosine", "Linear", "Schedule"]


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
