r"""Fused gate, residual, layer norm and modulation: what stands between two branches of a DiT block.

For tokens $x$, a branch's output $u$ and a condition's shift $\beta$, scale $\gamma$ and gate $\delta$,

$$ h = x + \delta\odot u, \qquad y = \frac{h - \mu(h)}{\sqrt{\operatorname{var}(h) + \varepsilon}}\odot(1 + \gamma)
   + \beta, $$

with mean and variance over the features of one token (Peebles and Xie, 2023; layer norm without its own weights).
`h` is the new residual stream and `y` the input of the next branch.

**Roofline.** A token of $W$ features costs about $12 W$ operations. One operation at a time (product, sum, norm, scale,
shift) moves $11W$ numbers; fused, the kernel reads $x, u$ and writes $h, y$: $4W$ numbers, $8W$ bytes in bfloat16, 1.5
operations a byte. A GPU issues 7 (H200) to 10 (H100) float32 instructions a byte, so memory is the limit, and the best
possible time is $8BTW$ bytes over the copy bandwidth. The backward pass reads $h, u$ and two gradients and writes two:
$12BTW$ bytes. It recomputes $\mu$ and the variance: a row is in registers anyway.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_positive
from flowlib.kernels._dispatch import check_operand, compute_dtype, use_triton

__all__ = ["adaln_modulate"]

MAX_WIDTH = 8192
"""A whole token is held in the registers of one program."""


def adaln_modulate(
    x: Float[Tensor, "batch tokens width"],
    shift: Float[Tensor, "batch 1 width"],
    scale: Float[Tensor, "batch 1 width"],
    gate: Float[Tensor, "batch 1 width"] | None = None,
    branch: Float[Tensor, "batch tokens width"] | None = None,
    *,
    eps: float = 1e-5,
    implementation: str = "auto",
) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch tokens width"]]:
    r"""Add a gated branch to the residual stream, normalise, scale and shift, in one pass through memory.

    Differentiable in every tensor. Conditions that change within a sample, one for each frame of a video for example,
    are had by making a frame a batch item.

    Args:
        x: Residual stream.
        shift: $\beta$; `flowlib.nets.DiTBlock` makes conditions of this shape.
        scale: $\gamma$; zero leaves the normalised token as it is.
        gate: $\delta$, together with `branch`.
        branch: $u$, the output of attention or MLP; `None` for the first norm of a network, where $h = x$.
        eps: Added to the variance.
        implementation: `"auto"` (Triton on a GPU), `"reference"` or `"triton"`.

    Returns:
        The residual stream $h$ and the modulated tokens $y$, in the dtype of `x`.

    Raises:
        TypeError: If dtypes differ or are not floating.
        ValueError: If shapes or devices do not fit, one of `gate` and `branch` is missing, or the width exceeds 8192.
        RuntimeError: If Triton is asked for and cannot run.

    Example:
        >>> x, zero = torch.randn(2, 3, 8), torch.zeros(2, 1, 8)
        >>> h, y = adaln_modulate(x, zero, zero)
        >>> torch.allclose(y, torch.nn.functional.layer_norm(x, (8,)), atol=1e-6)
        True
    """
    check_operand("x", x, ("batch", "tokens", "width"))
    batch, _, width = x.shape
    check_operand("shift", shift, (batch, 1, width), x)
    check_operand("scale", scale, (batch, 1, width), x)
    if (gate is None) != (branch is None):
        raise ValueError("gate and branch go together: give both or neither")
    if gate is not None and branch is not None:
        check_operand("gate", gate, (batch, 1, width), x)
        check_operand("branch", branch, tuple(x.shape), x)
    check_positive("eps", eps)
    if width > MAX_WIDTH:
        raise ValueError(f"x must have at most {MAX_WIDTH} features, got {width}")
    if not use_triton(implementation, x, x.shape[0]):
        return adaln_modulate_reference(x, shift, scale, gate, branch, eps)
    from flowlib.kernels._triton.adaln import AdaLN

    out: tuple[Tensor, Tensor] = AdaLN.apply(x, shift, scale, gate, branch, eps)
    return (x, out[1]) if branch is None else out


def adaln_modulate_reference(
    x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor | None, branch: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The definition, in plain PyTorch; half types are computed in float32 and rounded at the end."""
    dtype = compute_dtype(x.dtype)
    h = x if gate is None or branch is None else x + gate.to(dtype) * branch
    normal = torch.nn.functional.layer_norm(h.to(dtype), h.shape[-1:], eps=eps)
    return h.to(x.dtype), (normal * (1 + scale.to(dtype)) + shift).to(x.dtype)
