"""Triton kernels of `flowlib.kernels.linear_attention`.

Six small kernels. `state_kernel` walks over chunks and leaves the state at each chunk's start; with these, every chunk
is on its own: `score_kernel` makes A, `output_kernel` the outputs. Backward, `state_gradient_kernel` walks from the end
and leaves the gradient of the state at each chunk's end; `value_gradient_kernel` and `query_key_gradient_kernel` do
the rest, chunk by chunk.
"""

import torch
import triton
import triton.language as tl

from flowlib.kernels._triton import PRECISION, compute_type, operand_type

CHUNK = 64
"""Tokens of a chunk: tensor cores take 64 rows at once."""
BLOCK = 64
"""Features of keys or values that one program of the walks over chunks keeps."""


@triton.jit
def load_tile(x, t, d, x_t, x_d, n, dim):
    """Rows `t` of `[n, dim]`, zero outside."""
    return tl.load(x + t[:, None] * x_t + d[None, :] * x_d, (t < n)[:, None] & (d < dim)[None, :], other=0.0)


@triton.jit
def load_matrix(x, i, j, rows, columns):
    """A tile of a contiguous matrix `[rows, columns]`, zero outside."""
    return tl.load(x + i[:, None] * columns + j[None, :], (i < rows)[:, None] & (j < columns)[None, :], other=0.0)


@triton.jit
def store_matrix(x, i, j, rows, columns, tile):
    """Write a tile of a contiguous matrix `[rows, columns]`."""
    tl.store(x + i[:, None] * columns + j[None, :], tile, (i < rows)[:, None] & (j < columns)[None, :])


