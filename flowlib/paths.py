r"""Gaussian paths: how noise becomes data, and the four ways to predict it.

A *schedule* is a pair of functions $\alpha_t, \sigma_t$ on $[0, 1]$; a *path* moves a pair $(x_0, x_1)$ of noise
and data along

$$ x_t = \alpha_t x_1 + \sigma_t x_0, \qquad x_0 \sim \mathcal N(0, I). $$

Noise is at $t = 0$, data at $t = 1$. Four functions of $(x, t)$ describe the path, and any one gives the others:

| name | symbol | conditional mean of |
|---|---|---|
| velocity | $v$ | $\dot\alpha_t x_1 + \dot\sigma_t x_0$ given $x_t = x$ |
| score | $s = \nabla\log p_t$ | $-x_0/\sigma_t$ |
| data | $\hat x_1$ | $x_1$ |
| noise | $\hat x_0$ | $x_0$ |

All twelve conversions are affine, `target = a(t) x + b(t) source`; the coefficients live in
`GaussianPath.coefficients` and nowhere else. They are written in $\alpha$, $\dot\alpha$, $\sigma^2$ and
$\mathrm d\sigma^2/\mathrm dt$, which stay finite where $\dot\sigma$ does not (variance-preserving paths at $t = 1$).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import batch_time, check_choice, check_same, check_state, expand_time

__all__ = [
    "EDM",
    "PREDICTIONS",
    "SCHEDULES",
    "VE",
    "VP",
    "Cosine",
    "GaussianPath",
    "Linear",
    "MeanReverting",
    "Prediction",
    "Schedule",
    "by_name",
    "cosine",
    "edm",
    "linear",
    "mean_reverting",
    "ve",
    "vp",
]

Prediction = Literal["velocity", "score", "data", "noise"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)


class Schedule(Protocol):
    r"""What a schedule provides: closed forms, elementwise in $t \in [0, 1]$, in the dtype of `t`.

    Attributes:
        prior_std: Standard deviation of the state at $t = 0$, from which sampling starts.
        smooth_sigma: Whether $\dot\sigma$ is finite on all of $[0, 1]$.
    """

    prior_std: float
    smooth_sigma: ClassVar[bool]

    def alpha(self, t: Tensor) -> Tensor:
        r"""Data coefficient $\alpha_t$."""

    def sigma(self, t: Tensor) -> Tensor:
        r"""Noise coefficient $\sigma_t$."""

    def alpha_dot(self, t: Tensor) -> Tensor:
        r"""$\mathrm d\alpha_t/\mathrm dt$."""

    def sigma_dot(self, t: Tensor) -> Tensor:
        r"""$\mathrm d\sigma_t/\mathrm dt$; minus infinity at $t = 1$ where `smooth_sigma` is false."""

    def variance_dot(self, t: Tensor) -> Tensor:
        r"""$\mathrm d\sigma_t^2/\mathrm dt = 2\sigma_t\dot\sigma_t$, finite on all of $[0, 1]$."""

    def log_snr(self, t: Tensor) -> Tensor:
        r"""$\log(\alpha_t^2/\sigma_t^2)$, increasing in $t$; infinite where $\alpha$ or $\sigma$ vanishes."""

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The time at which the log signal-to-noise ratio takes the given value: the inverse of `log_snr`."""


class _SmoothSigma:
    """A schedule whose sigma has a finite derivative everywhere."""

    smooth_sigma: ClassVar[bool] = True

    def sigma(self, t: Tensor) -> Tensor:
        raise TypeError("a schedule defines sigma")

    def sigma_dot(self, t: Tensor) -> Tensor:
        raise TypeError("a schedule defines sigma_dot")

    def variance_dot(self, t: Tensor) -> Tensor:
        return 2 * self.sigma(t) * self.sigma_dot(t)


@dataclass(frozen=True)
class Linear(_SmoothSigma):
    r"""$\alpha_t = t$, $\sigma_t = 1 - t$: straight lines (Lipman et al., 2023; Liu et al., 2023).

    Example:
        >>> import torch
        >>> Linear().log_snr(torch.tensor(0.5))
        tensor(0.)
    """

    prior_std: ClassVar[float] = 1.0

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
class Cosine(_SmoothSigma):
    r"""$\alpha_t = \sin(\pi t/2)$, $\sigma_t = \cos(\pi t/2)$: the trigonometric path, $\alpha^2 + \sigma^2 = 1$.

    The continuous form of the cosine schedule of Nichol and Dhariwal (2021); see Albergo and Vanden-Eijnden (2023).

    Example:
        >>> import torch
        >>> Cosine().sigma(torch.tensor([0.0, 1.0]))
        tensor([1., 0.])
    """

    prior_std: ClassVar[float] = 1.0

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


