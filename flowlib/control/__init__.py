"""Control: fields, solver callbacks and samplers that steer towards a condition."""

from flowlib.control import measurements
from flowlib.control.conditioning import conditioned, replacement
from flowlib.control.guidance import CombinedField, Term, classifier_free, compose, guided, interval
from flowlib.control.particles import tilted

__all__ = [
    "CombinedField",
    "Term",
    "backpropagated",
    "classifier_free",
    "compose",
    "conditioned",
    "data_jacobian",
    "edit_loss",
    "guided",
    "interval",
    "least_squares",
    "loss_gradient",
    "measurements",
    "optimise_start",
    "replacement",
    "steered",
    "tilted",
]
