r"""Fused noise, interpolation and target of flow matching: the training pair in one pass through memory.

For data $x_1$ and one row of coefficients a sample,

$$ x_t = \alpha_t x_1 + \sigma_t x_0, \qquad v = \dot\alpha_t x_1 + \dot\sigma_t x_0, \qquad
   x_0 \sim \mathcal N(0, I). $$

The noise never reaches memory. A counter-based generator (Philox 4x32-10; Salmon, Moraes, Dror and Shaw, 2011) is a
function from a counter and a key to four 32-bit words; the counter is the element's place, the key the seed. So the
noise can be made wherever it is needed, in any order, and made again. The reference uses the same function in integer
arithmetic and draws the same words.

**Roofline.** One by one, noise, interpolation and target write $x_0$ and read it twice: with $x_1$ twice and two
outputs, $7N$ numbers. Fused, the kernel reads $x_1$ and writes $x_t$ and $v$: $3N$ numbers, $6N$ bytes in bfloat16. Ten
Philox rounds for each four elements and the logarithm, root, sine and cosine of Box and Muller for each two are some 64
instructions an element once compiled, 11 a byte. A GPU issues 33.5e12 float32 or integer instructions a second (half of
the 67e12 operations of the data sheet, where a multiply-add counts twice): 7 while a byte arrives on an H200, 10 on an
H100. So arithmetic is the limit, at 65 and 94 % of the bandwidth. The backward pass reads two gradients and writes one.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowlib.kernels._dispatch import check_operand, compute_dtype, use_triton

__all__ = ["flow_matching_pair", "philox", "philox_normal"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def flow_matching_pair(
    x1: Float[Tensor, "batch *event"],
    alpha: Float[Tensor, " batch"],
    sigma: Float[Tensor, " batch"],
    alpha_dot: Float[Tensor, " batch"],
    sigma_dot: Float[Tensor, " batch"],
    *,
    seed: int,
    step: int = 0,
    implementation: str = "auto",
) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, "batch *event"]]:
    r"""Draw noise and return the point $x_t$ of the path and the velocity there.

    The noise is `philox_normal(x1.shape, seed=seed, step=step)`. Kernel and reference draw the same words and the same
    uniform numbers; their normal numbers differ by the rounding of logarithm, sine and cosine. Differentiable in `x1`.

    Args:
        x1: Data.
        alpha: $\alpha_t$ of each sample, in the dtype of the computation: float32, or float64 if `x1` has it.
        sigma: $\sigma_t$, likewise.
        alpha_dot: $\dot\alpha_t$, likewise.
        sigma_dot: $\dot\sigma_t$, likewise; finite.
        seed: Key of the generator, in $[0, 2^{64})$.
        step: Second half of the counter, in $[0, 2^{64})$; the training step, so that each step has its own noise.
        implementation: `"auto"` (Triton on a GPU), `"reference"` or `"triton"`.

    Returns:
        $x_t$ and $v$, in the dtype of `x1`.

    Raises:
        TypeError: If dtypes do not fit, or coefficients require a gradient.
        ValueError: If shapes or devices do not fit, or `seed` or `step` are out of range.
        RuntimeError: If Triton is asked for and cannot run.

    Example:
        >>> x1, t = torch.zeros(2, 3), torch.tensor([0.0, 1.0])
        >>> x_t, v = flow_matching_pair(x1, t, 1 - t, torch.ones(2), -torch.ones(2), seed=0)
        >>> torch.equal(x_t[0], -v[0]), torch.equal(x_t[1], x1[1])
        (True, True)
    """
    check_operand("x1", x1, ("batch", *range_of_axes(x1)))
    like = torch.empty(0, dtype=compute_dtype(x1.dtype), device=x1.device)
    coefficients = {"alpha": alpha, "sigma": sigma, "alpha_dot": alpha_dot, "sigma_dot": sigma_dot}
    for name, value in coefficients.items():
        check_operand(name, value, (x1.shape[0],), like)
        if value.requires_grad:
            raise TypeError(f"{name} must not require a gradient: only x1 is differentiated")
    _check_word("seed", seed)
    _check_word("step", step)
    if x1[0].numel() >= 2**31:
        raise ValueError(f"x1 must have fewer than 2**31 numbers a sample, got {x1[0].numel()}")
    table = torch.stack(list(coefficients.values()), 1)  # (B, 4)
    if not use_triton(implementation, x1, x1.shape[0]):
        return flow_matching_pair_reference(x1, table, seed, step)
    from flowlib.kernels._triton.flow_pair import FlowMatchingPair

    out: tuple[Tensor, Tensor] = FlowMatchingPair.apply(x1, table, seed, step)
    return out


def flow_matching_pair_reference(x1: Tensor, table: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The definition, in plain PyTorch; `table` holds one row of four coefficients a sample."""
    x0 = philox_normal(tuple(x1.shape), seed=seed, step=step, dtype=table.dtype, device=x1.device)
    alpha, sigma, alpha_dot, sigma_dot = table.reshape(*table.shape, *(1,) * (x1.ndim - 1)).unbind(1)
    x_t = alpha * x1 + sigma * x0
    v = alpha_dot * x1 + sigma_dot * x0
    return x_t.to(x1.dtype), v.to(x1.dtype)


