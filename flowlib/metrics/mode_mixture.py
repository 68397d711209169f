"""How much of a sample lies between the modes of its target, where data have next to no mass."""

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_positive, check_same, check_state

__all__ = ["mode_mixture_ratio", "outside_modes"]


def mode_mixture_ratio(probabilities: Float[Tensor, "n classes"], theta: float) -> float:
    r"""The share of samples in which a classifier sees two classes at once (Li et al., 2023).

    A sample counts as mixed when at least two of its class probabilities reach $\theta$. The ratio depends on the
    classifier and on $\theta$: report several, beside the ratio of real data.

    Args:
        probabilities: Class probabilities of each sample, `[n, classes]`, rows summing to one.
        theta: Threshold in (0, 0.5]; two classes cannot both exceed one half.

    Returns:
        A number in [0, 1], not increasing in `theta`.

    Raises:
        TypeError: If the probabilities are not a floating-point tensor.
        ValueError: If rows are not probabilities, or the threshold is out of range.

    Example:
        >>> mode_mixture_ratio(torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.4, 0.2]]), 0.3)
        0.5
    """
    check_state("probabilities", probabilities)
    if not 0 < theta <= 0.5:
        raise ValueError(f"theta must lie in (0, 0.5], got {theta}")
    if bool((probabilities < 0).any()) or bool(((probabilities.sum(1) - 1).abs() > 1e-4).any()):
        raise ValueError("probabilities must not be negative and must sum to 1 in each row")
    return float(((probabilities >= theta).sum(1) >= 2).double().mean())


def outside_modes(
    x: Float[Tensor, "n *event"], centres: Float[Tensor, "modes *event"], radius: float
) -> float:  # fmt: skip
    """The share of samples farther than `radius` from every centre: the mixed fraction where modes are known.

    For isotropic modes of deviation s in d dimensions and `radius` = k s, a perfect sample has the tail of the chi
    distribution: exp(-k^2 / 2) for d = 2.

    Args:
        x: Samples.
        centres: Centres of the modes.
        radius: A positive distance.

    Returns:
        A number in [0, 1].

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes disagree or the radius is not positive.

    Example:
        >>> outside_modes(torch.tensor([[0.1], [1.0], [2.2]]), torch.tensor([[0.0], [2.0]]), 0.5)
        0.3333333333333333
    """
    check_positive("radius", radius)
    check_state("x", x)
    check_state("centres", centres)
    check_same("x", x, "centres", centres, shape=False)
    distance = torch.cdist(x.flatten(1), centres.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    return float((distance.min(1).values > radius).double().mean())
