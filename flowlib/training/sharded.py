"""Checkpoints that many processes write together and another number of processes may read (PyTorch's own format)."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flowlib._files import replacing
from flowlib.training.ema import EMA

__all__ = [
    "State",
    "blocks",
    "check_equal",
    "check_room",
    "export",
    "resume",
    "save",
    "shard_blocks",
    "signature",
    "whole",
]


class State:
    """Network, optimiser and average as one state that `torch.distributed.checkpoint` can save and load.

    Args:
        network: The network, sharded or not.
        optimizer: Its optimiser.
        average: Its average.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, average: EMA) -> None:
        self.network, self.optimizer, self.average = network, optimizer, average

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name, sharded as they are."""
        from torch.distributed.checkpoint.state_dict import get_state_dict

        network, optimizer = get_state_dict(self.network, self.optimizer)
        updates = torch.tensor(self.average.updates)
        return {"network": network, "optimizer": optimizer, "average": dict(self.average.state), "updates": updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put loaded tensors in their places."""
        from torch.distributed.checkpoint.state_dict import set_state_dict

        set_state_dict(
            self.network, self.optimizer, model_state_dict=state["network"], optim_state_dict=state["optimizer"]
        )
        for name, tensor in self.average.state.items():
            tensor.copy_(state["average"][name])
        self.average.updates = int(state["updates"])


def blocks(network: nn.Module) -> nn.ModuleList:
    """The list of modules that a network offers to be sharded, or computed again, one by one.

    Raises:
        ValueError: If it has none.
    """
    found = getattr(network, "blocks", None)
    if not isinstance(found, nn.ModuleList):
        raise ValueError("network must have a list `blocks` for strategy fsdp and for checkpoint_activations")
    return found


def shard_blocks(network: nn.Module, mesh: Any) -> nn.Module:
    """Shard every entry of `network.blocks`, then what is left, over the data-parallel axis of a mesh (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    axis = mesh["data_parallel"]
    for block in blocks(network):
        fully_shard(block, mesh=axis)
    fully_shard(network, mesh=axis)
    return network


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor as an ordinary one, the same in every process (a collective call)."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def signature(network: nn.Module) -> str:
    """A short hash of the names, shapes and dtypes of a network's state.

    Example:
        >>> a, b, c = (signature(nn.Linear(n, 3)) for n in (2, 2, 3))
        >>> a == b, a == c
        (True, False)
    """
    text = json.dumps([[name, list(value.shape), str(value.dtype)] for name, value in network.state_dict().items()])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def check_equal(fabric: Any, network: nn.Module) -> None:
    """Check that every process built the same network.

    Raises:
        ValueError: If not; usually a network was built before the seed was set.
    """
    mine = torch.stack([value.detach().double().sum().cpu() for value in network.state_dict().values()]).sum()
    every = fabric.all_gather(mine.to(fabric.device)).flatten()
    if not bool((every == every[0]).all()):
        raise ValueError("network differs between processes: call torch.manual_seed before building it")


def check_room(out: Path, network: nn.Module, checkpoints: int) -> None:
    """Check that the disk has room for checkpoints: weights, average and two moments in float32 each.

    Raises:
        OSError: If not, with both numbers.
    """
    need = 16 * checkpoints * sum(value.numel() for value in network.state_dict().values())
    place = out
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < need:
        raise OSError(
            f"{out} needs {need / 1e9:.3g} GB for {checkpoints} checkpoints, the disk has {free / 1e9:.3g} GB"
        )


def save(fabric: Any, out: Path, step: int, state: State, identity: dict[str, Any], keep: int) -> None:
    """Write `out/checkpoints/step-N` together: under another name first, renamed when every process is done."""
    from torch.distributed.checkpoint import state_dict_saver

    folder = out / "checkpoints"
    final, part = folder / f"step-{step:09d}", folder / f".step-{step:09d}.part"
    if final.is_dir():  # a finished run was called again
        return
    if fabric.is_global_zero:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    fabric.barrier()
    with _alone_quietly():
        state_dict_saver.save(state.state_dict(), checkpoint_id=part, no_dist=fabric.world_size == 1)
    fabric.barrier()
    if fabric.is_global_zero:
        (part / "run.json").write_text(json.dumps({"step": step, "identity": identity}, indent=2) + "\n")
        os.replace(part, final)
        for old in _saved(out)[:-keep]:
            shutil.rmtree(old)
    fabric.barrier()


def resume(fabric: Any, out: Path, state: State, identity: dict[str, Any]) -> int:
    """Load the newest whole checkpoint of `out`, if there is one.

    Args:
        fabric: The processes.
        out: The run's folder.
        state: Is overwritten.
        identity: What must be equal in the checkpoint: JSON values by name.

    Returns:
        The step to go on from, 0 without a checkpoint.

    Raises:
        ValueError: If the checkpoint is of another run or network, or damaged; nothing was changed then.
    """
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException

    saved = _saved(out)
    if not saved:
        return 0
    place = saved[-1]
    try:
        record = json.loads((place / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{place} is not a whole checkpoint ({error}); delete it to go on from an older one"
        ) from error
    for name, value in json.loads(json.dumps(identity, default=str)).items():
        there = record["identity"].get(name)
        if there != value and name == "network":
            raise ValueError(f"{place} holds another network: names, shapes or dtypes differ; choose another --out")
        if there != value:
            raise ValueError(f"{place} was written with {name}={there!r}, this run has {value!r}; choose another --out")
    tensors = state.state_dict()
    try:
        with _alone_quietly():
            state_dict_loader.load(tensors, checkpoint_id=place, no_dist=fabric.world_size == 1)
    except (Exception, CheckpointException) as error:  # of many kinds; the latter is not an Exception
        raise ValueError(f"{place} is damaged ({error}); delete it to go on from an older one") from error
    state.load_state_dict(tensors)
    step: int = record["step"]
    return step


def export(fabric: Any, out: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> Path:
    """Write weights as `out/weights.safetensors`, whole and in float32, with a JSON record beside."""
    from safetensors.torch import save_file

    full = {name: whole(value).detach().cpu().contiguous() for name, value in tensors.items()}
    file = out / "weights.safetensors"
    if fabric.is_global_zero:
        with replacing(file.with_suffix(".json")) as part:
            part.write_text(json.dumps({**record, "torch": torch.__version__}, indent=2) + "\n")
        with replacing(file) as part:
            save_file(full, part)
    fabric.barrier()
    return file


def _saved(out: Path) -> list[Path]:
    return sorted((out / "checkpoints").glob("step-*"))


@contextmanager
def _alone_quietly() -> Iterator[None]:
    """Without PyTorch's warning that a single process saves alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield
