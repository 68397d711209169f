"""Control: fields and solver callbacks that steer samples towards a condition."""

from flowlib.control import measurements
from flowlib.control.conditioning import conditioned, replacement
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
    "backpropagated",
    "conditioned",
    "data_jacobian",
    "edit_loss",
    "least_squares",
    "loss_gradient",
    "measurements",
    "optimise_start",
    "replacement",
    "steered",
]
