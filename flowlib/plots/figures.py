"""The book's style, and figures of points, densities, fields, images and curves."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flowlib._checks import check_positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLORS", "curves", "density", "image_grid", "scatter", "trajectories", "use_style", "vector_field"]

COLORS = {
    "source": "#7f7f7f",
    "data": "#0072b2",
    "method": "#e69f00",
    "baseline": "#009e73",
    "other": "#cc79a7",
    "dark": "#333333",
}
"""Source grey, data blue, method orange, baseline green (Okabe and Ito's colour-blind-safe palette)."""


def use_style() -> None:
    """Set the book's matplotlib style for this session.

    Example:
        >>> use_style()
    """
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "figure.figsize": (6.0, 3.6),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(
                color=[COLORS[name] for name in ("method", "baseline", "data", "other", "source", "dark")]
            ),
            "legend.frameon": False,
            "font.size": 10,
            "image.cmap": "Blues",
            "image.interpolation": "nearest",
        }
    )


def scatter(
    x: Tensor, *, ax: "Axes | None" = None, color: str = "data", label: str | None = None, size: float = 4.0,
    limit: float | None = None, alpha: float = 0.6,
) -> "Axes":  # fmt: skip
    """Points in the plane.

    Args:
        x: Points `[n, 2]`.
        ax: Where to draw.
        color: A name of `COLORS`, or any matplotlib colour.
        label: Name in the legend.
        size: Area of a point.
        limit: Half the side of the square shown; from the points if `None`.
        alpha: Opacity.

    Returns:
        The axes.

    Raises:
        ValueError: If the points are not `[n, 2]`.

    Example:
        >>> scatter(torch.zeros(3, 2)).get_xlabel()
        'first coordinate'
    """
    points = _planar(x)
    ax = _axes(ax)
    ax.scatter(
        points[:, 0], points[:, 1], s=size, color=_color(color), label=label, alpha=alpha, linewidths=0, rasterized=True
    )
    return _plane(ax, limit)


def density(
    log_prob: Callable[[Tensor], Tensor], *, ax: "Axes | None" = None, limit: float = 3.5, resolution: int = 150,
    dtype: torch.dtype | None = None,
) -> "Axes":  # fmt: skip
    """A density in the plane as shades of blue.

    Args:
        log_prob: From points `[n, 2]` to log-densities `[n]`.
        ax: Where to draw.
        limit: Half the side of the square shown.
        resolution: Grid points along a side.
        dtype: Type of the points handed to `log_prob`.

    Returns:
        The axes.

    Example:
        >>> from flowlib.distributions import Normal
        >>> density(Normal(2).log_prob, resolution=5).get_ylabel()
        'second coordinate'
    """
    check_positive("resolution", resolution, integer=True)
    side = torch.linspace(-limit, limit, resolution, dtype=dtype)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        values = log_prob(grid).exp().reshape(resolution, resolution)
    ax = _axes(ax)
    ax.imshow(_array(values).T, origin="lower", extent=(-limit, limit, -limit, limit), cmap="Blues", aspect="equal")
    ax.grid(False)
    return _plane(ax, limit)


def trajectories(
    states: Tensor, *, ax: "Axes | None" = None, limit: float | None = None, color: str = "method", count: int = 60
) -> "Axes":
    """Paths of points in the plane, with their ends.

    Args:
        states: States `[times, n, 2]`, as in a `Trajectory`.
        ax: Where to draw.
        limit: Half the side of the square shown.
        color: Colour of the paths.
        count: How many paths to draw, the first ones.

    Returns:
        The axes.

    Raises:
        ValueError: If the states are not `[times, n, 2]`.

    Example:
        >>> len(trajectories(torch.zeros(4, 7, 2)).lines)
        7
    """
    if states.ndim != 3 or states.shape[2] != 2:
        raise ValueError(f"states must have shape [times, n, 2], got {list(states.shape)}")
    lines = _array(states[:, :count])
    ax = _axes(ax)
    ax.plot(lines[..., 0], lines[..., 1], color=_color(color), lw=0.7, alpha=0.6)
    ax.scatter(lines[0, :, 0], lines[0, :, 1], s=8, color=COLORS["source"], label="start", zorder=3)
    ax.scatter(lines[-1, :, 0], lines[-1, :, 1], s=8, color=COLORS["data"], label="end", zorder=3)
    return _plane(ax, limit)


