"""The handwritten digits that come with scikit-learn: 1797 real images of 8 by 8 pixels, available offline.

They are the test part of the UCI optical digits (Alpaydin and Kaynak, 1998), with 17 grey levels.
"""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from flowlib._checks import check_choice
from flowlib.data.labelled import Labelled

__all__ = ["CLASSES", "EVENT_SHAPE", "LEVELS", "load"]

CLASSES = 10
LEVELS = 17
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
