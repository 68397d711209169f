"""Control: fields and solver callbacks that steer samples towards a condition, and edit data that are given."""

from flowlib.control import measurements
from flowlib.control.conditioning import conditioned, replacement
from flowlib.control.inversion import (
    eta_effective,
    flowedit,
    on_grid,
    population_target,
    toward_data,
    toward_noise,
    transport_schedule,
)

__all__ = [
    "conditioned",
    "eta_effective",
    "flowedit",
    "measurements",
    "on_grid",
    "population_target",
    "replacement",
    "toward_data",
    "toward_noise",
    "transport_schedule",
]
