"""Entropic optimal transport: Sinkhorn's algorithm, with or without the matrix of costs, and the coupling it gives."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowlib._checks import check_positive, check_same, check_state
from flowlib.couplings.pairs import Coupling, Pairs, check_pairable

__all__ = ["EntropicPlan", "sinkhorn", "sinkhorn_cost_potentials", "sinkhorn_plan", "sinkhorn_potentials"]

_BLOCK_ENTRIES = 2**21
"""Scores held at once: 16 MB in float64."""


def sinkhorn(epsilon: float, *, iterations: int = 1000, tolerance: float = 1e-6) -> Coupling:
    r"""Pair by the entropic plan: each noise sample draws its partner from its row of the plan.

    The draw keeps the noise marginal exactly and the data marginal in expectation, so some data may be drawn twice.
    Large batches never form the matrix of costs (`sinkhorn_potentials`).

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
    _check_parameters(epsilon, iterations, tolerance)

    def couple(x0: Tensor, x1: Tensor, *, generator: torch.Generator | None = None, **conditions: Tensor) -> Pairs:
        check_pairable(x0, x1)
        plan = sinkhorn_potentials(x0.double(), x1.double(), epsilon, iterations=iterations, tolerance=tolerance)
        index = plan.draw(generator=generator)
        return Pairs(x0, x1[index], index)

    return couple


def sinkhorn_plan(
    cost: Float[Tensor, "*batch n m"],
    epsilon: float,
    *,
    a: Float[Tensor, "*batch n"] | None = None,
    b: Float[Tensor, "*batch m"] | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-9,
) -> Float[Tensor, "*batch n m"]:
    r"""Entropic optimal transport: $\min_P \langle P, C\rangle + \epsilon\,\mathrm{KL}(P \,\|\, a b^\top)$.

    The dense plan of `sinkhorn_cost_potentials`; arguments and errors are the same.

    Example:
        >>> plan = sinkhorn_plan(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), epsilon=0.1, tolerance=1e-6)
        >>> plan.sum(0)
        tensor([0.5000, 0.5000])
    """
    return sinkhorn_cost_potentials(cost, epsilon, a=a, b=b, iterations=iterations, tolerance=tolerance).dense()


def sinkhorn_cost_potentials(
    cost: Float[Tensor, "*batch n m"],
    epsilon: float,
    *,
    a: Float[Tensor, "*batch n"] | None = None,
    b: Float[Tensor, "*batch m"] | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-9,
) -> "EntropicPlan":
    r"""Dual potentials of entropic optimal transport for a matrix of costs, or for a batch of matrices.

    Sinkhorn's algorithm on the potentials, in the log domain, so that a small $\epsilon$ does not underflow (Cuturi,
    2013; Peyre and Cuturi, 2019, section 4.4):

    $$ f_i \leftarrow -\epsilon \log\sum_j b_j e^{(g_j - C_{ij})/\epsilon}, \qquad
       g_j \leftarrow g_j + \epsilon\log(b_j/c_j), \qquad c_j = \sum_i a_i b_j e^{(f_i + g_j - C_{ij})/\epsilon} . $$

    The second is the usual update of $g$ written with the column sums $c$ that the first leaves behind; this costs one
    exponential for each entry and iteration instead of two. No gradient is recorded.

    Args:
        cost: $C$, finite; leading axes are a batch of problems, solved together until all are solved.
        epsilon: Positive, in units of the cost.
        a: Row weights, positive, summing to one; equal if `None`.
        b: Column weights, likewise.
        iterations: Most iterations.
        tolerance: Stop when the marginals are off by less, in total variation. Columns of the result are exact. The
            default suits float64; in float32 the error stalls near $10^{-7}$, so ask for $10^{-6}$ at best.

    Returns:
        The plan, by its potentials.

    Raises:
        TypeError: If weights have another dtype than the cost.
        ValueError: If an argument is invalid, or the tolerance was not reached in the iterations allowed.

    Example:
        >>> plan = sinkhorn_cost_potentials(torch.zeros(5, 2, 3), epsilon=1.0, tolerance=1e-6)
        >>> plan.f.shape, plan.dense().shape
        (torch.Size([5, 2]), torch.Size([5, 2, 3]))
    """
    check_state("cost", cost)
    _check_parameters(epsilon, iterations, tolerance)
    return _solve(_Matrix(-cost.detach() / epsilon), epsilon, a, b, iterations, tolerance)


