"""Train a causal video flow on a folder of clips: `python -m flowlib.recipes.video_flow train clips-64`.

A diffusion transformer over frames in causal order, trained by teacher forcing (a noisy frame sees the clean frames
before it) or diffusion forcing (every frame has its own time; Chen et al., 2024), sampled frame by frame with a rolling
cache. Commands:

    clips           decode a folder of videos into shards of clips     (any number of processes, torchrun or SLURM)
    train PRESET    train, or go on with the run in --run.out          (any number of processes)
    sample          draw clips of any length with the trained weights  (any number of processes)
    evaluate        FVD, and the drift of the frames                   (one process)
    estimate        parameters, FLOPs, GPU-hours and cache of a preset
    --smoke         all of it on made-up videos, on the CPU, in under a minute

On one node with eight GPUs:

    torchrun --nproc-per-node 8 -m flowlib.recipes.video_flow train clips-64 --data clips --run.out runs/clips-64

Under SLURM, on four such nodes (the same command goes on after a time limit, with `#SBATCH --signal=TERM@120`):

    srun --nodes 4 --ntasks-per-node 8 python -m flowlib.recipes.video_flow train clips-64 \\
        --data clips --run.out runs/clips-64 --run.devices 8 --run.nodes 4
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowlib import objectives, paths
from flowlib._checks import check_positive
from flowlib.control import classifier_free
from flowlib.data.shards import Shards
from flowlib.fields import NetworkField
from flowlib.kernels import visible_pairs
from flowlib.objectives.times import Times, TimeSampler
from flowlib.recipes import _cli, _clips, _runs
from flowlib.recipes._clip_evaluation import evaluate
from flowlib.recipes._clips import clips
from flowlib.recipes._video_presets import PRESETS, Config, Model
from flowlib.training import distributed
from flowlib.training.distributed import Prepare
from flowlib.video import rollout

__all__ = ["PRESETS", "Config", "Model", "clips", "estimate", "evaluate", "load", "main", "sample", "smoke", "train"]


def train(config: Config, fabric: Any = None) -> distributed.Result:
    """Train, or go on with the run that stands in `config.run.out`.

    Args:
        config: What, on what and how.
        fabric: Processes that already stand, or `None`.

    Raises:
        ValueError: If data and model do not fit, or as `flowlib.training.distributed.train` says.
        FileNotFoundError: If the data are missing.
    """
    data = Shards(config.data)
    model = config.model
    if data.record.get("shape") != model.shape:
        raise ValueError(f"data {config.data} has clips {data.record.get('shape')}, the model takes {model.shape}")
    if model.classes is not None and data.record["classes"] > model.classes:
        raise ValueError(f"data {config.data} has {data.record['classes']} classes, the model knows {model.classes}")
    fabric = distributed.connect(config.run) if fabric is None else fabric
    torch.manual_seed(config.run.seed)
    network = model.build()

    def objective(wrapped: nn.Module) -> Any:
        times = _shifted(config.shift)
        return objectives.flow_matching(_field(wrapped), times=times, drop_condition=config.drop_condition)

    return distributed.train(
        network,
        objective,
        data,
        config.run,
        fabric=fabric,
        prepare=_rows(config),
        flops=_flops(config),
        record=_runs.label("video_flow", config, data.record),
    )


def _field(network: nn.Module) -> NetworkField:
    return NetworkField(network, paths.linear())


def _rows(config: Config) -> Prepare:
    """From stored clips to frames as rows of the batch, the labels, and for teacher forcing the clean frames."""

    def prepare(batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        clip = batch["clip"]
        x = (clip.float() / 127.5 - 1 if clip.dtype == torch.uint8 else clip.float()).flatten(0, 1)
        conditions = {"clean": x} if config.forcing == "teacher" else {}
        if config.model.classes is not None:
            conditions["y"] = batch["y"].repeat_interleave(config.model.frames)
        return x, conditions

    return prepare


def _shifted(shift: float) -> TimeSampler:
    """Times whose sigma = 1 - t is a shifted uniform one (Esser et al., 2024)."""

    def sample(
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Times:
        u = torch.rand(n, generator=generator, dtype=dtype, device=device)
        return Times(_shift(u, shift))

    return sample


def _shift(t: Tensor, shift: float) -> Tensor:
    return t / (t + shift * (1 - t))


def load(weights: Path, window: int | None = None, sink: int | None = None) -> tuple[NetworkField, dict[str, Any]]:
    """The field of trained weights, and the record beside them.

    Args:
        weights: The file a finished run wrote, `weights.safetensors`.
        window: Frames that a frame sees, instead of those of the training.
        sink: First frames that every frame sees, instead of those of the training.

    Raises:
        FileNotFoundError: If there are no weights.
        ValueError: If they are of another recipe.
    """
    tensors, record = _runs.read_weights(weights, "video_flow")
    model = Model(**record["config"]["model"])
    changes = {"window": window, "sink": sink}
    network = replace(model, **{name: value for name, value in changes.items() if value is not None}).build()
    network.load_state_dict(tensors)
    return _field(network).eval().requires_grad_(False), record


def sample(
    weights: Path,
    out: Path,
    count: int = 256,
    frames: int | None = None,
    steps: int = 20,
    method: Literal["euler", "midpoint", "heun", "rk4"] = "heun",
    guidance: float = 1.0,
    window: int | None = None,
    sink: int | None = None,
    batch: int = 4,
    videos: int = 0,
    seed: int = 0,
    devices: int = 1,
    nodes: int = 1,
    vae: Path | None = None,
    fabric: Any = None,
) -> Path:
    """Draw clips frame by frame, the classes in turn, as a folder of shards: the same on any number of processes.

    Args:
        weights: The file a finished run wrote, `weights.safetensors`.
        out: Folder of the samples.
        count: Number of clips.
        frames: Their length; None is that of the training. Longer ones should have a window.
        steps: Solver steps a frame.
        method: Solver.
        guidance: Scale of classifier-free guidance; 1 is without.
        window: Frames that a frame sees, its own included, and so the length of the rolling cache.
        sink: First frames that stay in the cache.
        batch: Clips drawn at once.
        videos: So many of the first clips are also written as .mp4 files.
        seed: Of the noise.
        devices: Processes on a node (torchrun's --nproc-per-node wins).
        nodes: Nodes (torchrun's --nnodes wins).
        vae: Folder of the autoencoder's weights, if the data are its latents.
        fabric: Processes that already stand, or None.

    Returns:
        The folder.

    Raises:
        ValueError, FileNotFoundError: If weights, folder or numbers are wrong.
    """
    check_positive("steps", steps, integer=True)
    field_, record = load(weights, window=window, sink=sink)
    model = Model(**record["config"]["model"])
    length = model.frames if frames is None else frames
    check_positive("frames", length, integer=True)
    if guidance != 1 and model.classes is None:
        raise ValueError(f"guidance must be 1 for a network without classes, got {guidance}")
    fabric = _runs.processes(devices, nodes, fabric)
    decode = _clips.decoder(record["data"], vae, fabric.device)
    field_ = field_.to(fabric.device)
    grid = _shift(torch.linspace(0, 1, steps + 1, device=fabric.device), record["config"]["shift"])

    def draw(size: int, y: Tensor, generator: torch.Generator) -> Tensor:
        shape = (size, length, *model.shape[1:])
        return rollout(
            field_,
            torch.randn(shape, generator=generator, device=fabric.device)[: len(y)],
            times=grid,
            method=method,
            y=y if model.classes is not None else None,
            guide=(lambda own: classifier_free(own, guidance)) if guidance != 1 else None,
        )

    def show(first: int, clip: Tensor) -> None:
        for place in range(first, min(first + len(clip), videos)):
            _clips.write(out / f"{place:06d}.mp4", clip[place - first].cpu(), record["data"]["fps"])

    settings = {
        "weights": str(weights), "frames": length, "steps": steps, "method": method,
        "guidance": guidance, "window": window, "sink": sink,
    }  # fmt: skip
    return _runs.write_samples(
        draw, decode, out, record, name="clip", rows=64, count=count, batch=batch, seed=seed, fabric=fabric,
        settings=settings, show=show,
    )  # fmt: skip


def estimate(
    preset: str = "clips-64", peak: float = 989e12, utilisation: float = 0.4, gpus: int = 8
) -> dict[str, float]:
    """What a preset costs: computed, not measured.

    Args:
        preset: Name of a preset.
        peak: FLOP/s of one GPU in bf16 (H100 and H200: 989e12).
        utilisation: The part of the peak that training reaches.
        gpus: Number of GPUs, for the days.

    Returns:
        Parameters, FLOPs of a training clip's forward pass, GPU-hours (without the recomputation of activations), days,
        and the bytes of a frame in the cache, in 16 bits.

    Raises:
        ValueError: If the preset is unknown.
    """
    config = _runs.preset(PRESETS, preset)
    model = config.model
    with torch.device("meta"):
        network = model.build()
    return _runs.price(
        network,
        _flops(config),
        config.run,
        peak=peak,
        utilisation=utilisation,
        gpus=gpus,
        cache_bytes_a_frame=4 * model.depth * model.width * network.backbone.frame,
    )


def _flops(config: Config) -> float:
    """Of the forward pass of one training clip: pairs of tokens that a frame does not see cost nothing."""
    model = config.model
    with torch.device("meta"):
        network = model.build()
    x, t = torch.empty(model.shape), torch.empty(model.frames)
    conditions = {"clean": x} if config.forcing == "teacher" else {}
    counted = distributed.count_flops(network, x, t, **conditions) * model.frames
    frame = network.backbone.frame
    tokens = model.frames * frame
    seen = visible_pairs(tokens, frame=frame, window=model.window, sink=model.sink)
    return counted - 4 * model.width * model.depth * (tokens**2 - seen)


def smoke(folder: Path) -> dict[str, float]:
    """The whole pipeline on made-up videos, on the CPU: videos, clips, training, a resume, samples, evaluation.

    Args:
        folder: Where it works; what an earlier call left there is deleted.

    Returns:
        The figures of the evaluation, on features of a random network.
    """

    def make(fabric: Any) -> Config:
        _clips.make_up(folder, fabric)
        data = clips(
            folder / "videos", folder / "clips", frames=6, fps=8, height=16, width=16, per_video=2, fabric=fabric
        )
        return Config(
            data=data, model=Model(frames=6, height=16, wide=16, patch=8, width=32, depth=2, heads=2, classes=2)
        )

    return _runs.smoke(
        _runs.smoke_settings(folder, steps=8, batch_size=8, micro_batch=2, save_every=4, log_every=2),
        make,
        train,
        lambda weights, fabric: sample(
            weights, folder / "samples", count=12, frames=9, steps=4, guidance=1.5, window=3, sink=1, videos=2,
            fabric=fabric,
        ),
        lambda samples: evaluate(samples, folder / "clips", features="random"),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> Any:
    """The command line: see the top of this file."""
    commands: _cli.Commands = {
        "clips": clips,
        "train": train,
        "sample": sample,
        "evaluate": evaluate,
        "estimate": estimate,
    }
    return _cli.main(commands, PRESETS, smoke, __doc__, arguments)


if __name__ == "__main__":
    main()
