"""Quality of generated 8 by 8 digits, judged by a small classifier whose weights are shipped.

`flowlib.recipes.digits_classifier` trains it; `flowlib/weights/digits_classifier.json` records how.
"""

from functools import lru_cache
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor, nn

from flowlib._checks import check_state
from flowlib.metrics.distances import frechet_distance
from flowlib.metrics.distances import precision_recall as _precision_recall

__all__ = [
    "Classifier",
    "accuracy",
    "classifier",
    "features",
    "frechet",
    "precision_recall",
    "predict",
    "probabilities",
]

WEIGHTS = Path(__file__).parent.parent / "weights" / "digits_classifier.safetensors"


class Classifier(nn.Module):
    """Two convolutions, a hidden layer of `width` features, ten logits.

    Args:
        width: Number of features.

    Example:
        >>> import torch
        >>> Classifier()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, width),
            nn.SiLU(),
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[batch, 10]` of images `[batch, 1, 8, 8]`."""
        out: Tensor = self.head(self.body(x))
        return out


@lru_cache(maxsize=1)
def classifier() -> Classifier:
    """The trained classifier.

    Returns:
        A network in evaluation mode, on the CPU, in float32.

    Raises:
        FileNotFoundError: If the weights are missing.
    """
    from safetensors.torch import load_file

    if not WEIGHTS.is_file():
        raise FileNotFoundError(f"no weights at {WEIGHTS}; run python -m flowlib.recipes.digits_classifier")
    net = Classifier().float()  # whatever torch's default dtype is at the first call
    net.load_state_dict(load_file(WEIGHTS))
    return net.eval().requires_grad_(False)


def features(x: Float[Tensor, "n 1 8 8"]) -> Float[Tensor, "n features"]:
    """The classifier's last hidden layer.

    Args:
        x: Images `[n, 1, 8, 8]`, values about [-1, 1].

    Returns:
        Features `[n, 32]`.

    Raises:
        ValueError: If the shape is wrong or an entry is not finite.
    """
    _check(x)
    out: Tensor = classifier().body(x.detach().cpu().float())
    return out


def predict(x: Float[Tensor, "n 1 8 8"]) -> Int[Tensor, " n"]:
    """The class the classifier sees in each image; arguments and errors as `features`."""
    _check(x)
    out: Tensor = classifier()(x.detach().cpu().float()).argmax(1)
    return out


def probabilities(x: Float[Tensor, "n 1 8 8"]) -> Float[Tensor, "n classes"]:
    """The classifier's probability of each class, `[n, 10]`, rows summing to one; arguments and errors as `features`.

    Example:
        >>> from flowlib import data
        >>> probabilities(data.digits.load("test").x[:5]).shape
        torch.Size([5, 10])
    """
    _check(x)
    out: Tensor = classifier()(x.detach().cpu().float()).softmax(1)
    return out


def accuracy(x: Float[Tensor, "n 1 8 8"], y: Int[Tensor, " n"]) -> float:
    """The fraction of images recognised as their label.

    Args:
        x: Images `[n, 1, 8, 8]`.
        y: Labels `[n]`.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: If shapes are wrong.

    Example:
        >>> from flowlib import data
        >>> test = data.digits.load("test")
        >>> accuracy(test.x, test.y) > 0.95
        True
    """
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must have shape [{x.shape[0]}], got {list(y.shape)}")
    return float((predict(x) == y.cpu()).double().mean())


def frechet(generated: Float[Tensor, "n 1 8 8"], real: Float[Tensor, "m 1 8 8"]) -> float:
    """The Frechet distance between the classifier's features of two sets of images."""
    return frechet_distance(features(generated), features(real))


def precision_recall(
    generated: Float[Tensor, "n 1 8 8"], real: Float[Tensor, "m 1 8 8"], *, k: int = 3
) -> tuple[float, float]:
    """Improved precision and recall on the classifier's features; see `flowlib.metrics.precision_recall`."""
    return _precision_recall(features(generated), features(real), k=k)


def _check(x: Tensor) -> None:
    check_state("x", x)
    if tuple(x.shape[1:]) != (1, 8, 8):
        raise ValueError(f"x must have shape [n, 1, 8, 8], got {list(x.shape)}")
