"""Objectives: a function of a field and pairs to a scalar.

`flow_matching(field)` returns a function `(x0, x1, *, t=None, generator=None, **conditions) -> Loss`, which is what
`flowlib.training.fit` takes. The score-matching losses of a single density are plain functions of a score and data; the
variational bounds measure a field on data, in nats.
"""

from flowlib.objectives.distillation import distillation, lattice
from flowlib.objectives.flow_matching import Loss, flow_matching, loss_weight
from flowlib.objectives.score_matching import denoising, denoising_score_matching, explicit, implicit, sliced
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
    "Bound",
    "Decoder",
    "Loss",
    "TimeSampler",
    "Times",
    "continuous_bound",
    "denoising",
    "denoising_score_matching",
    "discrete_bound",
    "distillation",
    "explicit",
    "flow_matching",
    "gaussian_decoder",
    "grey_level_decoder",
    "implicit",
    "importance",
    "lattice",
    "logit_normal",
    "loss_weight",
    "low_discrepancy",
    "sliced",
    "uniform",
]
