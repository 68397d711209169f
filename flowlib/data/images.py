"""Fashion-MNIST (Xiao et al., 2017) from a local folder; nothing is downloaded."""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from flowlib._checks import check_choice
from flowlib.data.labelled import Labelled

__all__ = ["FASHION_CLASSES", "fashion_mnist", "read_idx"]

FASHION_CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_IDX_BYTES = {0x08: 1}  # unsigned bytes are all that MNIST-like sets use


def fashion_mnist(folder: str | Path | None = None, split: Literal["train", "test"] = "train") -> Labelled:
    """Load Fashion-MNIST, scaled to [-1, 1].

    Args:
        folder: Where `train-images-idx3-ubyte.gz` and its three companions lie. If `None`: the folder named by the
            environment variable `FLOWLIB_DATA` (itself or its subfolder `fashion-mnist`), then the place of
            Debian's package.
        split: `"train"` (60 000 images) or `"test"` (10 000).

    Returns:
        Images `[N, 1, 28, 28]` (float32) with labels `[N]`, named by `FASHION_CLASSES`.

    Raises:
        FileNotFoundError: If the files are nowhere; the message says how to get them.
        ValueError: If the split is unknown or a file is truncated or not of the idx format.
    """
    check_choice("split", split, ("train", "test"))
    prefix = "train" if split == "train" else "t10k"
    names = f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"
    tried = _folders(folder)
    for place in tried:
        if all((place / name).is_file() for name in names):
            images, labels = read_idx(place / names[0]), read_idx(place / names[1])
            if images.ndim != 3 or labels.shape != images.shape[:1]:
                raise ValueError(f"{place} holds images {list(images.shape)} but labels {list(labels.shape)}")
            return Labelled(images[:, None].float() / 127.5 - 1, labels.long())
    raise FileNotFoundError(
        f"Fashion-MNIST was not found in {', '.join(str(place) for place in tried)}. Install Debian's package with "
        "`apt-get install dataset-fashion-mnist`, or download the four .gz files from the data set's repository "
        "(github.com/zalandoresearch/fashion-mnist, data/fashion) into a folder and pass folder=... or set "
        "FLOWLIB_DATA to it."
    )


def read_idx(path: str | Path) -> Tensor:
    """Read a (gzipped) idx file of unsigned bytes, the format of the MNIST family.

    Args:
        path: The file; decompressed if its name ends in `.gz`.

    Returns:
        A uint8 tensor of the shape the file declares.

    Raises:
        ValueError: If the file is not idx, not of bytes, or shorter or longer than it declares.
    """
    path = Path(path)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_BYTES:
        raise ValueError(f"{path} is not an idx file of unsigned bytes")
    dimensions = content[3]
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise ValueError(f"{path} is truncated inside its header")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise ValueError(f"{path} declares {math.prod(shape)} entries but holds {len(content) - header}: truncated?")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(shape)


def _folders(folder: str | Path | None) -> list[Path]:
    if folder is not None:
        return [Path(folder)]
    environment = os.environ.get("FLOWLIB_DATA")
    mine = [Path(environment), Path(environment) / "fashion-mnist"] if environment else []
    return [*mine, _DEBIAN_FOLDER]
