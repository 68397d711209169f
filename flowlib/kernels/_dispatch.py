"""What every kernel's front does: check the operands, choose the implementation."""

from importlib.util import find_spec

import torch
from torch import Tensor

from flowlib._checks import check_choice

IMPLEMENTATIONS = ("auto", "reference", "triton")
MOST_ROWS = 65535  # CUDA's limit for the second and third axis of a grid
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def use_triton(implementation: str, x: Tensor, rows: int = 1) -> bool:
    """Whether to run the Triton kernel: on request, or by itself for a tensor on a GPU if triton is installed.

    Args:
        implementation: One of `IMPLEMENTATIONS`.
        x: An operand.
        rows: Size of the second axis of the kernel's grid, at most `MOST_ROWS`.

    Raises:
        RuntimeError: If the kernel is asked for and triton is missing, or `x` is on the CPU and triton was not imported
            under its interpreter.
        ValueError: If `implementation` is not one of the three, or there are more rows than a grid takes.

    Example:
        >>> use_triton("auto", torch.zeros(3))
        False
    """
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    if implementation == "reference":
        return False
    installed = find_spec("triton") is not None
    if implementation == "auto" and not (x.is_cuda and installed):
        return False
    if not installed:
        raise RuntimeError("implementation='triton' needs the package triton: pip install 'flowlib[gpu]'")
    if not x.is_cuda:
        from flowlib.kernels._triton import INTERPRETED

        if not INTERPRETED:
            raise RuntimeError(
                f"implementation='triton' on a tensor on {x.device} needs Triton's interpreter: set the environment "
                "variable TRITON_INTERPRET=1 before anything imports triton, or use implementation='reference'"
            )
    if rows > MOST_ROWS:
        raise ValueError(f"the batch (times the heads) must be at most {MOST_ROWS} for a Triton kernel, got {rows}")
    return True


def check_operand(name: str, x: Tensor, shape: tuple[int | str, ...], like: Tensor | None = None) -> None:
    """Check type, shape, dtype and device of a kernel's argument.

    Args:
        name: The argument's name, for the message.
        x: The argument.
        shape: Expected sizes; a string names an axis of any positive size.
        like: A tensor whose dtype and device `x` must have.

    Raises:
        TypeError: If `x` is not a tensor, or has an unfit or a different dtype.
        ValueError: If shape or device do not fit.

    Example:
        >>> check_operand("x", torch.zeros(2, 5), ("batch", 5))
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    wanted = "[" + ", ".join(map(str, shape)) + "]"
    if x.ndim != len(shape) or any(isinstance(n, int) and n != m for n, m in zip(shape, x.shape, strict=True)):
        raise ValueError(f"{name} must have shape {wanted}, got {list(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"{name} is empty: shape {list(x.shape)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {x.dtype}")
    if like is not None and x.dtype != like.dtype:
        raise TypeError(f"{name} must have the dtype of the other arguments, {like.dtype}; got {x.dtype}")
    if like is not None and x.device != like.device:
        raise ValueError(f"{name} must be on the device of the other arguments, {like.device}; got {x.device}")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Arithmetic is done in float32, and in float64 where the input has it.

    Example:
        >>> compute_dtype(torch.bfloat16)
        torch.float32
    """
    return torch.float64 if dtype == torch.float64 else torch.float32
