"""How far samples are apart, how flows and fields behave, how likely data are, what is copied, how good digits are."""

from flowlib.metrics import digits
from flowlib.metrics.conservativity import (
    circulation,
    helmholtz_fit,
    jacobian_asymmetry,
    jacobian_norms,
    line_integral,
    weighted_divergence,
)
from flowlib.metrics.distances import (
    energy_distance,
    frechet_distance,
    mmd,
    precision_recall,
    sliced_wasserstein2,
    wasserstein2,
)
from flowlib.metrics.likelihood import bits_per_dim
from flowlib.metrics.memorisation import copying_z, denoising_error, memorised_fraction, nearest_neighbours
from flowlib.metrics.memory import SavedTensors
from flowlib.metrics.mode_mixture import mode_mixture_ratio, outside_modes
from flowlib.metrics.trajectories import (
    crossing_energy,
    explained_variance,
    path_length,
    principal_fractions,
    straightness,
    transport_cost,
)

__all__ = [
    "SavedTensors",
    "bits_per_dim",
    "circulation",
    "copying_z",
    "crossing_energy",
    "denoising_error",
    "digits",
    "energy_distance",
    "explained_variance",
    "frechet_distance",
    "helmholtz_fit",
    "jacobian_asymmetry",
    "jacobian_norms",
    "line_integral",
    "memorised_fraction",
    "mmd",
    "mode_mixture_ratio",
    "nearest_neighbours",
    "outside_modes",
    "path_length",
    "precision_recall",
    "principal_fractions",
    "sliced_wasserstein2",
    "straightness",
    "transport_cost",
    "wasserstein2",
    "weighted_divergence",
]
