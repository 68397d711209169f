"""Control: fields, solver callbacks and samplers that steer towards a condition."""

from flowlib.control import measurements
from flowlib.control.conditioning import conditioned, replacement
from flowlib.control.guidance import CombinedField, Term, classifier_free, compose, guided, interval
from flowlib.control.inverse import Restoration, calibrated_weights, carried_noise, data_consistency, flair
from flowlib.control.inversion import (
    eta_effective,
    flowedit,
    on_grid,
    population_target,
    toward_data,
    toward_noise,
    transport_schedule,
)
from flowlib.control.losses import edit_loss, least_squares, loss_gradient
from flowlib.control.particles import tilted
from flowlib.control.steering import backpropagated, data_jacobian, optimise_start, steered

__all__ = [
    "CombinedField",
    "Restoration",
    "Term",
    "backpropagated",
    "calibrated_weights",
    "carried_noise",
    "classifier_free",
    "compose",
    "conditioned",
    "data_consistency",
    "data_jacobian",
    "edit_loss",
    "eta_effective",
    "flair",
    "flowedit",
    "guided",
    "interval",
    "least_squares",
    "loss_gradient",
    "measurements",
    "on_grid",
    "optimise_start",
    "population_target",
    "replacement",
    "steered",
    "tilted",
    "toward_data",
    "toward_noise",
    "transport_schedule",
]
