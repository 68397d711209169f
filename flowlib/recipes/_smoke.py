"""The whole pipeline of an ImageNet recipe on made-up images, on the CPU, in seconds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowlib.recipes import _images, imagenet_latents
from flowlib.recipes._evaluation import evaluate
from flowlib.training import distributed
from flowlib.training.distributed import Run

__all__ = ["pipeline"]


def pipeline(
    folder: Path,
    config: Callable[[Path, Run], Any],
    train: Callable[..., distributed.Result],
    sample: Callable[..., Path],
) -> dict[str, float]:
    """Images, latents (16 by 16 pixels, four classes), training, a resume, samples, evaluation.

    Args:
        folder: Where it works; what an earlier call left there is deleted.
        config: From the folder of latents and the settings of the run to the recipe's configuration.
        train: The recipe's command.
        sample: The recipe's command.

    Returns:
        The figures of the evaluation, on features of a random network; only the first process has them.
    """
    run = Run(
        out=folder / "run", steps=12, batch_size=32, micro_batch=8, lr=1e-3, ema=0.9, precision="fp32",
        accelerator="cpu", workers=0, save_every=6, log_every=3,
    )  # fmt: skip
    fabric = distributed.connect(run)
    _images.make_up(folder, fabric)
    data = imagenet_latents.encode(folder / "images", folder / "latents", size=16, batch=16, fabric=fabric)
    train(config(data, replace(run, steps=6)), fabric)
    result = train(config(data, run), fabric)  # goes on from the sixth step
    if result.weights is None:
        raise RuntimeError(f"the run stopped at step {result.step}")
    samples = sample(result.weights, folder / "samples", n=48, steps=4, guidance=1.5, batch=16, fabric=fabric)
    figures = {}
    if fabric.is_global_zero:
        figures = evaluate(samples, folder / "images", features="random", size=16)
    fabric.barrier()
    return figures
