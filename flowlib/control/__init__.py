"""Control: fields, solver callbacks and samplers that steer towards a condition."""

from flowlib.control import measurements
from flowlib.control.conditioning import conditioned, replacement
from flowlib.control.guidance import CombinedField, Term, classifier_free, compose, guided, interval
from flowlib.control.inversion import (
    eta_effective,
    flowedit,
    on_grid,
    population_target,
    toward_data,
    toward_noise,
    transport_schedule,
)
from flowlib.control.particles import tilted
from flowlib.control.steering import (
    backpropagated,
    data_jacobian,
    edit_loss,
    least_squares,
    loss_gradient,
    optimise_start,
    steered,
)

__all__ = [
    "CombinedField",
    "Term",
    "backpropagated",
    "classifier_free",
    "compose",
    "conditioned",
    "data_jacobian",
    "edit_loss",
    "eta_effective",
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
