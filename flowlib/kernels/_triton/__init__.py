"""The kernels themselves. Importing this package imports triton; `flowlib.kernels` does so only when a kernel runs.

Conventions of every file here. Tensors come with their strides, so that views need no copy; Triton compiles a separate
version for a stride of one, which is what makes loads wide. After each load a tile is cast to `COMPUTE` (float32, or
float64 for float64 inputs): half types carry numbers between memory and registers, never through a sum. Only the
operands of `tl.dot` are cast back, to `OPERAND`, because tensor cores multiply half types and add in float32.
"""

import torch
import triton
import triton.language as tl

INTERPRETED = not isinstance(tl.zeros, triton.runtime.JITFunction)
"""Whether kernels run in Triton's interpreter, as Python on the CPU: decided when triton was first imported."""

_TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def compute_type(dtype: torch.dtype) -> tl.dtype:
    """The dtype of a kernel's arithmetic."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def operand_type(dtype: torch.dtype) -> tl.dtype:
    """The dtype of operands of `tl.dot`; the interpreter keeps bfloat16 as integers and must not multiply it."""
    return tl.float32 if INTERPRETED and dtype == torch.bfloat16 else _TYPES[dtype]


PRECISION = tl.constexpr("tf32x3")
"""How `tl.dot` multiplies float32: three products of rounded halves, nearly as exact as float32 and on tensor cores."""
