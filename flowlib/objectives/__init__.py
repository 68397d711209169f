"""Objectives: a function of a field and pairs to a scalar.

`flow_matching(field)` returns a function `(x0, x1, *, t=None, generator=None, **conditions) -> Loss`, which is what
`flowlib.training.fit` takes. The score-matching losses of a single density are plain functions of a score and data; the
variational bounds measure a field on data, in nats.
"""

from flowlib.objectives.distillation import distillation, lattice
from flowlib.objectives.flow_map import (
    LearnedWeight,
    eulerian_residual,
    lagrangian_residual,
    mean_flow_residual,
    progressive_residual,
    self_distillation,
)
from flowlib.objectives.flow_matching import Loss, flow_matching, loss_weight
from flowlib.objectives.score_matching import denoising, denoising_score_matching, explicit, implicit, sliced
from flowlib.objectives.time_pairs import AnnealedTriangle, TimePairSampler, dyadic, to_data, triangle
from flowlib.objectives.times import Times, TimeSampler, importance, logit_normal, low_discrepancy, uniform
from flowlib.objectives.variational import (
    Bound,
    Decoder,
    continuous_bound,
    discrete_bound,
    gaussian_decoder,
    grey_level_decoder,
)

__all__ = [
    "AnnealedTriangle",
    "Bound",
    "Decoder",
    "LearnedWeight",
    "Loss",
    "TimePairSampler",
    "TimeSampler",
    "Times",
    "continuous_bound",
    "denoising",
    "denoising_score_matching",
    "discrete_bound",
    "distillation",
    "dyadic",
    "eulerian_residual",
    "explicit",
    "flow_matching",
    "gaussian_decoder",
    "grey_level_decoder",
    "implicit",
    "importance",
    "lagrangian_residual",
    "lattice",
    "logit_normal",
    "loss_weight",
    "low_discrepancy",
    "mean_flow_residual",
    "progressive_residual",
    "self_distillation",
    "sliced",
    "to_data",
    "triangle",
    "uniform",
]
