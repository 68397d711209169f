"""Control: fields, solver callbacks and samplers that steer towards a condition."""

from flowlib.control import measurements
from flowlib.control.conditioning import conditioned, replacement
from flowlib.control.guidance import CombinedField, Term, classifier_free, compose, guided, interval
from flowlib.control.particles import tilted

__all__ = [
    "CombinedField",
    "Term",
    "classifier_free",
    "compose",
    "conditioned",
    "guided",
    "interval",
    "measurements",
    "replacement",
    "tilted",
]
