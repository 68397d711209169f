r"""Couplings: which noise sample is paired with which data sample inside a batch.

A coupling is a function `(x0, x1, *, generator=None, **conditions) -> Pairs`; the conditions are those of the data
rows. Any joint law with the right marginals trains the same marginals (Liu et al., 2023; Tong et al., 2024); a better
pairing makes the target less noisy and the trajectories straighter. `generate_pairs` makes a `PairStore` of pairs that
a flow connects, for reflow.
"""

from flowlib.couplings.conditional import condition_aware_ot
from flowlib.couplings.costs import squared_distances
from flowlib.couplings.entropic import (
    EntropicPlan,
    sinkhorn,
    sinkhorn_cost_potentials,
    sinkhorn_plan,
    sinkhorn_potentials,
)
from flowlib.couplings.exact import assignment, exact_ot
from flowlib.couplings.gaussian import bures_wasserstein2, gaussian_map
from flowlib.couplings.pairs import Coupling, Pairs, independent
from flowlib.couplings.reflow import PairStore, generate_pairs, open_pairs
from flowlib.couplings.semidiscrete import CellMasses, SemiDiscrete, solve_semi_discrete
from flowlib.couplings.weights import Tilt, choose_epsilon, gibbs, tilt

__all__ = [
    "CellMasses",
    "Coupling",
    "EntropicPlan",
    "PairStore",
    "Pairs",
    "SemiDiscrete",
    "Tilt",
    "assignment",
    "bures_wasserstein2",
    "choose_epsilon",
    "condition_aware_ot",
    "exact_ot",
    "gaussian_map",
    "generate_pairs",
    "gibbs",
    "independent",
    "open_pairs",
    "sinkhorn",
    "sinkhorn_cost_potentials",
    "sinkhorn_plan",
    "sinkhorn_potentials",
    "solve_semi_discrete",
    "squared_distances",
    "tilt",
]
