"""Solvers: they own the step loop and count function evaluations; fields know nothing of them."""

from flowlib.solvers.ancestral import ancestral
from flowlib.solvers.jumps import jumps
from flowlib.solvers.late import perturb, teleport
from flowlib.solvers.likelihood import divergence, log_likelihood
from flowlib.solvers.ode import METHODS, invert, ode
from flowlib.solvers.predictor_corrector import PREDICTORS, langevin, predictor_corrector
from flowlib.solvers.sde import SDE_METHODS, eta_squared, sde
from flowlib.solvers.trajectory import Trajectory, time_grid

__all__ = [
    "METHODS",
    "PREDICTORS",
    "SDE_METHODS",
    "Trajectory",
    "ancestral",
    "divergence",
    "eta_squared",
    "invert",
    "jumps",
    "langevin",
    "log_likelihood",
    "ode",
    "perturb",
    "predictor_corrector",
    "sde",
    "teleport",
    "time_grid",
]
