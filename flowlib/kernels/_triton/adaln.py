"""Triton kernels of `flowlib.kernels.adaln`."""

import torch
import triton
import triton.language as tl

from flowlib.kernels._triton import compute_type

ROWS = 16
"""Tokens that one program of the backward pass walks through, summing gradients of the condition as it goes."""


@triton.jit
def forward_kernel(
    x, branch, gate, shift, scale, h, y,
    tokens, width, eps,
    x_b, x_t, x_w, branch_b, branch_t, branch_w, gate_b, gate_w, shift_b, shift_w, scale_b, scale_w,
    GATED: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program, one token: its features stay in registers from the load of `x` to the store of `y`."""
    t, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    w = tl.arange(0, BLOCK)
    inside = w < width
    row = tl.load(x + b * x_b + t * x_t + w * x_w, inside, other=0.0).to(COMPUTE)
    out = (b * tokens + t) * width + w
    if GATED:
        u = tl.load(branch + b * branch_b + t * branch_t + w * branch_w, inside, other=0.0).to(COMPUTE)
        row += tl.load(gate + b * gate_b + w * gate_w, inside, other=0.0).to(COMPUTE) * u
        tl.store(h + out, row, inside)
    mean = tl.sum(row) / width
    centred = tl.where(inside, row - mean, 0.0)
    inverse_std = 1.0 / tl.sqrt(tl.sum(centred * centred) / width + eps)
    factor = 1.0 + tl.load(scale + b * scale_b + w * scale_w, inside, other=0.0).to(COMPUTE)
    offset = tl.load(shift + b * shift_b + w * shift_w, inside, other=0.0).to(COMPUTE)
    tl.store(y + out, centred * inverse_std * factor + offset, inside)


@triton.jit
def backward_kernel(
    h, branch, gate, scale, dh, dy, dx, dbranch, sums,
    tokens, width, eps,
    h_b, h_t, h_w, branch_b, branch_t, branch_w, gate_b, gate_w, scale_b, scale_w, dh_b, dh_t, dh_w, dy_b, dy_t, dy_w,
    GATED: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One program, `ROWS` tokens of one sample: `dx` and `dbranch` token by token, the condition's sums at the end."""
    part, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    w = tl.arange(0, BLOCK)
    inside = w < width
    factor = 1.0 + tl.load(scale + b * scale_b + w * scale_w, inside, other=0.0).to(COMPUTE)
    if GATED:
        delta = tl.load(gate + b * gate_b + w * gate_w, inside, other=0.0).to(COMPUTE)
    dshift = tl.zeros([BLOCK], COMPUTE)
    dscale = tl.zeros([BLOCK], COMPUTE)
    dgate = tl.zeros([BLOCK], COMPUTE)
    for t in range(part * ROWS, tl.minimum((part + 1) * ROWS, tokens)):
        row = tl.load(h + b * h_b + t * h_t + w * h_w, inside, other=0.0).to(COMPUTE)
        mean = tl.sum(row) / width
        centred = tl.where(inside, row - mean, 0.0)
        inverse_std = 1.0 / tl.sqrt(tl.sum(centred * centred) / width + eps)
        normal = centred * inverse_std
        grad = tl.load(dy + b * dy_b + t * dy_t + w * dy_w, inside, other=0.0).to(COMPUTE)
        dshift += grad
        dscale += grad * normal
        # the norm removes from its gradient the parts along 1 and along the normalised row
        dnormal = grad * factor
        along = tl.sum(dnormal * normal) / width
        drow = inverse_std * (dnormal - tl.sum(dnormal) / width - normal * along)
        out = (b * tokens + t) * width + w
        if GATED:
            drow += tl.load(dh + b * dh_b + t * dh_t + w * dh_w, inside, other=0.0).to(COMPUTE)
            u = tl.load(branch + b * branch_b + t * branch_t + w * branch_w, inside, other=0.0).to(COMPUTE)
            dgate += drow * u
            tl.store(dbranch + out, drow * delta, inside)
        tl.store(dx + out, drow, inside)
    at = sums + (b * tl.num_programs(0) + part) * 3 * width + w
    tl.store(at, dshift, inside)
    tl.store(at + width, dscale, inside)
    tl.store(at + 2 * width, dgate, inside)


def warps(block: int) -> int:
    """More threads for wider tokens: about eight to sixteen features a thread."""
    return min(16, max(1, block // 256))


class AdaLN(torch.autograd.Function):
    """`forward_kernel` and `backward_kernel` as a differentiable function."""

    @staticmethod
    def forward(ctx, x, shift, scale, gate, branch, eps):
        """Returns `(h, y)`; `h` is `None` without a branch."""
        batch, tokens, width = x.shape
        gated = branch is not None
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        h = torch.empty_like(y) if gated else x
        # without a branch its pointers are never read: x stands in
        u, delta = (branch, gate) if gated else (x, x)
        block = triton.next_power_of_2(width)
        forward_kernel[(tokens, batch)](
            x, u, delta, shift, scale, h, y, tokens, width, eps, *x.stride(), *u.stride(),
            delta.stride(0), delta.stride(2), shift.stride(0), shift.stride(2), scale.stride(0), scale.stride(2),
            GATED=gated, COMPUTE=compute_type(x.dtype), BLOCK=block, num_warps=warps(block),
        )  # fmt: skip
        ctx.save_for_backward(h, scale, gate, branch)
        ctx.eps = eps
        return (h, y) if gated else (None, y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dh, dy):
        """Gradients of the six arguments."""
        h, scale, gate, branch = ctx.saved_tensors
        batch, tokens, width = h.shape
        gated = branch is not None
        dx = torch.empty(h.shape, dtype=h.dtype, device=h.device)
        dbranch = torch.empty_like(dx) if gated else None
        u, delta, dh = (branch, gate, dh) if gated else (h, h, h)
        parts = triton.cdiv(tokens, ROWS)
        total = torch.float64 if h.dtype == torch.float64 else torch.float32
        sums = torch.empty(batch, parts, 3, width, dtype=total, device=h.device)
        block = triton.next_power_of_2(width)
        backward_kernel[(parts, batch)](
            h, u, delta, scale, dh, dy, dx, dbranch if gated else dx, sums, tokens, width, ctx.eps, *h.stride(),
            *u.stride(), delta.stride(0), delta.stride(2), scale.stride(0), scale.stride(2), *dh.stride(), *dy.stride(),
            GATED=gated, COMPUTE=compute_type(h.dtype), BLOCK=block, ROWS=ROWS, num_warps=warps(block),
        )  # fmt: skip
        dshift, dscale, dgate = sums.sum(1, keepdim=True).to(h.dtype).unbind(2)
        return dx, dshift, dscale, dgate if gated else None, dbranch, None