def philox_normal(
    shape: tuple[int, ...],
    *,
    seed: int,
    step: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Standard normal numbers as a function of place, seed and step.

    Numbers $4j, \dots, 4j + 3$ of sample $i$ come from the counter $(j, i, \text{step})$. A word $w$ becomes the
    uniform number $u = (\lfloor w / 2^9\rfloor + 1/2) / 2^{23}$, which float32 holds exactly and which is never 0 or 1;
    a pair of them becomes two normal numbers (Box and Muller, 1958), of size at most $\sqrt{48\log 2} = 5.77$.

    Args:
        shape: `(batch, *event)`.
        seed: In $[0, 2^{64})$.
        step: In $[0, 2^{64})$.
        dtype: float32 or float64, of the arithmetic after the uniform numbers.
        device: Where to draw.

    Returns:
        A tensor of that shape.

    Raises:
        ValueError: If `seed` or `step` are out of range.

    Example:
        >>> few, many = philox_normal((2, 5), seed=1), philox_normal((3, 5), seed=1)
        >>> torch.equal(few, many[:2])      # a sample's noise does not depend on the batch around it
        True
    """
    _check_word("seed", seed)
    _check_word("step", step)
    batch, size = shape[0], math.prod(shape[1:])
    groups = -(-size // 4)
    counter = torch.empty(batch, groups, 4, dtype=torch.int64, device=device)
    counter[..., 0] = torch.arange(groups, device=device)
    counter[..., 1] = torch.arange(batch, device=device)[:, None]
    counter[..., 2] = step & _MASK
    counter[..., 3] = step >> 32
    u = ((philox(counter, (seed & _MASK, seed >> 32)) >> 9).to(dtype) + 0.5) * 2.0**-23  # (B, G, 4)
    radius, angle = (-2 * u[..., 0::2].log()).sqrt(), 2 * math.pi * u[..., 1::2]
    normal = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)  # (B, G, 2, 2)
    return normal.reshape(batch, 4 * groups)[:, :size].reshape(shape)


def philox(counter: Int[Tensor, "*batch 4"], key: tuple[int, int]) -> Int[Tensor, "*batch 4"]:
    r"""Philox 4x32-10: four random words for each counter of four words and a key of two.

    Each of ten rounds multiplies two words by constants, mixes the upper halves of the products with the other two
    words and the key, and adds a constant to the key (Salmon, Moraes, Dror and Shaw, 2011, section 3.3).

    Args:
        counter: int64 words in $[0, 2^{32})$.
        key: Two integers in $[0, 2^{32})$.

    Returns:
        int64 words in $[0, 2^{32})$.

    Example:
        >>> [hex(word) for word in philox(torch.zeros(4, dtype=torch.int64), (0, 0)).tolist()]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack([c0, c1, c2, c3], -1)


def _multiply(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """Upper and lower 32 bits of a product of two 32-bit words, in two halves so that int64 does not overflow."""
    low, high = constant * (word & 0xFFFF), constant * (word >> 16)
    return (high + (low >> 16)) >> 16, (((high & 0xFFFF) << 16) + low) & _MASK


def range_of_axes(x: Tensor) -> tuple[str, ...]:
    """Names of the event's axes, for an error message."""
    return tuple(f"event{i}" for i in range(1, max(2, x.ndim))) if isinstance(x, Tensor) else ("event",)


def _check_word(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not 0 <= value < 2**64:
        raise ValueError(f"{name} must lie in [0, 2**64), got {value}")
