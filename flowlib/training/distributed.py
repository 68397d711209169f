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

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed
from torch.utils.data import DataLoader, Sampler

from flowlib._checks import check_choice, check_positive
from flowlib.training import sharded
from flowlib.training.ema import EMA
from flowlib.training.loop import Objective, learning_rate
from flowlib.training.randomness import order, seed_of

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

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""Dense bf16 FLOP/s by a part of the device's name (vendors' data sheets, without sparsity)."""


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
class Run:
    """Settings of a training run.

    Attributes:
        out: Folder of checkpoints, log and weights; a run that stands there is resumed.
        steps: Optimiser steps in all.
        batch_size: Samples a step, over all processes.
        micro_batch: Samples of one forward pass; it divides `batch_size`.
        lr: Peak learning rate of AdamW.
        beta2: AdamW's decay of squared gradients.
        weight_decay: AdamW's weight decay, per unit of learning rate.
        warmup: Steps over which the rate rises linearly from zero.
        schedule: Of the rate: constant, or a cosine to zero at `steps`.
        clip: Largest norm of the gradient; 0 for no clipping.
        ema: Decay of the average of the weights, per step.
        precision: fp32, or bf16 autocast with fp32 weights and sums.
        strategy: ddp copies the network to every process; fsdp shards weights, gradients and optimiser (FSDP2).
        compile: Whether to torch.compile the network.
        checkpoint_activations: Recompute the blocks' activations in the backward pass: less memory, a third more time.
        accelerator: cpu, cuda, or auto.
        devices: Processes on each node (torchrun's --nproc-per-node wins).
        nodes: Number of nodes (torchrun's --nnodes wins).
        workers: Processes that read data, per training process; 0 reads in the training process.
        save_every: Steps between checkpoints.
        keep: Checkpoints kept; older ones are deleted.
        log_every: Steps between two looks at the loss, also in TensorBoard.
        seed: Of data order, noise, times and dropout.
    """

    out: Path = Path("runs/flow")
    steps: int = 400_000
    batch_size: int = 256
    micro_batch: int = 32
    lr: float = 1e-4
    beta2: float = 0.999
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float = 1.0
    ema: float = 0.9999
    precision: Literal["fp32", "bf16"] = "bf16"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False
    checkpoint_activations: bool = False
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    nodes: int = 1
    workers: int = 4
    save_every: int = 5_000
    keep: int = 2
    log_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batch", "devices", "nodes", "save_every", "keep", "log_every"):
            check_positive(name, getattr(self, name), integer=True)
        check_positive("lr", self.lr)
        for name in ("warmup", "clip", "weight_decay", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("ema", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        check_choice("schedule", self.schedule, ("constant", "cosine"))
        check_choice("precision", self.precision, ("fp32", "bf16"))
        check_choice("strategy", self.strategy, ("ddp", "fsdp"))
        if self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch must divide batch_size, got {self.micro_batch} and {self.batch_size}")

    @property
    def micro_batches(self) -> int:
        """Micro-batches a step, over all processes."""
        return self.batch_size // self.micro_batch

    @property
    def decides(self) -> dict[str, Any]:
        """The settings that change what is computed; a resumed run must have the same."""
        free = {"out", "accelerator", "devices", "nodes", "workers", "save_every", "keep", "log_every", "compile"}
        free |= {"strategy", "checkpoint_activations"} | ({"steps"} if self.schedule == "constant" else set())
        return {name: value for name, value in asdict(self).items() if name not in free}


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
    if (run.strategy == "fsdp" or run.checkpoint_activations) and not hasattr(network, "blocks"):
        raise ValueError("network must have a list `blocks` for strategy fsdp and for checkpoint_activations")
    fabric = connect(run) if fabric is None else fabric
    sharded.check_room(run.out, network, run.keep)
    sharded.check_equal(fabric, network)
    signature = sharded.signature(network)

    if run.checkpoint_activations:
        for block in network.blocks:  # type: ignore[union-attr]
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
        dataset,  # type: ignore[arg-type]
        batch_sampler=_Order(len(dataset), run, start, micros),
        collate_fn=_as_is,
        num_workers=run.workers,
        pin_memory=fabric.device.type == "cuda",
    )
    log = _Log(fabric, run, start, flops)
    wrapped.train()
    step = start
    with _Stop(fabric) as stop:
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
    finished = step >= run.steps
    weights = sharded.export(fabric, run.out, average.state, {"step": step, **(record or {})}) if finished else None
    if fabric.is_global_zero and not finished:
        print(f"stopped at step {step}, saved; the same command goes on from there", file=sys.stderr)
    return Result(step, finished, weights)


def count_flops(network: nn.Module, *inputs: Tensor, **conditions: Tensor) -> float:
    """Floating-point operations of one forward pass of one sample, counted on a copy without storage.

    Args:
        network: The network; it is not run.
        inputs: A batch of inputs; only their shapes and dtypes matter.
        conditions: Keyword arguments of the same kind.

    Example:
        >>> count_flops(nn.Linear(8, 4, bias=False), torch.zeros(2, 8))
        64.0
    """
    import copy

    from torch.utils.flop_counter import FlopCounterMode

    ghost = copy.deepcopy(network).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(*(x.to("meta") for x in inputs), **{name: value.to("meta") for name, value in conditions.items()})
    return float(counter.get_total_flops()) / inputs[0].shape[0]


def gpu_hours(flops: float, samples: float, *, peak: float, utilisation: float) -> float:
    """The price of a run: three forward passes' worth of operations a sample at a part of the peak.

    Args:
        flops: Of one sample's forward pass.
        samples: Samples seen in the run, steps times batch size.
        peak: FLOP/s of a device; see `PEAK_FLOPS`.
        utilisation: The part of the peak that is reached (model FLOPs utilisation), in (0, 1].

    Example:
        >>> round(gpu_hours(237e9, 400_000 * 256, peak=989e12, utilisation=0.4))     # a DiT-XL/2 for 400 000 steps
        51
    """
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation must lie in (0, 1], got {utilisation}")
    check_positive("peak", peak)
    return 3 * flops * samples / (peak * utilisation) / 3600


def read_log(out: Path) -> dict[str, list[float]]:
    """The log of a run: a list for each of `step`, `loss`, `grad_norm`, `lr`, one entry a step.

    Raises:
        FileNotFoundError: If there is no log.
    """
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {key: [row[key] for row in rows] for key in ("step", "loss", "grad_norm", "lr")}


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


class _Stop:
    """Notes SIGTERM and SIGINT; the processes agree on a common step to stop after."""

    EVERY = 10

    def __init__(self, fabric: Any) -> None:
        self.fabric, self.asked = fabric, False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "_Stop":
        def note(number: int, frame: object) -> None:
            self.asked = True

        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, note)
        return self

    def agreed(self, step: int) -> bool:
        """Whether any process was asked to stop; asked on every tenth step, or on every one on a CPU."""
        if self.fabric.world_size == 1:
            return self.asked
        if step % self.EVERY and self.fabric.device.type != "cpu":
            return False
        flag = torch.tensor(float(self.asked), device=self.fabric.device)
        return bool(self.fabric.all_reduce(flag, reduce_op="sum") > 0)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class _Log:
    """Losses stay on the device until they are looked at; then one line a step, TensorBoard, and the progress line."""

    def __init__(self, fabric: Any, run: Run, start: int, flops: float | None) -> None:
        from flowlib.training.loop import Bar

        self.fabric, self.run, self.flops = fabric, run, flops
        self.rows: list[tuple[int, Tensor, Tensor, float]] = []
        self.since, self.writer, self.file = time.perf_counter(), None, run.out / "log.jsonl"
        self.bar = Bar(start, run.steps, None if fabric.is_global_zero else False)
        if fabric.is_global_zero:
            run.out.mkdir(parents=True, exist_ok=True)
            lines = self.file.read_text().splitlines() if self.file.is_file() else []
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= start]
            self.file.write_text("".join(line + "\n" for line in kept))  # steps after the checkpoint are done again
            self.writer = _tensorboard(run.out)
        peak = next((v for k, v in PEAK_FLOPS.items() if k in _device_name(fabric.device)), None)
        self.peak = peak if run.precision == "bf16" else None

    def add(self, step: int, loss: Tensor, norm: Tensor, lr: float, *, flush: bool) -> None:
        """Note a step; look at the notes at every `log_every`-th step, at saves and at the end."""
        self.rows.append((step, loss, norm, lr))
        if not flush and step % self.run.log_every:
            return
        losses = self.fabric.all_reduce(torch.stack([row[1] for row in self.rows]), reduce_op="mean")
        values = torch.stack([losses, torch.stack([row[2] for row in self.rows])]).tolist()
        seconds = (time.perf_counter() - self.since) / len(self.rows)
        lines = [
            {"step": at, "loss": loss, "grad_norm": norm, "lr": rate}
            for (at, _, _, rate), loss, norm in zip(self.rows, *values, strict=True)
        ]
        self.rows, self.since = [], time.perf_counter()
        for line in lines:
            if not math.isfinite(line["loss"]):
                raise FloatingPointError(
                    f"the loss is {line['loss']} at step {line['step']}; lower lr or check the data"
                )
        if not self.fabric.is_global_zero:
            return
        with self.file.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        rates = self._rates(seconds)
        if self.writer is not None:
            for name, value in {**{k: v for k, v in lines[-1].items() if k != "step"}, **rates}.items():
                self.writer.add_scalar(name, value, step)
        for line in lines[:-1]:
            self.bar.update(line["loss"])
        self.bar.update(lines[-1]["loss"], **{name: f"{value:.3g}" for name, value in rates.items()})

    def _rates(self, seconds: float) -> dict[str, float]:
        """Samples a second, memory in GiB and, where the peak is known, the utilisation of one device."""
        rates = {"samples_per_second": self.run.batch_size / seconds}
        if self.fabric.device.type == "cuda":
            rates["memory_gib"] = torch.cuda.max_memory_allocated(self.fabric.device) / 2**30
        if self.flops is not None:
            achieved = 3 * self.flops * rates["samples_per_second"] / self.fabric.world_size
            rates["tflops"] = achieved / 1e12
            if self.peak is not None:
                rates["mfu"] = achieved / self.peak
        return rates

    def close(self) -> None:
        """Close the bar and TensorBoard's file."""
        self.bar.__exit__()
        if self.writer is not None:
            self.writer.close()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _tensorboard(out: Path) -> Any:
    """TensorBoard's writer, or `None` where tensorboard is not installed (the log file is always written)."""
    from importlib.util import find_spec

    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(out / "tensorboard")
