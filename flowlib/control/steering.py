r"""Steering by a loss on the data prediction: gradient skipping (FlowChef), and the two baselines that backpropagate.

All three know the loss $L$ only through its gradient $g = \nabla L(\hat x_1)$ at the data prediction
$\hat x_1(x_t, t)$, and differ in the matrix that carries it to what they change:

| function | changes | matrix before $g$ | forward and backward passes |
|---|---|---|---|
| `steered` | the state $x_t$ | none: the velocity is frozen | $N$ and 0 |
| `backpropagated` | the state $x_t$ | $J_t^\top$, $J_t = \partial\hat x_1/\partial x_t$ | $N$ and $N$ |
| `optimise_start` | the start $x_0$ | the Jacobian of the whole solve | $N(I + 1)$ and $NI$ |

for $N$ Euler steps and $I$ iterations. The first is FlowChef (Patel et al., 2025), the second the guidance of DPS
(Chung et al., 2023) and FreeDoM (Yu et al., 2023), the third D-Flow (Ben-Hamu et al., 2024).

A loss is one of `flowlib.control.losses`. The first two are fields: any solver runs them, and
`solvers.ode(..., method="euler")` runs the published loops step by step.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from flowlib._checks import batch_time, check_positive, check_state, expand_time
from flowlib.control.losses import Loss, loss_gradient, loss_values
from flowlib.fields import Field, FunctionField
from flowlib.fields.base import check_field
from flowlib.solvers import Trajectory, ode

__all__ = ["backpropagated", "data_jacobian", "optimise_start", "steered"]


def steered(
    field: Field,
    loss: Loss,
    *,
    step: float,
    steps: int,
    inner: int = 1,
    optimiser: Callable[..., Optimizer] | None = None,
    predictor: Field | None = None,
    until: float = 1.0,
) -> FunctionField:
    r"""Gradient skipping: move the state against $\nabla L(\hat x_1)$, as if $\partial\hat x_1/\partial x_t$ were one.

    On the linear path a state $x$ at time $t$ gets its velocity $v$ once, without a graph. Then `inner` times

    $$ x \leftarrow x - s\,\nabla L\big(x + (1 - t)v\big), $$

    with $v$ frozen, and the displacement $\delta$ is returned as $v + N\delta$. An Euler step of size $1/N$ takes
    this to $x + \delta + v/N$: the FlowChef loop (Patel et al., 2025). With `inner=1` the velocity is $v - sN\nabla L$,
    a field that does not change with $N$ if $sN$ is kept.

    Args:
        field: What is steered; on another path than the linear one $\hat x_1$ follows from the path.
        loss: $L$, from data predictions and the time, 0-d or `[batch]`, to `[batch]`.
        step: $s$, not negative; the learning rate if an optimiser is given.
        steps: $N$, the Euler steps of the solve.
        inner: Corrections with one velocity.
        optimiser: Makes a `torch.optim` optimiser, called as `optimiser([x], lr=step)` anew in each step;
            plain gradient steps if `None`.
        predictor: A field on the same path whose velocity makes $\hat x_1$ while `field` still makes the move, as in
            editing; it gets no conditions. One velocity serves both if `None`.
        until: Steer at times before this one.

    Returns:
        A field that predicts the velocity. Its conditions go to `field`.

    Raises:
        TypeError: If `field` or `predictor` is not a field, or a count is not an integer.
        ValueError: If a number is out of range, or, when evaluated, if the loss does not have one value for each state.

    Example:
        >>> from flowlib import data, fields, paths, solvers
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.linear())
        >>> right = steered(field, lambda x1, t: -x1[:, 0], step=0.05, steps=100)
        >>> end = solvers.ode(right, torch.randn(50, 2), steps=100).end
        >>> bool((end[:, 0] > 0).all())
        True
    """
    check_field("field", field, "its data prediction is")
    _check_steering(step, steps, until)
    check_positive("inner", inner, integer=True)
    if predictor is not None:
        check_field("predictor", predictor, "its data prediction is")
    velocity, path = field.function("velocity"), field.path
    seen = None if predictor is None else predictor.function("velocity")

    @torch.no_grad()
    def evaluate(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        v = velocity(x, t, **conditions)
        active = t < until
        if not bool(active.any()):
            return v
        frozen = v if seen is None else seen(x, t)
        y = x.clone()
        descent = None if optimiser is None else optimiser([y], lr=step)
        for _ in range(inner):
            g = loss_gradient(loss, path.apply_conversion(frozen, y, t, "velocity", "data"), t)
            if descent is None:
                y = y - step * g
            else:
                y.grad = g
                descent.step()
        return v + steps * torch.where(expand_time(active, x), y - x, 0)

    return FunctionField(evaluate, path, predicts="velocity")


def backpropagated(field: Field, loss: Loss, *, step: float, steps: int, until: float = 1.0) -> FunctionField:
    r"""The same loop with the true gradient, $x \leftarrow x - s\,J_t^\top\nabla L(\hat x_1)$: through the network.

    Diffusion posterior sampling (Chung et al., 2023) takes for $L$ a multiple of the *norm* of the residual, FreeDoM
    (Yu et al., 2023) an energy of the data prediction; both in their own samplers. Here the sampler is that of
    `steered`, so that the two differ in $J_t$ alone.

    Args:
        field: What is steered, differentiable in the state by autograd, each sample alone.
        loss: As for `steered`.
        step: $s$.
        steps: $N$.
        until: Steer at times before this one.

    Returns:
        A field that predicts the velocity; each evaluation needs one forward and one backward pass of `field`.

    Raises:
        TypeError: As `steered`.
        ValueError: As `steered`.

    Example:
        >>> from flowlib import fields, paths
        >>> field = fields.GaussianField(torch.zeros(2), paths.linear(), residual=1.0)
        >>> guided = backpropagated(field, lambda x1, t: x1[:, 0], step=0.1, steps=10)
        >>> guided.velocity(torch.zeros(1, 2), 0.5)       # J = t / (t^2 + (1 - t)^2) = 1 here
        tensor([[-1.,  0.]])
    """
    check_field("field", field, "its data prediction is")
    _check_steering(step, steps, until)
    velocity, path = field.function("velocity"), field.path

    def evaluate(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        active = t < until
        if not bool(active.any()):
            return velocity(x, t, **conditions)
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            v = velocity(at, t, **conditions)
            value = loss_values(loss, path.apply_conversion(v, at, t, "velocity", "data"), t)
            (gradient,) = torch.autograd.grad(value.sum(), at)
        return v.detach() - steps * step * torch.where(expand_time(active, x), gradient, 0)

    return FunctionField(evaluate, path, predicts="velocity")


def optimise_start(
    field: Field,
    loss: Loss,
    x0: Float[Tensor, "batch *event"],
    *,
    steps: int,
    iterations: int,
    optimiser: Callable[[list[Tensor]], Optimizer],
    method: str = "euler",
    **conditions: Any,
) -> Trajectory:
    r"""Backpropagation through the ODE: descend $L(X_{0,1}(x_0))$ in the start of the solve (Ben-Hamu et al., 2024).

    Args:
        field: The flow, differentiable in the state by autograd, each sample alone.
        loss: As for `steered`; it sees the end of the solve, at time 1.
        x0: Where to begin.
        steps: Steps of the solve.
        iterations: How often the optimiser is stepped; one that searches along a line solves several times.
        optimiser: Makes a `torch.optim` optimiser from `[x0]`.
        method: A fixed-step method of `solvers.ode`.
        **conditions: Passed to the field.

    Returns:
        The solve from the best start of each sample, among those tried. Its `nfe` counts the forward evaluations of all
        solves; all but the last `steps` of them were also passed backward.

    Raises:
        TypeError: If `field` is not a field or a count is not an integer.
        ValueError: If an argument is invalid.

    Example:
        >>> from functools import partial
        >>> from flowlib import data, fields, paths
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.linear())
        >>> adam = partial(torch.optim.Adam, lr=0.1)
        >>> run = optimise_start(field, lambda x1, t: (x1[:, 0] - 2).square(), torch.randn(5, 2),
        ...     steps=8, iterations=20, optimiser=adam)
        >>> run.nfe
        168
    """
    check_field("field", field, "its data prediction is")
    check_state("x0", x0)
    check_positive("iterations", iterations, integer=True)
    start = x0.detach().clone().requires_grad_()
    best, lowest, nfe = x0, x0.new_full((x0.shape[0],), float("inf")), 0
    descent = optimiser([start])

    def closure() -> float:
        nonlocal best, lowest, nfe
        with torch.enable_grad():
            solve = ode(field, start, steps=steps, method=method, keep=False, differentiable=True, **conditions)
            value = loss_values(loss, solve.end, x0.new_ones(()))
            (start.grad,) = torch.autograd.grad(value.sum(), start)
        nfe += solve.nfe
        better = value.detach() < lowest
        best = torch.where(expand_time(better, x0), start.detach(), best)
        lowest = torch.where(better, value.detach(), lowest)
        return float(value.detach().sum())

    for _ in range(iterations):
        descent.step(closure)
    last = ode(field, best, steps=steps, method=method, **conditions)
    return Trajectory(last.times, last.states, nfe + last.nfe)


def data_jacobian(
    field: Field, x: Float[Tensor, "batch *event"], t: float | Tensor, **conditions: Any
) -> Float[Tensor, "batch d d"]:
    r"""$J_t = \partial\hat x_1/\partial x_t$ over the flattened states, by $d$ backward passes at once.

    For an exact field it is $\frac{\alpha_t}{\sigma_t^2}\operatorname{Cov}[x_1 \mid x_t]$: symmetric, with no negative
    eigenvalue.

    Args:
        field: A field that acts on each sample alone.
        x: States.
        t: Time in [0, 1].
        **conditions: Passed to the field.

    Returns:
        Matrices whose entry $(i, j)$ is $\partial\hat x_{1,i}/\partial x_j$.

    Raises:
        TypeError: If `field` is not a field, or dtypes differ.
        ValueError: If an input is invalid, or the prediction has no limit at one of the times.

    Example:
        >>> from flowlib import fields, paths
        >>> field = fields.GaussianField(torch.zeros(1), paths.linear(), residual=4.0)
        >>> data_jacobian(field, torch.ones(1, 1), 0.5)       # t 4 / (4 t^2 + (1 - t)^2)
        tensor([[[1.6000]]])
    """
    check_field("field", field, "its data prediction is")
    check_state("x", x)
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        out = field.data(at, batch_time(t, x), **conditions)
        size = x[0].numel()
        unit = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:]).expand(size, *x.shape)
        (rows,) = torch.autograd.grad(out, at, unit, is_grads_batched=True)
    jacobian: Tensor = rows.flatten(2).transpose(0, 1)
    return jacobian


def _check_steering(step: float, steps: int, until: float) -> None:
    if not step >= 0:
        raise ValueError(f"step must not be negative, got {step}")
    check_positive("steps", steps, integer=True)
    if not 0 <= until <= 1:
        raise ValueError(f"until must lie in [0, 1], got {until}")
