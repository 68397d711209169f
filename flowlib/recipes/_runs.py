"""What every recipe shares: processes, weights with their record, folders of shards, samples, prices, smoke runs."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flowlib._checks import check_positive
from flowlib.data.shards import INDEX, ShardWriter, write_index
from flowlib.training import distributed
from flowlib.training.distributed import Run
from flowlib.training.randomness import seed_of

__all__ = [
    "finish",
    "label",
    "part",
    "preset",
    "price",
    "processes",
    "read_weights",
    "smoke",
    "smoke_settings",
    "together",
    "write_samples",
    "writer",
]

T = TypeVar("T")

Draw = Callable[[int, Tensor, torch.Generator], Tensor]
"""From the size of a batch, the labels `[n]` of its first rows and a generator to `n` states."""


def processes(devices: int, nodes: int, fabric: Any) -> Any:
    """The processes that stand already; those of torchrun or SLURM; or so many new ones."""
    if fabric is not None:
        return fabric
    count = int(os.environ.get("WORLD_SIZE", devices * nodes))
    return distributed.connect(Run(devices=devices, nodes=nodes, batch_size=count, micro_batch=1))


def part(items: Sequence[T], fabric: Any) -> Sequence[T]:
    """Those of this process: neighbours, so that the rows have one order for any number of processes."""
    first, last = (len(items) * (fabric.global_rank + k) // fabric.world_size for k in (0, 1))
    return items[first:last]


def together(items: list[T], fabric: Any) -> list[T]:
    """The small lists of all processes, one after the other."""
    if fabric.world_size == 1:
        return items
    parts: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def label(recipe: str, config: Any, data: dict[str, Any]) -> dict[str, Any]:
    """What is written beside the weights of a run: the recipe, its configuration and the record of its data."""
    return {"recipe": recipe, "config": json.loads(json.dumps(asdict(config), default=str)), "data": data}


def read_weights(file: Path, recipe: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a finished run and the record beside them.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it was written by another recipe.
    """
    from safetensors.torch import load_file

    if not file.is_file():
        raise FileNotFoundError(f"weights {file} is missing; a run writes it when it has finished")
    record: dict[str, Any] = json.loads(file.with_suffix(".json").read_text())
    if record.get("recipe") != recipe:
        raise ValueError(f"weights {file} were made by the recipe {record.get('recipe')!r}, not by {recipe!r}")
    return load_file(file), record


def writer(out: Path, rows: int, fabric: Any) -> ShardWriter:
    """A writer for each process, into one folder that must hold no shard yet.

    Raises:
        FileExistsError: If it holds one: of a finished data set, or of a call that was interrupted.
    """
    if not (out / INDEX).is_file() and any(out.glob("*.safetensors")):
        raise FileExistsError(f"{out} holds shards of a call that did not finish; delete it or choose another folder")
    fabric.barrier()  # nobody writes before everybody has looked
    return ShardWriter(out, rows=rows, prefix=f"{fabric.global_rank:04d}-")


def finish(shards: ShardWriter, record: dict[str, Any], fabric: Any) -> Path:
    """Write the last rows of every process, then the index; the folder."""
    shards.close()
    fabric.barrier()
    if fabric.is_global_zero:
        write_index(shards.folder, record)
    fabric.barrier()
    return shards.folder


def write_samples(
    draw: Draw,
    decode: Callable[[Tensor], Tensor],
    out: Path,
    record: dict[str, Any],
    *,
    name: str,
    rows: int,
    count: int,
    batch: int,
    seed: int,
    fabric: Any,
    settings: dict[str, Any],
    show: Callable[[int, Tensor], None] | None = None,
) -> Path:
    """Draw samples, the classes in turn, into a folder of shards: the same ones on any number of processes.

    Args:
        draw: Draws states. A batch has its own generator, and the last one is drawn as if it were full.
        decode: From states to what is stored.
        out: Folder of the samples.
        record: That of the weights.
        name: Of the stored field.
        rows: Of a shard.
        count: Number of samples.
        batch: Samples drawn at once.
        seed: Of the noise.
        fabric: The processes.
        settings: What the index says besides.
        show: Called with the number of the first and a batch of what is stored.

    Returns:
        The folder.

    Raises:
        ValueError, FileExistsError: If folder or numbers are wrong.
        FloatingPointError: If a sample is not finite.
    """
    check_positive("count", count, integer=True)
    check_positive("batch", batch, integer=True)
    shards = writer(out, rows, fabric)
    for number in range(fabric.global_rank, -(-count // batch), fabric.world_size):
        first, last = number * batch, min((number + 1) * batch, count)
        generator = torch.Generator(fabric.device).manual_seed(seed_of(seed, number))
        y = torch.arange(first, last, device=fabric.device) % record["data"]["classes"]
        x = draw(batch, y, generator)
        if not x.isfinite().all():
            raise FloatingPointError(f"samples {first} to {last - 1} are not finite: more steps, or less guidance")
        stored = decode(x)
        shards.add(**{name: stored}, y=y, number=torch.arange(first, last))
        if show is not None:
            show(first, stored)
    return finish(shards, {**settings, "count": count, "seed": seed, "step": record["step"]}, fabric)


def preset(presets: Mapping[str, tuple[str, T]], name: str) -> T:
    """The configuration of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)}; got {name!r}")
    return presets[name][1]


def price(
    network: nn.Module, flops: float, run: Run, *, peak: float, utilisation: float, gpus: int, **besides: float
) -> dict[str, float]:
    """What a run costs, computed and printed: parameters, FLOPs of a sample's forward pass, GPU-hours, days."""
    hours = distributed.gpu_hours(flops, run.steps * run.batch_size, peak=peak, utilisation=utilisation)
    out = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "forward_flops": flops,
        "gpu_hours": hours,
        "days": hours / gpus / 24,
        **besides,
    }
    width = max(map(len, out))
    print("\n".join(f"{name:{width}s} {value:.4g}" for name, value in out.items()))
    return out


def smoke_settings(folder: Path, **given: Any) -> Run:
    """The settings of a run that is over in seconds on a CPU."""
    return Run(out=folder / "run", lr=1e-3, ema=0.9, precision="fp32", accelerator="cpu", workers=0, **given)


def smoke(
    run: Run,
    make: Callable[[Any], Any],
    train: Callable[[Any, Any], distributed.Result],
    sample: Callable[[Path, Any], Path],
    evaluate: Callable[[Path], dict[str, float]],
) -> dict[str, float]:
    """The whole pipeline of a recipe on made-up data; the training is interrupted half-way and goes on.

    Args:
        run: The settings.
        make: From the processes to the configuration, without its run; makes the data up and stores them.
        train: Trains by a configuration on the processes.
        sample: From weights and processes to the folder of samples.
        evaluate: From samples to figures.

    Returns:
        The figures; only the first process has them.
    """
    fabric = distributed.connect(run)
    config = make(fabric)
    train(replace(config, run=replace(run, steps=run.steps // 2)), fabric)
    result = train(replace(config, run=run), fabric)
    if result.weights is None:
        raise RuntimeError(f"the run stopped at step {result.step}")
    samples = sample(result.weights, fabric)
    figures = evaluate(samples) if fabric.is_global_zero else {}
    fabric.barrier()
    return figures
