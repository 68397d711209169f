"""Input checks shared by every layer: one place decides what a clear error says."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def check_state(name: str, x: Tensor, *, dim: int | None = None, finite: bool = True) -> None:
    """Check that `x` is a batch of states.

    Args:
        name: The argument's name, for the message.
        x: Should be a floating-point tensor of shape `[batch, *event]` with at least one row.
        dim: Expected number of features of a `[batch, dim]` tensor; `None` accepts any event shape.
        finite: Whether NaN and infinity are refused.

    Raises:
        TypeError: If `x` is not a floating-point tensor.
        ValueError: If it has no batch axis, is empty, has the wrong width or is not finite.

    Example:
        >>> import torch
        >>> check_state("x1", torch.zeros(3, 2), dim=2)
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must have a floating-point dtype, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"{name} must have shape [batch, *event], got {list(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"{name} is empty: shape {list(x.shape)}; at least one sample is needed")
    if dim is not None and (x.ndim != 2 or x.shape[1] != dim):
        raise ValueError(f"{name} must have shape [batch, {dim}], got {list(x.shape)}")
    # the sum is not finite if an entry is not: one cheap pass, and the full check only when it looks wrong
    if finite and not math.isfinite(x.detach().sum()) and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
        raise ValueError(f"{name} has NaN or infinite entries in {bad} of {x.shape[0]} samples")


def check_same(name_a: str, a: Tensor, name_b: str, b: Tensor, *, shape: bool = True) -> None:
    """Check that two tensors agree in shape, dtype and device, so that nothing is silently broadcast.

    Args:
        name_a: Name of the first argument.
        a: The first tensor.
        name_b: Name of the second argument.
        b: The second tensor.
        shape: Compare whole shapes; `False` compares only the event shapes (all axes but the first).

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes or devices differ.

    Example:
        >>> import torch
        >>> check_same("x0", torch.zeros(3, 2), "x1", torch.zeros(3, 2))
    """
    if shape and a.shape != b.shape:
        raise ValueError(f"{name_a} and {name_b} must have the same shape, got {list(a.shape)} and {list(b.shape)}")
    if not shape and a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"{name_a} and {name_b} must have the same event shape, got {list(a.shape[1:])} and {list(b.shape[1:])}"
        )
    if a.dtype != b.dtype:
        raise TypeError(f"{name_a} and {name_b} must have the same dtype, got {a.dtype} and {b.dtype}")
    if a.device != b.device:
        raise ValueError(f"{name_a} and {name_b} must be on one device, got {a.device} and {b.device}")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Check that `value` is one of `choices`.

    Raises:
        ValueError: Naming the argument, what came, and every valid choice.

    Example:
        >>> check_choice("method", "heun", ("euler", "heun"))
    """
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_positive(name: str, value: float, *, integer: bool = False) -> None:
    """Check that a number is positive (and whole, if `integer`).

    Raises:
        TypeError: If an integer is needed and something else came.
        ValueError: If the number is not positive.

    Example:
        >>> check_positive("steps", 10, integer=True)
    """
    if integer and (not isinstance(value, int) or isinstance(value, bool)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")


def batch_time(t: float | Tensor, x: Tensor, *, name: str = "t") -> Tensor:
    """Check a time against a batch of states and give it their dtype and device.

    Args:
        t: A float, a 0-d tensor or a tensor `[batch]`, in [0, 1].
        x: States `[batch, *event]`.
        name: The argument's name, for the message.

    Returns:
        A 0-d or `[batch]` tensor with the dtype and device of `x`.

    Raises:
        TypeError: If `t` is a tensor whose dtype differs from that of `x`.
        ValueError: If its shape is neither `[]` nor `[batch]`, its device differs, or it leaves [0, 1].

    Example:
        >>> import torch
        >>> batch_time(0.5, torch.zeros(3, 2))
        tensor(0.5000)
    """
    if not isinstance(t, Tensor):
        t = torch.as_tensor(float(t), dtype=x.dtype, device=x.device)
    elif t.dtype != x.dtype:
        raise TypeError(f"{name} must have the dtype of the states, {x.dtype}; got {t.dtype}")
    elif t.device != x.device:
        raise ValueError(f"{name} must be on the states' device, {x.device}; got {t.device}")
    if t.ndim > 1 or (t.ndim == 1 and t.shape[0] != x.shape[0]):
        raise ValueError(
            f"{name} must be a float, a 0-d tensor or of shape [{x.shape[0]}] (one time a sample); "
            f"got shape {list(t.shape)}"
        )
    check_unit_interval(name, t)
    return t


def check_unit_interval(name: str, t: Tensor) -> None:
    """Check that every entry of `t` lies in [0, 1] (NaN does not).

    Raises:
        ValueError: Naming the argument and the range that came.

    Example:
        >>> import torch
        >>> check_unit_interval("t", torch.tensor([0.0, 1.0]))
    """
    t = t.detach()
    if t.numel() == 0:
        raise ValueError(f"{name} is empty: shape {list(t.shape)}")
    low, high = (float(t), float(t)) if t.ndim == 0 else (float(t.min()), float(t.max()))
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"{name} must lie in [0, 1], got values from {low:g} to {high:g}")


def expand_time(t: Tensor, x: Tensor) -> Tensor:
    """Reshape a 0-d or `[batch]` tensor so that it broadcasts against `[batch, *event]`.

    Example:
        >>> import torch
        >>> expand_time(torch.zeros(3), torch.zeros(3, 2, 2)).shape
        torch.Size([3, 1, 1])
    """
    return t if t.ndim == 0 else t.reshape(t.shape + (1,) * (x.ndim - 1))