class _OrnsteinUhlenbeck:
    r"""Relaxation to a stationary law: $\alpha = e^{-\Theta(r)}$, $\sigma^2 = s^2(1 - \alpha^2)$, $r = 1 - t$.

    The rate is linear, $\theta(r) = \theta_{\min} + (\theta_{\max} - \theta_{\min}) r$, and
    $\Theta(r) = \int_0^r \theta$. Near $r = 0$ the variance grows like $r$, so $\dot\sigma$ is infinite there.
    """

    smooth_sigma: ClassVar[bool] = False

    def _rates(self) -> tuple[float, float, float]:
        raise TypeError("a schedule defines its rates: theta_min, theta_max and the stationary deviation")

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
    prior_std: ClassVar[float] = 1.0

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


class _Exploding(_SmoothSigma):
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
        tensor([50.0000,  0.0100])
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
    r"""$\alpha = 1$, $\sigma_t^{1/\rho}$ linear in $t$ from $\sigma_{\max}$ to $\sigma_{\min}$ (Karras et al., 2022, eq. 5).

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


@dataclass(frozen=True, eq=False)
class GaussianPath:
    r"""The path $x_t = \alpha_t x_1 + \sigma_t x_0 + (1 - \alpha_t)\mu$ of a schedule.

    The centre $\mu$ is zero for every path but the mean-reverting one, so that elsewhere this is
    $\alpha_t x_1 + \sigma_t x_0$. Times are floats, 0-d tensors or tensors `[batch]`; the path broadcasts them.

    Args:
        schedule: The functions $\alpha$ and $\sigma$.
        center: $\mu$: a number or a tensor that broadcasts against `[batch, *event]`.

    Example:
        >>> import torch
        >>> path = linear()
        >>> path.interpolate(torch.zeros(1, 2), torch.ones(1, 2), 0.25)
        tensor([[0.2500, 0.2500]])
    """

    schedule: Schedule
    center: float | Tensor = 0.0

    @property
    def prior_std(self) -> float:
        """Standard deviation of the state at $t = 0$: 1, or the largest noise of a variance-exploding path."""
        return self.schedule.prior_std

    def sample_prior(
        self,
        shape: tuple[int, ...],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        r"""Draw states at $t = 0$ from the source, $\mathcal N(\mu, \texttt{prior\_std}^2 I)$.

        Args:
            shape: `(batch, *event)`.
            generator: Random generator; the global one if `None`.
            dtype: Floating-point type; torch's default if `None`.
            device: Device; torch's default if `None`.

        Returns:
            A tensor of shape `shape`.

        Example:
            >>> ve().sample_prior((4, 2)).shape
            torch.Size([4, 2])
        """
        noise = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        return self.center + self.prior_std * noise

    def interpolate(
        self, x0: Float[Tensor, "batch *event"], x1: Float[Tensor, "batch *event"], t: float | Tensor
    ) -> Float[Tensor, "batch *event"]:
        r"""The point $x_t = \alpha_t x_1 + \sigma_t x_0 + (1 - \alpha_t)\mu$.

        Args:
            x0: Noise.
            x1: Data, same shape.
            t: Time in [0, 1].

        Returns:
            The interpolated states.

        Raises:
            TypeError: If dtypes differ.
            ValueError: If shapes or devices differ, an entry is not finite, or `t` leaves [0, 1].
        """
        t = self._checked(x0, x1, t)
        alpha, sigma = expand_time(self.schedule.alpha(t), x1), expand_time(self.schedule.sigma(t), x1)
        return alpha * x1 + sigma * x0 + (1 - alpha) * self.center

    def target(
        self,
        predicts: Prediction,
        x0: Float[Tensor, "batch *event"],
        x1: Float[Tensor, "batch *event"],
        t: float | Tensor,
    ) -> Float[Tensor, "batch *event"]:
        r"""The regression target whose conditional mean given $x_t$ is the prediction.

        It is $\dot\alpha_t (x_1 - \mu) + \dot\sigma_t x_0$ for `"velocity"`, $-x_0/\sigma_t$ for `"score"`,
        $x_1$ for `"data"` and $x_0$ for `"noise"`.

        Raises:
            TypeError: If dtypes differ.
            ValueError: If the inputs are invalid, or the target is infinite at one of the times.
        """
        check_choice("predicts", predicts, PREDICTIONS)
        t = self._checked(x0, x1, t)
        if predicts == "data":
            return x1
        if predicts == "noise":
            return x0
        if predicts == "score":
            scale = -1 / self.schedule.sigma(t)
            self._require_finite(t, scale, "the score target -x0/sigma is infinite")
            return expand_time(scale, x0) * x0
        alpha_dot, sigma_dot = self.schedule.alpha_dot(t), self.schedule.sigma_dot(t)
        self._require_finite(t, sigma_dot, "the velocity target has no limit: sigma_dot is infinite")
        return expand_time(alpha_dot, x1) * (x1 - self.center) + expand_time(sigma_dot, x0) * x0

    def coefficients(self, t: Tensor, source: Prediction, target: Prediction) -> tuple[Tensor, Tensor]:
        r"""The pair $(a, b)$ with `target = a (x - mu) + b source` (for data, both sides minus $\mu$).

        With $D = \dot\alpha\sigma - \alpha\dot\sigma$ and $P = \sigma D = \dot\alpha\sigma^2 - \tfrac12\alpha\,
        \mathrm d\sigma^2/\mathrm dt$:

        | from | to velocity | to score | to data | to noise |
        |---|---|---|---|---|
        | velocity | 0, 1 | −α̇/P, α/P | −σ̇/D, σ/D | α̇/D, −α/D |
        | score | α̇/α, P/α | 0, 1 | 1/α, σ²/α | 0, −σ |
        | data | σ̇/σ, D/σ | −1/σ², α/σ² | 0, 1 | 1/σ, −α/σ |
        | noise | α̇/α, −D/α | 0, −1/σ | 1/α, −σ/α | 0, 1 |

        Where a limit does not exist the entries are infinite or NaN; `convert` turns that into an error.

        Args:
            t: Times, any shape.
            source: The prediction at hand.
            target: The prediction wanted.

        Returns:
            Two tensors of the shape of `t`.
        """
        schedule = self.schedule
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        if source == target:
            return zero, one
        if source == "score" and target == "noise":
            return zero, -sigma
        if source == "noise" and target == "score":
            return zero, -1 / sigma
        if source == "data" and target == "noise":
            return 1 / sigma, -alpha / sigma
        if source == "data" and target == "score":
            return -1 / sigma**2, alpha / sigma**2
        if source == "score" and target == "data":
            return 1 / alpha, sigma**2 / alpha
        if source == "noise" and target == "data":
            return 1 / alpha, -sigma / alpha

        alpha_dot, half_variance_dot = schedule.alpha_dot(t), schedule.variance_dot(t) / 2
        p = alpha_dot * sigma**2 - alpha * half_variance_dot  # P = sigma D
        if source == "score":
            return alpha_dot / alpha, p / alpha
        if source == "data":
            return half_variance_dot / sigma**2, p / sigma**2
        if target == "score":
            return -alpha_dot / p, alpha / p
        # what remains needs D itself: finite only where sigma_dot is
        if schedule.smooth_sigma:
            sigma_dot = schedule.sigma_dot(t)
            d = alpha_dot * sigma - alpha * sigma_dot
            if source == "noise":
                return alpha_dot / alpha, -d / alpha
            return (-sigma_dot / d, sigma / d) if target == "data" else (alpha_dot / d, -alpha / d)
        if source == "noise":
            return alpha_dot / alpha, -p / (sigma * alpha)
        if target == "data":
            return -half_variance_dot / p, sigma**2 / p
        return sigma * alpha_dot / p, -sigma * alpha / p

    def convert(
        self,
        value: Float[Tensor, "batch *event"],
        x: Float[Tensor, "batch *event"],
        t: float | Tensor,
        source: Prediction,
        target: Prediction,
    ) -> Float[Tensor, "batch *event"]:
        r"""Turn one prediction at $(x, t)$ into another. The twelve conversions are exact inverses of each other.

        Args:
            value: The prediction at hand, for the state `x` at time `t`.
            x: The state.
            t: Time in [0, 1].
            source: What `value` predicts: `"velocity"`, `"score"`, `"data"` or `"noise"`.
            target: What is wanted.

        Returns:
            The wanted prediction, same shape.

        Raises:
            TypeError: If dtypes differ.
            ValueError: If names, shapes or times are invalid, or the conversion has no limit at one of the times
                (for example velocity from noise on the linear path at $t = 0$, where $\alpha = 0$).

        Example:
            >>> import torch
            >>> x, v = torch.ones(1, 2), torch.full((1, 2), 2.0)
            >>> linear().convert(v, x, 0.5, "velocity", "data")     # x + (1 - t) v
            tensor([[2., 2.]])
        """
        check_choice("source", source, PREDICTIONS)
        check_choice("target", target, PREDICTIONS)
        check_state("x", x, finite=False)
        check_same("value", value, "x", x)
        t = batch_time(t, x)
        self.check_conversion(t, source, target)
        return self.apply_conversion(value, x, t, source, target)

    def apply_conversion(
        self, value: Tensor, x: Tensor, t: Tensor, source: Prediction, target: Prediction
    ) -> Tensor:
        """`convert` without checks, for inner loops whose caller has checked the times once."""
        if source == target:
            return value
        a, b = self.coefficients(t, source, target)
        if source == "data":
            value = value - self.center
        out = expand_time(a, x) * (x - self.center) + expand_time(b, x) * value
        return out + self.center if target == "data" else out

    def check_conversion(self, t: Tensor, source: Prediction, target: Prediction) -> None:
        """Raise the ValueError of `convert` if the conversion has no limit at one of the times `t`."""
        if source == target:
            return
        a, b = self.coefficients(t, source, target)
        self._require_finite(
            t, a + b, f"the {target} cannot be computed from the {source}: the conversion has no limit"
        )

    def drift_diffusion(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        r"""Drift rate and squared diffusion of the forward SDE that carries data to noise.

        In the time $r = 1 - t$ that grows with noise, $\mathrm dx = f\,(x - \mu)\,\mathrm dr + g\,\mathrm dW$ with

        $$ f = -\frac{\dot\alpha}{\alpha}, \qquad g^2 = 2\sigma\Big(\sigma\frac{\dot\alpha}{\alpha} - \dot\sigma\Big). $$

        The reverse SDE in our time is $\mathrm dx = [-f (x - \mu) + g^2 s]\,\mathrm dt + g\,\mathrm dW$
        (Anderson, 1982; Song et al., 2021, eq. 6).

        Args:
            t: Time in [0, 1], a float or a tensor of any shape.

        Returns:
            The tensors $f$ and $g^2$, shaped like `t`.

        Raises:
            ValueError: If `t` leaves [0, 1], or $\alpha_t = 0$, where both are infinite.

        Example:
            >>> f, g2 = linear().drift_diffusion(0.5)
            >>> float(f), float(g2)
            (-2.0, 2.0)
        """
        t = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.get_default_dtype())
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"t must lie in [0, 1], got {t.min():g} to {t.max():g}")
        rate, p_over_alpha = self.coefficients(t, "score", "velocity")
        self._require_finite(t, rate + p_over_alpha, "the forward SDE is singular")
        return -rate, 2 * p_over_alpha

    def _checked(self, x0: Tensor, x1: Tensor, t: float | Tensor) -> Tensor:
        check_state("x0", x0)
        check_state("x1", x1)
        check_same("x0", x0, "x1", x1)
        return batch_time(t, x1)

    def _require_finite(self, t: Tensor, values: Tensor, what: str) -> None:
        finite = torch.isfinite(values)
        if bool(finite.all()):
            return
        first = t[~finite].flatten()[0] if t.ndim else t
        alpha, sigma = float(self.schedule.alpha(first)), float(self.schedule.sigma(first))
        raise ValueError(
            f"{what} at t = {float(first):g}, where alpha = {alpha:.3g} and sigma = {sigma:.3g} "
            f"({type(self.schedule).__name__} schedule); keep t away from that end"
        )


def linear() -> GaussianPath:
    r"""The straight path $x_t = t x_1 + (1 - t) x_0$; see `Linear`."""
    return GaussianPath(Linear())


def cosine() -> GaussianPath:
    r"""The trigonometric path $x_t = \sin(\pi t/2) x_1 + \cos(\pi t/2) x_0$; see `Cosine`."""
    return GaussianPath(Cosine())


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> GaussianPath:
    """The variance-preserving path of DDPM and Score-SDE; see `VP`."""
    return GaussianPath(VP(beta_min, beta_max))


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> GaussianPath:
    """The variance-exploding path of NCSN and Score-SDE; see `VE`."""
    return GaussianPath(VE(sigma_min, sigma_max))


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> GaussianPath:
    """The variance-exploding path with the time grid of Karras et al. (2022); see `EDM`."""
    return GaussianPath(EDM(sigma_min, sigma_max, rho))


def mean_reverting(
    center: float | Tensor = 0.0, sigma_inf: float = 1.0, theta_min: float = 0.05, theta_max: float = 10.55
) -> GaussianPath:
    """The path that relaxes to `center`; see `MeanReverting`.

    Example:
        >>> mean_reverting(center=2.0, sigma_inf=0.2).prior_std
        0.2
    """
    return GaussianPath(MeanReverting(sigma_inf, theta_min, theta_max), center)


SCHEDULES = {
    "linear": linear,
    "cosine": cosine,
    "vp": vp,
    "ve": ve,
    "edm": edm,
    "mean_reverting": mean_reverting,
}


def by_name(name: str) -> GaussianPath:
    """The path with default parameters called `name`, one of the keys of `SCHEDULES`.

    Raises:
        ValueError: If there is no such path.

    Example:
        >>> by_name("cosine").schedule
        Cosine()
    """
    check_choice("name", name, SCHEDULES)
    return SCHEDULES[name]()
