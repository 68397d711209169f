"""Solvers: they own the step loop and count function evaluations; fields know nothing of them."""

from flowlib.solvers.adaptive import adaptive_exponential
from flowlib.solvers.ancestral import ancestral
from flowlib.solvers.exponential import EXPONENTIAL
from flowlib.solvers.exponential_sde import exponential_sde
from flowlib.solvers.grids import CLOCKS, clock_grid, shift_times
from flowlib.solvers.jumps import jumps
from flowlib.solvers.late import perturb, teleport
from flowlib.solvers.likelihood import divergence, log_likelihood
from flowlib.solvers.mean_reverting import angular_velocity, data_from_angular, mr_sampler, mr_step
from flowlib.solvers.ode import METHODS, invert, ode
from flowlib.solvers.predictor_corrector import PREDICTORS, langevin, predictor_corrector
from flowlib.solvers.sde import SDE_METHODS, eta_squared, sde
from flowlib.solvers.trajectory import Trajectory, time_grid

__all__ = [
    "CLOCKS",
    "EXPONENTIAL",
    "METHODS",
    "PREDICTORS",
    "SDE_METHODS",
    "Trajectory",
    "adaptive_exponential",
    "ancestral",
    "angular_velocity",
    "clock_grid",
    "data_from_angular",
    "divergence",
    "eta_squared",
    "exponential_sde",
    "invert",
    "jumps",
    "langevin",
    "log_likelihood",
    "mr_sampler",
    "mr_step",
    "ode",
    "perturb",
    "predictor_corrector",
    "sde",
    "shift_times",
    "teleport",
    "time_grid",
]
