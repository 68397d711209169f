r"""Train the digit scores of the chapter on score SDEs: `python -m flowlib.recipes.digits_scores`.

One class-conditional network for each of VP, sub-VP and VE, a few minutes each on one core; `load` returns them as
fields. Every tenth training image is held out: the weights kept are those with the smallest loss there. The test
images are never seen.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowlib import data, nets, paths
from flowlib._checks import check_choice, expand_time
from flowlib.fields import NetworkField
from flowlib.objectives import Times, denoising_score_matching, importance
from flowlib.training import EMA

__all__ = ["END", "PATHS", "Config", "ScoreNet", "load", "main", "train"]

WEIGHTS = Path(__file__).parent.parent / "weights"
PATHS: dict[str, Callable[[], paths.GaussianPath]] = {
    "vp": paths.vp,
    "sub_vp": paths.sub_vp,
    "ve": lambda: paths.ve(0.01, 12.0),
}
END = 0.999
"""The last time of training; later scores of VP and sub-VP grow without bound."""


@dataclass(frozen=True)
class Config:
    """Settings of the recipe.

    Attributes:
        steps: Gradient steps.
        batch_size: Images a step.
        lr: Peak learning rate of AdamW; it falls to zero along a cosine.
        width: Width of the network.
        blocks: Residual blocks of the network.
        dropout: Dropout rate inside the blocks.
        ema: Decay of the average of the weights.
        drop_condition: Share of images whose label is hidden.
        every: Steps between two looks at the held-out loss.
        seed: Seed of initialisation, batches and noise.
    """

    steps: int = 8000
    batch_size: int = 128
    lr: float = 1e-3
    width: int = 256
    blocks: int = 3
    dropout: float = 0.2
    ema: float = 0.999
    drop_condition: float = 0.3
    every: int = 500
    seed: int = 0


class ScoreNet(nn.Module):
    r"""Predicts the noise of a noisy digit: a Gaussian fit of the pixels plus a residual perceptron.

    With $s = \sigma_t/\alpha_t$, the scaled state $z = x/\alpha_t = x_1 + s x_0$, and the mean $m$ and deviation $d$ of
    each pixel, $w = 1/\sqrt{s^2 + d^2}$ and

    $$ \hat x_0 = s\,w^2 (z - m) + d\,w\,F\big(w (z - m), \log s, y\big). $$

    The first term is exact for independent Gaussian pixels; inputs and outputs of $F$ have unit size at every noise
    level, for every one of the SDEs (Karras et al., 2022, section 5, with one deviation for all pixels). The score is
    $-\hat x_0/\sigma_t$.

    Args:
        path: The path.
        width: Width.
        blocks: Number of residual blocks.
        dropout: Dropout rate.

    Example:
        >>> net = ScoreNet(paths.vp(), width=16, blocks=1)
        >>> net(torch.zeros(2, 1, 8, 8), torch.zeros(2), y=torch.tensor([3, -1])).shape     # -1: no class
        torch.Size([2, 1, 8, 8])
    """

    mean: Tensor
    std: Tensor
    ends: Tensor

    def __init__(self, path: paths.GaussianPath, width: int = 256, blocks: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.path = path
        self.register_buffer("mean", torch.zeros(data.digits.EVENT_SHAPE))
        self.register_buffer("std", torch.ones(data.digits.EVENT_SHAPE))
        self.register_buffer("ends", -path.schedule.log_snr(torch.tensor([END, 0.0])) / 2)
        self.first = nn.Linear(64, width)
        self.time = nets.TimeEmbedding(width)
        self.labels = nets.LabelEmbedding(data.digits.CLASSES, width)
        self.body = nn.ModuleList(_Block(width, dropout) for _ in range(blocks))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, 64))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The noise in states `[batch, 1, 8, 8]` at times `[batch]`; labels -1, or `None`, mean no class."""
        log_s = -self.path.schedule.log_snr(t) / 2
        s, alpha = (expand_time(value, x) for value in (log_s.exp(), self.path.schedule.alpha(t)))
        w = (s**2 + self.std**2).rsqrt()
        scaled = w * (x / alpha - self.mean)
        embedding = self.time((log_s - self.ends[0]) / (self.ends[1] - self.ends[0])) + self.labels(y, len(x))
        h = self.first(scaled.flatten(1))
        for block in self.body:
            h = block(h, embedding)
        out: Tensor = s * w * scaled + self.std * w * self.last(h).reshape(x.shape)
        return out


