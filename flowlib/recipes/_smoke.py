"""The whole pipeline of an ImageNet recipe on made-up images, on the CPU, in seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowlib.recipes import _images, _runs, imagenet_latents
from flowlib.recipes._evaluation import evaluate
from flowlib.training import distributed

__all__ = ["pipeline"]


def pipeline(
    folder: Path,
    config: Callable[[Path], Any],
    train: Callable[[Any, Any], distributed.Result],
    sample: Callable[..., Path],
) -> dict[str, float]:
    """Images, latents (16 by 16 pixels, four classes), training, a resume, samples, evaluation.

    Args:
        folder: Where it works; what an earlier call left there is deleted.
        config: From the folder of latents to the recipe's configuration.
        train: The recipe's command.
        sample: The recipe's command.

    Returns:
        The figures of the evaluation, on features of a random network; only the first process has them.
    """
    images = folder / "images"

    def make(fabric: Any) -> Any:
        _images.make_up(folder, fabric)
        return config(imagenet_latents.encode(images, folder / "latents", size=16, batch=16, fabric=fabric))

    return _runs.smoke(
        _runs.smoke_settings(folder, steps=12, batch_size=32, micro_batch=8, save_every=6, log_every=3),
        make,
        train,
        lambda weights, fabric: sample(
            weights, folder / "samples", count=48, steps=4, guidance=1.5, batch=16, fabric=fabric
        ),
        lambda samples: evaluate(samples, images, features="random", size=16),
    )
