"""Train a class-conditional flow on ImageNet latents: `python -m flowlib.recipes.imagenet_flow train sit-xl-2`.

The scalable interpolant transformers (Ma et al., 2024) and, by two words of the configuration, the diffusion
transformers (Peebles and Xie, 2023): a DiT, a path, a prediction, the plain loss. The latents come from
`flowlib.recipes.imagenet_latents`. Commands:

    train PRESET    train, or go on with the run in --run.out         (any number of processes, torchrun or SLURM)
    sample          draw images with the trained weights               (any number of processes)
    evaluate        FID, KID, precision and recall of samples          (one process)
    estimate        parameters, FLOPs and GPU-hours of a preset
    --smoke         all of it on made-up images, on the CPU, in under a minute

On one node with eight GPUs:

    torchrun --nproc-per-node 8 -m flowlib.recipes.imagenet_flow train sit-xl-2 --data latents --run.out runs/sit-xl-2

Under SLURM, on four such nodes (the same command goes on after a time limit, with `#SBATCH --signal=TERM@120`):

    srun --nodes 4 --ntasks-per-node 8 python -m flowlib.recipes.imagenet_flow train sit-xl-2 \\
        --data latents --run.out runs/sit-xl-2 --run.devices 8 --run.nodes 4
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowlib import nets, objectives, paths, solvers
from flowlib._checks import check_positive
from flowlib.control import classifier_free
from flowlib.fields import NetworkField
from flowlib.recipes import _cli, _images, _runs, _smoke
from flowlib.recipes._evaluation import evaluate
from flowlib.training import distributed
from flowlib.training.distributed import Run

__all__ = ["PRESETS", "Config", "Model", "estimate", "evaluate", "load", "main", "sample", "smoke", "train"]

MARGIN = 1e-3
"""About one step of a diffusion with 1000 of them."""


@dataclass(frozen=True)
class Model:
    """The diffusion transformer.

    Attributes:
        size: Height and width of a latent, in latent pixels (a 256-pixel image has 32).
        channels: Channels of a latent.
        patch: Side of a token, in latent pixels.
        width: Size of a token's vector.
        depth: Number of blocks.
        heads: Attention heads.
        classes: Number of classes.
    """

    size: int = 32
    channels: int = 4
    patch: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    classes: int = 1000

    def build(self) -> nets.DiT:
        """The network, with torch's global generator."""
        return nets.DiT(**asdict(self))


@dataclass(frozen=True)
class Config:
    """What is trained, on what, and how.

    Attributes:
        data: Folder of latents, written by imagenet_latents.
        model: The network.
        path: linear (SiT), or vp, cosine (diffusion).
        predicts: What the network's output means.
        times: Law of the training times: uniform, or logit_normal (more in the middle; Esser et al., 2024).
        drop_condition: Share of labels hidden from the network, for classifier-free guidance.
        run: Length, batch, optimiser, processes.
    """

    data: Path = Path("data/imagenet-latents")
    model: Model = field(default_factory=Model)
    path: Literal["linear", "vp", "cosine"] = "linear"
    predicts: Literal["velocity", "noise", "data", "score"] = "velocity"
    times: Literal["uniform", "logit_normal"] = "uniform"
    drop_condition: float = 0.1
    run: Run = field(default_factory=Run)


def _sit(name: str, width: int, depth: int, heads: int) -> tuple[str, Config]:
    run = Run(out=Path(f"runs/{name}"), steps=400_000, clip=0.0)
    return f"{name.upper()}: width {width}, depth {depth}, 400k steps of 256", Config(
        model=Model(width=width, depth=depth, heads=heads), run=run
    )


PRESETS: dict[str, tuple[str, Config]] = {
    "sit-s-2": _sit("sit-s-2", 384, 12, 6),
    "sit-b-2": _sit("sit-b-2", 768, 12, 12),
    "sit-l-2": _sit("sit-l-2", 1024, 24, 16),
    "sit-xl-2": _sit("sit-xl-2", 1152, 28, 16),
    "sit-xl-2-7m": (
        "SiT-XL/2 for the paper's 7M steps",
        Config(run=Run(out=Path("runs/sit-xl-2-7m"), steps=7_000_000, clip=0.0, keep=3)),
    ),
    "dit-xl-2": (
        "the same network as a diffusion model: noise prediction on the VP path",
        Config(path="vp", predicts="noise", run=Run(out=Path("runs/dit-xl-2"), steps=400_000, clip=0.0)),
    ),
    "score-xl-2": (
        "score prediction on the VP path",
        Config(path="vp", predicts="score", run=Run(out=Path("runs/score-xl-2"), steps=400_000, clip=0.0)),
    ),
    "sit-xl-2-logit-normal": (
        "SiT-XL/2 with logit-normal times",
        Config(times="logit_normal", run=Run(out=Path("runs/sit-xl-2-logit-normal"), clip=0.0)),
    ),
}
"""The papers' settings: batch 256, constant learning rate 1e-4, no weight decay, no clipping, EMA 0.9999, labels hidden
10%. Ours: products in bfloat16, and for dit-xl-2 continuous times and no learned variance."""


