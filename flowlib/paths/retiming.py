r"""One Gaussian path as a re-timed and rescaled copy of another (Lai et al., 2025, ch. 6; Karras et al., 2022)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowlib._checks import check_unit_interval
from flowlib.paths.gaussian import GaussianPath

__all__ = ["Retiming", "retime"]


@dataclass(frozen=True)
class Retiming:
    r"""Where a time of one path lies on another: $x_t = c\,x'_\tau$, centres left out.

    Attributes:
        time: $\tau$, the time of equal signal-to-noise ratio on the other path, shaped like `t`.
        scale: $c$, the factor between the states.
        time_rate: $\dot\tau$; infinite where $\dot\sigma$ is.
        scale_rate: $\dot c$; infinite or NaN where $\dot\sigma$ is infinite.
    """

    time: Tensor
    scale: Tensor
    time_rate: Tensor
    scale_rate: Tensor


def retime(t: float | Tensor, path: GaussianPath, other: GaussianPath) -> Retiming:
    r"""Write the state of `path` at time `t` as a scaled state of `other` at another time.

    With unprimed symbols for `path` and primed ones for `other`, $\tau$ solves $\alpha'_\tau/\sigma'_\tau =
    \alpha_t/\sigma_t$, and then

    $$ c = \frac{\alpha_t}{\alpha'_\tau} = \frac{\sigma_t}{\sigma'_\tau}, \qquad
       \dot\tau = \frac{D_t}{c^2 D'_\tau}, \qquad
       \dot c = \frac{\dot\alpha_t - c\,\dot\tau\,\dot\alpha'_\tau}{\alpha'_\tau}
              = \frac{\dot\sigma_t - c\,\dot\tau\,\dot\sigma'_\tau}{\sigma'_\tau} . $$

    Of each pair of formulas the one with the larger denominator is used, so both ends of a path are safe.

    Args:
        t: Time on `path` in [0, 1]: a float or a tensor of any shape.
        path: The path at hand.
        other: The path onto which it is mapped.

    Returns:
        Time, scale and their derivatives with respect to `t`.

    Raises:
        ValueError: If `t` leaves [0, 1], or `other` never has the signal-to-noise ratio of `path` at `t` (for example
            $t = 0$ of the linear path, pure noise, on a variance-exploding one).

    Example:
        >>> from flowlib import paths
        >>> onto = retime(0.5, paths.linear(), paths.cosine())      # x = (sin x1 + cos x0) / sqrt(2) at the middle
        >>> round(float(onto.time), 6), round(float(onto.scale), 6)
        (0.5, 0.707107)
    """
    t = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.get_default_dtype())
    check_unit_interval("t", t)
    mine, theirs = path.schedule, other.schedule
    log_snr = mine.log_snr(t)
    tau = _inside(theirs.time_of_log_snr(log_snr), t, path, other)

    alpha, sigma, alpha_dot, sigma_dot = (f(t) for f in (mine.alpha, mine.sigma, mine.alpha_dot, mine.sigma_dot))
    a, s, a_dot, s_dot = (f(tau) for f in (theirs.alpha, theirs.sigma, theirs.alpha_dot, theirs.sigma_dot))
    clean = log_snr > 0  # more signal than noise: divide by alpha, else by sigma
    scale = torch.where(clean, alpha / a, sigma / s)
    time_rate = (alpha_dot * sigma - alpha * sigma_dot) / (scale**2 * (a_dot * s - a * s_dot))
    scale_rate = torch.where(
        clean, (alpha_dot - scale * time_rate * a_dot) / a, (sigma_dot - scale * time_rate * s_dot) / s
    )
    return Retiming(tau, scale, time_rate, scale_rate)


def _inside(tau: Tensor, t: Tensor, path: GaussianPath, other: GaussianPath) -> Tensor:
    """Clamp rounding at the ends; refuse what lies beyond."""
    slack = 64 * torch.finfo(tau.dtype).eps
    outside = ~((tau >= -slack) & (tau <= 1 + slack))
    if bool(outside.any()):
        first = t[outside].flatten()[0] if t.ndim else t
        ends = other.schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        raise ValueError(
            f"t = {float(first):g} of the {type(path.schedule).__name__} path has log-SNR "
            f"{float(path.schedule.log_snr(first)):.4g}, which the {type(other.schedule).__name__} path never has: "
            f"its range is {ends[0]:.4g} to {ends[1]:.4g}"
        )
    return tau.clamp(0, 1)
