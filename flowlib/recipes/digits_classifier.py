"""Train the classifier behind `flowlib.metrics.digits`: `python -m flowlib.recipes.digits_classifier`.

It takes about half a minute on one core. Training images are shifted and noised a little at random, so that the
features tolerate imperfect digits; the test images are never seen.
"""

import argparse
import json
import platform
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from flowlib import data
from flowlib.metrics.digits import WEIGHTS, Classifier

__all__ = ["Config", "main", "train"]


@dataclass(frozen=True)
class Config:
    """Settings of the recipe.

    Attributes:
        steps: Gradient steps.
        batch_size: Images a step.
        lr: Peak learning rate of AdamW.
        noise: Standard deviation of the pixel noise, on the scale [-1, 1].
        seed: Seed of initialisation and batches.
    """

    steps: int = 3000
    batch_size: int = 128
    lr: float = 2e-3
    noise: float = 0.15
    seed: int = 0


def train(config: Config) -> tuple[Classifier, float]:
    """Train the classifier.

    Args:
        config: The settings.

    Returns:
        The network in evaluation mode, and its accuracy on the test images.

    Example:
        >>> net, accuracy = train(Config(steps=2))
        >>> 0 <= accuracy <= 1
        True
    """
    generator = torch.Generator().manual_seed(config.seed)
    torch.manual_seed(config.seed)
    train_set, test_set = data.digits.load("train"), data.digits.load("test")
    net = Classifier()
    descent = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, config.steps)
    for _ in range(config.steps):
        x, conditions = train_set.sample(config.batch_size, generator=generator)
        x = _augmented(x, config.noise, generator)
        loss = nn.functional.cross_entropy(net(x), conditions["y"], label_smoothing=0.05)
        descent.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        descent.step()
        schedule.step()
    net.eval().requires_grad_(False)
    return net, float((net(test_set.x).argmax(1) == test_set.y).double().mean())


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, train, and write weights and their record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Config):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the safetensors file goes")
    given = vars(parser.parse_args(arguments))
    out = given.pop("out")
    config = Config(**given)
    net, accuracy = train(config)

    from safetensors.torch import save_file

    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), out)
    record = {
        "command": "python -m flowlib.recipes.digits_classifier",
        "config": asdict(config),
        "test_accuracy": round(accuracy, 4),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"test accuracy {accuracy:.4f}; wrote {out.name} and {out.with_suffix('.json').name}", file=sys.stderr)


def _augmented(x: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Shift each image by at most one pixel and add noise."""
    padded = nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)
    shift = torch.randint(0, 3, (2, len(x)), generator=generator)
    rows = (shift[0][:, None] + torch.arange(8))[:, :, None]  # (B, 8, 1)
    columns = (shift[1][:, None] + torch.arange(8))[:, None]  # (B, 1, 8)
    shifted = padded[torch.arange(len(x))[:, None, None], 0, rows, columns][:, None]
    return shifted + noise * torch.randn(x.shape, generator=generator)


if __name__ == "__main__":
    main()
