"""Triton kernels of `flowlib.kernels.transport`."""

import torch
import triton
import triton.language as tl

from flowlib.kernels._triton import compute_type
from flowlib.kernels.transport import iterate

TILE = 64
"""Rows and columns of a tile of distances, in registers: 32 numbers a thread."""


@triton.jit
def tile_of_scores(
    x, y, shift, i, j, n, m, dim, inverse_epsilon, COMPUTE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """`shift_j - C_ij / epsilon` for rows `i` and columns `j`; points lie feature by feature, `[dim, n]`."""
    distance = tl.zeros([ROWS, COLUMNS], COMPUTE)
    for k in range(dim):
        x_k = tl.load(x + k * n + i, i < n, other=0.0)
        y_k = tl.load(y + k * m + j, j < m, other=0.0)
        difference = x_k[:, None] - y_k[None, :]
        distance += difference * difference
    column = tl.load(shift + j, j < m, other=float("-inf"))
    return column[None, :] - distance * inverse_epsilon


@triton.jit
def softmin_kernel(
    x, y, shift, out, n, m, dim, inverse_epsilon,
    COMPUTE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program, one tile of rows: `out_i = -log sum_j exp(shift_j - C_ij / epsilon)` over all columns."""
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    top = tl.full([TILE], float("-inf"), COMPUTE)
    total = tl.zeros([TILE], COMPUTE)
    for start in range(0, m, TILE):
        j = start + tl.arange(0, TILE)
        scores = tile_of_scores(x, y, shift, i, j, n, m, dim, inverse_epsilon, COMPUTE, TILE, TILE)
        new_top = tl.maximum(top, tl.max(scores, 1))
        # what was summed so far is brought to the new maximum
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(scores - new_top[:, None]), 1)
        top = new_top
    tl.store(out + i, -(top + tl.log(total)), i < n)


@triton.jit
def gradient_kernel(
    x, y, row, shift, grad, n, m, dim, inverse_epsilon,
    COMPUTE: tl.constexpr, TILE: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """One program, a tile of rows and of features: `grad_i = sum_j P_ij 2 (x_i - y_j)`, `P = exp(row + score)`."""
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    k = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    row_i = tl.load(row + i, i < n, other=float("-inf"))
    mass = tl.zeros([TILE], COMPUTE)
    moment = tl.zeros([TILE, FEATURES], COMPUTE)
    for start in range(0, m, TILE):
        j = start + tl.arange(0, TILE)
        scores = tile_of_scores(x, y, shift, i, j, n, m, dim, inverse_epsilon, COMPUTE, TILE, TILE)
        plan = tl.exp(row_i[:, None] + scores)
        inside = (j < m)[:, None] & (k < dim)[None, :]
        y_tile = tl.load(y + k[None, :] * m + j[:, None], inside, other=0.0)
        mass += tl.sum(plan, 1)
        moment += tl.dot(plan, y_tile, input_precision="ieee", out_dtype=COMPUTE)
    inside = (i < n)[:, None] & (k < dim)[None, :]
    x_tile = tl.load(x + k[None, :] * n + i[:, None], inside, other=0.0)
    tl.store(grad + i[:, None] * dim + k[None, :], 2.0 * (mass[:, None] * x_tile - moment), inside)


class Sinkhorn(torch.autograd.Function):
    """Iterations of `softmin_kernel`, and `gradient_kernel` for the gradient of the value."""

    @staticmethod
    def forward(ctx, x0, x1, epsilon, a, b, iterations, tolerance):
        """Returns value and potentials."""
        x, y = x0.T.contiguous(), x1.T.contiguous()  # (dim, n): neighbours in memory are neighbours in a tile
        log_a, log_b = a.log(), b.log()

        def softmin(x, y, shift):
            out = torch.empty(x.shape[1], dtype=x.dtype, device=x.device)
            softmin_kernel[(triton.cdiv(x.shape[1], TILE),)](
                x, y, shift, out, x.shape[1], y.shape[1], x.shape[0], 1 / epsilon,
                COMPUTE=compute_type(x.dtype), TILE=TILE,
            )  # fmt: skip
            return out

        f, g = iterate(
            lambda g: softmin(x, y, g + log_b), lambda f: softmin(y, x, f + log_a), a, b, iterations, tolerance
        )
        ctx.save_for_backward(x, y, f + log_a, g + log_b)
        ctx.epsilon = epsilon
        value, f, g = epsilon * (f @ a + g @ b), epsilon * f, epsilon * g
        ctx.mark_non_differentiable(f, g)
        return value, f, g

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dvalue, _df, _dg):
        """Gradients of both clouds."""
        x, y, row, column = ctx.saved_tensors

        def gradient(x, y, row, shift):
            (dim, n), m = x.shape, y.shape[1]
            grad = torch.empty(n, dim, dtype=x.dtype, device=x.device)
            features = min(64, max(16, triton.next_power_of_2(dim)))
            gradient_kernel[(triton.cdiv(n, TILE), triton.cdiv(dim, features))](
                x, y, row, shift, grad, n, m, dim, 1 / ctx.epsilon,
                COMPUTE=compute_type(x.dtype), TILE=TILE, FEATURES=features,
            )  # fmt: skip
            return dvalue * grad

        dx0 = gradient(x, y, row, column) if ctx.needs_input_grad[0] else None
        dx1 = gradient(y, x, column, row) if ctx.needs_input_grad[1] else None
        return dx0, dx1, None, None, None, None, None