def vector_field(
    velocity: Callable[[Tensor], Tensor], *, ax: "Axes | None" = None, limit: float = 3.5, resolution: int = 18,
    color: str = "dark", dtype: torch.dtype | None = None,
) -> "Axes":  # fmt: skip
    """Arrows of a field in the plane.

    Args:
        velocity: From points `[n, 2]` to vectors `[n, 2]`; fix the time first.
        ax: Where to draw.
        limit: Half the side of the square shown.
        resolution: Arrows along a side.
        color: Colour of the arrows.
        dtype: Type of the points.

    Returns:
        The axes.

    Example:
        >>> vector_field(lambda x: -x, resolution=4).get_xlabel()
        'first coordinate'
    """
    side = torch.linspace(-limit, limit, resolution, dtype=dtype)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        arrows = velocity(grid)
    ax = _axes(ax)
    ax.quiver(*_array(grid).T, *_array(arrows).T, color=_color(color), alpha=0.8, width=0.004, pivot="mid")
    return _plane(ax, limit)


def image_grid(
    images: Tensor, *, columns: int = 10, ax: "Axes | None" = None, titles: Sequence[str] | None = None
) -> "Axes":
    """Grey images side by side, -1 white and 1 black, as digits are printed.

    Args:
        images: `[n, 1, height, width]`, values in [-1, 1] (others are clipped).
        columns: Images in a row.
        ax: Where to draw.
        titles: A name for each row, drawn at its left.

    Returns:
        The axes.

    Raises:
        ValueError: If the shape is wrong.

    Example:
        >>> image_grid(torch.zeros(20, 1, 8, 8)).get_images()[0].get_array().shape
        (19, 91)
    """
    if images.ndim != 4 or images.shape[1] != 1 or images.shape[0] == 0:
        raise ValueError(f"images must have shape [n, 1, height, width] with n >= 1, got {list(images.shape)}")
    check_positive("columns", columns, integer=True)
    count, _, height, width = images.shape
    rows = -(-count // columns)
    canvas = torch.full((rows * (height + 1) + 1, columns * (width + 1) + 1), -1.0)
    for i, image in enumerate(images.detach().cpu().clamp(-1, 1)):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image[0]
    ax = _axes(ax)
    ax.imshow(_array(canvas), cmap="Greys", vmin=-1, vmax=1)
    ax.set_xticks([])
    ax.grid(False)
    ax.set_yticks([])
    if titles is not None:
        ax.set_yticks([(row + 0.5) * (height + 1) for row in range(rows)], titles)
        ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def curves(
    x: Any,
    values: Mapping[str, Any],
    *,
    ax: "Axes | None" = None,
    colors: Mapping[str, str] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    log: str = "",
) -> "Axes":
    """Named curves with a band of one standard deviation over seeds.

    Args:
        x: Abscissae `[n]`.
        values: For each name `[n]`, or `[seeds, n]` for mean and band.
        ax: Where to draw.
        colors: For each name a colour of `COLORS` or of matplotlib.
        xlabel: Label of the abscissa.
        ylabel: Label of the ordinate.
        log: Which axes are logarithmic: `""`, `"x"`, `"y"` or `"xy"`.

    Returns:
        The axes, with a legend.

    Example:
        >>> curves([1, 2], {"method": torch.ones(3, 2)}, ylabel="error").get_ylabel()
        'error'
    """
    ax = _axes(ax)
    abscissae = _array(x)
    for name, rows in values.items():
        array = np.atleast_2d(_array(rows))
        if array.shape[1] != abscissae.shape[0]:
            raise ValueError(f"values[{name!r}] must have {abscissae.shape[0]} columns, got {array.shape[1]}")
        mean = array.mean(0)
        color = _color(colors[name]) if colors and name in colors else None
        (line,) = ax.plot(abscissae, mean, marker="o", ms=3.5, label=name, color=color)
        if array.shape[0] > 1:
            spread = array.std(0, ddof=1)
            ax.fill_between(abscissae, mean - spread, mean + spread, color=line.get_color(), alpha=0.2, lw=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if "x" in log:
        ax.set_xscale("log")
    if "y" in log:
        ax.set_yscale("log")
    ax.legend()
    return ax


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.subplots()[1]


def _plane(ax: "Axes", limit: float | None) -> "Axes":
    if limit is not None:
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit))
    ax.set_aspect("equal")
    ax.set(xlabel="first coordinate", ylabel="second coordinate")
    return ax


def _planar(x: Tensor) -> Any:
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"x must have shape [n, 2], got {list(x.shape)}")
    return _array(x)


def _array(x: Any) -> Any:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x, dtype=float)


def _color(name: str) -> str:
    return COLORS.get(name, name)
