"""Distances between two folders of images on a network's features, through torchmetrics."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowlib import metrics
from flowlib._checks import check_choice
from flowlib.data.shards import INDEX, Shards

__all__ = ["evaluate", "extractor", "pictures"]

Features = Literal["inception", "torchscript", "random"]


def evaluate(
    samples: Path,
    reference: Path,
    features: Features = "inception",
    weights: Path | None = None,
    size: int = 256,
    batch: int = 64,
    nearest: int = 3,
    most: int = 50_000,
) -> dict[str, float]:
    """Compare samples with a reference: FID, KID, improved precision and recall, and with class scores IS.

    Published figures use Inception's features, 50 000 samples and the statistics of the training images: only then
    are numbers comparable. Statistics of other features are good for comparisons within one table.

    Args:
        samples: Folder that `sample` wrote.
        reference: Another such folder, or a folder of class folders or tar shards of images.
        features: inception (torch-fidelity's port of the original network), torchscript (a module from uint8 images
            to features), or random (a fixed random network: for trying things out).
        weights: File of the feature network's weights, which you provide.
        size: Height and width to which reference images are brought.
        batch: Images at once.
        nearest: Neighbours that define the manifolds of precision and recall.
        most: Images used of each folder, evenly spread over it; FID takes the statistics of all of the reference.

    Returns:
        The figures by name; they are printed, and written into `samples` as evaluation.json.

    Raises:
        FileNotFoundError, ImportError, ValueError: If images, weights or packages are missing or do not fit.
    """
    check_choice("features", features, ("inception", "torchscript", "random"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = extractor(features, weights).to(device).eval()
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise ImportError("evaluation needs torchmetrics: pip install flowlib[recipes]") from error

    def found(folder: Path, most: int | None) -> Iterator[Tensor]:
        for images in pictures(folder, size, batch, most):
            with torch.no_grad():
                yield network(images.to(device)).float().cpu()

    fake = torch.cat(list(found(samples, most)))
    width = fake.shape[1]
    ready = _Ready(width)
    alone: dict[str, Any] = {
        "normalize": True,
        "sync_on_compute": False,
    }  # one process evaluates, whatever others there are
    fid = FrechetInceptionDistance(feature=ready, input_img_size=(1, 1, width), **alone).set_dtype(torch.float64)
    kept, place, seen = [], spread(count(reference), most), 0
    for part in found(reference, None):  # all of it, a batch at a time
        if part.shape[1] != width:
            raise ValueError(f"features of samples and reference differ in width: {width} and {part.shape[1]}")
        fid.update(part, real=True)
        kept.append(part[place[(place >= seen) & (place < seen + len(part))] - seen])
        seen += len(part)
    fid.update(fake, real=False)
    real = torch.cat(kept)
    subset = min(len(real), len(fake), 1000)
    kid = KernelInceptionDistance(feature=ready, subset_size=subset, subsets=100 if subset == 1000 else 10, **alone)
    kid.update(real, real=True)
    kid.update(fake, real=False)
    precision, recall = metrics.precision_recall(fake, real, k=nearest)
    torch.manual_seed(0)  # KID draws subsets
    mean, deviation = kid.compute()
    out = {
        "fid": float(fid.compute()), "kid": float(mean), "kid_deviation": float(deviation),
        "precision": precision, "recall": recall,
    }  # fmt: skip
    scores = getattr(network, "scores", None)
    if scores is not None:
        out["inception_score"] = _inception_score(torch.cat([scores(part) for part in torch.split(fake, batch)]))
    record = {"features": features, "samples": len(fake), "reference": seen, **out}
    (samples / "evaluation.json").write_text(json.dumps(record, indent=1) + "\n")
    print("  ".join(f"{name} {value:.4g}" for name, value in out.items()), file=sys.stderr)
    return out


def spread(total: int, most: int | None) -> Tensor:
    """Places of `most` of `total` rows, evenly spread: rows come class by class, and the first ones are one class."""
    taken = total if most is None else min(total, most)
    return torch.arange(taken) * total // taken


def count(folder: Path) -> int:
    """How many images a folder of shards or of images has."""
    from flowlib.recipes.imagenet_latents import items

    return len(Shards(folder)) if (folder / INDEX).is_file() else len(items(folder)[0])


def pictures(folder: Path, size: int, batch: int, most: int | None) -> Iterator[Tensor]:
    """Images of a folder of shards or of a folder of images, uint8 `[n, 3, height, width]`.

    At most `most`, evenly spread; all for `None`.
    """
    if (folder / INDEX).is_file():
        shards = Shards(folder)
        if "image" not in shards.fields:
            raise ValueError(f"{folder} holds {sorted(shards.fields)}, not images: is it a folder of samples?")
        for places in torch.split(spread(len(shards), most), batch):
            yield shards.__getitems__(places.tolist())["image"]
        return
    from flowlib.recipes.imagenet_latents import items, read

    found = items(folder)[0]
    for places in torch.split(spread(len(found), most), batch):
        images = torch.stack([read(found[k], size) for k in places.tolist()])
        yield ((images + 1) * 127.5).round().to(torch.uint8)


def extractor(features: Features, weights: Path | None) -> nn.Module:
    """A network from uint8 images `[n, 3, h, w]` to features `[n, d]`.

    Raises:
        FileNotFoundError: If its weights are missing.
        ImportError: If torch-fidelity is needed and missing.
    """
    if features == "random":
        return _Random()
    if weights is None or not weights.is_file():
        raise FileNotFoundError(f"weights of the {features} network are needed, got {weights}; nothing is downloaded")
    if features == "torchscript":
        load: Any = torch.jit.load  # untyped
        module: nn.Module = load(str(weights), map_location="cpu")
        return module
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError("features inception needs torch-fidelity (and torchvision), installed by you") from error
    return _Inception(FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(weights)))


class _Ready(nn.Module):
    """Features were computed already; torchmetrics wants a network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.num_features)


class _Inception(nn.Module):
    """torch-fidelity's Inception-v3, and from its features the class scores."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)[0]
        return features

    def scores(self, features: Tensor) -> Tensor:
        """Class scores without bias, as IS uses them."""
        weight: Tensor = self.network.fc.weight.detach().cpu()
        return features @ weight.mT


class _Random(nn.Module):
    """A fixed random convolutional network: enough to tell folders apart, not to compare with published figures."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 16), (16, 32), (32, 32)))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 1) ** 0.5

    def forward(self, images: Tensor) -> Tensor:
        x = images.float() / 127.5 - 1
        for layer in self.layers:
            x = nn.functional.leaky_relu(layer(x), 0.2)
        return nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)


def _inception_score(scores: Tensor) -> float:
    log = scores.log_softmax(1)
    mean = log.exp().mean(0, keepdim=True).log()
    return float((log.exp() * (log - mean)).sum(1).mean().exp())
