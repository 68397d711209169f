r"""Inversion and editing of given data: controlled flows, transport guidance, FlowEdit.

On a Gaussian path a prediction and the state fix the velocity, so a *known* answer gives a velocity of its own. If the
data were known to be $y_1$, or the noise to be $y_0$, it would be, on the linear path,

$$ c(x, t) = \frac{y_1 - x}{1 - t}, \qquad c_0(x, t) = \frac{x - y_0}{t} . $$

RF-Inversion (Rout et al., 2025) runs the flow backward with $v + \gamma(c_0 - v)$ and forward again, for another
condition, with $v + \eta(c - v)$. OTIP (Lupascu and Stupariu, 2025) puts $v + s(d - v)$ in the place of $v$ before
the second control, with $d$ equal to $c$ up to clipping: a composition of two `toward_data`.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_positive, check_same, check_state, expand_time
from flowlib.couplings import sinkhorn_potentials, squared_distances
from flowlib.fields import Field
from flowlib.fields.base import check_field
from flowlib.paths import Prediction
from flowlib.solvers import Trajectory, ode

__all__ = [
    "eta_effective",
    "flowedit",
    "on_grid",
    "population_target",
    "toward_data",
    "toward_noise",
    "transport_schedule",
]

Strength = float | Callable[[Tensor], Tensor]


def toward_data(
    field: Field,
    y1: Float[Tensor, "batch *event"],
    strength: Strength,
    *,
    clip: float | None = None,
    mask: Tensor | None = None,
    rescale: bool = False,
) -> Field:
    r"""A field pulled toward known data: $v + k_t\,(c - v)$, $c$ the velocity of the data prediction $y_1$.

    Since $v$ is affine in the data prediction, this puts $(1 - k_t)\hat x_1 + k_t y_1$ in the place of $\hat x_1$.
    $k = 0$ is the field and $k = 1$ a straight line to $y_1$ (on the linear path). The three options are those of
    OTIP; a token is the last axis of a state.

    Args:
        field: A field on any Gaussian path. Solve with `euler`: $c$ has no limit at the last time.
        y1: The data, one for each state.
        strength: $k_t$: a number, or a function of a 0-d time to a 0-d or `[batch]` tensor, for example `on_grid`.
        clip: Shorten $c$ to this norm, token by token.
        mask: Multiplies the correction; broadcasts against the states.
        rescale: Multiply the correction by $\lvert v\rvert/\lvert c\rvert$, token by token. The factor has no bound
            near $x = y_1$: a token with $\lvert c\rvert \le \sqrt{\epsilon}\,\lvert v\rvert$ is not corrected,
            $\epsilon$ the rounding unit of the dtype.

    Returns:
        A field on the same path that predicts the velocity; its conditions go to `field`.

    Raises:
        TypeError: If `field` is not a field or `y1` not floating point.
        ValueError: If an argument is invalid; when the field is evaluated, if `y1` does not fit the states.

    Example:
        >>> from flowlib import data, fields, paths, solvers
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.linear())
        >>> pulled = toward_data(field, torch.ones(1, 2), strength=1.0)
        >>> solvers.ode(pulled, torch.zeros(1, 2), steps=8).end
        tensor([[1., 1.]])
    """
    if clip is not None:
        check_positive("clip", clip)
    return _Controlled(field, y1, strength, "data", clip, mask, rescale)


def toward_noise(field: Field, y0: Float[Tensor, "batch *event"], strength: Strength) -> Field:
    r"""A field pulled toward known noise: $v + k_t\,(c_0 - v)$, $c_0$ the velocity of the noise prediction $y_0$.

    For `solvers.invert`, which runs time backward: $k = 0$ is plain inversion, $k = 1$ a straight line to $y_0$ (on
    the linear path). $\gamma$ in RF-Inversion.

    Args:
        field: A field on any Gaussian path. Invert with `euler`: $c_0$ has no limit at t = 0.
        y0: The noise, one for each state.
        strength: $k_t$, as in `toward_data`.

    Returns:
        A field on the same path that predicts the velocity; its conditions go to `field`.

    Raises:
        TypeError: As `toward_data`.
        ValueError: As `toward_data`.

    Example:
        >>> from flowlib import data, fields, paths, solvers
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.linear())
        >>> pulled = toward_noise(field, torch.zeros(1, 2), strength=1.0)
        >>> solvers.invert(pulled, torch.ones(1, 2), steps=8, method="euler").end
        tensor([[0., 0.]])
    """
    return _Controlled(field, y0, strength, "noise", None, None, False)


class _Controlled(Field):
    """A field mixed with the velocity of a known prediction."""

    def __init__(
        self, field: Field, known: Tensor, strength: Strength, kind: Prediction,
        clip: float | None, mask: Tensor | None, rescale: bool,
    ) -> None:  # fmt: skip
        check_field("field", field, "its path is")
        check_state("y1" if kind == "data" else "y0", known)
        self.path = field.path
        self.predicts = "velocity"
        self.field, self.known, self.strength, self.kind = field, known, strength, kind
        self.clip, self.mask, self.rescale = clip, mask, rescale
        self._velocity = field.function("velocity")

    def evaluate(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        check_same("y1" if self.kind == "data" else "y0", self.known, "x", x)
        v: Tensor = self._velocity(x, t, **conditions)
        c = self.path.apply_conversion(self.known, x, t, self.kind, "velocity")
        if self.clip is not None:
            c = c * (self.clip / c.norm(dim=-1, keepdim=True)).clamp_max(1.0)
        k = self.strength(t) if callable(self.strength) else self.strength
        correction = (expand_time(k, x) if isinstance(k, Tensor) else k) * (c - v)
        if self.mask is not None:
            correction = self.mask * correction
        if self.rescale:
            length, speed = c.norm(dim=-1, keepdim=True), v.norm(dim=-1, keepdim=True)
            arrived = length <= torch.finfo(x.dtype).eps ** 0.5 * speed  # only rounding is left of c
            correction = torch.where(arrived, 0, correction * speed / length)
        return v + correction

    def check_times(self, kind: Prediction, times: Tensor) -> None:
        """Both the field's velocity and that of the known prediction must exist."""
        self.field.check_times("velocity", times)
        self.path.check_conversion(times, self.kind, "velocity")
        super().check_times(kind, times)


