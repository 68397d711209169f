r"""Gibbs weights: independent pairs, each weighed by how little it costs (Calvo-Ordonez et al., 2025).

Weighted conditional flow matching keeps independent pairs and multiplies each pair's squared error by

$$ w_\epsilon(x_0, x_1) = e^{-c(x_0, x_1)/\epsilon} / Z, \qquad Z = E\,e^{-c(x_0, x_1)/\epsilon}, $$

which is importance sampling from the joint law $\gamma_\epsilon \propto e^{-c/\epsilon}\,\mu\otimes\nu$ of the source
$\mu$ and the data $\nu$. That law is the entropic optimal plan between *its own* marginals, which are tilted:

$$ \frac{\mathrm d\tilde\mu}{\mathrm d\mu}(x_0) = E_{x_1} w_\epsilon(x_0, x_1), \qquad
   \frac{\mathrm d\tilde\nu}{\mathrm d\nu}(x_1) = E_{x_0} w_\epsilon(x_0, x_1). $$

`tilt` measures the price, `choose_epsilon` bounds it, `gibbs` is the coupling.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowlib._checks import check_positive, check_same, check_state
from flowlib.couplings.pairs import Coupling, Pairs, check_pairable

__all__ = ["Tilt", "choose_epsilon", "gibbs", "tilt"]

_CHUNK_ENTRIES = 4_000_000


@dataclass(frozen=True)
class Tilt:
    """What Gibbs weights do to the marginals of a pool of noise and a pool of data.

    Attributes:
        source: Relative density of the tilted source at each noise sample, `[n]`, mean one.
        data: Relative density of the tilted data law at each data sample, `[m]`, mean one.
        ess: Effective sample size of the weights over all `n m` pairs, as a fraction in (0, 1].
        log_normalizer: $\\log Z$ of the pools.
    """

    source: Float[Tensor, " n"]
    data: Float[Tensor, " m"]
    ess: float
    log_normalizer: float

    @property
    def source_variance(self) -> float:
        """Relative variance of the source's tilt: zero if the source's law is kept."""
        return float((self.source - 1).square().mean())

    @property
    def data_variance(self) -> float:
        """Relative variance of the data's tilt: zero if the data's law is kept."""
        return float((self.data - 1).square().mean())

    def class_mass(self, labels: Int[Tensor, " m"]) -> Float[Tensor, " classes"]:
        """The share of each class after the tilt over its share before: which classes the weights favour.

        Args:
            labels: Class of each data sample, 0, 1, ... with no class empty.

        Returns:
            One ratio a class; all ones if no class gains.

        Raises:
            ValueError: If there is not one label a data sample, or a class is empty.

        Example:
            >>> Tilt(torch.ones(1), torch.tensor([0.5, 1.5]), 1.0, 0.0).class_mass(torch.tensor([0, 1]))
            tensor([0.5000, 1.5000])
        """
        if labels.shape != self.data.shape:
            raise ValueError(f"labels must have shape {list(self.data.shape)}, got {list(labels.shape)}")
        counts = torch.bincount(labels)
        if bool((counts == 0).any()):
            raise ValueError(f"labels must use every class from 0 to {len(counts) - 1}, got counts {counts.tolist()}")
        return torch.zeros_like(self.data[: len(counts)]).index_add(0, labels, self.data) / counts


def tilt(x0: Float[Tensor, "n *event"], x1: Float[Tensor, "m *event"], epsilon: float, *, power: float = 1.0) -> Tilt:
    r"""Measure how the weights $e^{-\|x_0 - x_1\|^p/\epsilon}$ tilt both marginals, over all pairs of two pools.

    Everything is done with logarithms in float64, in blocks, so that neither a small $\epsilon$ nor a large pool
    overflows.

    Args:
        x0: A pool of noise.
        x1: A pool of data; the pools need not be of one size.
        epsilon: $\epsilon$, in units of the cost, positive.
        power: $p$ of the cost: 1 is the distance, as published; 2 its square.

    Returns:
        The tilt at each sample, the effective sample size, and the normaliser.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If event shapes or devices differ, an entry is not finite, or a number is not positive.

    Example:
        >>> round(tilt(torch.zeros(3, 1), torch.ones(2, 1), 0.1).ess, 9)       # equal costs: nothing is tilted
        1.0
    """
    check_state("x0", x0)
    check_state("x1", x1)
    check_same("x0", x0, "x1", x1, shape=False)
    check_positive("epsilon", epsilon)
    check_positive("power", power)
    n, m = x0.shape[0], x1.shape[0]
    rows, columns, squares = [], [], []
    for block in torch.split(x0, max(1, _CHUNK_ENTRIES // m)):
        log_weight = -_costs(block, x1, power) / epsilon
        rows.append(torch.logsumexp(log_weight, 1))
        columns.append(torch.logsumexp(log_weight, 0))
        squares.append(torch.logsumexp(2 * log_weight.flatten(), 0))
    log_rows, log_columns = torch.cat(rows), torch.logsumexp(torch.stack(columns), 0)
    log_total = torch.logsumexp(log_rows, 0)
    log_ess = 2 * log_total - torch.logsumexp(torch.stack(squares), 0) - math.log(n * m)
    return Tilt(
        source=torch.exp(log_rows - log_total + math.log(n)).to(x0),
        data=torch.exp(log_columns - log_total + math.log(m)).to(x1),
        ess=min(1.0, float(log_ess.exp())),
        log_normalizer=float(log_total) - math.log(n * m),
    )


def choose_epsilon(
    x0: Float[Tensor, "n *event"],
    x1: Float[Tensor, "m *event"],
    *,
    max_variance: float = 0.05,
    power: float = 1.0,
) -> float:
    r"""The smallest $\epsilon$ at which neither marginal is tilted by more than a given relative variance.

    Found by bisection on $\log\epsilon$ to three digits; no training is needed.

    Args:
        x0: A pool of noise, at least two samples.
        x1: A pool of data, at least two samples.
        max_variance: Largest relative variance of either tilt, positive.
        power: As for `tilt`.

    Returns:
        $\epsilon$.

    Raises:
        TypeError: As `tilt`.
        ValueError: As `tilt`, or if the costs of all pairs are equal, so that every $\epsilon$ will do.

    Example:
        >>> x = torch.linspace(-1, 1, 9)[:, None]
        >>> epsilon = choose_epsilon(x, x, max_variance=0.01)
        >>> t = tilt(x, x, epsilon)
        >>> 0.009 < max(t.source_variance, t.data_variance) <= 0.01
        True
    """
    check_state("x0", x0)
    check_state("x1", x1)
    check_same("x0", x0, "x1", x1, shape=False)
    check_positive("max_variance", max_variance)
    check_positive("power", power)

    def too_small(epsilon: float) -> bool:
        measured = tilt(x0, x1, epsilon, power=power)
        return max(measured.source_variance, measured.data_variance) > max_variance

    costs = _costs(x0[:256], x1[:256], power)
    scale = float(costs.std())
    if not scale > 1e-12 * float(costs.max()):
        raise ValueError("the costs of all pairs are equal; every epsilon keeps the marginals")
    high = scale
    while too_small(high):
        high *= 4
    low = high / 4
    while not too_small(low):
        low, high = low / 4, low
        if low < 1e-6 * scale:
            return high  # the tilt stays below the bound however small epsilon is
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if too_small(middle) else (low, middle)
    return high


def gibbs(
    epsilon: float,
    *,
    pool: tuple[Tensor, Tensor],
    power: float = 1.0,
    least_ess: float = 0.01,
) -> Coupling:
    r"""Keep independent pairs and weigh each by $e^{-\|x_0 - x_1\|^p/\epsilon}/Z$ (Calvo-Ordonez et al., 2025).

    $Z$ is computed once from all pairs of two pools, so the weights have mean one, the loss keeps its scale, and no
    state changes during training. (Dividing by the sum over each batch would bias the loss by one over its size.)

    Args:
        epsilon: $\epsilon$, in units of the cost, positive; see `choose_epsilon`.
        pool: Noise `[n, *event]` and data `[m, *event]` that fix $Z$; a few thousand of each.
        power: $p$ of the cost: 1 is the distance, as published; 2 its square.
        least_ess: Smallest effective sample size accepted, as a fraction of the pairs of the pools.

    Returns:
        A coupling whose pairs carry weights.

    Raises:
        TypeError: If the pools' dtypes differ.
        ValueError: If a number or a pool is invalid, or the weights fall on fewer pairs than `least_ess` says: then
            $\epsilon$ is far below the spread of the costs.

    Example:
        >>> noise, x1 = torch.zeros(4, 1), torch.tensor([[0.0], [1.0]])
        >>> gibbs(1.0, pool=(noise, x1))(noise[:2], x1).weight          # 2 / (1 + 1/e) and 2 / (e + 1)
        tensor([1.4621, 0.5379])
    """
    x0, x1 = pool
    measured = tilt(x0, x1, epsilon, power=power)
    if measured.ess < least_ess:
        spread = float(_costs(x0[:256], x1[:256], power).std())
        raise ValueError(
            f"epsilon={epsilon:g} is far below the spread of the costs (standard deviation {spread:.3g}): the weights "
            f"fall on {100 * measured.ess:.2g} % of the pairs, less than least_ess={least_ess:g}; raise epsilon"
        )
    log_normalizer = measured.log_normalizer

    def couple(x0: Tensor, x1: Tensor, *, generator: torch.Generator | None = None, **conditions: Tensor) -> Pairs:
        check_pairable(x0, x1)
        cost = (x0.double() - x1.double()).flatten(1).norm(dim=1).pow(power)
        return Pairs(x0, x1, weight=torch.exp(-cost / epsilon - log_normalizer).to(x0))

    return couple


def _costs(x0: Tensor, x1: Tensor, power: float) -> Tensor:
    """All costs `[n, m]`; differences first, so that near pairs lose no digits."""
    a, b = x0.double().flatten(1), x1.double().flatten(1)
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").pow(power)
