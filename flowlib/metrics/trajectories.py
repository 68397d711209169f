"""How far and how straight a flow moves its points."""

from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_same, check_state
from flowlib.solvers import Trajectory

__all__ = ["path_length", "straightness", "transport_cost"]


def straightness(trajectory: Trajectory) -> float:
    r"""$S = \int_0^1 E\|(Z_1 - Z_0) - \dot Z_t\|^2\,\mathrm dt$: zero for straight, even motion (Liu et al., 2023).

    The velocity on each interval is the difference quotient of the states kept, so the trajectory should have many
    times; the time runs over [0, 1].

    Args:
        trajectory: A trajectory with all states kept.

    Returns:
        The mean over the batch.

    Raises:
        ValueError: If only the two ends were kept.

    Example:
        >>> import torch
        >>> line = torch.linspace(0, 1, 5)
        >>> straightness(Trajectory(line, line[:, None, None] * torch.ones(5, 3, 2), nfe=4))
        0.0
    """
    states, widths = _states(trajectory)
    span = float(widths.sum())
    chord = (states[-1] - states[0]) / span
    speeds = states.diff(dim=0) / widths[:, None, None]
    return float((widths[:, None] * (speeds - chord).square().sum(2)).sum(0).mean() * span)


def path_length(trajectory: Trajectory) -> float:
    r"""The mean length $E\int\|\dot Z_t\|\,\mathrm dt$ of the polygons through the states kept.

    Args:
        trajectory: A trajectory with all states kept.

    Returns:
        The mean over the batch.

    Raises:
        ValueError: If only the two ends were kept.

    Example:
        >>> import torch
        >>> line = torch.linspace(0, 1, 5)
        >>> path_length(Trajectory(line, line[:, None, None] * torch.ones(5, 3, 1), nfe=4))
        1.0
    """
    states, _ = _states(trajectory)
    return float(states.diff(dim=0).norm(dim=2).sum(0).mean())


def transport_cost(x0: Float[Tensor, "batch *event"], x1: Float[Tensor, "batch *event"], *, power: float = 2) -> float:
    r"""$E\|x_1 - x_0\|^p$ of a coupling given by its pairs.

    Args:
        x0: Starts.
        x1: Their partners.
        power: $p$, positive.

    Returns:
        The mean.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes differ.

    Example:
        >>> import torch
        >>> transport_cost(torch.zeros(2, 2), torch.ones(2, 2))
        2.0000...
    """
    check_state("x0", x0)
    check_same("x0", x0, "x1", x1)
    return float((x1 - x0).detach().double().flatten(1).norm(dim=1).pow(power).mean())


def _states(trajectory: Trajectory) -> tuple[Tensor, Tensor]:
    if len(trajectory) < 3:
        raise ValueError("the trajectory holds only its ends; solve with keep=True and at least two steps")
    return trajectory.states.detach().double().flatten(2), trajectory.times.double().diff().abs()
