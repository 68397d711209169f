"""Objectives: a function of a field and pairs to a scalar.

`flow_matching(field)` returns a function `(x0, x1, *, t=None, generator=None, **conditions) -> Loss`, which is what
`flowlib.training.fit` takes. The score-matching losses of a single density are plain functions of a score and data.
"""

from flowlib.objectives.distillation import distillation, lattice
from flowlib.objectives.flow_matching import Loss, flow_matching, loss_weight
from flowlib.objectives.score_matching import (
    denoising,
    denoising_score_matching,
    explicit,
    implicit,
    sliced,
)
from flowlib.objectives.times import Times, TimeSampler, importance, logit_normal, uniform

__all__ = [
    "Loss",
    "TimeSampler",
    "Times",
    "denoising",
    "denoising_score_matching",
    "distillation",
    "explicit",
    "flow_matching",
    "implicit",
    "importance",
    "lattice",
    "logit_normal",
    "loss_weight",
    "sliced",
    "uniform",
]
