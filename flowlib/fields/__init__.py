r"""Fields: one object that answers velocity, score, data and noise at any $(x, t)$.

A `Field` implements one prediction; its path gives the other three (`flowlib.paths`). `NetworkField` wraps a
network, `FunctionField` a plain function, and `MixtureField` is exact: the closed-form field of a Gaussian mixture
or of a finite data set. `GaussianField` is one Gaussian of any rank, with its flow map. `RetimedField` is a
composition: a field of one path, used on another. `PerturbedField` adds a known error to a velocity, for example a
`swirl` that no density sees. A `FlowMap` has two times and jumps; its diagonal is a field.
"""

from flowlib.fields.base import Field, FunctionField, NetworkField, StateFunction
from flowlib.fields.flow_map import FlowMap, FunctionFlowMap, NetworkFlowMap
from flowlib.fields.gaussian import GaussianField
from flowlib.fields.mixture import MixtureField
from flowlib.fields.perturbed import PerturbedField, swirl
from flowlib.fields.retimed import RetimedField

__all__ = [
    "Field",
    "FlowMap",
    "FunctionField",
    "FunctionFlowMap",
    "GaussianField",
    "MixtureField",
    "NetworkField",
    "NetworkFlowMap",
    "PerturbedField",
    "RetimedField",
    "StateFunction",
    "swirl",
]
