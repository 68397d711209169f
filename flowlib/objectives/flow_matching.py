r"""Conditional flow matching for any of the four predictions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from flowlib._checks import batch_time, check_choice
from flowlib.couplings import Coupling, independent
from flowlib.fields import Field
from flowlib.objectives.times import Times, TimeSampler, uniform
from flowlib.paths import PREDICTIONS, GaussianPath, Prediction

__all__ = ["Loss", "PairObjective", "flow_matching", "loss_weight"]


@dataclass(frozen=True)
class Loss:
    """The value of an objective.

    Attributes:
        total: What is minimised, a 0-d tensor.
        terms: Named parts of it, for logging.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class PairObjective(Protocol):
    """A loss of a batch of noise and a batch of data."""

    def __call__(
        self,
        x0: Tensor,
        x1: Tensor,
        *,
        t: Tensor | None = None,
        generator: torch.Generator | None = None,
        **conditions: Any,
    ) -> Loss:
        """Compute the loss; `t` fixes the times instead of drawing them."""


def flow_matching(
    field: Field,
    *,
    coupling: Coupling = independent,
    times: TimeSampler | None = None,
    weight: Callable[[Tensor], Tensor] | None = None,
    error_in: Prediction | None = None,
    drop_condition: float = 0.0,
) -> PairObjective:
    r"""The conditional flow matching loss (Lipman et al., 2023, eq. 9; Tong et al., 2024).

    $$ L = E_{t, (x_0, x_1)}\; w(t)\,\frac1d\big\|f_\theta(x_t, t) - y\big\|^2, $$

    where $f_\theta$ is the field's own prediction, $y$ its target for the pair, and the mean is over the $d$ entries
    of a state. The minimiser is the conditional mean $E[y \mid x_t]$: the velocity, score, data or noise.

    Args:
        field: What is trained.
        coupling: Pairs noise with data within the batch.
        times: Sampler of times; uniform on [0, 1) if `None`.
        weight: $w$, a function of times `[batch]`; one if `None`.
        error_in: Measure the squared error in this prediction instead of the field's own: multiplies $w$ by
            `loss_weight`. For example a noise network with `error_in="velocity"`.
        drop_condition: Probability of replacing a label `y` by -1, the null condition of guidance.

    Returns:
        The objective. Conditions given to it follow their data through the coupling.

    Raises:
        ValueError: If a parameter is invalid.

    Example:
        >>> from flowlib import fields, nets, paths
        >>> objective = flow_matching(fields.NetworkField(nets.MLP(dim=2), paths.linear()))
        >>> objective(torch.zeros(4, 2), torch.ones(4, 2)).total.ndim
        0
    """
    if error_in is not None:
        check_choice("error_in", error_in, PREDICTIONS)
    if not 0 <= drop_condition < 1:
        raise ValueError(f"drop_condition must lie in [0, 1), got {drop_condition}")
    draw = times if times is not None else uniform()
    path, predicts, predict = field.path, field.predicts, field.function(field.predicts)

    def objective(
        x0: Tensor,
        x1: Tensor,
        *,
        t: Tensor | None = None,
        generator: torch.Generator | None = None,
        **conditions: Any,
    ) -> Loss:
        conditions = {name: value for name, value in conditions.items() if value is not None}
        pairs = coupling(x0, x1, generator=generator, **conditions)
        if pairs.index is not None:
            conditions = {name: value[pairs.index] for name, value in conditions.items()}
        if drop_condition and conditions.get("y") is not None:
            conditions["y"] = _dropped(conditions["y"], drop_condition, generator)
        n = x1.shape[0]
        if t is None:
            drawn = draw(n, generator=generator, dtype=x1.dtype, device=x1.device)
        else:
            drawn = Times(batch_time(t, x1).expand(n))
        # the coupling has checked the batch
        xt = path.apply_interpolation(pairs.x0, pairs.x1, drawn.t)
        target = path.apply_target(predicts, pairs.x0, pairs.x1, drawn.t)
        squares = (predict(xt, drawn.t, **conditions) - target).square()

        factor = drawn.weight
        if weight is not None:
            factor = _times(factor, weight(drawn.t))
        if error_in is not None and error_in != predicts:
            factor = _times(factor, loss_weight(path, drawn.t, predicts, error_in))
        if pairs.weight is not None:
            factor = _times(factor, pairs.weight)
        if factor is None:  # one reduction instead of three: small networks notice
            total = squares.mean()
            return Loss(total, {"error": total.detach()})
        error = squares.flatten(1).mean(1)  # (B,)
        return Loss((factor * error).mean(), {"error": error.detach().mean()})

    return objective


def loss_weight(path: GaussianPath, t: Tensor, predicts: Prediction, error_in: Prediction) -> Tensor:
    r"""The factor that turns the squared error of one prediction into that of another.

    Conversions are affine, so it is the square of their coefficient. With $D = \dot\alpha\sigma - \alpha\dot\sigma$:

    $$ \|\Delta s\|^2 = \frac{\|\Delta \hat x_0\|^2}{\sigma^2} = \frac{\alpha^2}{\sigma^4}\|\Delta\hat x_1\|^2
       = \Big(\frac{\alpha}{\sigma D}\Big)^2\|\Delta v\|^2. $$

    Args:
        path: The path.
        t: Times, any shape.
        predicts: The prediction whose error is known.
        error_in: The prediction whose error is wanted.

    Returns:
        The factor, shaped like `t`.

    Raises:
        ValueError: If the conversion has no limit at one of the times.

    Example:
        >>> from flowlib import paths
        >>> loss_weight(paths.linear(), torch.tensor(0.5), "noise", "score")       # 1 / sigma^2
        tensor(4.)
    """
    path.check_conversion(t, predicts, error_in)
    return path.coefficients(t, predicts, error_in)[1].square()


def _times(factor: Tensor | None, other: Tensor) -> Tensor:
    return other if factor is None else factor * other


def _dropped(y: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    drop = torch.rand(y.shape, generator=generator, device=y.device) < probability
    return torch.where(drop, -1, y)
