"""Whether a generator copies its training set: nearest neighbours, two tests of copying, and the error by time."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowlib._checks import check_positive, check_same, check_state, check_unit_interval
from flowlib.fields import Field

__all__ = ["copying_z", "denoising_error", "memorised_fraction", "nearest_neighbours"]

_CHUNK = 1024


def nearest_neighbours(
    x: Float[Tensor, "n *event"], reference: Float[Tensor, "m *event"], *, k: int = 1
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Euclidean distances to the k nearest points of a reference set, and which points they are.

    Differences are formed before they are squared, so a copy has the distance zero, exactly.

    Args:
        x: Points.
        reference: The set searched, at least `k` points.
        k: How many neighbours.

    Returns:
        Distances `[n, k]` in float64, ascending, and indices `[n, k]` into `reference`.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If an argument is invalid.

    Example:
        >>> nearest_neighbours(torch.tensor([[2.0]]), torch.tensor([[0.0], [3.0], [9.0]]), k=2)
        (tensor([[1., 2.]], dtype=torch.float64), tensor([[1, 0]]))
    """
    check_state("x", x)
    check_state("reference", reference)
    check_same("x", x, "reference", reference, shape=False)
    check_positive("k", k, integer=True)
    if k > len(reference):
        raise ValueError(f"k must not exceed the size of the reference, {len(reference)}; got {k}")
    a, b = x.detach().flatten(1).double(), reference.detach().flatten(1).double()
    found = [
        torch.cdist(part, b, compute_mode="donot_use_mm_for_euclid_dist").topk(k, 1, largest=False)
        for part in torch.split(a, _CHUNK)
    ]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def memorised_fraction(
    x: Float[Tensor, "n *event"], train: Float[Tensor, "m *event"], *, threshold: float = 1 / 3
) -> float:
    r"""The share of points that are much nearer to one training point than to any other: $d_1 < c\,d_2$.

    $d_1 \le d_2$ are the distances to the two nearest training points; $c = 1/3$ is a common choice (Yoon et al.,
    2023; Gu et al., 2025). An exact copy counts even if the training set holds it twice.

    Args:
        x: Generated points.
        train: The training set, at least two points.
        threshold: $c$, in (0, 1].

    Returns:
        A number in [0, 1].

    Raises:
        TypeError: If dtypes differ.
        ValueError: If an argument is invalid.

    Example:
        >>> memorised_fraction(torch.tensor([[0.1], [0.5]]), torch.tensor([[0.0], [1.0]]))
        0.5
    """
    check_positive("threshold", threshold)
    if threshold > 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
    first, second = nearest_neighbours(x, train, k=2)[0].unbind(1)
    return float(((first < threshold * second) | (first == 0)).double().mean())


def copying_z(
    x: Float[Tensor, "n *event"], held_out: Float[Tensor, "m *event"], train: Float[Tensor, "k *event"]
) -> float:
    r"""The data-copying statistic of Meehan et al. (2020): are samples nearer to the training set than new data?

    With $L$ the distance to the nearest training point, $U$ counts the pairs of a generated and a held-out point in
    which the generated one has the larger $L$ (ties count half), and

    $$ z = \frac{U - nm/2}{\sqrt{\operatorname{Var} U}}, \qquad
       \operatorname{Var} U = \frac{nm}{12}\Big(n + m + 1 - \sum_g\frac{c_g^3 - c_g}{(n + m)(n + m - 1)}\Big), $$

    with $c_g$ the sizes of groups of equal distances. Given the training set, if generated and held-out points have
    one law, all orders are equally likely: $z$ has mean 0 and variance 1 and is nearly normal (Mann and Whitney, 1947).
    Far below zero means copying, far above zero means generated points are farther from the training data than real
    ones. This is the global form of the statistic, without the paper's cells.

    Args:
        x: Generated points.
        held_out: New data, not used in training.
        train: The training set.

    Returns:
        $z$; zero if all distances are equal.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If an argument is invalid.

    Example:
        >>> train, held_out = torch.zeros(1, 1), torch.arange(1.0, 21.0)[:, None]
        >>> copying_z(held_out - 0.5, held_out, train) < 0 < copying_z(held_out + 0.5, held_out, train)
        True
    """
    ours = nearest_neighbours(x, train)[0][:, 0]
    theirs = nearest_neighbours(held_out, train)[0][:, 0]
    n, m = len(ours), len(theirs)
    ordered = theirs.sort().values
    smaller = torch.searchsorted(ordered, ours)  # held-out distances strictly below each of ours
    not_larger = torch.searchsorted(ordered, ours, right=True)
    u = float((smaller + not_larger).double().sum()) / 2
    pooled = torch.cat([ours, theirs]).sort().values
    group = torch.searchsorted(pooled, pooled, right=True) - torch.searchsorted(pooled, pooled)  # size of own group
    ties = float((group**2 - 1).sum()) / ((n + m) * (n + m - 1))  # sum of c^3 - c over groups, point by point
    if int(group[0]) == n + m:
        return 0.0
    return (u - n * m / 2) / math.sqrt(n * m / 12 * (n + m + 1 - ties))


def denoising_error(
    field: Field,
    x1: Float[Tensor, "n *event"],
    times: Float[Tensor, " T"],
    *,
    draws: int = 1,
    generator: torch.Generator | None = None,
    **conditions: Any,
) -> Float[Tensor, "T n"]:
    r"""How well a field denoises given data, by time: $E_{x_0}\,\frac1d\|\hat x_1(x_t, t) - x_1\|^2$ for each $x_1$.

    On the training set its mean is what training minimises; on held-out data it is what was wanted. Every prediction's
    error is this one times `objectives.loss_weight`.

    Args:
        field: Any field that has a data prediction at these times.
        x1: Data.
        times: Times `[T]`.
        draws: Noises averaged over for each item and time.
        generator: Random generator, on the device of `x1`.
        **conditions: Passed to the field, for example `y=` labels `[n]`.

    Returns:
        Errors `[T, n]`, without gradients.

    Raises:
        TypeError: If the dtype of `times` differs from that of `x1`.
        ValueError: If an argument is invalid, or the field has no data prediction at one of the times.

    Example:
        >>> from flowlib import fields, paths
        >>> zero = fields.FunctionField(lambda x, t: 0 * x, paths.linear(), predicts="data")
        >>> denoising_error(zero, torch.full((1, 4), 3.0), torch.tensor([0.2, 0.8]))      # |x1|^2 / d
        tensor([[9.],
                [9.]])
    """
    check_state("x1", x1)
    check_positive("draws", draws, integer=True)
    check_unit_interval("times", times)
    if times.ndim != 1:
        raise ValueError(f"times must have shape [T], got {list(times.shape)}")
    field.check_times("data", times)
    rows = []
    with torch.no_grad():
        for t in times:
            total = x1.new_zeros(len(x1))
            for _ in range(draws):
                x0 = torch.randn(x1.shape, generator=generator, dtype=x1.dtype, device=x1.device)
                predicted = field.data(field.path.interpolate(x0, x1, t), t, **conditions)
                total += (predicted - x1).square().flatten(1).mean(1)
            rows.append(total / draws)
    return torch.stack(rows)
