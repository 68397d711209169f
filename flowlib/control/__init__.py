"""Control: fields and solver callbacks that steer samples towards a condition."""

from flowlib.control import measurements
from flowlib.control.conditioning import conditioned, replacement

__all__ = ["conditioned", "measurements", "replacement"]