def on_grid(values: Float[Tensor, "steps *batch"], times: Float[Tensor, " times"]) -> Callable[[Tensor], Tensor]:
    r"""A schedule given step by step, as a function of time: `values[i]` for $t_i \le t < t_{i+1}$.

    Args:
        values: One value a step, or one for each step and sample.
        times: The grid of the solver, increasing, one longer than `values`.

    Returns:
        A function of a 0-d time; beyond the grid it gives the nearest step's value.

    Raises:
        ValueError: If the lengths do not fit, or the times do not increase.

    Example:
        >>> k = on_grid(torch.tensor([0.9, 0.0]), torch.tensor([0.0, 0.5, 1.0]))
        >>> k(torch.tensor(0.4)), k(torch.tensor(0.5))
        (tensor(0.9000), tensor(0.))
    """
    if times.ndim != 1 or values.ndim == 0 or values.shape[0] + 1 != times.shape[0]:
        raise ValueError(
            f"times must be a vector one longer than values, got shapes {list(times.shape)} and {list(values.shape)}"
        )
    if not bool((times.diff() > 0).all()):
        raise ValueError("times must be strictly increasing")

    def strength(t: Tensor) -> Tensor:
        step = int(torch.searchsorted(times, t, right=True)) - 1
        return values[min(max(step, 0), values.shape[0] - 1)]

    return strength


def transport_schedule(
    steps: int, s0: float, *, phase: float = 0.3, ramp: float = 0.05, dtype: torch.dtype | None = None
) -> Float[Tensor, " steps"]:
    r"""OTIP's strengths: a cosine that falls to zero at the fraction `phase` of the steps, after a short ramp.

    With the relative step $\rho = i/N$: $s_i = \tfrac{s_0}{2}\big(1 + \cos(\pi\rho/\text{phase})\big)
    \min(1, \rho/\text{ramp})$ for $\rho < \text{phase}$, zero after it.

    Args:
        steps: Number of steps $N$.
        s0: Strength before ramp and decay, at least 0.
        phase: Fraction of the steps that are guided, in (0, 1].
        ramp: Fraction of the steps over which the strength grows from zero, at least 0.
        dtype: Type of the result; the default type if `None`.

    Returns:
        The strengths $s_0, \dots, s_{N-1}$.

    Raises:
        TypeError: If `steps` is not an integer.
        ValueError: If an argument is out of range.

    Example:
        >>> transport_schedule(10, s0=0.3)
        tensor([0.0000, 0.2250, 0.0750, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000,
                0.0000])
    """
    check_positive("steps", steps, integer=True)
    if not s0 >= 0 or not ramp >= 0:
        raise ValueError(f"s0 and ramp must not be negative, got {s0} and {ramp}")
    if not 0 < phase <= 1:
        raise ValueError(f"phase must lie in (0, 1], got {phase}")
    relative = torch.arange(steps, dtype=torch.float64) / steps
    fall = 0.5 * (1 + torch.cos(torch.pi * (relative / phase).clamp_max(1)))
    rise = (relative / ramp).clamp_max(1) if ramp > 0 else torch.ones_like(relative)
    strengths = torch.where(relative < phase, s0 * fall * rise, 0.0)
    return strengths.to(dtype or torch.get_default_dtype())


