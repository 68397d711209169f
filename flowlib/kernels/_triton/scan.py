"""Triton kernels of `flowlib.kernels.scan`."""

import torch
import triton
import triton.language as tl

from flowlib.kernels._triton import compute_type

CHUNK = 16
"""Tokens composed by one parallel scan."""
CHANNELS = 16
"""Channels of one program; its tile is CHUNK x CHANNELS x states."""
FORWARD, BACKWARD = 32, 16
"""Numbers of a tile that one thread holds: the backward pass has twice as many tiles."""


@triton.jit
def compose(a1, b1, a2, b2):
    """First `h -> a1 h + b1`, then `h -> a2 h + b2`."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def row(tile, t, CHUNK: tl.constexpr):
    """Row `t` of a tile `[CHUNK, channels, states]`."""
    return tl.sum(tl.where((tl.arange(0, CHUNK) == t)[:, None, None], tile, 0.0), 0)


@triton.jit
def forward_kernel(
    u, delta, a, b, c, d, y, states,
    tokens, channels, n_states,
    u_b, u_t, u_c, delta_b, delta_t, delta_c, a_c, a_n, b_b, b_t, b_n, c_b, c_t, c_n, d_c,
    COMPUTE: tl.constexpr, CHUNK: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """One program, a block of channels of one sample: chunk after chunk, the state stays in registers."""
    k = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    batch = tl.program_id(1).to(tl.int64)
    n = tl.arange(0, STATES)
    inside_kn = (k < channels)[:, None] & (n < n_states)[None, :]
    a_kn = tl.load(a + k[:, None] * a_c + n[None, :] * a_n, inside_kn, other=0.0).to(COMPUTE)
    skip = tl.load(d + k * d_c, k < channels, other=0.0).to(COMPUTE)
    state = tl.zeros([CHANNELS, STATES], COMPUTE)
    for chunk in range(tl.cdiv(tokens, CHUNK)):
        at = (batch * tl.cdiv(tokens, CHUNK) + chunk) * channels * n_states
        tl.store(states + at + k[:, None] * n_states + n[None, :], state, inside_kn)
        t = chunk * CHUNK + tl.arange(0, CHUNK)
        inside = (t < tokens)[:, None] & (k < channels)[None, :]
        inside_n = (t < tokens)[:, None] & (n < n_states)[None, :]
        u_t_k = tl.load(u + batch * u_b + t[:, None] * u_t + k[None, :] * u_c, inside, other=0.0).to(COMPUTE)
        # a token past the end has delta = 0: decay one, input zero, so it leaves the state alone
        step = tl.load(delta + batch * delta_b + t[:, None] * delta_t + k[None, :] * delta_c, inside, other=0.0)
        step = step.to(COMPUTE)
        b_t_n = tl.load(b + batch * b_b + t[:, None] * b_t + n[None, :] * b_n, inside_n, other=0.0).to(COMPUTE)
        c_t_n = tl.load(c + batch * c_b + t[:, None] * c_t + n[None, :] * c_n, inside_n, other=0.0).to(COMPUTE)

        decay = tl.exp(step[:, :, None] * a_kn[None, :, :])  # [CHUNK, CHANNELS, STATES]
        source = (step * u_t_k)[:, :, None] * b_t_n[:, None, :]
        product, total = tl.associative_scan((decay, source), 0, compose)
        h = product * state[None, :, :] + total
        y_t_k = tl.sum(h * c_t_n[:, None, :], 2) + skip[None, :] * u_t_k
        tl.store(y + (batch * tokens + t[:, None]) * channels + k[None, :], y_t_k, inside)
        state = row(h, CHUNK - 1, CHUNK)


@triton.jit
def backward_kernel(
    u, delta, a, b, c, d, states, dy, du, ddelta, da, db, dc, dd,
    tokens, channels, n_states,
    u_b, u_t, u_c, delta_b, delta_t, delta_c, a_c, a_n, b_b, b_t, b_n, c_b, c_t, c_n, d_c, dy_b, dy_t, dy_c,
    COMPUTE: tl.constexpr, CHUNK: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """The same program from the last chunk to the first; the adjoint `lam` of the state is what it carries."""
    k = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    batch = tl.program_id(1).to(tl.int64)
    n = tl.arange(0, STATES)
    inside_kn = (k < channels)[:, None] & (n < n_states)[None, :]
    a_kn = tl.load(a + k[:, None] * a_c + n[None, :] * a_n, inside_kn, other=0.0).to(COMPUTE)
    skip = tl.load(d + k * d_c, k < channels, other=0.0).to(COMPUTE)
    carried = tl.zeros([CHANNELS, STATES], COMPUTE)
    da_kn = tl.zeros([CHANNELS, STATES], COMPUTE)
    dd_k = tl.zeros([CHANNELS], COMPUTE)
    chunks = tl.cdiv(tokens, CHUNK)
    for back in range(chunks):
        chunk = chunks - 1 - back
        at = (batch * chunks + chunk) * channels * n_states
        state = tl.load(states + at + k[:, None] * n_states + n[None, :], inside_kn, other=0.0)
        t = chunk * CHUNK + tl.arange(0, CHUNK)
        inside = (t < tokens)[:, None] & (k < channels)[None, :]
        inside_n = (t < tokens)[:, None] & (n < n_states)[None, :]
        u_t_k = tl.load(u + batch * u_b + t[:, None] * u_t + k[None, :] * u_c, inside, other=0.0).to(COMPUTE)
        at_delta = delta + batch * delta_b + t[:, None] * delta_t + k[None, :] * delta_c
        step = tl.load(at_delta, inside, other=0.0).to(COMPUTE)
        after = (t + 1 < tokens)[:, None] & (k < channels)[None, :]
        next_step = tl.load(at_delta + delta_t, after, other=0.0).to(COMPUTE)
        b_t_n = tl.load(b + batch * b_b + t[:, None] * b_t + n[None, :] * b_n, inside_n, other=0.0).to(COMPUTE)
        c_t_n = tl.load(c + batch * c_b + t[:, None] * c_t + n[None, :] * c_n, inside_n, other=0.0).to(COMPUTE)
        grad = tl.load(dy + batch * dy_b + t[:, None] * dy_t + k[None, :] * dy_c, inside, other=0.0).to(COMPUTE)

        # the states again
        decay = tl.exp(step[:, :, None] * a_kn[None, :, :])
        source = (step * u_t_k)[:, :, None] * b_t_n[:, None, :]
        product, total = tl.associative_scan((decay, source), 0, compose)
        h = product * state[None, :, :] + total
        # C_t dy_t + e^(Delta_{t+1} A) lam_{t+1}, from the end
        next_decay = tl.exp(next_step[:, :, None] * a_kn[None, :, :])
        product, total = tl.associative_scan(
            (next_decay, grad[:, :, None] * c_t_n[:, None, :]), 0, compose, reverse=True
        )
        lam = product * carried[None, :, :] + total
        carried = row(lam, 0, CHUNK)

        dsource = tl.sum(lam * b_t_n[:, None, :], 2)  # by Delta_t u_t
        decayed = h - source  # e^(Delta_t A) h_{t-1}
        dstep = tl.sum(lam * decayed * a_kn[None, :, :], 2) + dsource * u_t_k
        da_kn += tl.sum(lam * decayed * step[:, :, None], 0)
        dd_k += tl.sum(grad * u_t_k, 0)
        out = (batch * tokens + t[:, None]) * channels + k[None, :]
        tl.store(du + out, dsource * step + skip[None, :] * grad, inside)
        tl.store(ddelta + out, dstep, inside)
        # sums over this block of channels; the blocks are added up afterwards
        out = ((batch * tl.num_programs(0) + tl.program_id(0)) * tokens + t[:, None]) * n_states + n[None, :]
        tl.store(db + out, tl.sum(lam * (step * u_t_k)[:, :, None], 1), inside_n)
        tl.store(dc + out, tl.sum(h * grad[:, :, None], 1), inside_n)
    out = batch * channels + k
    tl.store(da + out[:, None] * n_states + n[None, :], da_kn, inside_kn)
    tl.store(dd + out, dd_k, k < channels)


def options(u, a, numbers_a_thread):
    """What a kernel is compiled for; the tile is smaller where the problem is."""
    meta = {
        "CHUNK": min(CHUNK, triton.next_power_of_2(u.shape[1])),
        "CHANNELS": min(CHANNELS, triton.next_power_of_2(u.shape[2])),
        "STATES": triton.next_power_of_2(a.shape[1]),
    }
    warps = meta["CHUNK"] * meta["CHANNELS"] * meta["STATES"] // (32 * numbers_a_thread)
    return {"COMPUTE": compute_type(u.dtype), "num_warps": min(16, max(1, warps)), **meta}


class SelectiveScan(torch.autograd.Function):
    """`forward_kernel` and `backward_kernel` as a differentiable function."""

    @staticmethod
    def forward(ctx, u, delta, a, b, c, d):
        """Returns $y$."""
        (batch, tokens, channels), n_states = u.shape, a.shape[1]
        meta = options(u, a, FORWARD)
        wide = torch.float64 if u.dtype == torch.float64 else torch.float32
        y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
        chunks = triton.cdiv(tokens, meta["CHUNK"])
        states = torch.empty(batch, chunks, channels, n_states, dtype=wide, device=u.device)
        strides = [stride for x in (u, delta, a, b, c, d) for stride in x.stride()]
        grid = (triton.cdiv(channels, meta["CHANNELS"]), batch)
        forward_kernel[grid](u, delta, a, b, c, d, y, states, tokens, channels, n_states, *strides, **meta)
        ctx.save_for_backward(u, delta, a, b, c, d, states)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        """Gradients of the six arguments."""
        u, delta, a, b, c, d, states = ctx.saved_tensors
        (batch, tokens, channels), n_states = u.shape, a.shape[1]
        meta = options(u, a, BACKWARD)
        blocks = triton.cdiv(channels, meta["CHANNELS"])
        du = torch.empty(u.shape, dtype=u.dtype, device=u.device)
        ddelta = torch.empty_like(du)
        da, dd = states.new_empty(batch, channels, n_states), states.new_empty(batch, channels)
        db, dc = (states.new_empty(batch, blocks, tokens, n_states) for _ in range(2))
        strides = [stride for x in (u, delta, a, b, c, d, dy) for stride in x.stride()]
        backward_kernel[(blocks, batch)](
            u, delta, a, b, c, d, states, dy, du, ddelta, da, db, dc, dd, tokens, channels, n_states, *strides,
            **meta,
        )  # fmt: skip
        da, db, dc, dd = da.sum(0), db.sum(1), dc.sum(1), dd.sum(0)
        return du, ddelta, da.to(a.dtype), db.to(b.dtype), dc.to(c.dtype), dd.to(d.dtype)
