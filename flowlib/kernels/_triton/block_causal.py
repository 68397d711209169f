"""Triton kernels of `flowlib.kernels.block_causal`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowlib.kernels._triton import PRECISION, compute_type, operand_type

LOG2_E = 1.4426950408889634
"""Weights are powers of two, which GPUs make fastest; scores are multiplied by this once."""


@triton.jit
def load_tile(x, i, d, x_t, x_d, n, dim, OPERAND: tl.constexpr):
    """Rows `i` of `[n, dim]`, zero outside."""
    inside = (i < n)[:, None] & (d < dim)[None, :]
    return tl.load(x + i[:, None] * x_t + d[None, :] * x_d, inside, other=0.0).to(OPERAND)


@triton.jit
def visible(i, j, frame, window, sink, stop):
    """The mask of a tile: queries `i`, keys `j` below `stop`."""
    query, key = (i // frame)[:, None], (j // frame)[None, :]
    return (key <= query) & ((query - key < window) | (key < sink)) & (j < stop)[None, :]


@triton.jit
def absorb(acc, top, total, q, keys, values, mask, scale, COMPUTE: tl.constexpr, OPERAND: tl.constexpr):
    """Take a tile of keys and values into the running softmax of a tile of queries."""
    scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION, out_dtype=COMPUTE) * scale
    scores = tl.where(mask, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None] + tl.dot(weights.to(OPERAND), values, input_precision=PRECISION, out_dtype=COMPUTE)
    return acc, new_top, total


@triton.jit
def forward_kernel(
    q, k, v, o, lse, scale,
    heads, tokens, dim, frame, window, sink,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d,
    COMPUTE: tl.constexpr, OPERAND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """One program, one tile of queries of one head."""
    b, h = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DIM)
    k, v = k + b * k_b + h * k_h, v + b * v_b + h * v_h
    q_tile = load_tile(q + b * q_b + h * q_h, i, d, q_t, q_d, tokens, dim, OPERAND)
    acc = tl.zeros([ROWS, DIM], COMPUTE)
    top = tl.full([ROWS], -1.0e30, COMPUTE)  # finite: a row that a whole tile masks stays what it was
    total = tl.zeros([ROWS], COMPUTE)
    # keys that some query of the tile sees: its window [near, stop), and the sink as far as the window leaves it out
    first = tl.program_id(0) * ROWS // frame
    last = tl.minimum(tl.program_id(0) * ROWS + ROWS - 1, tokens - 1) // frame
    near = tl.maximum(first - window + 1, 0) * frame
    stop = tl.minimum((last + 1) * frame, tokens)
    for start in range(0, tl.minimum(sink * frame, near), COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        mask = visible(i, j, frame, window, sink, near)
        keys = load_tile(k, j, d, k_t, k_d, tokens, dim, OPERAND)
        values = load_tile(v, j, d, v_t, v_d, tokens, dim, OPERAND)
        acc, top, total = absorb(acc, top, total, q_tile, keys, values, mask, scale, COMPUTE, OPERAND)
    for start in range(near, stop, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        mask = visible(i, j, frame, window, sink, stop)
        keys = load_tile(k, j, d, k_t, k_d, tokens, dim, OPERAND)
        values = load_tile(v, j, d, v_t, v_d, tokens, dim, OPERAND)
        acc, top, total = absorb(acc, top, total, q_tile, keys, values, mask, scale, COMPUTE, OPERAND)
    total = tl.where(total == 0.0, 1.0, total)  # rows past the last token saw nothing
    at = (b * heads + h) * tokens + i
    tl.store(o + at[:, None] * dim + d[None, :], acc / total[:, None], (i < tokens)[:, None] & (d < dim)[None, :])
    tl.store(lse + at, top + tl.log2(total), i < tokens)


@triton.jit
def score_gradient(q, keys, values, do, lse, delta, mask, scale, COMPUTE: tl.constexpr):
    """Weights of a tile, made again, and the gradient of its scores: `P (dP - delta)`."""
    scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION, out_dtype=COMPUTE) * scale
    weights = tl.where(mask, tl.exp2(scores - lse[:, None]), 0.0)
    dweights = tl.dot(do, tl.trans(values), input_precision=PRECISION, out_dtype=COMPUTE)
    return weights, weights * (dweights - delta[:, None])


@triton.jit
def query_gradient_kernel(
    q, k, v, do, lse, delta, dq, scale, root,
    heads, tokens, dim, frame, window, sink,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, do_b, do_h, do_t, do_d,
    COMPUTE: tl.constexpr, OPERAND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """The forward kernel's walk over keys; `dq = root * sum_j dS_j k_j`."""
    b, h = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DIM)
    k, v = k + b * k_b + h * k_h, v + b * v_b + h * v_h
    q_tile = load_tile(q + b * q_b + h * q_h, i, d, q_t, q_d, tokens, dim, OPERAND)
    do_tile = load_tile(do + b * do_b + h * do_h, i, d, do_t, do_d, tokens, dim, OPERAND)
    at = (b * heads + h) * tokens + i
    lse_i, delta_i = tl.load(lse + at, i < tokens, other=0.0), tl.load(delta + at, i < tokens, other=0.0)
    acc = tl.zeros([ROWS, DIM], COMPUTE)
    first = tl.program_id(0) * ROWS // frame
    last = tl.minimum(tl.program_id(0) * ROWS + ROWS - 1, tokens - 1) // frame
    near = tl.maximum(first - window + 1, 0) * frame
    stop = tl.minimum((last + 1) * frame, tokens)
    for start in range(0, tl.minimum(sink * frame, near), COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        mask = visible(i, j, frame, window, sink, near) & (i < tokens)[:, None]
        keys = load_tile(k, j, d, k_t, k_d, tokens, dim, OPERAND)
        values = load_tile(v, j, d, v_t, v_d, tokens, dim, OPERAND)
        _, dscores = score_gradient(q_tile, keys, values, do_tile, lse_i, delta_i, mask, scale, COMPUTE)
        acc += tl.dot(dscores.to(OPERAND), keys, input_precision=PRECISION, out_dtype=COMPUTE)
    for start in range(near, stop, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        mask = visible(i, j, frame, window, sink, stop) & (i < tokens)[:, None]
        keys = load_tile(k, j, d, k_t, k_d, tokens, dim, OPERAND)
        values = load_tile(v, j, d, v_t, v_d, tokens, dim, OPERAND)
        _, dscores = score_gradient(q_tile, keys, values, do_tile, lse_i, delta_i, mask, scale, COMPUTE)
        acc += tl.dot(dscores.to(OPERAND), keys, input_precision=PRECISION, out_dtype=COMPUTE)
    tl.store(dq + at[:, None] * dim + d[None, :], root * acc, (i < tokens)[:, None] & (d < dim)[None, :])


@triton.jit
def key_value_gradient_kernel(
    q, k, v, do, lse, delta, dk, dv, scale, root,
    heads, tokens, dim, frame, window, sink,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, do_b, do_h, do_t, do_d,
    COMPUTE: tl.constexpr, OPERAND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """One program, one tile of keys, over the queries that see it: from its own frame to the end of its window."""
    b, h = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    d = tl.arange(0, DIM)
    q, do = q + b * q_b + h * q_h, do + b * do_b + h * do_h
    keys = load_tile(k + b * k_b + h * k_h, j, d, k_t, k_d, tokens, dim, OPERAND)
    values = load_tile(v + b * v_b + h * v_h, j, d, v_t, v_d, tokens, dim, OPERAND)
    dk_tile = tl.zeros([COLUMNS, DIM], COMPUTE)
    dv_tile = tl.zeros([COLUMNS, DIM], COMPUTE)
    first = tl.program_id(0) * COLUMNS // frame
    last = tl.minimum(tl.program_id(0) * COLUMNS + COLUMNS - 1, tokens - 1) // frame
    stop = tl.where(first < sink, tokens, tl.minimum((last + window) * frame, tokens))
    for start in range(first * frame, stop, ROWS):
        i = start + tl.arange(0, ROWS)
        mask = visible(i, j, frame, window, sink, tokens) & (i < tokens)[:, None]
        q_tile = load_tile(q, i, d, q_t, q_d, tokens, dim, OPERAND)
        do_tile = load_tile(do, i, d, do_t, do_d, tokens, dim, OPERAND)
        at = (b * heads + h) * tokens + i
        lse_i, delta_i = tl.load(lse + at, i < tokens, other=0.0), tl.load(delta + at, i < tokens, other=0.0)
        weights, dscores = score_gradient(q_tile, keys, values, do_tile, lse_i, delta_i, mask, scale, COMPUTE)
        dv_tile += tl.dot(tl.trans(weights.to(OPERAND)), do_tile, input_precision=PRECISION, out_dtype=COMPUTE)
        dk_tile += tl.dot(tl.trans(dscores.to(OPERAND)), q_tile, input_precision=PRECISION, out_dtype=COMPUTE)
    out = ((b * heads + h) * tokens + j[:, None]) * dim + d[None, :]
    inside = (j < tokens)[:, None] & (d < dim)[None, :]
    tl.store(dk + out, root * dk_tile, inside)
    tl.store(dv + out, dv_tile, inside)


@triton.jit
def paged_kernel(
    q, keys, values, table, o, scale,
    heads, queries, dim, frame, slots,
    q_b, q_h, q_t, q_d, k_p, k_h, k_t, k_d, v_p, v_h, v_t, v_d, table_b, table_s,
    COMPUTE: tl.constexpr, OPERAND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """One program, one tile of queries of one head; the table says where each slot's keys lie."""
    b, h = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DIM)
    q_tile = load_tile(q + b * q_b + h * q_h, i, d, q_t, q_d, queries, dim, OPERAND)
    acc = tl.zeros([ROWS, DIM], COMPUTE)
    top = tl.full([ROWS], -1.0e30, COMPUTE)
    total = tl.zeros([ROWS], COMPUTE)
    for slot in range(slots):
        page = tl.load(table + b * table_b + slot * table_s).to(tl.int64)
        # an empty slot is a page without tokens
        length = tl.where(page < 0, 0, frame)
        k_page, v_page = keys + page * k_p + h * k_h, values + page * v_p + h * v_h
        for start in range(0, length, COLUMNS):
            j = start + tl.arange(0, COLUMNS)
            k_tile = load_tile(k_page, j, d, k_t, k_d, frame, dim, OPERAND)
            v_tile = load_tile(v_page, j, d, v_t, v_d, frame, dim, OPERAND)
            mask = (j < frame)[None, :] & (i < queries)[:, None]
            acc, top, total = absorb(acc, top, total, q_tile, k_tile, v_tile, mask, scale, COMPUTE, OPERAND)
    total = tl.where(total == 0.0, 1.0, total)
    out = ((b * heads + h) * queries + i[:, None]) * dim + d[None, :]
    tl.store(o + out, acc / total[:, None], (i < queries)[:, None] & (d < dim)[None, :])


def tiles(x, stages=3):
    """Sizes that the kernels are compiled for; smaller for float32, whose operands take twice the space."""
    largest = max(16, triton.next_power_of_2(x.shape[2]))
    rows, columns, warps = (32, 32, 4) if x.element_size() > 2 else (128, 64, 8)
    return {
        "COMPUTE": compute_type(x.dtype), "OPERAND": operand_type(x.dtype), "ROWS": min(rows, largest),
        "COLUMNS": min(columns, largest), "DIM": max(16, triton.next_power_of_2(x.shape[-1])),
        "num_warps": warps, "num_stages": stages,
    }  # fmt: skip


class BlockCausalAttention(torch.autograd.Function):
    """The three training kernels as a differentiable function."""

    @staticmethod
    def forward(ctx, q, k, v, frame, window, sink):
        """Returns the attended values."""
        batch, heads, tokens, dim = q.shape
        o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        lse = torch.empty(batch, heads, tokens, dtype=wide, device=q.device)
        sizes = (heads, tokens, dim, frame, tokens if window is None else min(window, tokens), min(sink, tokens))
        meta = tiles(q)
        forward_kernel[(triton.cdiv(tokens, meta["ROWS"]), batch * heads)](
            q, k, v, o, lse, LOG2_E * dim**-0.5, *sizes, *q.stride(), *k.stride(), *v.stride(), **meta
        )
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.sizes = sizes
        return o

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, do):
        """Gradients of queries, keys and values."""
        q, k, v, o, lse = ctx.saved_tensors
        batch, heads, tokens, dim = q.shape
        delta = (o.to(lse.dtype) * do.to(lse.dtype)).sum(-1)
        dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
        strides = [stride for x in (q, k, v, do) for stride in x.stride()]
        scales = (LOG2_E * dim**-0.5, dim**-0.5)
        meta = tiles(q)
        query_gradient_kernel[(triton.cdiv(tokens, meta["ROWS"]), batch * heads)](
            q, k, v, do, lse, delta, dq, *scales, *ctx.sizes, *strides, **meta
        )
        # three stages of loads would need more shared memory than there is, at 128 features
        meta = tiles(q, stages=2)
        key_value_gradient_kernel[(triton.cdiv(tokens, meta["COLUMNS"]), batch * heads)](
            q, k, v, do, lse, delta, dk, dv, *scales, *ctx.sizes, *strides, **meta
        )
        return dq, dk, dv, None, None, None


def paged(q: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
    """`paged_kernel` over all heads."""
    batch, heads, queries, dim = q.shape
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    meta = tiles(q)
    paged_kernel[(triton.cdiv(queries, meta["ROWS"]), batch * heads)](
        q, keys, values, table, o, LOG2_E * dim**-0.5, heads, queries, dim, keys.shape[2], table.shape[1],
        *q.stride(), *keys.stride(), *values.stride(), *table.stride(), **meta,
    )  # fmt: skip
    return o