def sinkhorn_potentials(
    x0: Float[Tensor, "n *event"],
    x1: Float[Tensor, "m *event"],
    epsilon: float,
    *,
    a: Float[Tensor, " n"] | None = None,
    b: Float[Tensor, " m"] | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-6,
    block: int | None = None,
) -> "EntropicPlan":
    r"""Dual potentials of entropic optimal transport between points, without an n x m matrix.

    The cost is $\|x_0^i - x_1^j\|^2$ and the iteration that of `sinkhorn_cost_potentials`. Distances are recomputed for
    a block of rows at a time, so the memory is that of the points and of one block. If all rows fit into one block it
    is computed once and kept.

    Distances are taken as $\|x\|^2 + \|y\|^2 - 2x\cdot y$ about the mean of `x1`: in float32 a score $C/\epsilon$ loses
    about $10^{-7}\max C/\epsilon$, so a small $\epsilon$ asks for float64.

    Args:
        x0: Points `[n, *event]`.
        x1: Points `[m, *event]`.
        epsilon: Positive, in units of the squared distance.
        a: Weights of `x0`, positive, summing to one; equal if `None`.
        b: Weights of `x1`, likewise.
        iterations: Most iterations.
        tolerance: Stop when the marginals are off by less, in total variation.
        block: Rows in a block; as many as give two million scores if `None`.

    Returns:
        The plan, by its potentials.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If an argument is invalid, or the tolerance was not reached in the iterations allowed.

    Example:
        >>> x0, x1 = torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]])
        >>> sinkhorn_potentials(x0, x1, 0.1).transport_cost()
        tensor(1.0000)
    """
    check_state("x0", x0)
    check_state("x1", x1)
    check_same("x0", x0, "x1", x1, shape=False)
    _check_parameters(epsilon, iterations, tolerance)
    if block is None:
        block = max(1, _BLOCK_ENTRIES // x1.shape[0])
    check_positive("block", block, integer=True)
    center = x1.detach().flatten(1).mean(0)
    points = _Points(x0.detach().flatten(1) - center, x1.detach().flatten(1) - center, epsilon, block)
    if block >= x0.shape[0]:
        (_, scores), *_ = points.blocks(torch.zeros_like(points.x1[:, 0]))
        return _solve(_Matrix(scores), epsilon, a, b, iterations, tolerance)
    return _solve(points, epsilon, a, b, iterations, tolerance)


@dataclass(frozen=True)
class EntropicPlan:
    r"""The plan $P_{ij} = a_i b_j e^{(f_i + g_j - C_{ij})/\epsilon}$, known by its potentials.

    Every method walks over blocks of rows; only `dense` forms the matrix.

    Attributes:
        f: Row potential `[*batch, n]`, in units of the cost.
        g: Column potential `[*batch, m]`.
        a: Row weights `[*batch, n]`.
        b: Column weights `[*batch, m]`.
        epsilon: The regularisation.
        iterations: Iterations made.
        error: Bound on the row marginal's error, in total variation, the largest of the batch.
    """

    f: Tensor
    g: Tensor
    a: Tensor
    b: Tensor
    epsilon: float
    iterations: int
    error: float
    _scores: "_Matrix | _Points"

    def dense(self) -> Float[Tensor, "*batch n m"]:
        """The matrix $P$."""
        rows = [
            torch.exp(scores + (self.f[..., part] / self.epsilon + self.a[..., part].log())[..., None])
            for part, scores in self._blocks()
        ]
        return torch.cat(rows, -2)

    def value(self) -> Float[Tensor, "*batch"]:
        r"""The dual value $\langle f, a\rangle + \langle g, b\rangle$, a lower bound of the regularised optimum.

        It is a bound because the columns of $P$ are exact, so its mass is one.
        """
        return (self.f * self.a).sum(-1) + (self.g * self.b).sum(-1)

    def transport_cost(self) -> Float[Tensor, "*batch"]:
        r"""$\langle P, C\rangle$, without the entropy."""
        total = torch.zeros_like(self.a[..., 0])
        shift = self.g / self.epsilon + self.b.log()
        for part, scores in self._blocks():
            plan = torch.exp(scores + (self.f[..., part] / self.epsilon + self.a[..., part].log())[..., None])
            total += (plan * (shift[..., None, :] - scores)).sum((-2, -1))
        return self.epsilon * total

    def conditional_mean(self, values: Float[Tensor, "*batch m k"]) -> Float[Tensor, "*batch n k"]:
        r"""$\sum_j P_{ij}\,\text{values}_j / \sum_j P_{ij}$ by row; of `x1` itself the barycentric projection."""
        return torch.cat([torch.softmax(scores, -1) @ values for _, scores in self._blocks()], -2)

    def draw(self, *, generator: torch.Generator | None = None) -> Int[Tensor, "*batch n"]:
        """For each row one column, drawn from the row of the plan."""
        drawn = []
        for _, scores in self._blocks():
            rows = torch.softmax(scores, -1)
            index = torch.multinomial(rows.reshape(-1, rows.shape[-1]), 1, generator=generator)
            drawn.append(index.reshape(rows.shape[:-1]))
        return torch.cat(drawn, -1)

    def _blocks(self) -> "Iterator[tuple[slice, Tensor]]":
        return self._scores.blocks(self.g / self.epsilon + self.b.log())


@dataclass(frozen=True)
class _Matrix:
    """Scores shift_j - C_ij / epsilon from a matrix, as one block."""

    scaled: Tensor  # [*batch, n, m]

    def shape(self) -> tuple[torch.Size, torch.Size]:
        return self.scaled.shape[:-1], self.scaled.shape[:-2] + self.scaled.shape[-1:]

    def blocks(self, shift: Tensor) -> Iterator[tuple[slice, Tensor]]:
        yield slice(None), self.scaled + shift[..., None, :]


@dataclass(frozen=True)
class _Points:
    """The same from points, recomputed for one block of rows after another."""

    x0: Tensor  # [n, d]
    x1: Tensor  # [m, d]
    epsilon: float
    block: int

    def shape(self) -> tuple[torch.Size, torch.Size]:
        return self.x0.shape[:1], self.x1.shape[:1]

    def blocks(self, shift: Tensor) -> Iterator[tuple[slice, Tensor]]:
        columns = shift - self.x1.square().sum(1) / self.epsilon
        for start in range(0, self.x0.shape[0], self.block):
            part = slice(start, start + self.block)
            rows = self.x0[part]
            scores = torch.addmm(columns, rows, self.x1.T, alpha=2 / self.epsilon)
            yield part, scores.sub_(rows.square().sum(1, keepdim=True) / self.epsilon)


@torch.no_grad()
def _solve(
    costs: _Matrix | _Points, epsilon: float, a: Tensor | None, b: Tensor | None, iterations: int, tolerance: float
) -> EntropicPlan:
    """Sinkhorn's iteration in units of epsilon; one pass over the blocks updates both potentials."""
    like = costs.scaled if isinstance(costs, _Matrix) else costs.x0
    rows, columns = costs.shape()
    a, b = _weights("a", a, rows, like), _weights("b", b, columns, like)
    f, g, log_b = torch.zeros_like(a), torch.zeros_like(b), b.log()
    smallest = torch.finfo(like.dtype).tiny
    for step in range(iterations):
        mass = torch.zeros_like(b)  # of the columns, once every row has its weight
        for part, scores in costs.blocks(g + log_b):
            top = scores.amax(-1, keepdim=True)
            weights = scores.sub_(top).exp_()
            total = weights.sum(-1, keepdim=True)
            f[..., part] = -(top + total.log())[..., 0]
            mass += ((a[..., part] / total[..., 0])[..., None, :] @ weights)[..., 0, :]
        error = float((mass - b).abs().sum(-1).max()) / 2
        # a column whose mass underflows moves by all that the exponent can hold, and on from there in the next pass
        g += log_b - mass.clamp_min(smallest).log()
        if error < tolerance:
            return EntropicPlan(epsilon * f, epsilon * g, a, b, epsilon, step + 1, error, costs)
    advice = "raise iterations, tolerance or epsilon"
    if tolerance < 10 * torch.finfo(like.dtype).eps:
        advice += f"; {like.dtype} cannot resolve this tolerance, so use a wider one or a wider dtype"
    raise ValueError(
        f"Sinkhorn did not reach tolerance={tolerance:g} in {iterations} iterations (marginal error {error:.2g}); "
        + advice
    )


def _check_parameters(epsilon: float, iterations: int, tolerance: float) -> None:
    check_positive("epsilon", epsilon)
    check_positive("iterations", iterations, integer=True)
    check_positive("tolerance", tolerance)


def _weights(name: str, weights: Tensor | None, shape: torch.Size, like: Tensor) -> Tensor:
    if weights is None:
        return torch.full(shape, 1 / shape[-1], dtype=like.dtype, device=like.device)
    if weights.dtype != like.dtype:
        raise TypeError(f"{name} must have the dtype of the cost, {like.dtype}; got {weights.dtype}")
    if weights.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(weights.shape)}")
    if not bool((weights > 0).all()) or float((weights.sum(-1) - 1).abs().max()) > 1e-5:
        raise ValueError(f"{name} must be positive and sum to 1, got sum {float(weights.sum(-1).flatten()[0]):.6g}")
    return weights.detach()
