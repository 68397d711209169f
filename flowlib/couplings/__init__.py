r"""Couplings: which noise sample is paired with which data sample inside a batch.

A coupling is a function `(x0, x1, *, generator=None) -> Pairs`. Any joint law with the right marginals trains the
same marginals (Liu et al., 2023; Tong et al., 2024); a better pairing makes the target less noisy and the
trajectories straighter. `generate_pairs` makes a `PairStore` of pairs that a flow connects, for reflow.
"""

from flowlib.couplings.costs import squared_distances
from flowlib.couplings.entropic import sinkhorn, sinkhorn_plan
from flowlib.couplings.exact import assignment, exact_ot
from flowlib.couplings.pairs import Coupling, Pairs, independent
from flowlib.couplings.reflow import PairStore, generate_pairs, open_pairs

__all__ = [
    "Coupling",
    "PairStore",
    "Pairs",
    "assignment",
    "exact_ot",
    "generate_pairs",
    "independent",
    "open_pairs",
    "sinkhorn",
    "sinkhorn_plan",
    "squared_distances",
]
