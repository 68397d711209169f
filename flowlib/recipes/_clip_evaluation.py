"""Distances between two folders of clips: the Frechet video distance, and the drift from frame to frame."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from flowlib import metrics
from flowlib._checks import check_choice, check_positive
from flowlib.data.shards import Shards
from flowlib.recipes import _evaluation

__all__ = ["evaluate"]


def evaluate(
    samples: Path,
    reference: Path,
    features: Literal["torchscript", "random"] = "torchscript",
    weights: Path | None = None,
    batch: int = 8,
    most: int = 2048,
) -> dict[str, float]:
    """Compare generated clips with real ones: FVD (Unterthiner et al., 2018), and how single frames drift with time.

    FVD is the Frechet distance of the features of whole clips; published figures use I3D's. If the samples are longer
    than the reference, their first and their last frames are compared, `fvd` and `fvd_end`. The drift is the Frechet
    distance of the features of frame number f of the samples from those of all frames of the reference, on a fixed
    random network: only differences within one table mean something.

    Args:
        samples: Folder that `sample` wrote.
        reference: Folder that `clips` wrote, of pixels.
        features: torchscript (a module from clips [n, 3, T, H, W] in [-1, 1] to features [n, d]), or random (a fixed
            random network: for trying things out).
        weights: File of the torchscript module, which you provide.
        batch: Clips at once.
        most: Clips used of each folder, evenly spread over it.

    Returns:
        The figures; they are printed, and written into `samples` with the drift of every frame as evaluation.json.

    Raises:
        FileNotFoundError, ValueError: If clips or weights are missing or do not fit.
    """
    check_choice("features", features, ("torchscript", "random"))
    check_positive("batch", batch, integer=True)
    fake, real = (_pixels(folder) for folder in (samples, reference))
    length, longer = real.fields["clip"]["shape"][0], fake.fields["clip"]["shape"][0]
    if fake.fields["clip"]["shape"][1:] != real.fields["clip"]["shape"][1:] or longer < length:
        raise ValueError(
            f"samples have clips {fake.fields['clip']['shape']}, the reference {real.fields['clip']['shape']}: "
            "frames must have one size, and samples must not be shorter"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    picture = _evaluation.extractor("random", None).to(device).eval()
    whole = _Random(picture) if features == "random" else _evaluation.extractor("torchscript", weights).to(device)

    def features_of(shards: Shards, network: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            return torch.cat([network(x.to(device)).double().cpu() for x in _batches(shards, batch, most)])

    def video(part: slice) -> Callable[[Tensor], Tensor]:
        return lambda x: whole(x[:, part].transpose(1, 2).float() / 127.5 - 1)

    def frames(x: Tensor) -> Tensor:
        features: Tensor = picture(x.flatten(0, 1))
        return features.reshape(*x.shape[:2], -1)

    truth = features_of(real, video(slice(length)))
    out = {"fvd": metrics.frechet_distance(features_of(fake, video(slice(length))), truth)}
    if longer > length:
        out["fvd_end"] = metrics.frechet_distance(features_of(fake, video(slice(-length, None))), truth)
    still, moved = features_of(real, frames).flatten(0, 1), features_of(fake, frames)
    drift = [metrics.frechet_distance(moved[:, f].contiguous(), still) for f in range(longer)]
    out |= {"drift_first": drift[0], "drift_last": drift[-1]}
    record = {"features": features, "samples": len(moved), "reference": len(truth), **out, "drift": drift}
    (samples / "evaluation.json").write_text(json.dumps(record, indent=1) + "\n")
    print("  ".join(f"{name} {value:.4g}" for name, value in out.items()), file=sys.stderr)
    return out


def _pixels(folder: Path) -> Shards:
    shards = Shards(folder)
    if shards.fields.get("clip", {}).get("dtype") != "U8":
        raise ValueError(f"{folder} holds {shards.fields}, not clips of pixels")
    if len(shards) < 2:
        raise ValueError(f"{folder} has {len(shards)} clip, a distance needs at least 2")
    return shards


def _batches(shards: Shards, batch: int, most: int) -> Iterator[Tensor]:
    for places in torch.split(_evaluation.spread(len(shards), most), batch):
        yield shards.__getitems__(places.tolist())["clip"]


class _Random(nn.Module):
    """Means over the clip of a random network's features of its frames, and of their absolute changes."""

    def __init__(self, picture: nn.Module) -> None:
        super().__init__()
        self.picture = picture

    def forward(self, x: Tensor) -> Tensor:
        images = ((x.transpose(1, 2) + 1) * 127.5).flatten(0, 1)
        features = self.picture(images).unflatten(0, (x.shape[0], x.shape[2]))
        return torch.cat([features.mean(1), features.diff(dim=1).abs().mean(1)], 1)
