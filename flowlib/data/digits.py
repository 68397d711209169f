"""The handwritten digits that come with scikit-learn: 1797 real images of 8 by 8 pixels, available offline.

They are the test part of the UCI optical digits (Alpaydin and Kaynak, 1998), with 17 grey levels.
"""

from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_choice, check_state
from flowlib.data.labelled import Labelled

__all__ = ["BIN_WIDTH", "CLASSES", "EVENT_SHAPE", "LEVELS", "dequantize", "load"]

CLASSES = 10
LEVELS = 17
BIN_WIDTH = 1 / 8
"""Distance of two neighbouring grey levels after scaling to [-1, 1]."""
EVENT_SHAPE = (1, 8, 8)
_TEST_PER_CLASS = 35


def load(split: Literal["train", "test", "all"] = "train") -> Labelled:
    """Load the digits, scaled from grey levels 0 ... 16 to [-1, 1].

    The split is fixed and stratified: of each class, 35 images spread evenly over the file are the test set
    (350 images), the other 1447 the training set. The file does not say who wrote which digit, so one writer may be in
    both sets, and accuracies on the test set may be optimistic.

    Args:
        split: `"train"`, `"test"` or `"all"`.

    Returns:
        Images `[N, 1, 8, 8]` (float32) with labels `[N]`.

    Raises:
        ValueError: If the split is unknown.

    Example:
        >>> train, test = load("train"), load("test")
        >>> len(train), len(test), tuple(train.x.shape[1:])
        (1447, 350, (1, 8, 8))
    """
    check_choice("split", split, ("train", "test", "all"))
    x, y, is_test = _arrays()
    if split == "all":
        return Labelled(x.clone(), y.clone())
    chosen = is_test if split == "test" else ~is_test
    return Labelled(x[chosen], y[chosen])


def dequantize(x: Float[Tensor, "n *event"], *, generator: torch.Generator | None = None) -> Float[Tensor, "n *event"]:
    r"""Spread each grey level over its bin: $x + (u - \tfrac12)\,\texttt{BIN\_WIDTH}$ with $u$ uniform on [0, 1).

    A density $p$ on dequantised images bounds the probability of the grey levels: by Jensen's inequality
    $\log P(x) \ge E_u[\log p] + d\log\texttt{BIN\_WIDTH}$ (Theis et al., 2016). Without it a density can put unbounded
    mass on the 17 levels, and bits per dimension go to minus infinity.

    Args:
        x: Digits on the grey levels, as `load` returns them.
        generator: Random generator, on the device of `x`.

    Returns:
        Images of the same shape, values in [-1 - 1/16, 1 + 1/16).

    Raises:
        ValueError: If an entry is not one of the 17 levels, for example because `x` is dequantised already.

    Example:
        >>> x = dequantize(load("test").x, generator=torch.Generator().manual_seed(0))
        >>> bool(((x - load("test").x).abs() <= BIN_WIDTH / 2).all())
        True
    """
    check_state("x", x)
    level = (x + 1) / BIN_WIDTH
    if bool(((level - level.round()).abs() > 1e-3).any()) or float(x.min()) < -1 or float(x.max()) > 1:
        raise ValueError(f"x must hold the {LEVELS} grey levels k/8 - 1, got values between them or outside [-1, 1]")
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return x + (u - 0.5) * BIN_WIDTH


@lru_cache(maxsize=1)
def _arrays() -> tuple[Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy(raw.images).float()[:, None] / 8 - 1
    y = torch.from_numpy(raw.target).long()
    is_test = torch.zeros(len(y), dtype=torch.bool)
    for label in range(CLASSES):
        members = torch.nonzero(y == label)[:, 0]
        positions = torch.linspace(0, len(members) - 1, _TEST_PER_CLASS).round().long()
        is_test[members[positions]] = True
    return x, y, is_test
