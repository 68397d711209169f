"""Next-token generation of ImageNet latents, a flow for each token: `python -m flowlib.recipes.imagenet_ar train ar-l`.

An autoregressive model without a codebook (Li et al., 2024): a causal transformer reads the patches in raster order and
gives a vector for the next one; a small network is the velocity of a flow from noise to that patch, given the vector.
It differs from the paper's models on purpose: the order is raster and attention is causal (their baseline, not their
masked model), the loss is flow matching on the linear path instead of a diffusion loss, and the class modulates every
block, as in a DiT, besides being the first token. Next-scale heads are not here yet: they come with the part of the
book on autoregressive flows. The latents come from `flowlib.recipes.imagenet_latents`. Commands:

    train PRESET    train, or go on with the run in --run.out         (any number of processes, torchrun or SLURM)
    sample          draw images with the trained weights               (any number of processes)
    evaluate        FID, KID, precision and recall of samples          (one process)
    estimate        parameters, FLOPs and GPU-hours of a preset
    --smoke         all of it on made-up images, on the CPU, in under a minute

On one node with eight GPUs:

    torchrun --nproc-per-node 8 -m flowlib.recipes.imagenet_ar train ar-l --data latents --run.out runs/ar-l

Under SLURM, on four such nodes (the same command goes on after a time limit, with `#SBATCH --signal=TERM@120`):

    srun --nodes 4 --ntasks-per-node 8 python -m flowlib.recipes.imagenet_ar train ar-l \\
        --data latents --run.out runs/ar-l --run.devices 8 --run.nodes 4
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowlib import nets, objectives, paths, solvers
from flowlib._checks import check_positive
from flowlib.control import CombinedField, Term
from flowlib.fields import Field, NetworkField
from flowlib.recipes import _cli, _images, _runs, _smoke
from flowlib.recipes._evaluation import evaluate
from flowlib.training import distributed
from flowlib.training.distributed import Run

__all__ = ["PRESETS", "Config", "Model", "decode", "estimate", "evaluate", "load", "main", "sample", "smoke", "train"]

PATH = paths.linear()


@dataclass(frozen=True)
class Model:
    """The causal transformer and its flow head.

    Attributes:
        size: Height and width of a latent, in latent pixels (a 256-pixel image has 32).
        channels: Channels of a latent.
        patch: Side of a token, in latent pixels.
        width: Size of a token's vector in the transformer.
        depth: Number of transformer blocks.
        heads: Attention heads.
        head_width: Width of the flow head.
        head_depth: Blocks of the flow head.
        classes: Number of classes.
        draws: Noisy copies of each token in training.
    """

    size: int = 32
    channels: int = 4
    patch: int = 2
    width: int = 1024
    depth: int = 32
    heads: int = 16
    head_width: int = 1280
    head_depth: int = 8
    classes: int = 1000
    draws: int = 4

    def build(self) -> nets.NextToken:
        """The network, with torch's global generator."""
        return nets.NextToken(**asdict(self))


@dataclass(frozen=True)
class Config:
    """What is trained, on what, and how.

    Attributes:
        data: Folder of latents, written by imagenet_latents.
        model: The network.
        times: Law of the training times: uniform, or logit_normal (more in the middle).
        drop_condition: Share of labels hidden from the network, for classifier-free guidance.
        run: Length, batch, optimiser, processes.
    """

    data: Path = Path("data/imagenet-latents")
    model: Model = field(default_factory=Model)
    times: Literal["uniform", "logit_normal"] = "uniform"
    drop_condition: float = 0.1
    run: Run = field(default_factory=Run)


def _ar(name: str, width: int, depth: int, heads: int, head: tuple[int, int]) -> tuple[str, Config]:
    run = Run(
        out=Path(f"runs/{name}"), steps=500_000, batch_size=2048, lr=8e-4, beta2=0.95, weight_decay=0.02,
        warmup=62_500, clip=3.0,
    )  # fmt: skip
    model = Model(width=width, depth=depth, heads=heads, head_width=head[0], head_depth=head[1])
    return f"width {width}, depth {depth}, head {head[0]} x {head[1]}, 800 epochs of 2048", Config(model=model, run=run)


