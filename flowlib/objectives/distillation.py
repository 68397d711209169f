r"""Distillation of a flow into a few Euler steps, on pairs that the flow connects.

Reflow needs no loss of its own: it is `flow_matching` on the pairs of `couplings.generate_pairs`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowlib._checks import batch_time, check_positive
from flowlib.couplings import independent
from flowlib.fields import Field
from flowlib.objectives.flow_matching import Loss, PairObjective, flow_matching
from flowlib.objectives.times import Times, TimeSampler
from flowlib.paths import GaussianPath

__all__ = ["distillation", "lattice"]

Metric = Callable[[Tensor, Tensor], Tensor]


def lattice(steps: int) -> TimeSampler:
    r"""Times drawn uniformly from $\{0, 1/k, \dots, (k-1)/k\}$: where $k$ Euler steps ask for the velocity.

    Args:
        steps: $k$, positive.

    Returns:
        A sampler.

    Raises:
        ValueError: If `steps` is not positive.

    Example:
        >>> sorted(set(lattice(2)(100, generator=torch.Generator().manual_seed(0)).t.tolist()))
        [0.0, 0.5]
    """
    check_positive("steps", steps, integer=True)

    def sample(
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Times:
        k = torch.randint(steps, (n,), generator=generator, device=device)
        return Times(k.to(dtype if dtype is not None else torch.get_default_dtype()) / steps)

    return sample


def distillation(field: Field, *, steps: int = 1, metric: Metric | None = None) -> PairObjective:
    r"""Train a field to follow its pairs in `steps` Euler steps (Liu et al., 2023, section 2.2).

    The regression of `flow_matching` on the straight line of a pair, but only at the times where the sampler asks:
    $t \in \{0, 1/k, \dots, (k-1)/k\}$. With one step only $t = 0$ is left, and

    $$ L = E\,m\big(x_0 + v_\theta(x_0, 0),\; x_1\big), $$

    where $m$ is the squared error or a metric of features. For $k > 1$ the metric compares $x_1$ with the end of the
    straight line, the data prediction $\hat x_1 = x_t + (1 - t) v_\theta(x_t, t)$.

    Args:
        field: What is trained, on the linear path.
        steps: $k$.
        metric: From predicted and stored ends, both `[batch, *event]`, to a loss a pair, `[batch]`; the mean squared
            error of the velocity if `None`.

    Returns:
        The objective, for pairs that belong together.

    Raises:
        ValueError: If `steps` is not positive or the field's path is not the straight one.

    Example:
        >>> from flowlib import fields, nets, paths
        >>> field = fields.NetworkField(nets.MLP(dim=2), paths.linear())
        >>> distillation(field)(torch.zeros(4, 2), torch.ones(4, 2)).total.ndim
        0
    """
    check_straight(field.path)
    times = lattice(steps)
    if metric is None:
        return flow_matching(field, times=times, error_in="velocity")
    predict, path = field.function("data"), field.path

    def objective(
        x0: Tensor,
        x1: Tensor,
        *,
        t: Tensor | None = None,
        generator: torch.Generator | None = None,
        **conditions: Any,
    ) -> Loss:
        pairs = independent(x0, x1)  # checks, and keeps partners as they are
        n = x1.shape[0]
        drawn = times(n, generator=generator, dtype=x1.dtype, device=x1.device).t
        t = drawn if t is None else batch_time(t, x1).expand(n)
        end = predict(path.apply_interpolation(pairs.x0, pairs.x1, t), t, **conditions)
        values = metric(end, x1)
        if values.shape != (n,):
            raise ValueError(f"metric must return shape [{n}], one number a pair, got {list(values.shape)}")
        total = values.mean()
        return Loss(total, {"error": total.detach()})

    return objective


def check_straight(path: GaussianPath) -> None:
    """Check that a path runs on straight lines at constant speed: alpha = t and sigma = 1 - t.

    Raises:
        ValueError: If it does not.
    """
    t = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)
    schedule = path.schedule
    if not (torch.allclose(schedule.alpha(t), t) and torch.allclose(schedule.sigma(t), 1 - t)):
        raise ValueError("the field's path must be paths.linear(): Euler steps are exact on straight, even motion only")