def eta_effective(eta: Tensor, s: Tensor) -> Tensor:
    r"""The one strength that equals two in a row: $\eta + s - \eta s = 1 - (1 - \eta)(1 - s)$.

    `toward_data(toward_data(field, y1, s), y1, eta)` is `toward_data(field, y1, eta_effective(eta, s))`.

    Args:
        eta: The outer strength.
        s: The inner strength; the two broadcast.

    Returns:
        The strength.

    Example:
        >>> eta_effective(torch.tensor([0.0, 0.9, 1.0]), torch.tensor(0.3))
        tensor([0.3000, 0.9300, 1.0000])
    """
    return eta + s - eta * s


def population_target(
    y1: Float[Tensor, "batch *event"],
    before: Float[Tensor, "n *event"],
    after: Float[Tensor, "m *event"],
    epsilon: float,
    *,
    iterations: int = 2000,
    tolerance: float = 1e-6,
) -> Float[Tensor, "batch *event"]:
    r"""Where entropic optimal transport between two populations sends new data: $T_\epsilon(y)$.

    With the column potential $g$ of the plan between the populations and equal weights,
    $T_\epsilon(y) = \sum_j q_j z_j$ over the points $z_j$ of `after`, $q_j \propto e^{(g_j - \|y - z_j\|^2)/\epsilon}$:
    the barycentric projection of the plan, continued to points outside of `before` (Pooladian and Niles-Weed, 2021).
    Solved in float64.

    Args:
        y1: The data to be sent.
        before: A sample of the population they belong to.
        after: A sample of the population they shall belong to.
        epsilon: Regularisation in units of the squared distance, positive.
        iterations: Most iterations of Sinkhorn's algorithm.
        tolerance: Largest marginal error, in total variation.

    Returns:
        Convex combinations of the points of `after`, shaped like `y1`.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes disagree, or Sinkhorn's algorithm did not reach the tolerance.

    Example:
        >>> before, after = torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [7.0]])
        >>> population_target(torch.tensor([[-1.0]]), before, after, epsilon=0.5)
        tensor([[5.0000]])
    """
    check_state("y1", y1)
    check_same("y1", y1, "before", before, shape=False)
    check_same("y1", y1, "after", after, shape=False)
    before, after = before.double(), after.double()
    plan = sinkhorn_potentials(before, after, epsilon, iterations=iterations, tolerance=tolerance)
    scores = (plan.g - squared_distances(y1.double(), after)) / epsilon
    return (torch.softmax(scores, 1) @ after.flatten(1)).reshape(y1.shape).to(y1)


def flowedit(
    before: Field,
    after: Field,
    y1: Float[Tensor, "batch *event"],
    *,
    steps: int | None = None,
    times: Tensor | None = None,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> Trajectory:
    r"""Edit without inversion: move the data along the difference of two fields (Kulikov et al., 2025).

    $\dot z = E_{x_0}\big[v_{\text{after}}(z + x_t - y_1, t) - v_{\text{before}}(x_t, t)\big]$, $x_t = \alpha_t y_1 +
    \sigma_t x_0$, $z = y_1$ at the start; Euler steps, with fresh noise in each.

    Args:
        before: The field of the condition that describes the data; of a network with labels,
            `FunctionField(functools.partial(net.evaluate, y=labels), net.path, net.predicts)`.
        after: The field of the condition wanted, on the same path.
        y1: The data.
        steps: Number of equal steps from 0 to 1.
        times: The grid instead of `steps`, increasing; starting later than 0 keeps more of the data.
        samples: Draws of the noise in each step.
        generator: Random generator.

    Returns:
        The trajectory of $z$; its `.nfe` counts two evaluations a draw.

    Raises:
        TypeError: If `before` or `after` is not a field, or an argument has the wrong type.
        ValueError: If an argument is invalid, or a field has no velocity at a time that is needed.

    Example:
        >>> from flowlib import data, fields, paths
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.linear())
        >>> flowedit(field, field, torch.ones(1, 2), steps=10).end      # nothing to change
        tensor([[1., 1.]])
    """
    check_positive("samples", samples, integer=True)
    for name, field in (("before", before), ("after", after)):
        check_field(name, field, "its path is")
    check_state("y1", y1)
    path, v_before, v_after = before.path, before.function("velocity"), after.function("velocity")

    def difference(z: Tensor, t: Tensor) -> Tensor:
        total = torch.zeros_like(z)
        for _ in range(samples):
            x0 = torch.randn(y1.shape, generator=generator, dtype=y1.dtype, device=y1.device)
            xt = path.apply_interpolation(x0, y1, t)
            total = total + v_after(xt + (z - y1), t) - v_before(xt, t)
        return total / samples

    solved = ode(difference, y1, steps=steps, times=times)
    for field in (before, after):
        field.check_times("velocity", solved.times[:-1])
    return Trajectory(solved.times, solved.states, 2 * samples * solved.nfe)
