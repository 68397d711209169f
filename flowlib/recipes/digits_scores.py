r"""Train the digit scores of the chapter on score SDEs: `python -m flowlib.recipes.digits_scores`.

One class-conditional network for each of VP, sub-VP and VE, a few minutes each on one core; `load` returns them as
fields. Every tenth training image is held out: the weights kept are those with the smallest loss there. The test
images are never seen.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowlib import paths
from flowlib._checks import check_choice, expand_time
from flowlib.fields import NetworkField
from flowlib.nets.embeddings import once
from flowlib.objectives import Times, denoising_score_matching, importance
from flowlib.recipes._digits import WEIGHTS, Config, DigitNet, fit, restore, settings, write

__all__ = ["END", "PATHS", "WEIGHTS", "Config", "ScoreNet", "load", "main", "read", "train"]

PATHS: dict[str, Callable[[], paths.GaussianPath]] = {
    "vp": paths.vp,
    "sub_vp": paths.sub_vp,
    "ve": lambda: paths.ve(0.01, 12.0),
}
END = 0.999
"""The last time of training; later scores of VP and sub-VP grow without bound."""


class ScoreNet(DigitNet):
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

    ends: Tensor

    def __init__(self, path: paths.GaussianPath, width: int = 256, blocks: int = 3, dropout: float = 0.0) -> None:
        super().__init__(width, blocks, dropout)
        self.path = path
        self.register_buffer("ends", -path.schedule.log_snr(torch.tensor([END, 0.0])) / 2)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The noise in states `[batch, 1, 8, 8]` at times `[batch]`; labels -1, or `None`, mean no class."""
        log_s = once(lambda t: -self.path.schedule.log_snr(t) / 2, t)
        s, alpha = (expand_time(value, x) for value in (log_s.exp(), self.path.schedule.alpha(t)))
        w = (s**2 + self.std**2).rsqrt()
        scaled = w * (x / alpha - self.mean)
        inner = self.residual(scaled, (log_s - self.ends[0]) / (self.ends[1] - self.ends[0]), y)
        out: Tensor = s * w * scaled + self.std * w * inner
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
    record = settings(file, "digits_scores")
    path, config = PATHS[record["name"]](), record["config"]
    net = ScoreNet(path, config["width"], config["blocks"]).float()
    restore(net, file)
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
    path = PATHS[name]()
    net = ScoreNet(path, config.width, config.blocks, config.dropout).float()
    field = NetworkField(net, path, predicts="noise")

    def density(t: Tensor) -> Tensor:
        rate = path.drift_diffusion(t)[1] / path.schedule.sigma(t) ** 2
        return 1 + rate / rate.mean()

    corrected = importance(density, high=END)

    def times(n: int, **options: Any) -> Times:
        return Times(corrected(n, **options).t)  # without the weights that would undo the density

    objective = denoising_score_matching(field, times=times, drop_condition=config.drop_condition)
    return field, fit(field, objective, config, report=name if verbose else None)


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

    for name in names:
        check_choice("name", name, tuple(PATHS))
        trained, result = train(name, config, verbose=True)
        file = out / f"digits_score_{name}.safetensors"
        command = f"python -m flowlib.recipes.digits_scores {name}"
        write(file, trained.net, {"command": command, "name": name, **result}, config)
        print(f"{name}: {result}; wrote {file.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
