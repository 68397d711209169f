"""Distances between two samples. Each takes `[n, *event]` and `[m, *event]` and returns a float."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_positive, check_same, check_state
from flowlib.couplings import bures_wasserstein2

__all__ = ["energy_distance", "frechet_distance", "mmd", "precision_recall", "sliced_wasserstein2", "wasserstein2"]

_CHUNK = 1024


def wasserstein2(x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> float:
    r"""The Wasserstein-2 distance $\big(\min_\pi E\|X - Y\|^2\big)^{1/2}$ of two samples, exactly.

    Solved by the network simplex (POT) in float64; the time grows between the square and the cube of the sample
    size: about half a second at 2048 points.

    Args:
        x: The first sample.
        y: The second sample, not necessarily of the same size.

    Returns:
        The distance, not squared.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If event shapes differ or an entry is not finite, or the solver did not converge.

    Example:
        >>> wasserstein2(torch.zeros(4, 2), torch.ones(4, 2) * 3)
        4.2426...
    """
    import ot

    a, b = _pair(x, y)
    cost = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square().cpu()
    unit = float(cost.max()) or 1.0  # the simplex has absolute tolerances, so it gets costs of size one
    value, log = ot.emd2([], [], (cost / unit).numpy(), numItermax=10_000_000, log=True)
    if log["warning"] is not None:
        raise ValueError(f"the transport problem was not solved: {log['warning']}")
    return float(max(value * unit, 0.0) ** 0.5)


def sliced_wasserstein2(
    x: Float[Tensor, "n *event"],
    y: Float[Tensor, "m *event"],
    *,
    projections: int = 256,
    generator: torch.Generator | None = None,
) -> float:
    r"""The root mean square of one-dimensional Wasserstein-2 distances along random directions.

    One-dimensional distances come from quantile functions, exactly also for samples of different sizes. Use one seed
    for all comparisons in a table.

    Args:
        x: The first sample.
        y: The second sample.
        projections: Number of directions.
        generator: Random generator, on the CPU.

    Returns:
        The distance, not squared.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If an argument is invalid.

    Example:
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> sliced_wasserstein2(x, x)
        0.0
    """
    check_positive("projections", projections, integer=True)
    a, b = _pair(x, y)
    directions = torch.randn(a.shape[1], projections, generator=generator, dtype=torch.float64)
    directions = (directions / directions.norm(dim=0)).to(a.device)
    p, q = (a @ directions).sort(0).values, (b @ directions).sort(0).values
    if p.shape[0] == q.shape[0]:
        return float((p - q).square().mean().sqrt())
    # both quantile functions are constant between the merged breakpoints i/n and j/m
    n, m = p.shape[0], q.shape[0]
    breakpoints = [torch.arange(n + 1, dtype=torch.float64) / n, torch.arange(1, m, dtype=torch.float64) / m]
    levels = torch.cat(breakpoints).sort().values.to(a.device)
    middle, width = (levels[1:] + levels[:-1]) / 2, levels.diff()
    p, q = p[(middle * n).long().clamp_max(n - 1)], q[(middle * m).long().clamp_max(m - 1)]
    return float((width[:, None] * (p - q).square()).sum(0).mean().sqrt())


def energy_distance(x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> float:
    r"""$2E\|X - Y\| - E\|X - X'\| - E\|Y - Y'\|$ (Szekely and Rizzo, 2013), without bias from the diagonal.

    Zero for equal laws; the unbiased estimate may be slightly negative.

    Args:
        x: The first sample, at least two points.
        y: The second sample, at least two points.

    Returns:
        The estimate.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If an argument is invalid.

    Example:
        >>> energy_distance(torch.zeros(3, 1), torch.ones(3, 1))
        2.0
    """
    a, b = _pair(x, y, least=2)
    return 2 * _mean(torch.cdist, a, b) - _mean(torch.cdist, a, a, True) - _mean(torch.cdist, b, b, True)


def mmd(x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"], *, bandwidth: float | None = None) -> float:
    r"""The squared maximum mean discrepancy with the kernel $e^{-\|x - y\|^2/(2 h^2)}$, without bias.

    See Gretton et al. (2012).

    Args:
        x: The first sample, at least two points.
        y: The second sample, at least two points.
        bandwidth: $h$; the median distance between the first thousand points of both samples if `None`.

    Returns:
        The estimate, which may be slightly negative.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If an argument is invalid.

    Example:
        >>> round(mmd(torch.zeros(3, 1), torch.ones(3, 1), bandwidth=1.0), 4)      # 2 - 2 exp(-1/2)
        0.7869
    """
    a, b = _pair(x, y, least=2)
    if bandwidth is None:
        bandwidth = float(torch.nn.functional.pdist(torch.cat([a[:1000], b[:1000]])).median())
    check_positive("bandwidth", bandwidth)

    def kernel(p: Tensor, q: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(p, q).square() / (2 * bandwidth**2))

    return _mean(kernel, a, a, True) + _mean(kernel, b, b, True) - 2 * _mean(kernel, a, b)


def frechet_distance(x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> float:
    r"""The squared Wasserstein-2 distance of the Gaussians with the samples' means and covariances.

    $\|\mu_x - \mu_y\|^2 + \operatorname{tr}(\Sigma_x + \Sigma_y - 2(\Sigma_x^{1/2}\Sigma_y\Sigma_x^{1/2})^{1/2})$
    (Dowson and Landau, 1982). On Inception features this is FID; here the features are the caller's. All roots are
    of symmetric matrices.

    Args:
        x: Features of the first sample, at least two points.
        y: Features of the second sample, at least two points.

    Returns:
        The distance, squared.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If an argument is invalid.

    Example:
        >>> frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]]))
        9.0
    """
    a, b = _pair(x, y, least=2)
    d = a.shape[1]
    first, second = torch.cov(a.T).reshape(d, d), torch.cov(b.T).reshape(d, d)
    return bures_wasserstein2(a.mean(0), first, b.mean(0), second) ** 2


def precision_recall(
    generated: Float[Tensor, "n *event"], real: Float[Tensor, "m *event"], *, k: int = 3
) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al., 2019) on given features.

    A sample's manifold is the union of balls around its points that reach their k-th nearest neighbour. Precision is
    the fraction of generated points in the real manifold; recall the fraction of real points in the generated one.

    Args:
        generated: Features of generated samples.
        real: Features of real samples.
        k: The neighbour that sets a ball's radius; smaller than both sample sizes.

    Returns:
        Precision and recall, in [0, 1].

    Raises:
        TypeError: If dtypes differ.
        ValueError: If an argument is invalid.

    Example:
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> precision_recall(x, x)
        (1.0, 1.0)
    """
    a, b = _pair(generated, real)
    check_positive("k", k, integer=True)
    if k >= min(len(a), len(b)):
        raise ValueError(f"k must be smaller than both sample sizes, {len(a)} and {len(b)}; got {k}")
    return _covered(a, b, k), _covered(b, a, k)


