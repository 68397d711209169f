"""Optimal pairing of two batches by a permutation."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from flowlib._checks import check_same, check_state
from flowlib.couplings.pairs import Pairs, check_pairable

__all__ = ["assignment", "exact_ot"]

_WARM_START_BATCH = 256
_WARM_START_DIM = 16


def exact_ot(x0: Tensor, x1: Tensor, *, generator: torch.Generator | None = None, **conditions: Tensor) -> Pairs:
    r"""Pair by the permutation that minimises $\sum_i \|x_0^i - x_1^{\pi(i)}\|^2$.

    The plan between two uniform batches of one size has an optimum at a permutation (Birkhoff), which the network
    simplex finds; every sample is used exactly once, where drawing from the plan with replacement (as in common
    implementations of Tong et al., 2024) would drop a third of them. The solve is in float64 on the CPU.

    Args:
        x0: Noise `[batch, *event]`.
        x1: Data, same shape.
        generator: Not used.
        **conditions: Not used.

    Returns:
        The pairs, with `x1` permuted and `index` the permutation.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes or devices differ or an entry is not finite.

    Example:
        >>> exact_ot(torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]])).index
        tensor([1, 0])
    """
    check_pairable(x0, x1)
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
