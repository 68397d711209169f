"""Figures in one style: the same colour for the same thing everywhere, readable by colour-blind readers.

Every function takes tensors or arrays, draws on `ax` (or a new one) and returns it.
"""

from flowlib.plots.animation import Animation, animate
from flowlib.plots.exploration import Explorer, explorer
from flowlib.plots.figures import (
    COLORS,
    curves,
    density,
    image_grid,
    scatter,
    trajectories,
    use_style,
    vector_field,
)

__all__ = [
    "COLORS",
    "Animation",
    "Explorer",
    "animate",
    "curves",
    "density",
    "explorer",
    "image_grid",
    "scatter",
    "trajectories",
    "use_style",
    "vector_field",
]
