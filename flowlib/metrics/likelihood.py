"""Likelihoods in the unit in which papers report them."""

import math

from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_positive

__all__ = ["bits_per_dim"]


def bits_per_dim(log_prob: Float[Tensor, " n"], dims: int, *, bin_width: float = 1.0) -> Float[Tensor, " n"]:
    r"""Negative log-likelihood in bits for each entry of a state: $-\frac{\log p(x)}{d\log 2} - \log_2 \Delta$.

    For a probability of grey levels (a variational bound with a discrete decoder) the bin width $\Delta$ is one. For a
    density of dequantised data it is the distance of two grey levels in the density's units: $2/255$ gives the
    familiar offset of about 7 bits for images scaled to [-1, 1]; `data.digits.BIN_WIDTH` gives 3.

    Args:
        log_prob: Log-likelihoods in nats.
        dims: $d$, entries of a state, positive.
        bin_width: $\Delta$, positive.

    Returns:
        Bits per dimension, smaller is better.

    Raises:
        ValueError: If `dims` or `bin_width` is not positive.

    Example:
        >>> import torch
        >>> bits_per_dim(torch.tensor([0.0]), 64, bin_width=1 / 8)     # the uniform density on a unit cube
        tensor([3.])
    """
    check_positive("dims", dims, integer=True)
    check_positive("bin_width", bin_width)
    return -log_prob / (dims * math.log(2)) - math.log2(bin_width)
