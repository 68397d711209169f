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

from torch import Tensor

from flowlib._checks import check_choice
from flowlib.paths.gaussian import PREDICTIONS, GaussianPath, Prediction
from flowlib.paths.relaxing import VP, MeanReverting, SubVP
from flowlib.paths.retiming import Retiming, retime
from flowlib.paths.schedules import EDM, VE, Cosine, Linear, Schedule

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
    "Retiming",
    "Schedule",
    "SubVP",
    "by_name",
    "cosine",
    "edm",
    "linear",
    "mean_reverting",
    "retime",
    "sub_vp",
    "ve",
    "vp",
]


def linear() -> GaussianPath:
    r"""The straight path $x_t = t x_1 + (1 - t) x_0$; see `Linear`."""
    return GaussianPath(Linear())


def cosine() -> GaussianPath:
    r"""The trigonometric path $x_t = \sin(\pi t/2) x_1 + \cos(\pi t/2) x_0$; see `Cosine`."""
    return GaussianPath(Cosine())


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> GaussianPath:
    """The variance-preserving path of DDPM and Score-SDE; see `VP`."""
    return GaussianPath(VP(beta_min, beta_max))


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> GaussianPath:
    """The sub-variance-preserving path of Score-SDE; see `SubVP`."""
    return GaussianPath(SubVP(beta_min, beta_max))


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
    "sub_vp": sub_vp,
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
