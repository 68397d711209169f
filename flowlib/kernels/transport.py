r"""Sinkhorn's iterations in the log domain without the n x m matrix, and the gradient of the cost they find.

Entropic transport between weighted points with the cost $C_{ij} = \|x_0^i - x_1^j\|^2$ is the maximum over potentials
of

$$ \mathrm{OT}_\epsilon = \max_{f, g}\ \langle f, a\rangle + \langle g, b\rangle
   - \epsilon\Big(\sum_{ij} P_{ij} - 1\Big), \qquad P_{ij} = a_i b_j e^{(f_i + g_j - C_{ij})/\epsilon} . $$

Each half step maximises over one potential (Cuturi, 2013; Peyre and Cuturi, 2019, section 4.4),

$$ f_i \leftarrow -\epsilon\log\sum_j b_j e^{(g_j - C_{ij})/\epsilon}, \qquad
   g_j \leftarrow -\epsilon\log\sum_i a_i e^{(f_i - C_{ij})/\epsilon} . $$

The kernel keeps a tile of rows and walks over tiles of columns; it computes the distances of a tile from the points,
folds them into a running maximum and a running sum, and forgets them. At the maximum the potentials may be held fixed
while the points move (the envelope theorem), so the gradient needs no iteration undone:
$\partial\,\mathrm{OT}_\epsilon/\partial x_0^i = \sum_j P_{ij}\, 2 (x_0^i - x_1^j)$, one more pass over tiles.

**Roofline.** The points are $(n + m) d$ numbers, read from cache over and over; the matrix, $4nm$ bytes, is 1 GiB at
$n = m = 16384$ and is never there. What remains is arithmetic: a pair costs $2d$ float32 operations for its distance,
about six for the running sum, and one exponential, which the special function units give at a sixteenth of the rate
counted in operations (an eighth in instructions): the time of about $2d + 14$ instructions a pair and half step, if the
units do not overlap. At 33 thousand billion instructions a second (H200), $n = 16384$ and $d = 2$ take 0.15 ms, or 0.09
if they do. Differences are squared and summed
rather than expanded to $\|x\|^2 + \|y\|^2 - 2 x\cdot y$: the expansion could use tensor cores where $d$ is large, but
cancels, and a small $\epsilon$ magnifies what is lost.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_positive
from flowlib.kernels._dispatch import check_operand, compute_dtype, use_triton

__all__ = ["sinkhorn"]

CHECK_EVERY = 10
"""Iterations between two looks at the error: a look makes the GPU wait for the CPU."""


def sinkhorn(
    x0: Float[Tensor, "n dim"],
    x1: Float[Tensor, "m dim"],
    epsilon: float,
    *,
    a: Float[Tensor, " n"] | None = None,
    b: Float[Tensor, " m"] | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-5,
    implementation: str = "auto",
) -> tuple[Float[Tensor, ""], Float[Tensor, " n"], Float[Tensor, " m"]]:
    r"""Entropic transport cost between two point clouds, differentiable in the points, and its potentials.

    Args:
        x0: Points; half types are computed in float32.
        x1: Points.
        epsilon: Regularisation, positive, in units of the squared distance.
        a: Weights of `x0`, positive, summing to one, in float32 (float64 for float64 points); equal if `None`.
        b: Weights of `x1`, likewise.
        iterations: Most iterations.
        tolerance: Stop when the row sums of the plan are off by less, in total variation; looked at every ten
            iterations. Columns are exact. float32 does not resolve less than about $10^{-6}$.
        implementation: `"auto"` (Triton on a GPU), `"reference"` (forms the matrix) or `"triton"`.

    Returns:
        The value $\langle f, a\rangle + \langle g, b\rangle$, which is $\mathrm{OT}_\epsilon$ (the sum of the plan is
        one), and the potentials $f$ and $g$, detached.

    Raises:
        TypeError: If dtypes do not fit, or weights require a gradient.
        ValueError: If shapes, devices, weights or parameters do not fit, or the tolerance was not reached.
        RuntimeError: If Triton is asked for and cannot run.

    Example:
        >>> x0, x1 = torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]])
        >>> value, f, g = sinkhorn(x0, x1, 0.1)
        >>> round(float(value), 3)      # the pairing costs 1, and its entropy (relative to a b) is log 2
        1.069
    """
    check_operand("x0", x0, ("n", "dim"))
    check_operand("x1", x1, ("m", x0.shape[1]), x0)
    check_positive("epsilon", epsilon)
    check_positive("iterations", iterations, integer=True)
    check_positive("tolerance", tolerance)
    dtype = compute_dtype(x0.dtype)
    a = _weights("a", a, x0.shape[0], x0, dtype)
    b = _weights("b", b, x1.shape[0], x0, dtype)
    if not use_triton(implementation, x0):
        return sinkhorn_reference(x0.to(dtype), x1.to(dtype), epsilon, a, b, iterations, tolerance)
    from flowlib.kernels._triton.transport import Sinkhorn

    out: tuple[Tensor, Tensor, Tensor] = Sinkhorn.apply(
        x0.to(dtype), x1.to(dtype), epsilon, a, b, iterations, tolerance
    )
    return out


def sinkhorn_reference(
    x0: Tensor, x1: Tensor, epsilon: float, a: Tensor, b: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, in plain PyTorch, with the matrix of costs."""
    cost = (x0[:, None] - x1[None]).square().sum(-1)  # (n, m)
    scores = -cost.detach() / epsilon
    log_a, log_b = a.log(), b.log()

    def rows(g: Tensor) -> Tensor:
        return -torch.logsumexp(scores + (g + log_b), 1)

    def columns(f: Tensor) -> Tensor:
        return -torch.logsumexp(scores + (f + log_a)[:, None], 0)

    f, g = iterate(rows, columns, a, b, iterations, tolerance)
    plan = (scores + (f + log_a)[:, None] + (g + log_b)).exp()
    moving = (plan * cost).sum()  # the envelope theorem: the plan is held fixed
    value = epsilon * (f @ a + g @ b) + moving - moving.detach()
    return value, epsilon * f, epsilon * g


def iterate(
    rows: Callable[[Tensor], Tensor],
    columns: Callable[[Tensor], Tensor],
    a: Tensor,
    b: Tensor,
    iterations: int,
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    r"""Alternate the two half steps until the row sums are right; potentials in units of $\epsilon$.

    With $f^+$ the next $f$, row $i$ of the plan sums to $a_i e^{f_i - f_i^+}$, so the error comes with the next step.
    """
    f = rows(torch.zeros_like(b))
    for step in range(1, iterations + 1):
        g = columns(f)
        next_f = rows(g)
        if step % CHECK_EVERY == 0 or step == iterations:
            error = float((a * torch.expm1(f - next_f)).abs().sum()) / 2
            if error < tolerance:
                return f, g
        f = next_f
    raise ValueError(
        f"Sinkhorn did not reach tolerance={tolerance:g} in {iterations} iterations (marginal error {error:.2g}); "
        "raise iterations, tolerance or epsilon"
    )


def _weights(name: str, weights: Tensor | None, size: int, points: Tensor, dtype: torch.dtype) -> Tensor:
    like = torch.empty(0, dtype=dtype, device=points.device)
    if weights is None:
        return torch.full((size,), 1 / size, dtype=dtype, device=points.device)
    check_operand(name, weights, (size,), like)
    if weights.requires_grad:
        raise TypeError(f"{name} must not require a gradient: only the points are differentiated")
    if not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > 1e-5:
        raise ValueError(f"{name} must be positive and sum to 1, got sum {float(weights.sum()):.6g}")
    return weights
