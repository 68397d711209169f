r"""Exponential integrators: DDIM, DPM-Solver, DPM-Solver++, DEIS and UniPC as one family.

In the clock $\lambda = \log(\alpha/\sigma)$ the probability-flow ODE has two exact forms ($h = \lambda_u - \lambda_t$)

$$ x_u = \frac{\sigma_u}{\sigma_t}x_t + \alpha_u\int_0^h e^{s-h}\,\hat x_1\,\mathrm ds
       = \frac{\alpha_u}{\alpha_t}x_t - \sigma_u\int_0^h e^{h-s}\,\hat x_0\,\mathrm ds , $$

and the second is the first with $(\alpha, \lambda, \hat x_1)$ and $(\sigma, -\lambda, \hat x_0)$ exchanged. A method
replaces the prediction by a polynomial in $\lambda$ through known values and integrates that exactly (`moments`,
`weights`):

| method | prediction | polynomial | order | evaluations |
|---|---|---|---|---|
| `ddim` | either | constant | 1 | 1 |
| `dpm_2`, `dpmpp_2s` | noise, data | constant, taken in the middle | 2 | 2 |
| `dpmpp_2m` | data | through 2 values, with the paper's weights | 2 | 1 |
| `deis_2` | noise | through 2 values | 2 | 1 |
| `dpmpp_3m`, `deis_3` | data, noise | through 3 values | 3 | 1, and 1 more to start |
| `unipc_2` | data | through 2 values, then through 3 as a corrector | 3 | 1 |
| `unipc_3` | data | through 3 values, then through 4 as a corrector | 3, 4 but for the first step | 1 |

Orders hold for a finite range of $\lambda$. A step of infinite length, out of pure noise or onto $\sigma = 0$, is a
DDIM step; the last one lands on $\hat x_1$. Song et al. (2021a); Lu et al. (2022a, 2022b); Zhang and Chen (2023);
Zhao et al. (2023).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowlib.fields import Field
from flowlib.paths import GaussianPath, Prediction

__all__ = ["EXPONENTIAL", "CountedField", "Knots", "data_step", "exponential_stepper", "moments", "weights"]

Stepper = Callable[[Tensor, Tensor, Tensor], Tensor]


def moments(h: float, count: int) -> list[float]:
    r"""$M_k(h) = h\int_0^1 e^{h(\tau - 1)}\tau^k\,\mathrm d\tau$ for $k = 0, \dots$: the exact integrals of powers.

    $M_0 = 1 - e^{-h}$ and $M_k = 1 - \frac kh M_{k-1}$. For a short step the recursion cancels, and the power series is
    summed instead. The noise form uses $M_k(-h)$.

    Args:
        h: Length of the step in $\lambda$, of either sign, finite.
        count: How many moments.

    Returns:
        $M_0, \dots, M_{\text{count} - 1}$.

    Example:
        >>> [round(m, 6) for m in moments(0.1, 2)]
        [0.095163, 0.048374]
    """
    if abs(h) < 1:
        terms = [h * math.exp(-h)]
        for n in range(1, 22):
            terms.append(terms[-1] * h / n)
        return [sum(term / (n + k + 1) for n, term in enumerate(terms)) for k in range(count)]
    values = [-math.expm1(-h)]
    for k in range(1, count):
        values.append(1 - k / h * values[-1])
    return values


def weights(nodes: Sequence[float], h: float) -> list[float]:
    r"""The weights $w_j$ that integrate a polynomial exactly: $\sum_j w_j\tau_j^k = M_k(h)$.

    Args:
        nodes: $\tau_j$, where the values are known, in units of the step: 0 is its start, 1 its end, negative numbers
            lie before it.
        h: Length of the step in $\lambda$.

    Returns:
        One weight for each node.

    Example:
        >>> [round(w, 6) for w in weights([0.0, -1.0], 0.1)]        # Adams-Bashforth, 3/2 and -1/2, damped
        [0.143537, -0.048374]
    """
    powers = torch.tensor([[tau**k for tau in nodes] for k in range(len(nodes))], dtype=torch.float64)
    found: list[float] = torch.linalg.solve(powers, torch.tensor(moments(h, len(nodes)), dtype=torch.float64)).tolist()
    return found


def data_step(path: GaussianPath, x: Tensor, predicted: Tensor, t: Tensor, u: Tensor, spread: Tensor) -> Tensor:
    r"""$\alpha_u\hat x_1 + \text{spread}\cdot\hat x_0$ for the pair of predictions that meets `x` at time `t`.

    Written with $\hat x_1$ alone, so that it is regular from $\alpha_t = 0$ to $\sigma_u = 0$.

    Args:
        path: The path.
        x: State at time `t`.
        predicted: The data prediction $\hat x_1(x, t)$.
        t: Time at the start of the step, where $\sigma_t > 0$.
        u: Time at its end.
        spread: Coefficient of the noise at `u`; $\sigma_u$ for DDIM.

    Returns:
        The state at time `u`.
    """
    schedule, center = path.schedule, path.center
    ratio = spread / schedule.sigma(t)
    return center + ratio * (x - center) + (schedule.alpha(u) - schedule.alpha(t) * ratio) * (predicted - center)


class CountedField:
    """The data and noise predictions of a field, counted as the field counts them.

    Args:
        field: The field.
        conditions: Passed to every call.
    """

    def __init__(self, field: Field, conditions: dict[str, Any]) -> None:
        self.functions = {kind: field.function(kind) for kind in ("data", "noise")}
        self.cost = field.evaluations
        self.conditions = conditions
        self.nfe = 0

    def __call__(self, kind: Prediction, x: Tensor, t: Tensor) -> Tensor:
        """Evaluate and count."""
        self.nfe += self.cost(t)
        return self.functions[kind](x, t, **self.conditions)


@dataclass(frozen=True)
class Knots:
    r"""Coefficients of a path along a grid, in float64, with the two roles of data and noise named.

    Attributes:
        gain: Coefficient of the prediction in use: $\alpha$ for data, $\sigma$ for noise.
        decay: Coefficient of the other one.
        clock: $\log(\text{gain}/\text{decay})$: $\lambda$ or $-\lambda$.
    """

    gain: list[float]
    decay: list[float]
    clock: list[float]

    @classmethod
    def of(cls, path: GaussianPath, times: Tensor, kind: Prediction) -> "Knots":
        """The coefficients at the times of a grid, for the prediction `kind`."""
        times = times.detach().double().cpu()
        alpha, sigma = path.schedule.alpha(times).tolist(), path.schedule.sigma(times).tolist()
        lam = (path.schedule.log_snr(times) / 2).tolist()
        return cls(alpha, sigma, lam) if kind == "data" else cls(sigma, alpha, [-value for value in lam])

    def length(self, i: int) -> float:
        """Signed length in the clock of the step from knot `i`."""
        return self.clock[i + 1] - self.clock[i]


def exponential_stepper(method: str, count: CountedField, field: Field, grid: Tensor) -> Stepper:
    """The step of one of the methods of `EXPONENTIAL`, for `flowlib.solvers.ode`.

    Args:
        method: A key of `EXPONENTIAL`.
        count: Where evaluations are counted.
        field: The field.
        grid: The times of the solve; the steps are taken in their order.

    Returns:
        A function of a state and the two times of a step.

    Raises:
        ValueError: If a prediction that is needed has no limit at one of the times.
    """
    onward: Prediction = "data" if grid[-1] > grid[0] else "noise"
    options = EXPONENTIAL[method]
    kind = options.kind or onward
    knots = Knots.of(field.path, grid, kind)
    infinite = torch.tensor([math.isinf(knots.length(i)) for i in range(len(grid) - 1)])
    for used, where in ((onward, infinite), (kind, ~infinite)):
        if bool(where.any()):
            field.check_times(used, grid[:-1][where.to(grid.device)])
    # both predictions are taken relative to the centre: noise has none
    origin = field.path.center if kind == "data" else 0.0
    center = field.path.center
    known: list[tuple[int, Tensor, Tensor]] = []  # knot, state and prediction, newest first
    i, predicted = -1, torch.zeros(())

    def advance(x: Tensor, at: int, values: list[Tensor], w: list[float], end: float, fade: float) -> Tensor:
        out = center + fade / knots.decay[at] * (x - center)
        for value, factor in zip(values, w, strict=True):
            out = out + end * factor * (value - origin)
        return out

    def through_middle(x: Tensor, value: Tensor, t: Tensor) -> Tensor:
        """One step with the prediction of the middle of the step (Lu et al., 2022a, algorithm 1)."""
        h = knots.length(i)
        log_snr = torch.tensor((2 if kind == "data" else -2) * (knots.clock[i] + h / 2), dtype=torch.float64)
        middle = field.path.schedule.time_of_log_snr(log_snr).to(t)
        half = Knots.of(field.path, middle[None], kind)
        inner = advance(x, i, [value], moments(half.clock[0] - knots.clock[i], 1), half.gain[0], half.decay[0])
        there = count(kind, inner, middle)
        return advance(x, i, [there], moments(h, 1), knots.gain[i + 1], knots.decay[i + 1])

    def step(x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        nonlocal i, predicted
        i += 1
        if infinite[i]:
            known.clear()
            return _ddim(count, field, onward, x, t, u)
        value = count(kind, x, t)
        if options.correct and known:  # the value just found re-does the step that led here
            last, start, _ = known[0]
            used = known[: options.order]
            w = _weights([1.0, *_nodes(knots, last, used)], knots.length(last), options.paper_weights)
            values = [value, *(entry for _, _, entry in used)]
            # as a difference, so that what a callback has changed stays changed
            x = x + (advance(start, last, values, w, knots.gain[i], knots.decay[i]) - predicted)
        known.insert(0, (i, x, value))
        del known[options.order :]
        if options.middle or (options.warm and len(known) == 1):
            return through_middle(x, value, t)
        w = _weights(_nodes(knots, i, known), knots.length(i), options.paper_weights)
        predicted = advance(x, i, [entry for _, _, entry in known], w, knots.gain[i + 1], knots.decay[i + 1])
        return predicted

    return step


def _nodes(knots: Knots, i: int, known: Sequence[tuple[int, Tensor, Tensor]]) -> list[float]:
    """Where values are known, in units of the step from knot `i`."""
    return [(knots.clock[j] - knots.clock[i]) / knots.length(i) for j, _, _ in known]


def _weights(nodes: list[float], h: float, paper: bool) -> list[float]:
    r"""Exact weights; or, where one slope is all that is known, $\tfrac12M_0$ in the place of $M_1$.

    That is the choice of DPM-Solver++(2M), and of UniPC with $B(h) = e^h - 1$.
    """
    if not (paper and len(nodes) == 2):
        return weights(nodes, h)
    (m0,) = moments(h, 1)
    slope = m0 / 2 / (nodes[0] - nodes[1])  # the weight of value 0 minus value 1, over their distance
    at_zero = 0 if nodes[0] == 0 else 1
    out = [slope, -slope]
    out[at_zero] += m0
    return out


def _ddim(count: CountedField, field: Field, onward: Prediction, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
    r"""A DDIM step: towards data it freezes $\hat x_1$, towards noise $\hat x_0$, and so it is regular at both ends."""
    path, schedule = field.path, field.path.schedule
    value = count(onward, x, t)
    if onward == "data":
        return data_step(path, x, value, t, u, schedule.sigma(u))
    ratio = schedule.alpha(u) / schedule.alpha(t)
    return path.center + ratio * (x - path.center) + (schedule.sigma(u) - schedule.sigma(t) * ratio) * value


@dataclass(frozen=True)
class _Method:
    """Which polynomial a method integrates."""

    order: int  # values the predictor uses
    kind: Prediction | None = "data"  # None: by direction
    middle: bool = False  # evaluate in the middle of the step
    correct: bool = False  # redo each step with the value at its end
    warm: bool = False  # start with a step through the middle
    paper_weights: bool = False


EXPONENTIAL = {
    "ddim": _Method(1, kind=None),
    "dpm_2": _Method(1, kind="noise", middle=True),
    "dpmpp_2s": _Method(1, middle=True),
    "dpmpp_2m": _Method(2, paper_weights=True),
    "dpmpp_3m": _Method(3, warm=True),
    "deis_2": _Method(2, kind="noise"),
    "deis_3": _Method(3, kind="noise", warm=True),
    "unipc_2": _Method(2, correct=True, paper_weights=True),
    "unipc_3": _Method(3, correct=True, paper_weights=True),
}
