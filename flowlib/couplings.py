r"""Couplings: which noise sample is paired with which data sample inside a batch.

A coupling is a function `(x0, x1, *, generator=None) -> Pairs`. Any joint law with the right marginals trains the
same marginals (Liu et al., 2023; Tong et al., 2024); a better pairing makes the target less noisy and the
trajectories straighter.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowlib._checks import check_positive, check_same, check_state

__all__ = [
    "Coupling",
    "Pairs",
    "assignment",
    "exact_ot",
    "independent",
    "sinkhorn",
    "sinkhorn_plan",
    "squared_distances",
]


_WARM_START_BATCH = 256
_WARM_START_DIM = 16


@dataclass(frozen=True)
class Pairs:
    """Paired samples.

    Attributes:
        x0: Noise `[batch, *event]`, as it came.
        x1: Data `[batch, *event]`, row i the partner of row i of `x0`.
        index: Which row of the original data each partner is, `[batch]`, so that labels can follow; `None` if the
            order is unchanged.
        weight: Weight of each pair in the loss, `[batch]`; `None` for equal weights.
    """

    x0: Tensor
    x1: Tensor
    index: Int[Tensor, " batch"] | None = None
    weight: Float[Tensor, " batch"] | None = None


@runtime_checkable
class Coupling(Protocol):
    """Pairs a batch of noise with a batch of data."""

    def __call__(self, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None = None) -> Pairs:
        """Pair the rows of `x0` with rows of `x1`."""


def independent(x0: Tensor, x1: Tensor, *, generator: torch.Generator | None = None) -> Pairs:
    """Keep the rows as they came: noise and data drawn independently stay independent.

    Args:
        x0: Noise `[batch, *event]`.
        x1: Data, same shape.
        generator: Not used.

    Returns:
        The pairs.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes or devices differ.

    Example:
        >>> independent(torch.zeros(2, 1), torch.ones(2, 1)).index is None
        True
    """
    _check(x0, x1)
    return Pairs(x0, x1)


def exact_ot(x0: Tensor, x1: Tensor, *, generator: torch.Generator | None = None) -> Pairs:
    r"""Pair by the permutation that minimises $\sum_i \|x_0^i - x_1^{\pi(i)}\|^2$.

    The plan between two uniform batches of one size has an optimum at a permutation (Birkhoff), which the network
    simplex finds; every sample is used exactly once, where drawing from the plan with replacement (as in common
    implementations of Tong et al., 2024) would drop a third of them. The solve is in float64 on the CPU.

    Args:
        x0: Noise `[batch, *event]`.
        x1: Data, same shape.
        generator: Not used.

    Returns:
        The pairs, with `x1` permuted and `index` the permutation.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes or devices differ or an entry is not finite.

    Example:
        >>> exact_ot(torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]])).index
        tensor([1, 0])
    """
    _check(x0, x1)
    index = assignment(x0, x1)
    return Pairs(x0, x1[index], index)


def assignment(x0: Tensor, x1: Tensor) -> Int[Tensor, " batch"]:
    """The optimal permutation behind `exact_ot`: row i of `x0` goes with row `assignment[i]` of `x1`.

    Example:
        >>> assignment(torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]]))
        tensor([1, 0])
    """
    check_state("x0", x0)
    check_state("x1", x1)
    check_same("x0", x0, "x1", x1)
    import numpy as np
    import ot
    from scipy.optimize import linear_sum_assignment

    n = x0.shape[0]
    a, b = x0.detach().flatten(1).cpu().double(), x1.detach().flatten(1).cpu().double()
    # |x0|^2 and |x1|^2 add the same to every permutation: without them the simplex pivots up to 1.5 times faster
    gain = (a - a.mean(0)) @ (b - b.mean(0)).T
    cost = gain.max() - gain
    # the simplex has absolute tolerances, so it gets costs of size one whatever the unit of the data
    cost = cost / cost.max().clamp_min(torch.finfo(cost.dtype).tiny)
    # in high dimension distances concentrate and good starting duals halve the simplex's work; in the plane they do not
    start = _rough_duals(cost) if n >= _WARM_START_BATCH and a.shape[1] >= _WARM_START_DIM else None
    mass = np.full(n, 1 / n)
    plan, log = ot.emd(
        mass,
        mass,
        cost.numpy(),
        numItermax=1000 * n + 100_000,
        log=True,
        center_dual=False,
        check_marginals=False,
        potentials_init=start,
    )
    columns = plan.argmax(1)
    # a basic optimal plan is a permutation matrix; anything else (round-off, no convergence) is solved again
    if log["warning"] is not None or (plan > 0).sum() != n or np.unique(columns).size != n:
        columns = linear_sum_assignment(cost.numpy())[1]
    return torch.from_numpy(columns).to(x0.device)


def _rough_duals(cost: Tensor, iterations: int = 20, sharpness: float = 80.0) -> "tuple[Any, Any] | None":
    """Dual potentials from a few Sinkhorn steps in float32, as a start for the exact solver; None if they overflow."""
    rough = cost.float()
    lowest = rough.min(1, keepdim=True).values
    rough = rough - lowest
    epsilon = float(rough.max()) / sharpness
    if epsilon == 0:
        return None
    kernel = torch.exp(-rough / epsilon)
    v = torch.ones(cost.shape[1])
    for _ in range(iterations):
        u = 1 / (kernel @ v)
        v = 1 / (kernel.T @ u)
    f, g = (lowest[:, 0] + epsilon * u.log()).double(), (epsilon * v.log()).double()
    return (f.numpy(), g.numpy()) if bool(torch.isfinite(f).all() and torch.isfinite(g).all()) else None


def sinkhorn(epsilon: float, *, iterations: int = 1000, tolerance: float = 1e-6) -> Coupling:
    r"""Pair by the entropic plan: each noise sample draws its partner from its row of the plan.

    The draw keeps the noise marginal exactly and the data marginal in expectation, so some data may be drawn twice.

    Args:
        epsilon: Regularisation in units of the squared distance, positive; see `sinkhorn_plan`.
        iterations: Most iterations of Sinkhorn's algorithm.
        tolerance: Largest marginal error, in total variation.

    Returns:
        A coupling.

    Raises:
        ValueError: If a parameter is not positive.

    Example:
        >>> pair = sinkhorn(epsilon=0.01)
        >>> pair(torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]])).index
        tensor([1, 0])
    """
    check_positive("epsilon", epsilon)
    check_positive("iterations", iterations, integer=True)
    check_positive("tolerance", tolerance)

    def couple(x0: Tensor, x1: Tensor, *, generator: torch.Generator | None = None) -> Pairs:
        _check(x0, x1)
        cost = squared_distances(x0.double(), x1.double())
        plan = sinkhorn_plan(cost, epsilon, iterations=iterations, tolerance=tolerance)
        index = torch.multinomial(plan, 1, generator=generator)[:, 0]
        return Pairs(x0, x1[index], index)

    return couple


def sinkhorn_plan(
    cost: Float[Tensor, "n m"],
    epsilon: float,
    *,
    a: Float[Tensor, " n"] | None = None,
    b: Float[Tensor, " m"] | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-9,
) -> Float[Tensor, "n m"]:
    r"""Entropic optimal transport: $\min_P \langle P, C\rangle + \epsilon\,\mathrm{KL}(P \,\|\, a b^\top)$.

    Sinkhorn's algorithm on the dual potentials, in the log domain, so that a small $\epsilon$ does not underflow
    (Cuturi, 2013; Peyre and Cuturi, 2019, section 4.4):

    $$ f_i \leftarrow -\epsilon \log\sum_j b_j e^{(g_j - C_{ij})/\epsilon}, \qquad
       g_j \leftarrow -\epsilon \log\sum_i a_i e^{(f_i - C_{ij})/\epsilon}. $$

    Args:
        cost: $C$, finite.
        epsilon: Positive.
        a: Row weights, positive, summing to one; equal if `None`.
        b: Column weights, likewise.
        iterations: Most iterations.
        tolerance: Stop when the row marginal is off by less, in total variation (columns are exact).

    Returns:
        The plan $P$.

    Raises:
        ValueError: If an argument is invalid, or the tolerance was not reached in the iterations allowed.

    Example:
        >>> plan = sinkhorn_plan(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), epsilon=0.1, tolerance=1e-6)
        >>> plan.sum(0)
        tensor([0.5000, 0.5000])
    """
    check_state("cost", cost)
    check_positive("epsilon", epsilon)
    log_a, log_b = _log_weights("a", a, cost.shape[0], cost), _log_weights("b", b, cost.shape[1], cost)
    scaled = -cost / epsilon
    f, g = torch.zeros_like(log_a), torch.zeros_like(log_b)
    error = float("inf")
    for step in range(iterations):
        f = -torch.logsumexp(scaled + (g + log_b), 1)  # potentials in units of epsilon
        g = -torch.logsumexp(scaled + (f + log_a)[:, None], 0)
        if step % 10 == 9 or step == iterations - 1:
            rows = f + log_a + torch.logsumexp(scaled + (g + log_b), 1)
            error = float((rows.exp() - log_a.exp()).abs().sum()) / 2
            if error < tolerance:
                return torch.exp(scaled + (f + log_a)[:, None] + (g + log_b))
    raise ValueError(
        f"Sinkhorn did not reach tolerance={tolerance:g} in {iterations} iterations (marginal error {error:.2g}); "
        "raise iterations, tolerance or epsilon"
    )


def squared_distances(x0: Tensor, x1: Tensor) -> Float[Tensor, "n m"]:
    """All squared Euclidean distances between two batches of states, without the `[n, m, d]` differences.

    Args:
        x0: States `[n, *event]`.
        x1: States `[m, *event]`.

    Returns:
        The matrix `[n, m]`, never negative.

    Example:
        >>> squared_distances(torch.zeros(1, 2), torch.ones(3, 2))
        tensor([[2., 2., 2.]])
    """
    a, b = x0.flatten(1), x1.flatten(1)
    center = b.mean(0)
    a, b = a - center, b - center  # less cancellation
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


def _check(x0: Tensor, x1: Tensor) -> None:
    check_state("x0", x0)
    check_state("x1", x1)
    check_same("x0", x0, "x1", x1)


def _log_weights(name: str, weights: Tensor | None, count: int, like: Tensor) -> Tensor:
    if weights is None:
        weights = torch.full((count,), 1 / count, dtype=like.dtype, device=like.device)
    if weights.dtype != like.dtype:
        raise TypeError(f"{name} must have the dtype of the cost, {like.dtype}; got {weights.dtype}")
    if weights.shape != (count,):
        raise ValueError(f"{name} must have shape [{count}], got {list(weights.shape)}")
    if not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > 1e-5:
        raise ValueError(f"{name} must be positive and sum to 1, got sum {float(weights.sum()):.6g}")
    return weights.log()