PRESETS: dict[str, tuple[str, Config]] = {
    "ar-b": _ar("ar-b", 768, 24, 12, (1024, 6)),
    "ar-l": _ar("ar-l", 1024, 32, 16, (1280, 8)),
    "ar-h": _ar("ar-h", 1280, 40, 16, (1536, 12)),
}
"""Width, depth and head of MAR-B, -L and -H, with encoder and decoder put end to end; four noises a token; batch, rate,
warm-up, clipping and length as the authors' code has them. Not theirs: the tokens (2 x 2 pixels of a 4-channel latent,
not one of 16 channels), no dropout, decay of all weights. The class modulation adds half as many weights again."""


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
    drawn = _images.drawn(latents.record)

    def objective(wrapped: nn.Module) -> Any:
        return objectives.flow_matching(NetworkField(wrapped, PATH), times=times, drop_condition=config.drop_condition)

    def prepare(batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x, conditions = drawn(batch, generator)
        rows = network.rows(x)
        return rows, {"clean": rows, "y": conditions["y"].repeat_interleave(len(rows) // len(x))}

    return distributed.train(
        network,
        objective,
        latents,
        config.run,
        fabric=fabric,
        prepare=prepare,
        flops=_flops(network),
        record=_runs.label("imagenet_ar", config, latents.record),
    )


def load(weights: Path) -> tuple[nets.NextToken, dict[str, Any]]:
    """The network of trained weights, and the record beside them.

    Raises:
        FileNotFoundError: If there are no weights.
        ValueError: If they are of another recipe.
    """
    tensors, record = _runs.read_weights(weights, "imagenet_ar")
    network = Model(**record["config"]["model"]).build()
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False), record


@torch.no_grad()
def decode(
    network: nets.NextToken,
    x0: Tensor,
    y: Tensor | None = None,
    *,
    steps: int = 25,
    method: Literal["euler", "midpoint", "heun", "rk4"] = "heun",
    guidance: float = 1.0,
) -> Tensor:
    """Draw images token by token from noise.

    With guidance, two sequences grow side by side that share their tokens: one knows the class, the other does not, and
    the velocity of the next token is pushed from the second one's prediction to the first one's.

    Args:
        network: The network.
        x0: Noise `[images, tokens, dim]`.
        y: Labels `[images]`, or `None`.
        steps: Solver steps a token.
        method: Solver.
        guidance: Scale of classifier-free guidance; 1 is without.

    Returns:
        Images `[images, channels, size, size]`.

    Raises:
        ValueError: If `x0` has the wrong shape, or there is guidance without labels.

    Example:
        >>> net = nets.NextToken(size=8, channels=1, patch=4, width=16, depth=1, heads=2, classes=10)
        >>> decode(net, torch.randn(3, 4, 16), torch.tensor([0, 1, 2]), steps=2, guidance=1.5).shape
        torch.Size([3, 1, 8, 8])
    """
    if tuple(x0.shape[1:]) != (network.tokens, *network.event):
        raise ValueError(f"x0 must have shape [n, {network.tokens}, {network.event[0]}], got {list(x0.shape)}")
    if guidance != 1 and y is None:
        raise ValueError("y must be given with guidance: there is no class to move towards")
    head = NetworkField(network.head, PATH)
    known, blind = network.caches(len(x0)), network.caches(len(x0))
    token, done = None, []
    for i in range(network.tokens):
        z = network.advance(token, known, y)
        velocity: Field = head
        if guidance != 1:
            velocity = CombinedField(
                Term(head, {"z": network.advance(token, blind)}), [(guidance, Term(head, {"z": z}))]
            )
        token = solvers.ode(velocity, x0[:, i], steps=steps, method=method, keep=False, z=z).end
        done.append(token)
    return network.images(torch.stack(done, 1))


def sample(
    weights: Path,
    out: Path,
    count: int = 50_000,
    steps: int = 25,
    method: Literal["euler", "midpoint", "heun", "rk4"] = "heun",
    guidance: float = 1.5,
    batch: int = 64,
    seed: int = 0,
    devices: int = 1,
    nodes: int = 1,
    vae: Path | None = None,
    fabric: Any = None,
) -> Path:
    """Draw images, the classes in turn, as a folder of shards: the same ones on any number of processes.

    Args:
        weights: The file a finished run wrote, `weights.safetensors`.
        out: Folder of the samples.
        count: Number of images.
        steps: Solver steps a token.
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
    network, record = load(weights)
    fabric = _runs.processes(devices, nodes, fabric)
    network = network.to(fabric.device)

    def draw(size: int, y: Tensor, generator: torch.Generator) -> Tensor:
        shape = (size, network.tokens, *network.event)
        x0 = torch.randn(shape, generator=generator, device=fabric.device)[: len(y)]
        return decode(network, x0, y, steps=steps, method=method, guidance=guidance)

    pixels = _images.decoder(record["data"], vae, fabric.device)
    settings = {"weights": str(weights), "steps": steps, "method": method, "guidance": guidance}
    return _runs.write_samples(
        draw, pixels, out, record, name="image", rows=1024, count=count, batch=batch, seed=seed, fabric=fabric,
        settings=settings,
    )  # fmt: skip


def estimate(preset: str = "ar-l", peak: float = 989e12, utilisation: float = 0.4, gpus: int = 8) -> dict[str, float]:
    """What a preset costs: computed, not measured.

    Args:
        preset: Name of a preset.
        peak: FLOP/s of one GPU in bf16 (H100 and H200: 989e12).
        utilisation: The part of the peak that training reaches.
        gpus: Number of GPUs, for the days.

    Returns:
        Parameters, FLOPs of a training forward pass of one image (all draws), GPU-hours and days.

    Raises:
        ValueError: If the preset is unknown.
    """
    config = _runs.preset(PRESETS, preset)
    with torch.device("meta"):
        network = config.model.build()
    return _runs.price(network, _flops(network), config.run, peak=peak, utilisation=utilisation, gpus=gpus)


def _flops(network: nets.NextToken) -> float:
    """Of an image with all its draws; attention is counted as if it were not causal."""
    count = network.tokens * network.draws
    rows = torch.empty(count, *network.event, device="meta")
    return count * distributed.count_flops(network, rows, torch.empty(count, device="meta"), clean=rows)


def smoke(folder: Path) -> dict[str, float]:
    """The whole pipeline on made-up images, on the CPU: images, latents, training, a resume, samples, evaluation.

    Args:
        folder: Where it works; what an earlier call left there is deleted.

    Returns:
        The figures of the evaluation, on features of a random network.
    """

    def config(data: Path) -> Config:
        model = Model(
            size=16, channels=3, patch=4, width=64, depth=2, heads=4, head_width=64, head_depth=2, classes=4, draws=2
        )
        return Config(data=data, model=model)

    return _smoke.pipeline(folder, config, train, sample)


def main(arguments: Sequence[str] | None = None) -> Any:
    """The command line: see the top of this file."""
    commands: _cli.Commands = {"train": train, "sample": sample, "evaluate": evaluate, "estimate": estimate}
    return _cli.main(commands, PRESETS, smoke, __doc__, arguments)


if __name__ == "__main__":
    main()
