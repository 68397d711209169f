"""A field of one path, seen on another."""

from typing import Any

import torch
from torch import Tensor

from flowlib._checks import check_choice, check_unit_interval, expand_time
from flowlib.fields.base import Field, StateFunction
from flowlib.paths import PREDICTIONS, GaussianPath, Prediction, retime

__all__ = ["RetimedField"]


class RetimedField(Field):
    r"""The same network, or the same exact field, on another Gaussian path.

    With $x_t = c\,x'_\tau$ (see `flowlib.paths.retime`; the field lives on the primed path)

    $$ \hat x_1(x, t) = \hat x_1'(x/c, \tau), \quad \hat x_0(x, t) = \hat x_0'(x/c, \tau), \quad
       s(x, t) = \tfrac1c s'(x/c, \tau), \quad
       v(x, t) = \tfrac{\dot c}{c} x + c\,\dot\tau\,v'(x/c, \tau). $$

    The last form serves fields that predict a velocity; for the others the new path converts. Centres are moved as
    they must be: $x$ stands for $x - (1 - \alpha)\mu - \alpha\mu'$.

    Args:
        field: A field on any path, for example a trained `NetworkField`.
        path: The path on which it is to be used.

    Example:
        >>> import torch
        >>> from flowlib import data, paths
        >>> from flowlib.fields import MixtureField
        >>> ring, x = data.toys.eight_gaussians(), torch.ones(1, 2)
        >>> seen = RetimedField(MixtureField(ring, paths.linear()), paths.cosine())
        >>> torch.allclose(seen.velocity(x, 0.3), MixtureField(ring, paths.cosine()).velocity(x, 0.3), atol=1e-4)
        True
    """

    def __init__(self, field: Field, path: GaussianPath) -> None:
        self.field = field
        self.path = path
        self.predicts = field.predicts

    def evaluate(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        out: Tensor = self._carried(self.predicts)(x, t, **conditions)
        return out

    def function(self, kind: Prediction) -> StateFunction:
        """A prediction without input checks; see `Field.function`."""
        check_choice("kind", kind, PREDICTIONS)
        return super().function(kind) if self._is_converted(kind) else self._carried(kind)

    def check_times(self, kind: Prediction, times: Tensor) -> None:
        """Check that both paths share the signal-to-noise ratios of `times` and that `kind` exists there."""
        check_choice("kind", kind, PREDICTIONS)
        check_unit_interval("times", times)
        onto = retime(times, self.path, self.field.path)
        if self._is_converted(kind):
            self.field.check_times(self.predicts, onto.time)
            self.path.check_conversion(times, self.predicts, kind)
            return
        self.field.check_times(kind, onto.time)
        finite = torch.isfinite(onto.time_rate + onto.scale_rate)
        if kind == "velocity" and not bool(finite.all()):
            first = float(times[~finite].flatten()[0] if times.ndim else times)
            raise ValueError(
                f"the velocity cannot be carried to the {type(self.path.schedule).__name__} path at t = {first:g}, "
                "where a schedule's sigma_dot is infinite; keep t away from that end"
            )

    def evaluations(self, t: Tensor) -> int:
        """Those of the field at its own time."""
        return self.field.evaluations(retime(t, self.path, self.field.path).time)

    def _is_converted(self, kind: Prediction) -> bool:
        return kind == "velocity" and self.predicts != "velocity"

    def _carried(self, kind: Prediction) -> StateFunction:
        function, path, center = self.field.function(kind), self.path, self.field.path.center

        def carried(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
            onto = retime(t, path, self.field.path)
            tau, c = onto.time, expand_time(onto.scale, x)
            shift = center - path.center
            alpha = expand_time(path.schedule.alpha(t), x)
            y = (x - path.center - alpha * shift) / c
            value: Tensor = function(y + center, tau, **conditions)
            if kind == "score":
                return value / c
            if kind == "velocity":
                moved = expand_time(onto.scale_rate, x) * y + c * expand_time(onto.time_rate, x) * value
                return moved + expand_time(path.schedule.alpha_dot(t), x) * shift
            return value

        return carried
