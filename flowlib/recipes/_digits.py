"""What the recipes of digit networks share: a residual perceptron, the loop that trains it, and the files."""

import json
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowlib import data, nets
from flowlib.fields import NetworkField, NetworkFlowMap
from flowlib.training import EMA
from flowlib.training.loop import Objective

__all__ = ["WEIGHTS", "Config", "DigitNet", "fit", "restore", "settings", "write"]

WEIGHTS = Path(__file__).parent.parent / "weights"


@dataclass(frozen=True)
class Config:
    """Settings of a recipe.

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


class DigitNet(nn.Module):
    """A residual perceptron on 8x8 images that knows the mean and deviation of each pixel.

    A subclass scales its input and output: at every noise level `residual` should see and give entries of unit size.

    Args:
        width: Width.
        blocks: Number of residual blocks.
        dropout: Dropout rate.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int = 256, blocks: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(data.digits.EVENT_SHAPE))
        self.register_buffer("std", torch.ones(data.digits.EVENT_SHAPE))
        self.first = nn.Linear(64, width)
        self.time = nets.TimeEmbedding(width)
        self.labels = nets.LabelEmbedding(data.digits.CLASSES, width)
        self.body = nn.ModuleList(_Block(width, dropout) for _ in range(blocks))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, 64))

    def residual(self, scaled: Tensor, time: Tensor, y: Tensor | None) -> Tensor:
        """F of scaled states `[batch, 1, 8, 8]`, a time in [0, 1] and labels; -1, or `None`, means no class."""
        embedding = self.time(time) + self.labels(y, len(scaled))
        h = self.first(scaled.flatten(1))
        for block in self.body:
            h = block(h, embedding)
        out: Tensor = self.last(h).reshape(scaled.shape)
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


def fit(
    field: NetworkField | NetworkFlowMap, objective: Objective, config: Config, *, report: str | None = None
) -> dict[str, Any]:
    """Train a field or a flow map on a `DigitNet` and leave it with the weights of the smallest held-out loss.

    Every tenth training image is held out; the test images only enter the last loss that is recorded.

    Args:
        field: The field; its network gets the pixels' mean and deviation, then learns.
        objective: Its loss.
        config: The settings.
        report: A name to print losses under on the way; `None` prints nothing.

    Returns:
        What to record: the step of the kept weights, and the losses on training, held-out and test images.
    """
    generator = torch.Generator().manual_seed(config.seed)
    whole, test_set = data.digits.load("train"), data.digits.load("test")
    held = torch.arange(len(whole)) % 10 == 0
    seen, unseen = data.Labelled(whole.x[~held], whole.y[~held]), data.Labelled(whole.x[held], whole.y[held])
    net = field.net
    net.get_buffer("mean").copy_(seen.x.mean(0))
    net.get_buffer("std").copy_((seen.x.var(0) + data.digits.BIN_WIDTH**2 / 12).sqrt())

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
        value.backward()
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
            if report is not None:
                print(f"{report} step {step}: held out {there:.4f} (best {best:.4f} at {best_step})", file=sys.stderr)
    net.load_state_dict(kept)
    field.eval().requires_grad_(False)
    losses = {"train": loss(seen, 5, 2), "held_out": best, "test": loss(test_set, 20, 2)}
    return {"best_step": best_step, "loss": {key: round(entry, 4) for key, entry in losses.items()}}


def write(file: Path, net: nn.Module, record: dict[str, Any], config: Config) -> None:
    """Write weights (float16) and, beside them, the JSON record of how they were made."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.half() for key, value in net.state_dict().items()}, file)
    whole = {**record, "config": asdict(config), "torch": torch.__version__, "python": platform.python_version()}
    file.with_suffix(".json").write_text(json.dumps(whole, indent=2) + "\n")


def settings(file: Path, recipe: str) -> dict[str, Any]:
    """The JSON record beside a file of weights.

    Raises:
        FileNotFoundError: If the weights are missing, with the command that makes them.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no weights at {file}; run python -m flowlib.recipes.{recipe}")
    record: dict[str, Any] = json.loads(file.with_suffix(".json").read_text())
    return record


def restore(net: nn.Module, file: Path) -> None:
    """Put the weights of a file that `write` wrote into a network, as float32."""
    from safetensors.torch import load_file

    net.load_state_dict({key: value.float() for key, value in load_file(file).items()})
