"""Encode images once, train on their latents: `python -m flowlib.recipes.imagenet_latents --images train --vae sd-vae`.

Reads an ImageNet folder (one subfolder a class) or WebDataset shards (tar files of `key.jpg` and `key.cls`), crops the
centre as Dhariwal and Nichol (2021) do, encodes with a local diffusers autoencoder and writes safetensors shards: mean
and deviation of the latent Gaussian in float16, twice with `--flips`, and the label. Without `--vae` the images'
own pixels are stored (a flow in pixel space). Any number of processes share the images out:

    torchrun --nproc-per-node 8 -m flowlib.recipes.imagenet_latents --images imagenet/train --vae sd-vae-ft-ema \\
        --out data/imagenet-latents

An image that cannot be read stops the run with its name, before more work is lost; `--skip-bad N` allows N of them
and lists them in the index.
"""

import io
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowlib._checks import check_positive
from flowlib.recipes import _images, _runs

__all__ = ["Item", "encode", "items", "main", "read"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


@dataclass(frozen=True)
class Item:
    """An image that was found: a file, or a member of a tar file.

    Attributes:
        place: The file.
        label: Its class.
        span: Offset and size inside a tar file; `None` for a file of its own.
        name: How errors call it.
    """

    place: Path
    label: int
    span: tuple[int, int] | None
    name: str


def items(images: Path) -> tuple[list[Item], list[str]]:
    """Find the images of a folder of class folders, or of tar shards, in a fixed order.

    Args:
        images: The folder.

    Returns:
        The images, and the names of the classes.

    Raises:
        FileNotFoundError: If the folder is missing or has neither.
        ValueError: If a tar shard is damaged, an image of it has no class, or a class folder is empty.
    """
    if not images.is_dir():
        raise FileNotFoundError(f"images {images} is not a folder")
    tars = sorted(images.glob("*.tar"))
    if tars:
        found = [item for tar in tars for item in _members(tar)]
        return found, [str(k) for k in range(max(item.label for item in found) + 1)]
    folders = sorted(path for path in images.iterdir() if path.is_dir())
    if not folders:
        raise FileNotFoundError(f"images {images} has neither class folders nor .tar shards")
    found = []
    for label, folder in enumerate(folders):
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not files:
            raise ValueError(f"class folder {folder} has no image ({', '.join(sorted(SUFFIXES))})")
        found += [Item(file, label, None, str(file)) for file in files]
    return found, [folder.name for folder in folders]


def _members(tar: Path) -> Iterator[Item]:
    labels: dict[str, int] = {}
    pictures: dict[str, tarfile.TarInfo] = {}
    try:
        with tarfile.open(tar) as archive:
            for member in archive:
                key, _, suffix = member.name.partition(".")
                if suffix == "cls":
                    content = archive.extractfile(member)
                    labels[key] = int(content.read()) if content is not None else -1
                elif f".{suffix}".lower() in SUFFIXES:
                    pictures[key] = member
    except (tarfile.TarError, OSError, ValueError) as error:
        raise ValueError(f"shard {tar} is damaged: {error}") from error
    for key, member in pictures.items():
        if labels.get(key, -1) < 0:
            raise ValueError(f"shard {tar}: image {member.name} has no class file {key}.cls")
        yield Item(tar, labels[key], (member.offset_data, member.size), f"{tar}:{member.name}")


def read(item: Item, size: int) -> Tensor:
    """An image as a tensor `[3, size, size]` in [-1, 1]: the centre square, resampled.

    Halved by box filters while it is at least twice too large, then bicubic. Smaller images (ImageNet has some) are
    enlarged up to four times.

    Raises:
        ValueError: If the image cannot be read or is smaller than a quarter of `size`; the message names it.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        if item.span is None:
            content = item.place.read_bytes()
        else:
            with item.place.open("rb") as file:
                file.seek(item.span[0])
                content = file.read(item.span[1])
        opened = Image.open(io.BytesIO(content))
        opened.load()
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise ValueError(f"image {item.name} cannot be read: {error}") from error
    if 4 * min(opened.size) < size:
        raise ValueError(f"image {item.name} is {opened.size[0]}x{opened.size[1]}, smaller than a quarter of {size}")
    picture = opened.convert("RGB")  # grey, palette, CMYK and transparent images too
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    pixels = np.array(picture.crop((left, top, left + size, top + size)), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def encode(
    images: Path,
    out: Path,
    vae: Path | None = None,
    size: int = 256,
    batch: int = 64,
    flips: bool = True,
    skip_bad: int = 0,
    devices: int = 1,
    nodes: int = 1,
    fabric: Any = None,
) -> Path:
    """Encode a data set of images into a folder of shards.

    Args:
        images: Folder of class folders, or of WebDataset tar shards.
        out: Folder of the latents.
        vae: Folder of a diffusers AutoencoderKL; None stores pixels.
        size: Height and width of the images, in pixels.
        batch: Images encoded at once.
        flips: Store each image's mirror image as well.
        skip_bad: How many images that cannot be read each process leaves out before it stops.
        devices: Processes on a node (torchrun's --nproc-per-node wins).
        nodes: Nodes (torchrun's --nnodes wins).
        fabric: Processes that already stand, or None.

    Returns:
        The folder.

    Raises:
        FileNotFoundError, FileExistsError, ValueError, OSError: If images, folder, autoencoder or disk are wrong.
    """
    check_positive("size", size, integer=True)
    check_positive("batch", batch, integer=True)
    found, names = items(images)
    fabric = _runs.processes(devices, nodes, fabric)
    model = _images.autoencoder(vae, fabric.device) if vae is not None else None
    writer = _runs.writer(out, 4096, fabric)
    bad: list[str] = []
    mine = _runs.part(found, fabric)
    total = torch.zeros(3, dtype=torch.float64)
    shapes: list[list[int]] = []
    for start in range(0, len(mine), batch):
        pixels, labels = [], []
        for item in mine[start : start + batch]:
            try:
                pixels.append(read(item, size))
            except ValueError as error:
                bad.append(str(error))
                if len(bad) > skip_bad:
                    raise
                continue
            labels.append(item.label)
        if not pixels:
            continue
        x, y = torch.stack(pixels), torch.tensor(labels)
        if flips:  # each image, then its mirror image
            x, y = torch.stack([x, x.flip(-1)], 1).flatten(0, 1), y.repeat_interleave(2)
        latent = x if model is None else _moments(model, x.to(fabric.device))
        part = latent if model is None else latent.chunk(2, 1)[0]
        total += torch.tensor([part.numel(), part.double().sum(), part.double().square().sum()])
        shapes = [list(part.shape[1:])]
        writer.add(latent=latent.half().cpu(), y=y)
    bad = _runs.together(bad, fabric)
    count, first, second = fabric.all_reduce(total.to(fabric.device), reduce_op="sum").tolist()
    if not count:
        raise ValueError(f"images {images} has no image that can be used: {bad[0]}")
    deviation = (second / count - (first / count) ** 2) ** 0.5
    given = getattr(model.config, "scaling_factor", None) if model is not None else 1.0
    record = {
        "shape": _runs.together(shapes, fabric)[0], "classes": len(names), "names": names,
        "moments": model is not None, "pixels": size,
        "shift": getattr(getattr(model, "config", None), "shift_factor", None) or 0.0,
        "scale": given or 1 / deviation, "measured_deviation": deviation, "flips": flips,
        "vae": str(vae) if vae is not None else None, "left_out": bad,
    }  # fmt: skip
    return _runs.finish(writer, record, fabric)


def _moments(model: Any, x: Tensor) -> Tensor:
    """Mean and standard deviation of the latent Gaussian, `[n, 2c, h, w]`."""
    with torch.no_grad():
        law = model.encode(x).latent_dist
    return torch.cat([law.mean, law.std], 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: see `encode`."""
    try:
        import tyro
    except ImportError as error:
        raise SystemExit("the command line needs tyro: pip install flowlib[recipes]") from error
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        tyro.cli(tyro.conf.configure(tyro.conf.SuppressFixed)(encode), args=given, description=__doc__)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
