"""Checkpoints: one safetensors file, written atomically, nothing pickled.

A file holds the tensors of a nested state (network, optimiser, average, random states) and, as JSON in the header,
everything that is not a tensor. It is written beside its place and moved there in one step, so a reader sees the
old file or the new one, never half of either.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowlib._files import replacing

__all__ = ["load", "save"]

_FORMAT = "flowlib-checkpoint-1"


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Write a nested state of dictionaries, lists, tensors, numbers, strings, booleans and None.

    Args:
        path: The file. Its folder is created.
        state: What to keep.

    Raises:
        TypeError: If the state holds something else (nothing is pickled).

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "step.safetensors"
        >>> save(path, {"weight": torch.ones(2), "step": 3})
        >>> load(path)["step"]
        3
    """
    from safetensors.torch import save as to_bytes

    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_flatten(state, "", tensors))
    content = to_bytes(tensors, metadata={"format": _FORMAT, "state": skeleton, "digest": _digest(skeleton, tensors)})
    with replacing(path) as part:
        part.write_bytes(content)


def load(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save` wrote.

    Args:
        path: The file.
        device: Where the tensors go.

    Returns:
        The nested state.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{path} is not a flowlib checkpoint")
        if metadata["digest"] != _digest(metadata["state"], tensors):
            raise ValueError(f"{path} is damaged: its content does not match its digest")
        state = _unflatten(json.loads(metadata["state"]), tensors)
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is damaged: its state is not a dictionary")
    return state


def _digest(skeleton: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the whole state; safetensors itself would not notice a changed number."""
    digest = hashlib.sha256(skeleton.encode())
    for name in sorted(tensors):
        digest.update(tensors[name].cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors by references; dictionaries become lists of pairs, because JSON keys are strings."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[k, _flatten(v, f"{name}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_flatten(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"a checkpoint cannot hold {name or 'a value'} of type {type(value).__name__}")


def _unflatten(skeleton: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, value),) = skeleton.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {k: _unflatten(v, tensors) for k, v in value}
    if kind == "list":
        return [_unflatten(v, tensors) for v in value]
    return value
