r"""Guidance: fields that are sums of other fields, with weights that add up to one.

$$ q_w(x, t) = q_0(x, t) + \sum_i w_i(t)\,\big[q_i(x, t) - q_0(x, t)\big] $$

for any of the four predictions $q$; which one does not matter, because conversions are affine. With the conditional
prediction as $q_1$ and the unconditional one as $q_0$ this is classifier-free guidance (Ho and Salimans, 2022); with a
good network as $q_1$ and a worse one as $q_0$ it is autoguidance (Karras et al., 2024). The score is that of
$\pi_t \propto \prod_i p_{i,t}^{w_i}$, but the ODE of the velocity does *not* carry $\pi_0$ to $\pi_1$:
`CombinedField.source` is the rate at which it fails, and `flowlib.control.particles` corrects for it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import batch_time, check_choice, check_state, expand_time
from flowlib.fields import Field, NetworkField, StateFunction
from flowlib.paths import PREDICTIONS, Prediction

__all__ = ["CombinedField", "Term", "classifier_free", "compose", "guided", "interval"]

Scale = float | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Term:
    """A field, and the conditions it is asked under.

    Attributes:
        field: The field.
        conditions: Replace those of the caller of the same name (`{}` keeps all); `None` drops them all, which is the
            null condition.
    """

    field: Field
    conditions: Mapping[str, Any] | None

    def of(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The conditions of this term when the caller gave `given`."""
        return {} if self.conditions is None else {**given, **self.conditions}


