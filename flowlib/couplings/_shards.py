"""One shard of a store of pairs: a safetensors file that appears whole and knows its run and its digest."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from flowlib._files import replacing

__all__ = ["read_shard", "write_shard"]


def write_shard(path: Path, shard: Mapping[str, Tensor], run: str) -> None:
    """Write the tensors of a shard, stamped with the run they belong to."""
    from safetensors.torch import save as to_bytes

    tensors = {name: value.contiguous() for name, value in shard.items()}
    # one entry: safetensors writes several in an order that changes from process to process
    stamp = json.dumps({"run": run, "digest": _digest(tensors)}, sort_keys=True)
    with replacing(path) as part:
        part.write_bytes(to_bytes(tensors, metadata={"stamp": stamp}))


def read_shard(path: Path, run: str, *, verify: bool = False) -> dict[str, Tensor]:
    """Map a shard into memory; pages are read when they are used.

    Raises:
        ValueError: If the file is truncated, damaged, or belongs to another run.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            stamp = json.loads((file.metadata() or {}).get("stamp", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from error
    if stamp.get("run") != run:
        raise ValueError(f"{path} belongs to another run of generate_pairs: its settings differ from the manifest")
    if verify and stamp.get("digest") != _digest(tensors):
        raise ValueError(f"{path} is damaged: its content does not match its digest; delete it and generate it again")
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
