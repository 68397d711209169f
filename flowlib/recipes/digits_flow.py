r"""Train the digit flow of Parts 3 and 4: `python -m flowlib.recipes.digits_flow`.

One class-conditional velocity network on the linear path, and with `--weak` a smaller one trained for less (the bad
version of itself that autoguidance needs); minutes on one core. `load` returns them as fields.
"""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowlib import paths
from flowlib._checks import expand_time
from flowlib.fields import NetworkField
from flowlib.objectives import flow_matching
from flowlib.recipes._digits import WEIGHTS, Config, DigitNet, fit, restore, settings, write

__all__ = ["WEAK", "WEIGHTS", "Config", "FlowNet", "load", "main", "read", "train"]

WEAK = {"width": 64, "blocks": 1, "steps": 1000, "every": 250}
"""What the weak version changes in the settings."""


class FlowNet(DigitNet):
    r"""The velocity of noisy digits on the linear path: a Gaussian fit of the pixels plus a residual perceptron.

    With the mean $m$ and deviation $d$ of each pixel and $w = 1/\sqrt{t^2 d^2 + (1-t)^2}$,

    $$ v(x, t) = m + \big(t d^2 - (1 - t)\big) w^2 (x - t m) + d\,w\,F\big(w (x - t m), t, y\big) . $$

    The first two terms are exact for independent Gaussian pixels; inputs and outputs of $F$ have unit size at all
    times (Karras et al., 2022, section 5, for one deviation and their schedule). Nothing is divided by $t$ or $1-t$.

    Args:
        width: Width.
        blocks: Number of residual blocks.
        dropout: Dropout rate.

    Example:
        >>> net = FlowNet(width=16, blocks=1)
        >>> net(torch.zeros(2, 1, 8, 8), torch.zeros(2), y=torch.tensor([3, -1])).shape     # -1: no class
        torch.Size([2, 1, 8, 8])
    """

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The velocity at states `[batch, 1, 8, 8]` and times `[batch]`; labels -1, or `None`, mean no class."""
        time = expand_time(t, x)
        variance = self.std**2
        w = (time**2 * variance + (1 - time) ** 2).rsqrt()
        scaled = w * (x - time * self.mean)
        out: Tensor = self.mean + (time * variance - (1 - time)) * w * scaled
        return out + self.std * w * self.residual(scaled, t, y)


def load(*, weak: bool = False) -> NetworkField:
    """The shipped field.

    Args:
        weak: The smaller network, trained for less.

    Returns:
        A field on the linear path that predicts the velocity, in evaluation mode, float32, on the CPU. Labels go to
        `y=`; -1, or none at all, is the unconditional field.

    Raises:
        FileNotFoundError: If the weights are missing.

    Example:
        >>> field = load()
        >>> field.velocity(torch.zeros(2, 1, 8, 8), 0.5, y=torch.tensor([3, 8])).shape
        torch.Size([2, 1, 8, 8])
    """
    return read(WEIGHTS / f"digits_flow{'_weak' if weak else ''}.safetensors")


def read(file: Path) -> NetworkField:
    """The field in a file that `main` wrote; the settings come from the JSON record beside it."""
    config = settings(file, "digits_flow")["config"]
    net = FlowNet(config["width"], config["blocks"]).float()
    restore(net, file)
    return NetworkField(net, paths.linear(), predicts="velocity").eval().requires_grad_(False)


def train(config: Config, *, verbose: bool = False) -> tuple[NetworkField, dict[str, Any]]:
    """Train the field with the plain flow matching loss.

    Args:
        config: The settings.
        verbose: Print the losses on the way.

    Returns:
        The field with the weights of the smallest held-out loss, and what to record: that step, and the losses on
        training, held-out and test images.

    Example:
        >>> field, record = train(Config(steps=2, every=1, width=8, blocks=1))
        >>> record["best_step"] in (1, 2)
        True
    """
    torch.manual_seed(config.seed)
    field = NetworkField(FlowNet(config.width, config.blocks, config.dropout).float(), paths.linear())
    objective = flow_matching(field, drop_condition=config.drop_condition)
    return field, fit(field, objective, config, report="flow" if verbose else None)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, train, and write weights (float16) and their record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weak", action="store_true", help=f"the weak version: {WEAK}")
    for field in fields(Config):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), help=f"{field.default}")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the folder of the safetensors file")
    given = {key: value for key, value in vars(parser.parse_args(arguments)).items() if value is not None}
    weak, out = given.pop("weak"), given.pop("out")
    config = replace(Config(), **{**(WEAK if weak else {}), **given})

    trained, result = train(config, verbose=True)
    file = out / f"digits_flow{'_weak' if weak else ''}.safetensors"
    command = "python -m flowlib.recipes.digits_flow" + (" --weak" if weak else "")
    write(file, trained.net, {"command": command, **result}, config)
    print(f"{result}; wrote {file.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
