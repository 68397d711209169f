r"""Training on many processes, through Lightning Fabric: the same field, loss and data, and only another command.

Two rules make a run a function of its settings alone, whatever the number of processes and interruptions.

*The micro-batch owns the random numbers.* A step is made of `batch_size / micro_batch` micro-batches. Each has a
generator seeded by (seed, step, its number), and the data it reads follow from the seed and the step. Processes share
the micro-batches out; so one process that takes eight and eight processes that take one compute the same gradient, to
the order of summation.

*The step is the only position.* Checkpoints hold weights, optimiser, average and the step; everything else is computed.

Checkpoints are PyTorch's distributed ones (a folder that every process writes its part of), so a run may go on with
another number of processes or another strategy. Their index file is a pickle: resume only what you wrote yourself.
The finished, averaged weights are written as one safetensors file.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from flowlib.training import sharded
from flowlib.training.cost import PEAK_FLOPS, count_flops, gpu_hours
from flowlib.training.ema import EMA
from flowlib.training.loop import Objective, learning_rate
from flowlib.training.progress import Log, Stop, read_log
from flowlib.training.randomness import order, seed_of
from flowlib.training.settings import Run

__all__ = [
    "PEAK_FLOPS",
    "Dataset",
    "Prepare",
    "Result",
    "Run",
    "connect",
    "count_flops",
    "gpu_hours",
    "read_log",
    "train",
]

Prepare = Callable[[Any, torch.Generator], tuple[Tensor, dict[str, Tensor]]]
"""From what a data set gives for a micro-batch and its generator to states and conditions."""


@runtime_checkable
class Dataset(Protocol):
    """Data that are read by index, many at once."""

    def __len__(self) -> int:
        """The number of items."""

    def __getitems__(self, indices: list[int]) -> Any:
        """The items as one batch: states `[n, *event]`, or a pair of them and a dictionary of conditions."""


@dataclass(frozen=True)
class Result:
    """How a call of `train` ended.

    Attributes:
        step: Steps done in all.
        finished: Whether the last step was reached; otherwise the run was asked to stop and can be resumed.
        weights: The file of the averaged weights, of a finished run.
    """

    step: int
    finished: bool
    weights: Path | None


def connect(run: Run, *, shard: Callable[[nn.Module, Any], nn.Module] | None = None) -> Any:
    """Start or join the processes of a run: a Lightning Fabric, launched.

    Under torchrun or SLURM it joins the processes that stand there; otherwise it starts `run.devices` of them.

    Args:
        run: The settings.
        shard: With `strategy="fsdp"`, applies `fully_shard` to a network on a device mesh; by default to every entry
            of `network.blocks` and to the whole.

    Raises:
        ImportError: If lightning-fabric is not installed.
        ValueError: If the processes do not share the micro-batches evenly.
    """
    lightning = _lightning()
    strategies = lightning.strategies
    strategy: Any = strategies.DDPStrategy() if run.devices * run.nodes > 1 or _launched() else "auto"
    if run.strategy == "fsdp":
        world = int(os.environ["WORLD_SIZE"]) if _launched() else run.devices * run.nodes
        strategy = strategies.ModelParallelStrategy(
            shard or sharded.shard_blocks, data_parallel_size=world, tensor_parallel_size=1
        )
    fabric = lightning.Fabric(
        accelerator=run.accelerator,
        devices=int(os.environ["LOCAL_WORLD_SIZE"]) if _launched() else run.devices,
        num_nodes=int(os.environ["GROUP_WORLD_SIZE"]) if _launched() else run.nodes,
        strategy=strategy,
        precision="bf16-mixed" if run.precision == "bf16" else "32-true",
    )
    fabric.launch()
    if run.micro_batches % fabric.world_size:
        raise ValueError(
            f"{fabric.world_size} processes do not share {run.micro_batches} micro-batches evenly (batch_size "
            f"{run.batch_size} / micro_batch {run.micro_batch}): change one of the three"
        )
    return fabric


def train(
    network: nn.Module,
    objective: Callable[[nn.Module], Objective],
    dataset: Dataset,
    run: Run,
    *,
    fabric: Any = None,
    prepare: Prepare | None = None,
    flops: float | None = None,
    record: dict[str, Any] | None = None,
) -> Result:
    """Train a network, or go on with the run that stands in `run.out`.

    The processes stop together, with a checkpoint, at the first step after one of them got SIGTERM or SIGINT.

    Args:
        network: What is trained: built with the same weights in every process. `blocks`, a list of modules, is what
            `fsdp` shards and `checkpoint_activations` recomputes.
        objective: From the network as the strategy wraps it to the loss, for example
            `lambda net: flow_matching(NetworkField(net, path))`.
        dataset: The data, read by index.
        run: The settings.
        fabric: What `connect` returned; connected here if `None`.
        prepare: From what the dataset gives for a micro-batch, on the device, and its generator to states and
            conditions: augmentation, posterior samples of latents. By default the batch is both already.
        flops: Floating-point operations of one sample's forward pass (`count_flops`), to report utilisation.
        record: What the file of weights should say about the network, JSON.

    Returns:
        How it ended.

    Raises:
        ValueError: If settings, data, processes or a checkpoint do not fit; before any work is done.
        OSError: If the disk has no room for the checkpoints, before the first step.
        FloatingPointError: If the loss is not finite; no checkpoint is written then.
    """
    if len(dataset) < run.micro_batch:
        raise ValueError(f"dataset has {len(dataset)} items, fewer than one micro-batch of {run.micro_batch}")
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("network has no parameter to train")
    blocks = sharded.blocks(network) if run.strategy == "fsdp" or run.checkpoint_activations else nn.ModuleList()
    fabric = connect(run) if fabric is None else fabric
    sharded.check_room(run.out, network, run.keep)
    sharded.check_equal(fabric, network)
    signature = sharded.signature(network)

    if run.checkpoint_activations:
        for block in blocks:
            block.forward = partial(recomputed, block.forward, use_reentrant=False)
    wrapped = fabric.setup_module(torch.compile(network) if run.compile else network)
    parameters = [p for p in network.parameters() if p.requires_grad]  # sharded now, under fsdp
    descent = torch.optim.AdamW(parameters, run.lr, (0.9, run.beta2), weight_decay=run.weight_decay)
    stepper = fabric.setup_optimizers(descent)
    average = EMA(network, run.ema)
    state = sharded.State(network, descent, average)
    identity = {**run.decides, "network": signature, "items": len(dataset)}
    start = sharded.resume(fabric, run.out, state, identity)
    loss_of = objective(wrapped)

    local = run.micro_batches // fabric.world_size
    micros = [i * fabric.world_size + fabric.global_rank for i in range(local)]
    loader: DataLoader[Any] = DataLoader(
        cast("TorchDataset[Any]", dataset),  # a DataLoader asks for no more than the protocol
        batch_sampler=_Order(len(dataset), run, start, micros),
        collate_fn=_as_is,
        num_workers=run.workers,
        pin_memory=fabric.device.type == "cuda",
    )
    log = Log(fabric, run, start, flops)
    wrapped.train()
    step = start
    with Stop(fabric) as stop:
        batches = iter(loader)
        while step < run.steps:
            for group in descent.param_groups:
                group["lr"] = run.lr * learning_rate(step, run.steps, run.warmup, run.schedule)
            total = torch.zeros((), device=fabric.device)
            for i, micro in enumerate(micros):
                batch = fabric.to_device(next(batches))
                generator = torch.Generator(fabric.device).manual_seed(seed_of(run.seed, step, micro))
                torch.manual_seed(seed_of(run.seed, step, micro, "dropout"))
                x1, conditions = (prepare or _ready)(batch, generator)
                x0 = torch.randn(x1.shape, generator=generator, device=x1.device, dtype=x1.dtype)
                with fabric.no_backward_sync(wrapped, enabled=i < local - 1):
                    loss = loss_of(x0, x1, generator=generator, **conditions).total / local
                    fabric.backward(loss)
                total += loss.detach()
            norm = sharded.whole(nn.utils.clip_grad_norm_(parameters, run.clip or math.inf))
            stepper.step()
            stepper.zero_grad()
            average.update()
            step += 1
            stopping = stop.agreed(step)
            saving = step % run.save_every == 0 or step == run.steps or stopping
            log.add(step, total, norm, descent.param_groups[0]["lr"], flush=saving)
            if saving:
                sharded.check_room(run.out, network, 1)
                sharded.save(fabric, run.out, step, state, identity, run.keep)
            if stopping:
                break
    log.close()
    network.eval()
    if run.checkpoint_activations:
        for block in blocks:
            del block.forward  # its class's own is left: a second call must not wrap it twice
    finished = step >= run.steps
    weights = sharded.export(fabric, run.out, average.state, {"step": step, **(record or {})}) if finished else None
    if fabric.is_global_zero and not finished:
        print(f"stopped at step {step}, saved; the same command goes on from there", file=sys.stderr)
    return Result(step, finished, weights)


def _ready(batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    return (batch, {}) if isinstance(batch, Tensor) else batch


def _as_is(batch: Any) -> Any:
    return batch


def _lightning() -> Any:
    """Lightning Fabric, whether it was installed alone or with Lightning."""
    for name in ("lightning_fabric", "lightning.fabric"):
        with suppress(ModuleNotFoundError):
            return import_module(name)
    raise ImportError("training on many processes needs lightning-fabric: pip install flowlib[recipes]")


def _launched() -> bool:
    """Whether torchrun started this process."""
    return bool(torch.distributed.is_torchelastic_launched())


class _Order(Sampler[list[int]]):
    """The indices that one process reads, micro-batch after micro-batch, from a step on."""

    def __init__(self, size: int, run: Run, start: int, micros: list[int]) -> None:
        self.size, self.run, self.start, self.micros = size, run, start, micros

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.run.steps):
            for micro in self.micros:
                first = step * self.run.batch_size + micro * self.run.micro_batch
                yield order(self.size, self.run.seed, first, self.run.micro_batch)

    def __len__(self) -> int:
        return (self.run.steps - self.start) * len(self.micros)
