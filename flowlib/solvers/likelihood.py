r"""Log-likelihood along the probability-flow ODE.

The density changes along a trajectory by the divergence of the velocity (Chen et al., 2018, theorem 1):

$$ \frac{\mathrm d}{\mathrm dt}\log p_t(x_t) = -\nabla\!\cdot v(x_t, t) \quad\Longrightarrow\quad
   \log p_1(x_1) = \log p_0(x_0) - \int_0^1 \nabla\!\cdot v(x_t, t)\,\mathrm dt. $$
"""

from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_choice, check_positive
from flowlib.distributions import Normal
from flowlib.fields import Field
from flowlib.solvers.ode import METHODS, ode
from flowlib.solvers.trajectory import CountedVelocity, Trajectory, VelocityFunction, check_start, time_grid

__all__ = ["divergence", "log_likelihood"]

_METHODS = tuple(name for name in METHODS if name != "ddim")


@runtime_checkable
class Density(Protocol):
    """A distribution with a log-density."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of each row."""


def divergence(
    velocity: VelocityFunction,
    x: Float[Tensor, "batch *event"],
    t: Tensor,
    *,
    probes: Tensor | None = None,
    **conditions: Any,
) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"]]:
    r"""A velocity and its divergence, exact or estimated.

    Exactly, $\nabla\!\cdot v = \sum_i \partial v_i/\partial x_i$, at the price of a backward pass a coordinate; or as
    $\frac1K\sum_k z_k^\top(\partial v/\partial x) z_k$ with random probes, unbiased if $E[z z^\top] = I$
    (Hutchinson, 1990; Grathwohl et al., 2019).

    Args:
        velocity: A function `(x, t, **conditions)`, acting on each sample alone.
        x: States.
        t: Time, 0-d or `[batch]`.
        probes: Directions `[K, batch, *event]`; `None` for the exact trace.
        **conditions: Passed to the velocity.

    Returns:
        The velocity, and its divergence for each sample.

    Example:
        >>> v, trace = divergence(lambda x, t: x * torch.tensor([1.0, 2.0]), torch.ones(3, 2), torch.tensor(0.0))
        >>> trace
        tensor([3., 3., 3.])
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = velocity(x, t, **conditions)
        if probes is None:
            size = x[0].numel()
            directions = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:])
            directions = directions.expand(size, *x.shape)
        else:
            directions = probes
        total = torch.zeros(x.shape[0], dtype=x.dtype, device=x.device)
        chunks = torch.split(directions, 64)
        for number, chunk in enumerate(chunks):
            several, again = len(chunk) > 1, number < len(chunks) - 1
            along = chunk if several else chunk[0]  # one direction needs no batch of backward passes
            (gradient,) = torch.autograd.grad(v, x, along, is_grads_batched=several, retain_graph=again)
            total = total + (gradient * chunk).flatten(2).sum((0, 2))
    return v.detach(), total if probes is None else total / probes.shape[0]


def log_likelihood(
    field: Field | VelocityFunction,
    x1: Float[Tensor, "batch *event"],
    *,
    steps: int | None = None,
    method: str = "rk4",
    times: Tensor | None = None,
    trace: Literal["exact", "hutchinson"] = "exact",
    probes: int = 1,
    prior: Density | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    generator: torch.Generator | None = None,
    **conditions: Any,
) -> tuple[Float[Tensor, " batch"], Trajectory]:
    r"""The log-density that the flow of a field gives to data, in nats.

    State and log-density are integrated together from data to noise. With `"hutchinson"` the random signs are drawn
    once for the whole trajectory, so that the solver sees a smooth function; the estimate is unbiased.

    Args:
        field: A field or a velocity function.
        x1: Data at the last time.
        steps: Number of equal steps; with `"adaptive"` it may be left out.
        method: A method of `ode` other than `"ddim"`.
        times: The grid instead of `steps`, in either order. The density is that of the flow from its smallest time,
            where `prior` is meant to hold, to its largest.
        trace: `"exact"`, or `"hutchinson"` for high dimension.
        probes: Number of probes of `"hutchinson"`.
        prior: Density at the first time, with a method `log_prob`; if `None`, the path's source
            $\mathcal N(\mu, \texttt{prior\_std}^2 I)$ (standard normal for a plain function).
        rtol: Relative tolerance of `"adaptive"`.
        atol: Absolute tolerance of `"adaptive"`.
        generator: Random generator of the probes.
        **conditions: Passed to the field.

    Returns:
        Log-densities `[batch]`, and the trajectory from data to noise.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid or the velocity has no limit at a time that is needed.

    Example:
        >>> from flowlib import fields, paths
        >>> from flowlib.distributions import GaussianMixture
        >>> field = fields.MixtureField(GaussianMixture(torch.zeros(1, 2), 1.0), paths.linear())
        >>> log_likelihood(field, torch.zeros(1, 2), steps=20)[0]
        tensor([-1.8379])
    """
    check_choice("method", method, _METHODS)
    check_choice("trace", trace, ("exact", "hutchinson"))
    check_positive("probes", probes, integer=True)
    check_start(x1)
    if steps is None and times is None and method == "adaptive":
        steps = 1
    grid = time_grid(x1, steps, times, backward=True)
    grid = grid if grid[0] > grid[-1] else grid.flip(0)
    # forward-only methods leave out their last time, which here is the noise end
    counted = CountedVelocity(field, conditions, grid)
    signs = None
    if trace == "hutchinson":
        shape = (probes, *x1.shape)
        signs = torch.randint(0, 2, shape, generator=generator, device=x1.device).to(x1.dtype) * 2 - 1

    def augmented(state: Tensor, t: Tensor) -> Tensor:
        v, rate = divergence(counted, state[:, :-1].reshape(x1.shape), t, probes=signs)
        return torch.cat([v.flatten(1), rate[:, None]], 1)

    start = torch.cat([x1.flatten(1), x1.new_zeros(x1.shape[0], 1)], 1)
    solution = ode(augmented, start, times=grid, method=method, rtol=rtol, atol=atol)
    states = solution.states[..., :-1].reshape(len(solution), *x1.shape)
    x0 = states[-1]
    if prior is None:
        center = field.path.center if isinstance(field, Field) else 0.0
        std = field.path.prior_std if isinstance(field, Field) else 1.0
        base = Normal(tuple(x1.shape[1:]), std=std).log_prob(x0 - center)
    else:
        base = prior.log_prob(x0)
    # the last entry is the integral of the divergence from the last time back to the first, hence its sign
    return base + solution.end[:, -1], Trajectory(grid, states, counted.nfe)
