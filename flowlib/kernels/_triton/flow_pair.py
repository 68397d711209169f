"""Triton kernels of `flowlib.kernels.flow_pair`."""

import torch
import triton
import triton.language as tl

from flowlib.kernels._triton import compute_type

GROUPS = 256
"""Groups of four numbers, one Philox call each, that one program makes."""


@triton.jit
def normal_pair(word0, word1, COMPUTE: tl.constexpr):
    """Two words to two standard normal numbers, by Box and Muller."""
    u0 = ((word0 >> 9).to(COMPUTE) + 0.5) * 1.1920928955078125e-07  # 2^-23
    u1 = ((word1 >> 9).to(COMPUTE) + 0.5) * 1.1920928955078125e-07
    radius = tl.sqrt(-2.0 * tl.log(u0))
    cosine, sine = turn(u1, COMPUTE)
    return radius * cosine, radius * sine


@triton.jit
def turn(u, COMPUTE: tl.constexpr):
    """Cosine and sine of `2 pi u` for `u` in (0, 1); in float32 for half the instructions of `tl.cos` and `tl.sin`."""
    if tl.float64 == COMPUTE:
        cosine, sine = tl.cos(u * 6.283185307179586), tl.sin(u * 6.283185307179586)
    else:
        quarters = tl.floor(4.0 * u + 0.5)
        r = (4.0 * u - quarters) * 1.5707963267948966  # in [-pi/4, pi/4]; the difference is exact
        s = r * r
        near_zero = r + r * s * (-1.6666666e-1 + s * (8.3333310e-3 + s * (-1.9840874e-4 + s * 2.7525562e-6)))
        near_one = 1.0 - 0.5 * s + s * s * (4.1666638e-2 + s * (-1.3888378e-3 + s * 2.4760495e-5))
        quarter = quarters.to(tl.int32)
        odd = (quarter & 1) == 1
        cosine, sine = tl.where(odd, near_zero, near_one), tl.where(odd, near_one, near_zero)
        cosine = tl.where(((quarter + 1) & 2) == 2, -cosine, cosine)
        sine = tl.where((quarter & 2) == 2, -sine, sine)
    return cosine, sine


@triton.jit
def pair_kernel(
    x1, table, x_t, v, size, seed, step_low, step_high, x1_b,
    COMPUTE: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """One program, `4 * GROUPS` numbers of one sample; noise lives and dies in registers."""
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    b = tl.program_id(1).to(tl.int64)
    sample = group * 0 + tl.program_id(1)
    w0, w1, w2, w3 = tl.philox(seed, group, sample, group * 0 + step_low, group * 0 + step_high)
    n0, n1 = normal_pair(w0, w1, COMPUTE)
    n2, n3 = normal_pair(w2, w3, COMPUTE)
    # the group's four numbers side by side: [GROUPS, 2, 2] is (n0, n1), (n2, n3)
    x0 = tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), [4 * GROUPS])
    i = tl.program_id(0) * 4 * GROUPS + tl.arange(0, 4 * GROUPS)
    inside = i < size
    data = tl.load(x1 + b * x1_b + i, inside, other=0.0).to(COMPUTE)
    alpha, sigma = tl.load(table + 4 * b), tl.load(table + 4 * b + 1)
    alpha_dot, sigma_dot = tl.load(table + 4 * b + 2), tl.load(table + 4 * b + 3)
    tl.store(x_t + b * size + i, alpha * data + sigma * x0, inside)
    tl.store(v + b * size + i, alpha_dot * data + sigma_dot * x0, inside)


@triton.jit
def pair_backward_kernel(
    table, dx_t, dv, dx1, size,
    COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The pair is linear in the data: its gradient needs the coefficients only, no noise."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(1).to(tl.int64)
    inside = i < size
    alpha, alpha_dot = tl.load(table + 4 * b), tl.load(table + 4 * b + 2)
    grad = alpha * tl.load(dx_t + b * size + i, inside, other=0.0).to(COMPUTE)
    grad += alpha_dot * tl.load(dv + b * size + i, inside, other=0.0).to(COMPUTE)
    tl.store(dx1 + b * size + i, grad, inside)


def int32(word: int) -> int:
    """An unsigned 32-bit word as the signed number of the same bits, which is how Triton takes it."""
    return word - 2**32 if word >= 2**31 else word


class FlowMatchingPair(torch.autograd.Function):
    """`pair_kernel` and `pair_backward_kernel` as a differentiable function of the data."""

    @staticmethod
    def forward(ctx, x1, table, seed, step):
        """Returns $(x_t, v)$."""
        batch = x1.shape[0]
        rows = x1.reshape(batch, -1)  # a view unless the event's axes are out of order
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        x_t = torch.empty(x1.shape, dtype=x1.dtype, device=x1.device)
        v = torch.empty_like(x_t)
        size = rows.shape[1]
        groups = min(GROUPS, triton.next_power_of_2(triton.cdiv(size, 4)))
        pair_kernel[(triton.cdiv(size, 4 * groups), batch)](
            rows, table, x_t, v, size, seed - 2**64 if seed >= 2**63 else seed,
            int32(step & 0xFFFFFFFF), int32(step >> 32), rows.stride(0),
            COMPUTE=compute_type(x1.dtype), GROUPS=groups,
        )  # fmt: skip
        ctx.save_for_backward(table)
        return x_t, v

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dx_t, dv):
        """The gradient of the data."""
        (table,) = ctx.saved_tensors
        dx_t, dv = dx_t.contiguous(), dv.contiguous()
        dx1 = torch.empty_like(dx_t)
        size = dx1[0].numel()
        block = min(1024, triton.next_power_of_2(size))
        pair_backward_kernel[(triton.cdiv(size, block), dx1.shape[0])](
            table, dx_t, dv, dx1, size, COMPUTE=compute_type(dx1.dtype), BLOCK=block
        )
        return dx1, None, None, None
