r"""The path of a schedule: interpolation, regression targets, conversions between predictions, and the SDE."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import batch_time, check_choice, check_same, check_state, check_unit_interval, expand_time
from flowlib.paths.schedules import Schedule

__all__ = ["PREDICTIONS", "GaussianPath", "Prediction"]

Prediction = Literal["velocity", "score", "data", "noise"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


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
        >>> from flowlib import paths
        >>> path = paths.linear()
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
            >>> from flowlib import paths
            >>> paths.ve().sample_prior((4, 2)).shape
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
        return self.apply_interpolation(x0, x1, self._checked(x0, x1, t))

    def apply_interpolation(self, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        """`interpolate` without checks, for callers that have checked their batch once."""
        alpha, sigma = expand_time(self.schedule.alpha(t), x1), expand_time(self.schedule.sigma(t), x1)
        xt = alpha * x1 + sigma * x0
        return xt if self._centerless else xt + (1 - alpha) * self.center

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
        return self.apply_target(predicts, x0, x1, self._checked(x0, x1, t))

    def apply_target(self, predicts: Prediction, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        """`target` for callers that have checked their batch once; still refuses infinite targets."""
        if predicts == "data":
            return x1
        if predicts == "noise":
            return x0
        if predicts == "score":
            scale = -1 / self.schedule.sigma(t)
            self._require_finite(t, scale, "the score target -x0/sigma is infinite")
            return expand_time(scale, x0) * x0
        alpha_dot, sigma_dot = self.schedule.alpha_dot(t), self.schedule.sigma_dot(t)
        if not self.schedule.smooth_sigma:
            self._require_finite(t, sigma_dot, "the velocity target has no limit: sigma_dot is infinite")
        centred = x1 if self._centerless else x1 - self.center
        return expand_time(alpha_dot, x1) * centred + expand_time(sigma_dot, x0) * x0

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
            >>> from flowlib import paths
            >>> paths.linear().convert(v, x, 0.5, "velocity", "data")     # x + (1 - t) v
            tensor([[2., 2.]])
        """
        check_choice("source", source, PREDICTIONS)
        check_choice("target", target, PREDICTIONS)
        check_state("x", x, finite=False)
        check_same("value", value, "x", x)
        t = batch_time(t, x)
        self.check_conversion(t, source, target)
        return self.apply_conversion(value, x, t, source, target)

    def apply_conversion(self, value: Tensor, x: Tensor, t: Tensor, source: Prediction, target: Prediction) -> Tensor:
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

        $$ f = -\frac{\dot\alpha}{\alpha}, \qquad
           g^2 = 2\sigma\Big(\sigma\frac{\dot\alpha}{\alpha} - \dot\sigma\Big). $$

        The reverse SDE in our time is $\mathrm dx = [-f (x - \mu) + g^2 s]\,\mathrm dt + g\,\mathrm dW$
        (Anderson, 1982; Song et al., 2021, eq. 6).

        Args:
            t: Time in [0, 1], a float or a tensor of any shape.

        Returns:
            The tensors $f$ and $g^2$, shaped like `t`.

        Raises:
            ValueError: If `t` leaves [0, 1], or $\alpha_t = 0$, where both are infinite.

        Example:
            >>> from flowlib import paths
            >>> f, g2 = paths.linear().drift_diffusion(0.5)
            >>> float(f), float(g2)
            (-2.0, 2.0)
        """
        t = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.get_default_dtype())
        check_unit_interval("t", t)
        rate, p_over_alpha = self.coefficients(t, "score", "velocity")
        self._require_finite(t, rate + p_over_alpha, "the forward SDE is singular")
        return -rate, 2 * p_over_alpha

    def posterior(self, t: float | Tensor, u: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""The law of an earlier, cleaner state $x_u$ given $x_t$ and the data, for $t < u$.

        $q(x_u \mid x_t, x_1) = \mathcal N(a x_t + b x_1, \text{var}\,I)$ (with a centre, the same in $x - \mu$), where
        $x_t$ is made from $x_u$ by more noise. With $\kappa = 1 - \mathrm{SNR}_t/\mathrm{SNR}_u$

        $$ a = \frac{\alpha_t\sigma_u^2}{\alpha_u\sigma_t^2}, \qquad b = \alpha_u\kappa, \qquad
           \text{var} = \sigma_u^2\kappa $$

        (Ho et al., 2020, eq. 7). All three are finite at $t = 0$ and where $\sigma_u = 0$.

        Args:
            t: The noisier time.
            u: The cleaner time, $0 \le t < u \le 1$; shapes broadcast.

        Returns:
            The tensors $a$, $b$ and $\text{var}$.

        Raises:
            ValueError: If a time leaves [0, 1] or `t` is not before `u`.

        Example:
            >>> from flowlib import paths
            >>> [round(float(c), 4) for c in paths.linear().posterior(0.5, 0.75)]
            [0.1667, 0.6667, 0.0556]
        """
        default = torch.get_default_dtype()
        t, u = (s if isinstance(s, Tensor) else torch.as_tensor(s, dtype=default) for s in (t, u))
        check_unit_interval("t", t)
        check_unit_interval("u", u)
        if not bool((t < u).all()):
            raise ValueError(f"t must be before u (noise is at 0, data at 1), got t = {t} and u = {u}")
        schedule = self.schedule
        alpha_u, sigma_u = schedule.alpha(u), schedule.sigma(u)
        kappa = -torch.expm1(schedule.log_snr(t) - schedule.log_snr(u))
        a = schedule.alpha(t) / alpha_u * (sigma_u / schedule.sigma(t)) ** 2
        return a, alpha_u * kappa, sigma_u**2 * kappa

    @property
    def _centerless(self) -> bool:
        """Most paths have no centre; their arithmetic is skipped."""
        return isinstance(self.center, float) and self.center == 0.0

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
