"""Control: fields and solver callbacks that steer samples towards a condition."""

from flowlib.control import measurements
from flowlib.control.conditioning import conditioned, replacement
from flowlib.control.inverse import Restoration, calibrated_weights, carried_noise, data_consistency, flair

__all__ = [
    "Restoration",
    "calibrated_weights",
    "carried_noise",
    "conditioned",
    "data_consistency",
    "flair",
    "measurements",
    "replacement",
]
