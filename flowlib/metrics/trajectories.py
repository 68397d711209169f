"""How far and how straight a flow moves its points."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_positive, check_same, check_state
from flowlib.fields import Field
from flowlib.solvers import Trajectory

__all__ = ["crossing_energy", "path_length", "straightness", "transport_cost"]


def crossing_energy(
    field: Field | Callable[..., Tensor],
    x0: Float[Tensor, "batch *event"],
    x1: Float[Tensor, "batch *event"],
    *,
    nodes: int = 16,
    **conditions: Tensor,
) -> float:
    r"""$V = \int_0^1 E\|X_1 - X_0 - v(X_t, t)\|^2\,\mathrm dt$ with $X_t = (1 - t)X_0 + tX_1$ (Liu et al., 2023).

    If $v$ is the conditional mean of $X_1 - X_0$ given $X_t$, this is the irreducible loss of flow matching: zero if
    and only if the straight lines of the pairs do not cross. For a learned $v$ it also contains the error of the fit.

    Args:
        field: The velocity: a field, or a function of `(x, t, **conditions)` with a 0-d `t`.
        x0: Starts.
        x1: Their partners.
        nodes: Nodes of the Gauss-Legendre rule in time; every pair is evaluated at each.
        **conditions: Passed to the field.

    Returns:
        The mean over the pairs, summed over the entries of a state.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes differ or `nodes` is not positive.

    Example:
        >>> x0, x1 = torch.randn(2, 10, 2)
        >>> round(crossing_energy(lambda x, t: x1 - x0, x0, x1), 6)
        0.0
    """
    check_positive("nodes", nodes, integer=True)
    check_state("x0", x0)
    check_same("x0", x0, "x1", x1)
    from numpy.polynomial.legendre import leggauss

    velocity = field.function("velocity") if isinstance(field, Field) else field
    points, weights = leggauss(nodes)
    total = 0.0
    with torch.no_grad():
        for point, weight in zip(points, weights, strict=True):
            t = torch.as_tensor((point + 1) / 2, dtype=x0.dtype, device=x0.device)
            error = x1 - x0 - velocity((1 - t) * x0 + t * x1, t, **conditions)
            total += float(weight) / 2 * float(error.double().flatten(1).square().sum(1).mean())
    return total


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


def transport_cost(
    x0: Float[Tensor, "batch *event"],
    x1: Float[Tensor, "batch *event"],
    *,
    power: float = 2,
    cost: Callable[[Tensor], Tensor] | None = None,
) -> float:
    r"""$E\|x_1 - x_0\|^p$, or $E\,c(x_1 - x_0)$ for another cost, of a coupling given by its pairs.

    Args:
        x0: Starts.
        x1: Their partners.
        power: $p$, positive.
        cost: $c$, from displacements `[batch, *event]` in float64 to numbers `[batch]`; `None` for the power.

    Returns:
        The mean.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes differ, or the cost does not return one number a pair.

    Example:
        >>> import torch
        >>> transport_cost(torch.zeros(2, 2), torch.ones(2, 2))
        2.0000...
    """
    check_state("x0", x0)
    check_same("x0", x0, "x1", x1)
    displacement = (x1 - x0).detach().double()
    if cost is None:
        check_positive("power", power)
        return float(displacement.flatten(1).norm(dim=1).pow(power).mean())
    values = cost(displacement)
    if values.shape != x0.shape[:1]:
        raise ValueError(f"cost must return shape [{len(x0)}], one number a pair, got {list(values.shape)}")
    return float(values.mean())


def _states(trajectory: Trajectory) -> tuple[Tensor, Tensor]:
    if len(trajectory) < 3:
        raise ValueError("the trajectory holds only its ends; solve with keep=True and at least two steps")
    return trajectory.states.detach().double().flatten(2), trajectory.times.double().diff().abs()
