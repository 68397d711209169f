"""What the image recipes share: stored latents, the autoencoder, made-up images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowlib.data.shards import Shards
from flowlib.training.distributed import Prepare

__all__ = ["autoencoder", "decoder", "drawn", "make_up", "open_latents"]


def open_latents(data: Path, shape: tuple[int, int, int], classes: int) -> Shards:
    """The latents of a folder, if a model of this shape and these classes can learn them.

    Raises:
        FileNotFoundError: If the folder holds no data.
        ValueError: If model and data do not fit.
    """
    latents = Shards(data)
    found, known = latents.record.get("shape"), latents.record.get("classes", 0)
    if found != list(shape):
        raise ValueError(f"data {data} has latents {found}, the model takes {list(shape)}")
    if known > classes:
        raise ValueError(f"data {data} has {known} classes, the model knows {classes}")
    return latents


def drawn(record: dict[str, Any]) -> Prepare:
    r"""From stored rows to what a flow learns: draws of the latents, shifted and scaled to unit size, and labels.

    An autoencoder's latent is a Gaussian; its mean and deviation are stored, and every epoch sees another draw.

    Args:
        record: What `imagenet_latents` wrote into the index: `moments`, `shift`, `scale`.
    """
    shift, scale, moments = record["shift"], record["scale"], record["moments"]

    def prepare(batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch["latent"].float()
        if moments:
            mean, std = x.chunk(2, 1)
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            x = mean + std * noise
        return (x - shift) * scale, {"y": batch["y"]}

    return prepare


def autoencoder(folder: Path, device: torch.device | str) -> Any:
    """A diffusers `AutoencoderKL` from a local folder; nothing is downloaded.

    Raises:
        ImportError: If diffusers is not installed.
        FileNotFoundError: If the folder holds no such model.
    """
    try:
        from diffusers import AutoencoderKL as Model
    except ImportError as error:
        raise ImportError("latents of an autoencoder need diffusers: pip install flowlib[recipes]") from error
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"vae folder {folder} holds no config.json of a diffusers AutoencoderKL")
    kind: Any = Model  # untyped
    model = kind.from_pretrained(str(folder), local_files_only=True)
    return model.to(device).eval().requires_grad_(False)


def decoder(record: dict[str, Any], vae: Path | None, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """From states of the flow to images, uint8 `[n, 3, height, width]`.

    Args:
        record: What `imagenet_latents` wrote.
        vae: Folder of the autoencoder that made the latents, or `None` for pixels.
        device: Where it runs.

    Raises:
        ValueError: If the data are latents and no autoencoder is given.
    """
    if record["moments"] and vae is None:
        raise ValueError("vae must name the folder of the autoencoder: the data are its latents")
    model = autoencoder(vae, device) if vae is not None and record["moments"] else None

    @torch.no_grad()
    def decode(x: Tensor) -> Tensor:
        z = x / record["scale"] + record["shift"]
        pixels: Tensor = z if model is None else model.decode(z).sample
        return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    return decode


def make_up(folder: Path, fabric: Any, classes: int = 4, each: int = 24) -> None:
    """Coloured discs, squares, rings and bars as PNG files of several sizes and modes, one class folder for each.

    Args:
        folder: Emptied first; the images go to its subfolder `images`.
        fabric: The processes; the first one draws.
        classes: Number of classes, at most four.
        each: Images a class.
    """
    import shutil

    from PIL import Image

    if fabric.is_global_zero:
        shutil.rmtree(folder, ignore_errors=True)
        for label, name in enumerate(("disc", "square", "ring", "bar")[:classes]):
            place = folder / "images" / name
            place.mkdir(parents=True)
            generator = torch.Generator().manual_seed(label)
            for number in range(each):
                size = 20 + 4 * (number % 6)
                axis = torch.linspace(-1, 1, size)
                center = 0.4 * (torch.rand(2, generator=generator) - 0.5)
                a, b = (axis[:, None] - center[0]).abs(), (axis[None] - center[1]).abs()
                radius = (a**2 + b**2).sqrt()
                shape = (radius < 0.6, torch.maximum(a, b) < 0.5, (radius - 0.55).abs() < 0.2, (a + 0 * b) < 0.25)[
                    label
                ]
                color = torch.rand(2, 3, 1, 1, generator=generator)
                pixels = torch.where(shape, color[0], color[1]).mul(255).byte().permute(1, 2, 0)
                picture = Image.fromarray(pixels.numpy())
                picture.convert("L" if number % 7 == 3 else "RGB").save(place / f"{number:03d}.png")
    fabric.barrier()