def train(config: Config, fabric: Any = None) -> distributed.Result:
    """Train, or go on with the run that stands in `config.run.out`.

    Args:
        config: What, on what and how.
        fabric: Processes that already stand, or `None`.

    Raises:
        ValueError: If data and model do not fit, or as `flowlib.training.distributed.train` says.
        FileNotFoundError: If the data are missing.
    """
    model = config.model
    latents = _images.open_latents(config.data, (model.channels, model.size, model.size), model.classes)
    fabric = distributed.connect(config.run) if fabric is None else fabric
    torch.manual_seed(config.run.seed)
    network = model.build()
    times = objectives.logit_normal() if config.times == "logit_normal" else objectives.uniform()

    def objective(wrapped: nn.Module) -> Any:
        return objectives.flow_matching(_field(config, wrapped), times=times, drop_condition=config.drop_condition)

    return distributed.train(
        network,
        objective,
        latents,
        config.run,
        fabric=fabric,
        prepare=_images.drawn(latents.record),
        flops=distributed.count_flops(network, *_inputs(model)),
        record=_runs.label("imagenet_flow", config, latents.record),
    )


def load(weights: Path) -> tuple[NetworkField, dict[str, Any]]:
    """The field of trained weights, and the record beside them.

    Raises:
        FileNotFoundError: If there are no weights.
        ValueError: If they are of another recipe.
    """
    tensors, record = _runs.read_weights(weights, "imagenet_flow")
    given = record["config"]
    config = Config(model=Model(**given["model"]), path=given["path"], predicts=given["predicts"])
    network = config.model.build()
    network.load_state_dict(tensors)
    return _field(config, network).eval().requires_grad_(False), record


def sample(
    weights: Path,
    out: Path,
    count: int = 50_000,
    steps: int = 50,
    method: Literal["euler", "midpoint", "heun", "rk4", "ddim", "dpmpp_2m", "unipc_2"] = "heun",
    guidance: float = 1.5,
    batch: int = 64,
    seed: int = 0,
    devices: int = 1,
    nodes: int = 1,
    vae: Path | None = None,
    fabric: Any = None,
) -> Path:
    """Draw images, the classes in turn, as a folder of shards: the same ones on any number of processes.

    Of a network that predicts noise, data or a score, the velocity has no limit at one end of time or at both: the
    solver stays `MARGIN` away from them, and the last move is to the predicted data.

    Args:
        weights: The file a finished run wrote, `weights.safetensors`.
        out: Folder of the samples.
        count: Number of images.
        steps: Solver steps.
        method: Solver.
        guidance: Scale of classifier-free guidance; 1 is without.
        batch: Images drawn at once.
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
    field_, record = load(weights)
    fabric = _runs.processes(devices, nodes, fabric)
    field_ = field_.to(fabric.device)
    margin = 0.0 if field_.predicts == "velocity" else MARGIN
    grid = torch.linspace(margin, 1 - margin, steps + 1, device=fabric.device)
    guided = field_ if guidance == 1 else classifier_free(field_, guidance)

    def draw(size: int, y: Tensor, generator: torch.Generator) -> Tensor:
        shape = (size, *record["data"]["shape"])
        x0 = field_.path.sample_prior(shape, generator=generator, device=fabric.device)[: len(y)]
        x = solvers.ode(guided, x0, times=grid, method=method, keep=False, y=y).end
        return guided.data(x, 1 - MARGIN, y=y) if margin else x

    decode = _images.decoder(record["data"], vae, fabric.device)
    settings = {"weights": str(weights), "steps": steps, "method": method, "guidance": guidance}
    return _runs.write_samples(
        draw, decode, out, record, name="image", rows=1024, count=count, batch=batch, seed=seed, fabric=fabric,
        settings=settings,
    )  # fmt: skip


def estimate(
    preset: str = "sit-xl-2", peak: float = 989e12, utilisation: float = 0.4, gpus: int = 8
) -> dict[str, float]:
    """What a preset costs: computed, not measured.

    Args:
        preset: Name of a preset.
        peak: FLOP/s of one GPU in bf16 (H100 and H200: 989e12).
        utilisation: The part of the peak that training reaches.
        gpus: Number of GPUs, for the days.

    Returns:
        Parameters, FLOPs of a forward pass of one image, GPU-hours and days.

    Raises:
        ValueError: If the preset is unknown.
    """
    config = _runs.preset(PRESETS, preset)
    with torch.device("meta"):
        network = config.model.build()
    flops = distributed.count_flops(network, *_inputs(config.model))
    return _runs.price(network, flops, config.run, peak=peak, utilisation=utilisation, gpus=gpus)


def _field(config: Config, network: nn.Module) -> NetworkField:
    return NetworkField(network, paths.by_name(config.path), predicts=config.predicts)


def _inputs(model: Model) -> tuple[Tensor, Tensor]:
    return torch.empty(1, model.channels, model.size, model.size), torch.empty(1)


def smoke(folder: Path) -> dict[str, float]:
    """The whole pipeline on made-up images, on the CPU: images, latents, training, a resume, samples, evaluation.

    Args:
        folder: Where it works; what an earlier call left there is deleted.

    Returns:
        The figures of the evaluation, on features of a random network.
    """

    def config(data: Path) -> Config:
        model = Model(size=16, channels=3, patch=4, width=64, depth=2, heads=4, classes=4)
        return Config(data=data, model=model)

    return _smoke.pipeline(folder, config, train, sample)


def main(arguments: Sequence[str] | None = None) -> Any:
    """The command line: see the top of this file."""
    commands: _cli.Commands = {"train": train, "sample": sample, "evaluate": evaluate, "estimate": estimate}
    return _cli.main(commands, PRESETS, smoke, __doc__, arguments)


if __name__ == "__main__":
    main()