class CombinedField(Field):
    r"""$q_0 + \sum_i w_i(t)\,(q_i - q_0)$: see `guided`, `classifier_free` and `compose`.

    Terms whose weight is zero at a time are not evaluated. Terms of one network are evaluated in one batch if all
    their conditions are tensors; a missing label `y` is then -1. Solvers count every term as an evaluation.

    Args:
        reference: The term $q_0$.
        pulls: Pairs of a scale $w_i$ and a term $q_i$. A scale is a number or a function of the time, called with the
            0-d or `[batch]` time.

    Raises:
        TypeError: If a term holds no field, or a scale is neither a number nor callable.
        ValueError: If there is no pull, the fields do not share a path, or a scale is not finite.
    """

    def __init__(self, reference: Term, pulls: Sequence[tuple[Scale, Term]]) -> None:
        if not pulls:
            raise ValueError("pulls is empty: at least one scale and term are needed")
        self.terms = (reference, *(term for _, term in pulls))
        self.scales = tuple(scale for scale, _ in pulls)
        for term in self.terms:
            if not isinstance(term.field, Field):
                raise TypeError(f"guidance combines Fields, got {type(term.field).__name__}")
            ours, its = reference.field.path, term.field.path
            if its.schedule != ours.schedule or not bool(torch.as_tensor(its.center == ours.center).all()):
                raise ValueError(f"fields must share a path to be combined, got {ours} and {its}")
        for scale in self.scales:
            if not callable(scale) and not isinstance(scale, int | float):
                raise TypeError(f"scale must be a number or a function of the time, got {type(scale).__name__}")
            if not callable(scale) and not math.isfinite(scale):
                raise ValueError(f"scale must be finite, got {scale}")
        self.path = reference.field.path
        self.predicts = self.terms[1].field.predicts

    def evaluate(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """The combination in the first pull's own prediction; see `Field.evaluate`."""
        out: Tensor = self.function(self.predicts)(x, t, **conditions)
        return out

    def function(self, kind: Prediction) -> StateFunction:
        """The combination of the fields' own predictions of this kind; see `Field.function`."""
        check_choice("kind", kind, PREDICTIONS)

        def combined(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
            live = self._live(t)
            values = self._predictions(kind, [term for _, term in live], x, t, conditions)
            parts = [expand_time(weight, x) * value for (weight, _), value in zip(live, values, strict=True)]
            return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

        return combined

    def check_times(self, kind: Prediction, times: Tensor) -> None:
        """Check that every field has the prediction `kind` at every one of `times`."""
        for term in self.terms:
            term.field.check_times(kind, times)

    def evaluations(self, t: Tensor) -> int:
        """The evaluations a call at time `t` costs: those of all terms whose weight is not zero there."""
        return sum(term.field.evaluations(t) for _, term in self._live(t))

    def source(self, x: Float[Tensor, "batch *event"], t: float | Tensor, **conditions: Any) -> Float[Tensor, " batch"]:
        r"""The source $h$ that the continuity equation of $\pi_t \propto \prod_ip_{i,t}^{w_i}$ needs (constant scales).

        $$ \partial_t\pi_t + \nabla\!\cdot(\pi_tv_w) = \pi_t\,(h_t - E_{\pi_t}h_t), \qquad
           h_t = \frac{\alpha}{\sigma D}\Big(\|v_w\|^2 - \sum_iw_i\|v_i\|^2\Big), $$

        which for one pull of scale $w$ is $w(w-1)\frac{\alpha}{\sigma D}\|v_1 - v_0\|^2$. The law of the guided ODE
        is $\pi_1 e^{-\int(h_t - E_{\pi_t} h_t)\mathrm dt}$, the integral along the trajectory.

        Args:
            x: States.
            t: Time, where $\sigma_t > 0$.
            **conditions: Passed to the fields.

        Returns:
            $h_t(x)$, `[batch]`, in nats per unit of time.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If an argument is invalid or sigma is zero.

        Example:
            >>> from flowlib import data, fields, paths
            >>> ring, spot = data.toys.eight_gaussians(), data.toys.eight_gaussians(std=0.1)
            >>> strong, weak = (fields.MixtureField(law, paths.linear()) for law in (spot, ring))
            >>> x = torch.ones(1, 2)
            >>> [float(guided(strong, weak, w).source(x, 0.5)) > 0 for w in (0.5, 1.0, 2.0)]    # w (w - 1)
            [False, False, True]
        """
        check_state("x", x)
        t = batch_time(t, x)
        self.check_times("velocity", t)
        self.path.check_conversion(t, "velocity", "score")
        return self.velocity_and_source(x, t, **conditions)[1]

    def velocity_and_source(self, x: Tensor, t: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        """The guided velocity and the source from the same evaluations, without input checks."""
        live = self._live(t)
        velocities = self._predictions("velocity", [term for _, term in live], x, t, conditions)
        weights = [weight for weight, _ in live]
        v = torch.stack([expand_time(w, x) * q for w, q in zip(weights, velocities, strict=True)]).sum(0)
        # |v_w|^2 - sum w_i |v_i|^2 = -sum w_i |v_i - v_w|^2, which does not cancel
        spread = torch.stack([w * (q - v).flatten(1).square().sum(1) for w, q in zip(weights, velocities, strict=True)])
        return v, -self.path.coefficients(t, "velocity", "score")[1] * spread.sum(0)

    def _live(self, t: Tensor) -> list[tuple[Tensor, Term]]:
        """The terms whose weight is not zero, with their weights, 0-d or `[batch]`."""
        pulls = [torch.as_tensor(s(t) if callable(s) else s, dtype=t.dtype, device=t.device) for s in self.scales]
        weights = [1 - sum(pulls[1:], pulls[0]), *pulls]
        return [(w, term) for w, term in zip(weights, self.terms, strict=True) if bool((w != 0).any())]

    @staticmethod
    def _predictions(
        kind: Prediction, terms: list[Term], x: Tensor, t: Tensor, given: Mapping[str, Any]
    ) -> list[Tensor]:
        """One prediction for each term, with one call for all if they share a network."""
        field, conditions = terms[0].field, [term.of(given) for term in terms]
        if len(terms) > 1 and isinstance(field, NetworkField) and all(term.field is field for term in terms):
            joint = _stacked(conditions, x)
            if joint is not None:
                count = len(terms)
                times = t if t.ndim == 0 else t.repeat(count)
                together = field.function(kind)(x.repeat(count, *[1] * (x.ndim - 1)), times, **joint)
                return list(together.chunk(count))
        return [term.field.function(kind)(x, t, **own) for term, own in zip(terms, conditions, strict=True)]


def guided(field: Field, reference: Field, scale: Scale) -> CombinedField:
    r"""Push a field away from a reference: $q_{\text{ref}} + w\,(q - q_{\text{ref}})$.

    A conditional field away from the unconditional one is classifier-free guidance with two models; a good network
    away from a worse one of the same data is autoguidance. Both get the caller's conditions.

    Args:
        field: The field wanted more of; $w = 1$ gives it back.
        reference: The field to move away from, on the same path; its prediction may be of another kind.
        scale: $w$: a number, or a function of the time such as `interval(...)`.

    Returns:
        A field.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the paths differ or the scale is not finite.

    Example:
        >>> from flowlib import fields, paths
        >>> one, zero = (fields.FunctionField(lambda x, t, c=c: c + 0 * x, paths.linear()) for c in (1.0, 0.0))
        >>> guided(one, zero, 3.0).velocity(torch.zeros(1, 2), 0.5)
        tensor([[3., 3.]])
    """
    return CombinedField(Term(reference, {}), [(scale, Term(field, {}))])


def classifier_free(field: Field, scale: Scale, *, negative: Mapping[str, Any] | None = None) -> CombinedField:
    r"""Classifier-free guidance of one conditional field: $q_\varnothing + w\,(q_c - q_\varnothing)$.

    $c$ are the conditions given by the caller, and $\varnothing$ is the call without any. Ho and Salimans (2022)
    write $w$ for what is $w - 1$ here: with `scale=1` there is no guidance.

    Args:
        field: A field trained with its condition dropped now and then.
        scale: $w$: a number, or a function of the time such as `interval(...)`.
        negative: Conditions to move away from, in the place of $\varnothing$.

    Returns:
        A field. With a network both predictions come from one batch.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the scale is not finite.

    Example:
        >>> from flowlib import fields, nets, paths, solvers
        >>> field = fields.NetworkField(nets.MLP(dim=2, classes=10), paths.linear())
        >>> x0, y = torch.randn(5, 2), torch.arange(5)
        >>> solvers.ode(classifier_free(field, 3.0), x0, steps=10, y=y).nfe
        20
    """
    return CombinedField(Term(field, negative), [(scale, Term(field, {}))])


def compose(field: Field, pulls: Sequence[tuple[Scale, Mapping[str, Any]]]) -> CombinedField:
    r"""Several conditions at once: $q_\varnothing + \sum_iw_i\,(q_{c_i} - q_\varnothing)$ (Liu et al., 2022).

    If the conditions were independent given the state, weights of one would give the score of $p(x \mid c_1, c_2)$ at
    each time. A negative weight moves away from a condition.

    Args:
        field: A field trained with its condition dropped now and then.
        pulls: Pairs of a scale and the conditions it is for. What the caller gives besides reaches every $q_{c_i}$.

    Returns:
        A field.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no pair or a scale is not finite.

    Example:
        >>> from flowlib import fields, nets, paths
        >>> field = fields.NetworkField(nets.MLP(dim=2, classes=10), paths.linear())
        >>> three, eight = ({"y": torch.full((5,), k)} for k in (3, 8))
        >>> compose(field, [(1.5, three), (1.5, eight)]).velocity(torch.randn(5, 2), 0.5).shape
        torch.Size([5, 2])
    """
    return CombinedField(Term(field, None), [(scale, Term(field, conditions)) for scale, conditions in pulls])


def interval(scale: float, low: float, high: float) -> Callable[[Tensor], Tensor]:
    """A scale that guides only between two times and is one elsewhere (Kynkaanniemi et al., 2024).

    Args:
        scale: The scale inside.
        low: First time of guidance.
        high: Last time of guidance, both in [0, 1]; noise is at 0.

    Returns:
        A function of the time.

    Raises:
        ValueError: If the scale is not finite or the times are not ordered in [0, 1].

    Example:
        >>> interval(3.0, 0.25, 0.75)(torch.tensor([0.0, 0.5, 1.0]))
        tensor([1., 3., 1.])
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    if not 0 <= low <= high <= 1:
        raise ValueError(f"low and high must satisfy 0 <= low <= high <= 1, got {low} and {high}")
    return lambda t: torch.where((t >= low) & (t <= high), scale, 1.0).to(t.dtype)


def _stacked(conditions: list[dict[str, Any]], x: Tensor) -> dict[str, Any] | None:
    """The conditions of several calls as those of one; `None` if they cannot be stacked."""
    joint = {}
    for name in {name for own in conditions for name, value in own.items() if value is not None}:
        missing = torch.full(x.shape[:1], -1, device=x.device) if name == "y" else None  # as the objectives drop labels
        given = [missing if own.get(name) is None else own[name] for own in conditions]
        tensors = [value for value in given if isinstance(value, Tensor) and value.shape[:1] == x.shape[:1]]
        if len(tensors) < len(given):
            return None
        joint[name] = torch.cat(tensors)
    return joint
