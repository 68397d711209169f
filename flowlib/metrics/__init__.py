"""How far two samples are apart, how straight a flow is, how likely data are, and how good generated digits are."""

from flowlib.metrics import digits
from flowlib.metrics.distances import (
    energy_distance,
    frechet_distance,
    mmd,
    precision_recall,
    sliced_wasserstein2,
    wasserstein2,
)
from flowlib.metrics.likelihood import bits_per_dim
from flowlib.metrics.mode_mixture import mode_mixture_ratio, outside_modes
from flowlib.metrics.trajectories import crossing_energy, path_length, straightness, transport_cost

__all__ = [
    "bits_per_dim",
    "crossing_energy",
    "digits",
    "energy_distance",
    "frechet_distance",
    "mmd",
    "mode_mixture_ratio",
    "outside_modes",
    "path_length",
    "precision_recall",
    "sliced_wasserstein2",
    "straightness",
    "transport_cost",
    "wasserstein2",
]
