"""Entropic optimal transport: Sinkhorn's algorithm and the coupling that draws from its plan."""

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_positive, check_state
from flowlib.couplings.costs import squared_distances
from flowlib.couplings.pairs import Coupling, Pairs, check_pairable

__all__ = ["sinkhorn", "sinkhorn_plan"]


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

    def couple(x0: Tensor, x1: Tensor, *, generator: torch.Generator | None = None, **conditions: Tensor) -> Pairs:
        check_pairable(x0, x1)
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
