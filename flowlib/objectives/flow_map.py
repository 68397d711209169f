r"""Losses of two-time flow maps: distillation of a velocity, or of the map's own diagonal.

A flow map $\psi_{s,t}(x) = x + (t - s)\,u_{s,t}(x)$ of the velocity $v$ satisfies, for all states and times,

| name | identity | residual |
|---|---|---|
| Lagrangian | $\partial_t\psi_{s,t}(x) = v(\psi_{s,t}(x), t)$ | `lagrangian_residual` |
| Eulerian | $\partial_s\psi_{s,t}(x) + \nabla\psi_{s,t}(x)\,v(x, s) = 0$ | `eulerian_residual`, `mean_flow_residual` |
| progressive | $\psi_{r,t}(\psi_{s,r}(x)) = \psi_{s,t}(x)$ | `progressive_residual` |

Each residual is zero for the exact map. Derivatives are forward-mode products; what is a teacher carries no gradient.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowlib._checks import batch_time, check_choice, check_same, check_state, expand_time
from flowlib.fields import Field, FlowMap
from flowlib.nets import TimeEmbedding
from flowlib.objectives.flow_matching import Loss, PairObjective
from flowlib.objectives.time_pairs import TimePairSampler, triangle
from flowlib.objectives.times import uniform
from flowlib.paths import GaussianPath

__all__ = [
    "LearnedWeight",
    "eulerian_residual",
    "lagrangian_residual",
    "mean_flow_residual",
    "progressive_residual",
    "self_distillation",
]

Kind = Literal["lagrangian", "eulerian", "mean_flow", "progressive"]
KINDS = ("lagrangian", "eulerian", "mean_flow", "progressive")


def lagrangian_residual(
    flow_map: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, teacher: Field | None = None, **conditions: Any
) -> Tensor:
    r"""$\partial_t\psi_{s,t}(x) - \mathrm{sg}[v(\psi_{s,t}(x), t)]$ (Boffi et al., 2025).

    The gradient is stopped through the velocity and through the place where it is asked: only $\partial_t\psi$ learns.

    Args:
        flow_map: The student.
        x: States at time `s`, `[batch, *event]`.
        s: Times `[batch]`.
        t: Times `[batch]`.
        teacher: The field whose velocity is $v$; the student's diagonal if `None`.
        **conditions: Passed to both.

    Returns:
        The residual, shaped like `x`.

    Example:
        >>> from flowlib import fields, paths
        >>> drift = fields.FunctionFlowMap(lambda x, s, t: torch.ones_like(x), paths.linear())
        >>> lagrangian_residual(drift, torch.zeros(1, 2), torch.zeros(1), torch.ones(1))
        tensor([[0., 0.]])
    """
    end, speed = flow_map.tangent(x, s, t, dt=1.0, **conditions)
    with torch.no_grad():
        target = _velocity(flow_map, teacher)(end, t, **conditions)
    return speed - target


def eulerian_residual(
    flow_map: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, teacher: Field | None = None, **conditions: Any
) -> Tensor:
    r"""$\partial_s\psi_{s,t}(x) + \mathrm{sg}[\nabla\psi_{s,t}(x)\,v(x, s)]$; only $\partial_s\psi$ learns.

    Arguments as `lagrangian_residual`.

    Example:
        >>> from flowlib import fields, paths
        >>> drift = fields.FunctionFlowMap(lambda x, s, t: torch.ones_like(x), paths.linear())
        >>> eulerian_residual(drift, torch.zeros(1, 2), torch.zeros(1), torch.ones(1))
        tensor([[0., 0.]])
    """
    with torch.no_grad():
        velocity = _velocity(flow_map, teacher)(x, s, **conditions)
        carried = flow_map.tangent(x, s, t, dx=velocity, **conditions)[1]
    return flow_map.tangent(x, s, t, ds=1.0, **conditions)[1] + carried


def mean_flow_residual(
    flow_map: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, velocity: Tensor | None = None, **conditions: Any
) -> Tensor:
    r"""$u_{s,t}(x) - \mathrm{sg}[v + (t - s)(\partial_s u + \nabla u\,v)]$: the Eulerian identity, multiplied out.

    (Geng et al., 2025.) Its value is minus the Eulerian residual; only $u$ outside the bracket learns. The bracket is
    linear in $v$, so the velocity of a pair, $\dot x_s$, may stand for its conditional mean.

    Args:
        flow_map: The student.
        x: States at time `s`, `[batch, *event]`.
        s: Times `[batch]`.
        t: Times `[batch]`.
        velocity: $v$, shaped like `x`; the student's diagonal if `None`.
        **conditions: Passed to the student.

    Returns:
        The residual, shaped like `x`.

    Example:
        >>> from flowlib import fields, paths
        >>> drift = fields.FunctionFlowMap(lambda x, s, t: torch.ones_like(x), paths.linear())
        >>> mean_flow_residual(drift, torch.zeros(1, 2), torch.zeros(1), torch.ones(1))
        tensor([[0., 0.]])
    """
    average = flow_map.average(x, s, t, **conditions)
    with torch.no_grad():
        v = flow_map.evaluate(x, s, **conditions) if velocity is None else velocity
        # d/ds of psi along v is v - u + (t - s) du/ds
        drift = flow_map.tangent(x, s, t, dx=v, ds=1.0, **conditions)[1]
        target = average + drift
    return average - target


def progressive_residual(
    flow_map: FlowMap,
    x: Tensor,
    s: Tensor,
    t: Tensor,
    *,
    share: float | Tensor = 0.5,
    teacher: FlowMap | None = None,
    **conditions: Any,
) -> Tensor:
    r"""$u_{s,t}(x) - \mathrm{sg}[(1 - \gamma)\,u_{s,r}(x) + \gamma\,u_{r,t}(\psi_{s,r}(x))]$ (Boffi et al., 2025).

    With $r = \gamma s + (1 - \gamma)t$ this is the difference of the two sides of the semigroup identity over $t - s$.

    Args:
        flow_map: The student, one jump.
        x: States at time `s`, `[batch, *event]`.
        s: Times `[batch]`.
        t: Times `[batch]`.
        share: $\gamma$ in [0, 1], the share of the second jump: a number or `[batch]`.
        teacher: The map that makes the two jumps; the student if `None`.
        **conditions: Passed to both.

    Returns:
        The residual, shaped like `x`.

    Example:
        >>> from flowlib import fields, paths
        >>> drift = fields.FunctionFlowMap(lambda x, s, t: torch.ones_like(x), paths.linear())
        >>> progressive_residual(drift, torch.zeros(1, 2), torch.zeros(1), torch.ones(1))
        tensor([[0., 0.]])
    """
    two = flow_map if teacher is None else teacher
    with torch.no_grad():
        share = torch.as_tensor(share, dtype=x.dtype, device=x.device)
        middle = share * s + (1 - share) * t
        first = two.average(x, s, middle, **conditions)
        second = two.average(x + expand_time(middle - s, x) * first, middle, t, **conditions)
        weight = expand_time(share, x)
        target = (1 - weight) * first + weight * second
    return flow_map.average(x, s, t, **conditions) - target


class LearnedWeight(nn.Module):
    r"""A scalar $w(s, t)$ that turns a squared error $R$ into $e^{-w}R + w$.

    The minimum over $w$ is at $w = \log E[R]$ with value $1 + \log E[R]$, so that errors of all pairs of times pull
    with equal force (Karras et al., 2024; Boffi et al., 2025). Starts at $w = 0$, the plain loss. Train its parameters
    together with the map's.

    Args:
        width: Hidden width.

    Example:
        >>> LearnedWeight()(torch.zeros(3), torch.ones(3)).shape
        torch.Size([3])
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.start, self.gap = TimeEmbedding(width, 8, 1.0), TimeEmbedding(width, 8, 1.0)
        self.last = nn.Linear(width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        """$w$ for times `[n]`, each."""
        out: Tensor = self.last(nn.functional.silu(self.start(s) + self.gap(t - s)))[:, 0]
        return out


def self_distillation(
    flow_map: FlowMap,
    kind: Kind,
    *,
    diagonal: float = 0.75,
    pairs: TimePairSampler | None = None,
    share: float | None = 0.5,
    teacher: Field | None = None,
    weight: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> PairObjective:
    r"""Flow matching on the diagonal and one of the residuals off it (Boffi et al., 2025).

    $$ L = E\Big[\frac1d\|u_{t,t}(x_t) - \dot x_t\|^2\Big] + E\Big[\frac1d\|\text{residual}_{s,t}(x_s)\|^2\Big] $$

    Each batch is split: its first part trains the diagonal, the rest the residual, so that a step sees every pair once.
    With `diagonal=1` this is `flow_matching`; with a teacher it is distillation.

    Args:
        flow_map: What is trained.
        kind: `"lagrangian"`, `"eulerian"`, `"mean_flow"` or `"progressive"`; see the residuals.
        diagonal: Share of the batch on the diagonal, in [0, 1].
        pairs: Sampler of times $(s, t)$; the whole triangle if `None`. `dyadic` with `"progressive"` is a shortcut
            model, `to_data` with `"eulerian"` or `"mean_flow"` a consistency model.
        share: $\gamma$ of the progressive residual; `None` draws it uniformly.
        teacher: A frozen field whose velocity replaces that of the pairs on the diagonal, and the student's own in the
            residual; for `"progressive"` a `FlowMap`. Without one, `"mean_flow"` takes the velocity of the pair.
        weight: $w(s, t)$, for example a `LearnedWeight`: each squared error $R$ becomes $e^{-w}R + w$.

    Returns:
        The objective; its terms are `diagonal` and `residual`, the unweighted mean squared errors.

    Raises:
        TypeError: If the teacher of a progressive loss is not a `FlowMap`.
        ValueError: If a parameter is invalid.

    Example:
        >>> from flowlib import fields, nets, paths
        >>> flow_map = fields.NetworkFlowMap(nets.TwoTimeMLP(torch.zeros(2), torch.ones(2)), paths.linear())
        >>> loss = self_distillation(flow_map, "lagrangian")(torch.zeros(8, 2), torch.ones(8, 2))
        >>> sorted(loss.terms)
        ['diagonal', 'residual']
    """
    check_choice("kind", kind, KINDS)
    if not 0 <= diagonal <= 1:
        raise ValueError(f"diagonal must lie in [0, 1], got {diagonal}")
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    if kind == "progressive" and teacher is not None and not isinstance(teacher, FlowMap):
        raise TypeError(f"the teacher of a progressive loss must be a FlowMap, got {type(teacher).__name__}")
    draw, path = pairs if pairs is not None else triangle(), flow_map.path
    draw_time = uniform()

    def residual(x0: Tensor, x1: Tensor, s: Tensor, t: Tensor, gamma: Tensor | None, conditions: Any) -> Tensor:
        x = path.apply_interpolation(x0, x1, s)
        if kind == "lagrangian":
            return lagrangian_residual(flow_map, x, s, t, teacher=teacher, **conditions)
        if kind == "eulerian":
            return eulerian_residual(flow_map, x, s, t, teacher=teacher, **conditions)
        if kind == "progressive":
            assert teacher is None or isinstance(teacher, FlowMap)
            ratio = 0.5 if gamma is None else gamma
            return progressive_residual(flow_map, x, s, t, share=ratio, teacher=teacher, **conditions)
        velocity = _target(teacher, path, x0, x1, x, s, conditions)
        return mean_flow_residual(flow_map, x, s, t, velocity=velocity, **conditions)

    def objective(
        x0: Tensor,
        x1: Tensor,
        *,
        t: Tensor | None = None,
        generator: torch.Generator | None = None,
        **conditions: Any,
    ) -> Loss:
        check_state("x1", x1)
        check_same("x0", x0, "x1", x1)
        conditions = {name: value for name, value in conditions.items() if value is not None}
        n = x1.shape[0]
        split = round(diagonal * n)
        options: dict[str, Any] = {"generator": generator, "dtype": x1.dtype, "device": x1.device}
        errors, times, terms = [], [], {}
        if split:
            here = draw_time(split, **options).t if t is None else batch_time(t, x1).expand(n)[:split]
            x = path.apply_interpolation(x0[:split], x1[:split], here)
            some = {name: value[:split] for name, value in conditions.items()}
            velocity = _target(teacher, path, x0[:split], x1[:split], x, here, some)
            errors.append((flow_map.evaluate(x, here, **some) - velocity).square().flatten(1).mean(1))
            times.append((here, here))
            terms["diagonal"] = errors[-1].detach().mean()
        if split < n:
            s, end = draw(n - split, **options)
            some = {name: value[split:] for name, value in conditions.items()}
            gamma = None
            if kind == "progressive":
                gamma = torch.full_like(s, share) if share is not None else torch.rand(n - split, **options)
            off = residual(x0[split:], x1[split:], s, end, gamma, some)
            errors.append(off.square().flatten(1).mean(1))
            times.append((s, end))
            terms["residual"] = errors[-1].detach().mean()
        error = torch.cat(errors)
        if weight is not None:
            w = weight(torch.cat([a for a, _ in times]), torch.cat([b for _, b in times]))
            error = (-w).exp() * error + w
        return Loss(error.mean(), terms)

    return objective


def _velocity(flow_map: FlowMap, teacher: Field | None) -> Callable[..., Tensor]:
    return flow_map.evaluate if teacher is None else teacher.function("velocity")


def _target(
    teacher: Field | None, path: GaussianPath, x0: Tensor, x1: Tensor, x: Tensor, t: Tensor, conditions: dict[str, Any]
) -> Tensor:
    """The velocity of the pairs, or of the teacher at their points."""
    if teacher is None:
        return path.apply_target("velocity", x0, x1, t)
    with torch.no_grad():
        out: Tensor = teacher.function("velocity")(x, t, **conditions)
    return out