def _covered(points: Tensor, centres: Tensor, k: int) -> float:
    """The fraction of points inside a ball around one of the centres that reaches its k-th neighbour."""
    radii = torch.cat([torch.cdist(c, centres).kthvalue(k + 1, 1).values for c in torch.split(centres, _CHUNK)])
    inside = [(torch.cdist(p, centres) <= radii).any(1) for p in torch.split(points, _CHUNK)]
    return float(torch.cat(inside).double().mean())


def _pair(x: Tensor, y: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    check_state("x", x)
    check_state("y", y)
    check_same("x", x, "y", y, shape=False)
    if min(len(x), len(y)) < least:
        raise ValueError(f"at least {least} points are needed in each sample, got {len(x)} and {len(y)}")
    a, b = x.detach().flatten(1).double(), y.detach().flatten(1).double()
    center = b.mean(0)  # distances do not change, and far from the origin they lose fewer digits
    return a - center, b - center


def _mean(pairwise: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, same: bool = False) -> float:
    """The mean of a pairwise function, in chunks; without the diagonal if both samples are the same."""
    total, diagonal = 0.0, 0.0
    for start in range(0, len(a), _CHUNK):
        block = pairwise(a[start : start + _CHUNK], b)
        total += float(block.sum())
        if same:
            diagonal += float(block[:, start:].diagonal().sum())
    return (total - diagonal) / (len(a) * (len(b) - 1)) if same else total / (len(a) * len(b))