class _Block(nn.Module):
    """A residual layer; the embedding enters before the nonlinearity."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        inner = nn.functional.silu(self.first(self.norm(h) + embedding))
        out: Tensor = h + self.second(self.dropout(inner))
        return out


def load(name: str) -> NetworkField:
    """The shipped field of one of the SDEs.

    Args:
        name: `"vp"`, `"sub_vp"` or `"ve"`.

    Returns:
        A field that predicts the noise, in evaluation mode, float32, on the CPU. Labels go to `y=`; -1, or none at
        all, is the unconditional field. It was trained on times from 0 to `END`.

    Raises:
        ValueError: If the name is unknown.
        FileNotFoundError: If the weights are missing.

    Example:
        >>> field = load("vp")
        >>> field.score(torch.zeros(2, 1, 8, 8), 0.5, y=torch.tensor([3, 8])).shape
        torch.Size([2, 1, 8, 8])
    """
    check_choice("name", name, tuple(PATHS))
    return read(WEIGHTS / f"digits_score_{name}.safetensors")


def read(file: Path) -> NetworkField:
    """The field in a file that `main` wrote; the settings come from the JSON record beside it."""
    from safetensors.torch import load_file

    if not file.is_file():
        raise FileNotFoundError(f"no weights at {file}; run python -m flowlib.recipes.digits_scores")
    record = json.loads(file.with_suffix(".json").read_text())
    path, config = PATHS[record["name"]](), record["config"]
    net = ScoreNet(path, config["width"], config["blocks"]).float()
    net.load_state_dict({key: value.float() for key, value in load_file(file).items()})
    return NetworkField(net, path, predicts="noise").eval().requires_grad_(False)


def train(name: str, config: Config, *, verbose: bool = False) -> tuple[NetworkField, dict[str, Any]]:
    r"""Train one field.

    Half of the times are uniform, half have a density proportional to $g_t^2/\sigma_t^2$. The unweighted error of the
    noise on them is the mean of the paper's default loss and (a multiple of) its likelihood-weighted loss.

    Args:
        name: A key of `PATHS`.
        config: The settings.
        verbose: Print the losses on the way.

    Returns:
        The field with the weights of the smallest held-out loss, and what to record: that step, and the losses on
        training, held-out and test images with the same noise.

    Example:
        >>> field, record = train("ve", Config(steps=2, every=1, width=8, blocks=1))
        >>> record["best_step"] in (1, 2)
        True
    """
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    path, whole, test_set = PATHS[name](), data.digits.load("train"), data.digits.load("test")
    held = torch.arange(len(whole)) % 10 == 0
    seen, unseen = data.Labelled(whole.x[~held], whole.y[~held]), data.Labelled(whole.x[held], whole.y[held])

    net = ScoreNet(path, config.width, config.blocks, config.dropout).float()
    net.mean.copy_(seen.x.mean(0))
    net.std.copy_((seen.x.var(0) + data.digits.BIN_WIDTH**2 / 12).sqrt())
    field = NetworkField(net, path, predicts="noise")

    def density(t: Tensor) -> Tensor:
        rate = path.drift_diffusion(t)[1] / path.schedule.sigma(t) ** 2
        return 1 + rate / rate.mean()

    corrected = importance(density, high=END)

    def times(n: int, **options: Any) -> Times:
        return Times(corrected(n, **options).t)  # without the weights that would undo the density

    objective = denoising_score_matching(field, times=times, drop_condition=config.drop_condition)

    def loss(images: data.Labelled, repeats: int, seed: int) -> float:
        draw, total = torch.Generator().manual_seed(seed), 0.0
        with torch.no_grad():
            for _ in range(repeats):
                x1 = data.digits.dequantize(images.x, generator=draw)
                x0 = torch.randn(x1.shape, generator=draw)
                total += float(objective(x0, x1, generator=draw, y=images.y).total)
        return total / repeats

    descent = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, config.steps)
    average = EMA(net, config.ema)
    best, best_step, kept = float("inf"), 0, {}
    for step in range(1, config.steps + 1):
        x, conditions = seen.sample(config.batch_size, generator=generator)
        x = data.digits.dequantize(x, generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        value = objective(noise, x, generator=generator, **conditions).total
        descent.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        descent.step()
        schedule.step()
        average.update()
        if step % config.every == 0 or step == config.steps:
            net.eval()
            with average.applied():
                there = loss(unseen, 40, 1)
                if there < best:
                    best, best_step = there, step
                    kept = {key: entry.clone() for key, entry in net.state_dict().items()}
            net.train()
            if verbose:
                print(f"{name} step {step}: held out {there:.4f} (best {best:.4f} at {best_step})", file=sys.stderr)
    net.load_state_dict(kept)
    field.eval().requires_grad_(False)
    losses = {"train": loss(seen, 5, 2), "held_out": best, "test": loss(test_set, 20, 2)}
    return field, {"best_step": best_step, "loss": {key: round(entry, 4) for key, entry in losses.items()}}


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, train, and write weights (float16) and their records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(PATHS), metavar="name", help=f"of {', '.join(PATHS)}; all")
    for field in fields(Config):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the folder of the safetensors files")
    given = vars(parser.parse_args(arguments))
    names, out = given.pop("names"), given.pop("out")
    config = Config(**given)

    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        check_choice("name", name, tuple(PATHS))
        trained, result = train(name, config, verbose=True)
        file = out / f"digits_score_{name}.safetensors"
        save_file({key: value.half() for key, value in trained.net.state_dict().items()}, file)
        record = {
            "command": f"python -m flowlib.recipes.digits_scores {name}",
            "name": name,
            "config": asdict(config),
            **result,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        file.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
        print(f"{name}: {result}; wrote {file.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
