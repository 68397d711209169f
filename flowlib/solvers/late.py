"""Solves that start late: from a closed-form state, or from a kicked one."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_positive, check_same
from flowlib.fields import Field, GaussianField
from flowlib.solvers.ode import ode
from flowlib.solvers.trajectory import Trajectory, VelocityFunction

__all__ = ["perturb", "teleport"]


def teleport(
    field: Field,
    x0: Float[Tensor, "batch *event"],
    gaussian: GaussianField,
    t: float,
    *,
    steps: int,
    method: str = "midpoint",
    **options: Any,
) -> Trajectory:
    r"""Jump from noise to time `t` with a Gaussian's flow map, then solve the ODE of `field` on $[t, 1]$.

    The jump costs no evaluation. The remaining grid is laid anew: `steps` equal steps from `t` to 1, which on the EDM
    path are those of Karras et al. (2022) from $\sigma_t$ (Wang and Vastola, 2024).

    Args:
        field: The field, usually a network.
        x0: States at time 0, draws of `path.sample_prior`.
        gaussian: The Gaussian of the data, on the path of the field.
        t: Where to begin, in [0, 1); at 0 this is `ode`.
        steps: Number of steps after the jump.
        method: As for `ode`.
        **options: Further options of `ode`, and conditions of the field.

    Returns:
        The trajectory from time `t` to 1, with the evaluations after the jump.

    Raises:
        TypeError: As `ode`.
        ValueError: If `t` is not in [0, 1), the two paths differ, or as `ode`.

    Example:
        >>> from flowlib import data, fields, paths
        >>> mixture = data.toys.eight_gaussians()
        >>> field = fields.MixtureField(mixture, paths.linear())
        >>> gaussian = fields.GaussianField.fit(mixture.sample(100), paths.linear())
        >>> teleport(field, torch.zeros(3, 2), gaussian, 0.4, steps=6)
        Trajectory(7 times from 0.4 to 1, batch=3, event=(2,), nfe=12)
    """
    check_positive("steps", steps, integer=True)
    if not 0 <= t < 1:
        raise ValueError(f"t must lie in [0, 1), got {t}")
    centers = [torch.as_tensor(one.path.center, dtype=x0.dtype, device=x0.device) for one in (field, gaussian)]
    if field.path.schedule != gaussian.path.schedule or not bool((centers[0] == centers[1]).all()):
        raise ValueError(f"field and gaussian must share a path, got {field.path} and {gaussian.path}")
    times = torch.linspace(t, 1, steps + 1, dtype=torch.float64)
    return ode(field, gaussian.flow(x0, 0.0, t), times=times, method=method, **options)


def perturb(
    field: Field | VelocityFunction,
    x: Float[Tensor, "batch *event"],
    kick: Float[Tensor, "batch *event"],
    *,
    times: Tensor,
    method: str = "midpoint",
    **conditions: Any,
) -> Float[Tensor, "batch *event"]:
    r"""What a kick $\delta$ at the first time has become at the last: $\tfrac12[\psi(x + \delta) - \psi(x - \delta)]$.

    $\psi$ is the flow map of the field. The symmetric difference is the Jacobian of $\psi$ times $\delta$ up to the
    third order in $\delta$; for a Gaussian it is `GaussianField.propagator` times $\delta$ at any size.

    Args:
        field: As for `ode`.
        x: States at the first time.
        kick: $\delta$, one for each state.
        times: The grid of both solves.
        method: As for `ode`.
        **conditions: Passed to the field.

    Returns:
        The changes, shaped like `x`.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes differ, or as `ode`.

    Example:
        >>> grid = torch.linspace(0, 1, 101)
        >>> perturb(lambda x, t: -x, torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]), times=grid)     # exp(-1) of it
        tensor([[0.3679, 0.7358]])
    """
    check_same("kick", kick, "x", x)
    ends = [
        ode(field, start, times=times, method=method, keep=False, **conditions).end for start in (x + kick, x - kick)
    ]
    return (ends[0] - ends[1]) / 2