@triton.jit
def state_kernel(
    k, v, decay, initial, states, final,
    heads, tokens, chunks, n_keys, n_values,
    k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d,
    COMPUTE: tl.constexpr, OPERAND: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """`states[c]` is the state that enters chunk c, and the last one leaves; a block of it stays in registers."""
    i = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    j = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    head = tl.program_id(2).to(tl.int64)
    b, h = head // heads, head % heads
    matrix = n_keys * n_values
    s = load_matrix(initial + head * matrix, i, j, n_keys, n_values).to(COMPUTE)
    for c in range(chunks):
        store_matrix(states + (head * (chunks + 1) + c) * matrix, i, j, n_keys, n_values, s)
        t = c * CHUNK + tl.arange(0, CHUNK)
        keys = load_tile(k + b * k_b + h * k_h, t, i, k_t, k_d, tokens, n_keys).to(COMPUTE)
        values = load_tile(v + b * v_b + h * v_h, t, j, v_t, v_d, tokens, n_values).to(OPERAND)
        at = decay + head * chunks * CHUNK * n_keys
        b_t = load_matrix(at, t, i, chunks * CHUNK, n_keys)
        b_end = tl.load(at + (c * CHUNK + CHUNK - 1) * n_keys + i, i < n_keys, other=0.0)
        keys = (keys * tl.exp(b_end[None, :] - b_t)).to(OPERAND)
        s = s * tl.exp(b_end)[:, None] + tl.dot(tl.trans(keys), values, input_precision=PRECISION, out_dtype=COMPUTE)
    store_matrix(states + (head * (chunks + 1) + chunks) * matrix, i, j, n_keys, n_values, s)
    store_matrix(final + head * matrix, i, j, n_keys, n_values, s)


@triton.jit
def level_mask(i, half):
    """Pairs of one level: query and key in the same block of `2 half` tokens, in its second and its first half."""
    same = (i // (2 * half))[:, None] == (i // (2 * half))[None, :]
    return same & (i // half % 2 == 1)[:, None] & (i // half % 2 == 0)[None, :]


@triton.jit
def level_decays(at, b_t, i, d, n_keys, half, CHUNK: tl.constexpr):
    """`exp(b - r)` for queries and `exp(r - b)` for keys, `r` at the last token of the first half; at most one."""
    r = load_matrix(at, i // (2 * half) * (2 * half) + half - 1, d, CHUNK, n_keys)
    return tl.exp(tl.minimum(b_t - r, 0.0)), tl.exp(tl.minimum(r - b_t, 0.0))


@triton.jit
def score_kernel(
    q, k, decay, scores, scale,
    heads, tokens, chunks, n_keys,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d,
    COMPUTE: tl.constexpr, OPERAND: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """One program, one chunk: `A`, level by level."""
    c, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = head // heads, head % heads
    i, d = tl.arange(0, CHUNK), tl.arange(0, KEYS)
    queries = load_tile(q + b * q_b + h * q_h, c * CHUNK + i, d, q_t, q_d, tokens, n_keys).to(COMPUTE) * scale
    keys = load_tile(k + b * k_b + h * k_h, c * CHUNK + i, d, k_t, k_d, tokens, n_keys).to(COMPUTE)
    at = decay + (head * chunks + c) * CHUNK * n_keys
    b_t = load_matrix(at, i, d, CHUNK, n_keys)
    a = tl.where(i[:, None] == i[None, :], tl.sum(queries * keys, 1)[:, None], 0.0)
    for level in range(LEVELS):
        of_query, of_key = level_decays(at, b_t, i, d, n_keys, 1 << level, CHUNK)
        left, right = (queries * of_query).to(OPERAND), (keys * of_key).to(OPERAND)
        product = tl.dot(left, tl.trans(right), input_precision=PRECISION, out_dtype=COMPUTE)
        a += tl.where(level_mask(i, 1 << level), product, 0.0)
    store_matrix(scores + (head * chunks + c) * CHUNK * CHUNK, i, i, CHUNK, CHUNK, a)


@triton.jit
def output_kernel(
    q, v, decay, scores, states, o, scale,
    heads, tokens, chunks, n_keys, n_values,
    q_b, q_h, q_t, q_d, v_b, v_h, v_t, v_d,
    COMPUTE: tl.constexpr, OPERAND: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """One program, one chunk and a block of values: what the state gives, and what the chunk itself gives."""
    c, head = tl.program_id(0), tl.program_id(2).to(tl.int64)
    b, h = head // heads, head % heads
    i, d = tl.arange(0, CHUNK), tl.arange(0, KEYS)
    j = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    t = c * CHUNK + i
    queries = load_tile(q + b * q_b + h * q_h, t, d, q_t, q_d, tokens, n_keys).to(COMPUTE) * scale
    b_t = load_matrix(decay + (head * chunks + c) * CHUNK * n_keys, i, d, CHUNK, n_keys)
    queries = (queries * tl.exp(b_t)).to(OPERAND)
    s = load_matrix(states + (head * (chunks + 1) + c) * n_keys * n_values, d, j, n_keys, n_values).to(OPERAND)
    out = tl.dot(queries, s, input_precision=PRECISION, out_dtype=COMPUTE)
    a = load_matrix(scores + (head * chunks + c) * CHUNK * CHUNK, i, i, CHUNK, CHUNK).to(OPERAND)
    values = load_tile(v + b * v_b + h * v_h, t, j, v_t, v_d, tokens, n_values).to(OPERAND)
    out += tl.dot(a, values, input_precision=PRECISION, out_dtype=COMPUTE)
    store_matrix(o + head * tokens * n_values, t, j, tokens, n_values, out)


@triton.jit
def state_gradient_kernel(
    q, do, decay, dfinal, dstates, dinitial, scale,
    heads, tokens, chunks, n_keys, n_values,
    q_b, q_h, q_t, q_d, do_b, do_h, do_t, do_d,
    COMPUTE: tl.constexpr, OPERAND: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """`dstates[c]` is the gradient of the state that leaves chunk c; from the last chunk to the first."""
    i = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    j = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    head = tl.program_id(2).to(tl.int64)
    b, h = head // heads, head % heads
    matrix = n_keys * n_values
    ds = load_matrix(dfinal + head * matrix, i, j, n_keys, n_values).to(COMPUTE)
    for back in range(chunks):
        c = chunks - 1 - back
        store_matrix(dstates + (head * chunks + c) * matrix, i, j, n_keys, n_values, ds)
        t = c * CHUNK + tl.arange(0, CHUNK)
        queries = load_tile(q + b * q_b + h * q_h, t, i, q_t, q_d, tokens, n_keys).to(COMPUTE) * scale
        grad = load_tile(do + b * do_b + h * do_h, t, j, do_t, do_d, tokens, n_values).to(OPERAND)
        at = decay + head * chunks * CHUNK * n_keys
        b_t = load_matrix(at, t, i, chunks * CHUNK, n_keys)
        b_end = tl.load(at + (c * CHUNK + CHUNK - 1) * n_keys + i, i < n_keys, other=0.0)
        queries = (queries * tl.exp(b_t)).to(OPERAND)
        ds = ds * tl.exp(b_end)[:, None] + tl.dot(tl.trans(queries), grad, input_precision=PRECISION, out_dtype=COMPUTE)
    store_matrix(dinitial + head * matrix, i, j, n_keys, n_values, ds)


@triton.jit
def value_gradient_kernel(
    k, do, decay, scores, dstates, dv,
    heads, tokens, chunks, n_keys, n_values,
    k_b, k_h, k_t, k_d, do_b, do_h, do_t, do_d,
    COMPUTE: tl.constexpr, OPERAND: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """One program, one chunk and a block of values: `dv = A^T do + (k e^(b_C - b)) dS`."""
    c, head = tl.program_id(0), tl.program_id(2).to(tl.int64)
    b, h = head // heads, head % heads
    i, d = tl.arange(0, CHUNK), tl.arange(0, KEYS)
    j = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    t = c * CHUNK + i
    keys = load_tile(k + b * k_b + h * k_h, t, d, k_t, k_d, tokens, n_keys).to(COMPUTE)
    at = decay + (head * chunks + c) * CHUNK * n_keys
    b_t = load_matrix(at, i, d, CHUNK, n_keys)
    b_end = tl.load(at + (CHUNK - 1) * n_keys + d, d < n_keys, other=0.0)
    keys = (keys * tl.exp(b_end[None, :] - b_t)).to(OPERAND)
    ds = load_matrix(dstates + (head * chunks + c) * n_keys * n_values, d, j, n_keys, n_values).to(OPERAND)
    grad = tl.dot(keys, ds, input_precision=PRECISION, out_dtype=COMPUTE)
    a = load_matrix(scores + (head * chunks + c) * CHUNK * CHUNK, i, i, CHUNK, CHUNK).to(OPERAND)
    do_tile = load_tile(do + b * do_b + h * do_h, t, j, do_t, do_d, tokens, n_values).to(OPERAND)
    grad += tl.dot(tl.trans(a), do_tile, input_precision=PRECISION, out_dtype=COMPUTE)
    store_matrix(dv + head * tokens * n_values, t, j, tokens, n_values, grad)


@triton.jit
def query_key_gradient_kernel(
    q, k, v, do, decay, states, dstates, dq, dk, dlog_decay, scale,
    heads, tokens, chunks, n_keys, n_values,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, do_b, do_h, do_t, do_d,
    COMPUTE: tl.constexpr, OPERAND: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr,
    LEVELS: tl.constexpr,
):  # fmt: skip
    """One program, one chunk and a block of keys' features: gradients by the states, by `A` level by level, and
    the decay's: sums of `q dq - k dk` from the end of the chunk, and what the state that leaves gives."""
    c, head = tl.program_id(0), tl.program_id(2).to(tl.int64)
    b, h = head // heads, head % heads
    i = tl.arange(0, CHUNK)
    d = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    t = c * CHUNK + i
    da = tl.zeros([CHUNK, CHUNK], COMPUTE)
    grad_q = tl.zeros([CHUNK, KEYS], COMPUTE)
    grad_k = tl.zeros([CHUNK, KEYS], COMPUTE)
    leaving = tl.zeros([KEYS], COMPUTE)
    for start in range(0, n_values, VALUES):
        j = start + tl.arange(0, VALUES)
        values = load_tile(v + b * v_b + h * v_h, t, j, v_t, v_d, tokens, n_values).to(OPERAND)
        grad = load_tile(do + b * do_b + h * do_h, t, j, do_t, do_d, tokens, n_values).to(OPERAND)
        at = states + (head * (chunks + 1) + c) * n_keys * n_values
        s = load_matrix(at, d, j, n_keys, n_values).to(OPERAND)
        s_next = load_matrix(at + n_keys * n_values, d, j, n_keys, n_values).to(COMPUTE)
        ds = load_matrix(dstates + (head * chunks + c) * n_keys * n_values, d, j, n_keys, n_values).to(OPERAND)
        leaving += tl.sum(s_next * ds.to(COMPUTE), 1)
        da += tl.dot(grad, tl.trans(values), input_precision=PRECISION, out_dtype=COMPUTE)
        grad_q += tl.dot(grad, tl.trans(s), input_precision=PRECISION, out_dtype=COMPUTE)
        grad_k += tl.dot(values, tl.trans(ds), input_precision=PRECISION, out_dtype=COMPUTE)
    queries = load_tile(q + b * q_b + h * q_h, t, d, q_t, q_d, tokens, n_keys).to(COMPUTE) * scale
    keys = load_tile(k + b * k_b + h * k_h, t, d, k_t, k_d, tokens, n_keys).to(COMPUTE)
    at = decay + (head * chunks + c) * CHUNK * n_keys
    b_t = load_matrix(at, i, d, CHUNK, n_keys)
    b_end = tl.load(at + (CHUNK - 1) * n_keys + d, d < n_keys, other=0.0)
    diagonal = tl.sum(tl.where(i[:, None] == i[None, :], da, 0.0), 1)
    grad_q = grad_q * tl.exp(b_t) + diagonal[:, None] * keys
    grad_k = grad_k * tl.exp(b_end[None, :] - b_t) + diagonal[:, None] * queries
    for level in range(LEVELS):
        of_query, of_key = level_decays(at, b_t, i, d, n_keys, 1 << level, CHUNK)
        left, right = (queries * of_query).to(OPERAND), (keys * of_key).to(OPERAND)
        part = tl.where(level_mask(i, 1 << level), da, 0.0).to(OPERAND)
        grad_q += of_query * tl.dot(part, right, input_precision=PRECISION, out_dtype=COMPUTE)
        grad_k += of_key * tl.dot(tl.trans(part), left, input_precision=PRECISION, out_dtype=COMPUTE)
    out = head * tokens * n_keys
    store_matrix(dq + out, t, d, tokens, n_keys, scale * grad_q)
    store_matrix(dk + out, t, d, tokens, n_keys, grad_k)
    dcumulative = queries * grad_q - keys * grad_k
    dlog = tl.cumsum(dcumulative, 0, reverse=True) + leaving[None, :]
    store_matrix(dlog_decay + out, t, d, tokens, n_keys, dlog)


def cumulative(log_decay, chunk):
    """`b`, float32 and contiguous, `[batch, heads, chunks * chunk, keys]`; tokens past the end do not decay."""
    tokens = log_decay.shape[2]
    missing = -tokens % chunk
    padded = torch.nn.functional.pad(log_decay, (0, 0, 0, missing)) if missing else log_decay  # padding copies
    return padded.unflatten(2, (-1, chunk)).cumsum(3)


def constants(q, v):
    """What kernels are compiled for: in common, with features in blocks (`walk`), with all keys' features (`local`)."""
    chunk = min(CHUNK, max(16, triton.next_power_of_2(q.shape[2])))
    keys, values = (max(16, triton.next_power_of_2(x.shape[3])) for x in (q, v))
    meta = {"COMPUTE": compute_type(q.dtype), "OPERAND": operand_type(q.dtype), "CHUNK": chunk, "num_warps": 8}
    walk = {"KEYS": min(keys, BLOCK), "VALUES": min(values, BLOCK)}
    local = {"KEYS": keys, "VALUES": min(values, BLOCK)}
    return meta, walk, local, chunk.bit_length() - 1


class GatedLinearAttention(torch.autograd.Function):
    """The six kernels as a differentiable function."""

    @staticmethod
    def forward(ctx, q, k, v, log_decay, state):
        """Returns outputs and the last state."""
        (batch, heads, tokens, n_keys), n_values = q.shape, v.shape[3]
        meta, walk, local, levels = constants(q, v)
        decay = cumulative(log_decay, meta["CHUNK"])
        chunks, initial, scale = decay.shape[2], state.contiguous(), n_keys**-0.5
        states = torch.empty(batch, heads, chunks + 1, n_keys, n_values, dtype=q.dtype, device=q.device)
        scores = torch.empty(batch, heads, chunks, meta["CHUNK"], meta["CHUNK"], dtype=q.dtype, device=q.device)
        o = torch.empty(batch, heads, tokens, n_values, dtype=q.dtype, device=q.device)
        final = torch.empty_like(initial)
        sizes = (heads, tokens, chunks, n_keys, n_values)
        blocks = triton.cdiv(n_values, walk["VALUES"])
        state_kernel[(triton.cdiv(n_keys, walk["KEYS"]), blocks, batch * heads)](
            k, v, decay, initial, states, final, *sizes, *k.stride(), *v.stride(), **meta, **walk
        )
        score_kernel[(chunks, batch * heads)](
            q, k, decay, scores, scale, *sizes[:4], *q.stride(), *k.stride(),
            **meta, KEYS=local["KEYS"], LEVELS=levels,
        )  # fmt: skip
        output_kernel[(chunks, blocks, batch * heads)](
            q, v, decay, scores, states, o, scale, *sizes, *q.stride(), *v.stride(), **meta, **local
        )
        ctx.save_for_backward(q, k, v, decay, scores, states)
        return o, final

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, do, dfinal):
        """Gradients of the five arguments."""
        q, k, v, decay, scores, states = ctx.saved_tensors
        (batch, heads, tokens, n_keys), n_values = q.shape, v.shape[3]
        meta, walk, local, levels = constants(q, v)
        chunks, scale = decay.shape[2], n_keys**-0.5
        dfinal = dfinal.contiguous()
        dstates, dinitial = states.new_empty(batch, heads, chunks, n_keys, n_values), torch.empty_like(dfinal)
        dq, dk = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(2))
        dv = torch.empty(v.shape, dtype=v.dtype, device=v.device)
        dlog_decay = decay.new_empty(q.shape)
        sizes = (heads, tokens, chunks, n_keys, n_values)
        blocks = triton.cdiv(n_values, walk["VALUES"])
        state_gradient_kernel[(triton.cdiv(n_keys, walk["KEYS"]), blocks, batch * heads)](
            q, do, decay, dfinal, dstates, dinitial, scale, *sizes, *q.stride(), *do.stride(), **meta, **walk
        )
        value_gradient_kernel[(chunks, blocks, batch * heads)](
            k, do, decay, scores, dstates, dv, *sizes, *k.stride(), *do.stride(), **meta, **local
        )
        query_key_gradient_kernel[(chunks, triton.cdiv(n_keys, walk["KEYS"]), batch * heads)](
            q, k, v, do, decay, states, dstates, dq, dk, dlog_decay, scale, *sizes,
            *q.stride(), *k.stride(), *v.stride(), *do.stride(), **meta, **walk, LEVELS=levels,
        )  # fmt: skip
        return dq, dk, dv, dlog_decay, dinitial
