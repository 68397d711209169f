"""The common interface of all fields, and the fields that wrap a network or a function."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from flowlib._checks import batch_time, check_choice, check_state, check_unit_interval
from flowlib.paths import PREDICTIONS, GaussianPath, Prediction

__all__ = ["Field", "FunctionField", "NetworkField", "StateFunction", "check_field"]

StateFunction = Callable[..., Tensor]


class Field(ABC):
    """A field on a path: implements one prediction, answers all four.

    Attributes:
        path: The Gaussian path that ties the four predictions together.
        predicts: The prediction that `evaluate` returns.
    """

    path: GaussianPath
    predicts: Prediction

    @abstractmethod
    def evaluate(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """The field's own prediction, without input checks; what a subclass implements.

        Args:
            x: States `[batch, *event]`.
            t: Times, 0-d or `[batch]`.
            **conditions: Labels `y=`, context, ...; passed on untouched.

        Returns:
            The prediction, shaped like `x`.
        """

    def velocity(
        self, x: Float[Tensor, "batch *event"], t: float | Tensor, **conditions: Any
    ) -> Float[Tensor, "batch *event"]:
        r"""$v(x, t) = E[\dot x_t \mid x_t = x]$.

        Args:
            x: States.
            t: Time in [0, 1]: a float, a 0-d tensor or `[batch]`.
            **conditions: Passed on to the field.

        Returns:
            The velocity, shaped like `x`.

        Raises:
            TypeError: If `x` is not floating point or `t` has another dtype.
            ValueError: If shapes or times are invalid, or the velocity has no limit at one of the times.
        """
        return self._checked("velocity", x, t, conditions)

    def score(
        self, x: Float[Tensor, "batch *event"], t: float | Tensor, **conditions: Any
    ) -> Float[Tensor, "batch *event"]:
        r"""$s(x, t) = \nabla \log p_t(x) = -E[x_0 \mid x_t = x]/\sigma_t$; arguments and errors as `velocity`."""
        return self._checked("score", x, t, conditions)

    def data(
        self, x: Float[Tensor, "batch *event"], t: float | Tensor, **conditions: Any
    ) -> Float[Tensor, "batch *event"]:
        r"""$E[x_1 \mid x_t = x]$, the denoised state; arguments and errors as `velocity`."""
        return self._checked("data", x, t, conditions)

    def noise(
        self, x: Float[Tensor, "batch *event"], t: float | Tensor, **conditions: Any
    ) -> Float[Tensor, "batch *event"]:
        r"""$E[x_0 \mid x_t = x]$; arguments and errors as `velocity`."""
        return self._checked("noise", x, t, conditions)

    def function(self, kind: Prediction) -> StateFunction:
        """A prediction as a plain function `(x, t, **conditions)` without input checks.

        For inner loops: a solver checks its input once, calls `check_times` on its grid, and then pays nothing more.

        Args:
            kind: Which prediction.

        Returns:
            A function of a state and a 0-d or `[batch]` time.

        Example:
            >>> import torch
            >>> from flowlib import paths
            >>> field = FunctionField(lambda x, t: -x, paths.linear(), predicts="velocity")
            >>> field.function("velocity")(torch.ones(1, 2), torch.tensor(0.5))
            tensor([[-1., -1.]])
        """
        check_choice("kind", kind, PREDICTIONS)
        if kind == self.predicts:
            return self.evaluate
        path, predicts = self.path, self.predicts

        def converted(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
            return path.apply_conversion(self.evaluate(x, t, **conditions), x, t, predicts, kind)

        return converted

    def check_times(self, kind: Prediction, times: Tensor) -> None:
        """Check that the prediction `kind` exists at every one of `times`.

        Args:
            kind: Which prediction.
            times: Times in [0, 1], any shape.

        Raises:
            ValueError: If a time is outside [0, 1], or the conversion from the field's own prediction has no limit
                there; the message names the time and the reason.
        """
        check_choice("kind", kind, PREDICTIONS)
        check_unit_interval("times", times)
        self.path.check_conversion(times, self.predicts, kind)

    def evaluations(self, t: Tensor) -> int:
        """How many evaluations a solver counts for one call at the 0-d time `t`: one, unless fields are combined."""
        return 1

    def _checked(self, kind: Prediction, x: Tensor, t: float | Tensor, conditions: dict[str, Any]) -> Tensor:
        check_state("x", x, finite=False)
        t = batch_time(t, x)
        self.check_times(kind, t)
        out: Tensor = self.function(kind)(x, t, **conditions)
        return out


class FunctionField(Field):
    """A plain function as a field.

    Args:
        function: `(x, t, **conditions) -> prediction`, with `t` 0-d or `[batch]`.
        path: The path.
        predicts: What the function returns.

    Raises:
        ValueError: If `predicts` is unknown.

    Example:
        >>> import torch
        >>> from flowlib import paths
        >>> field = FunctionField(lambda x, t: torch.zeros_like(x), paths.linear(), predicts="data")
        >>> field.velocity(torch.ones(1, 2), 0.5)      # (x1 - x) / (1 - t)
        tensor([[-2., -2.]])
    """

    def __init__(self, function: StateFunction, path: GaussianPath, predicts: Prediction = "velocity") -> None:
        check_choice("predicts", predicts, PREDICTIONS)
        self._evaluate = function
        self.path = path
        self.predicts = predicts

    def evaluate(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return self._evaluate(x, t, **conditions)


class NetworkField(nn.Module, Field):
    """A network as a field. It is an `nn.Module`: `.parameters()`, `.to()`, `.train()` and `.eval()` work.

    Args:
        net: A module called as `net(x, t, **conditions)` with `t` of shape `[batch]`, returning the shape of `x`.
        path: The path.
        predicts: What the network predicts.

    Raises:
        ValueError: If `predicts` is unknown.

    Example:
        >>> import torch
        >>> from flowlib import nets, paths
        >>> field = NetworkField(nets.MLP(dim=2), paths.linear(), predicts="noise")
        >>> field.velocity(torch.zeros(3, 2), 0.5).shape
        torch.Size([3, 2])
    """

    def __init__(self, net: nn.Module, path: GaussianPath, predicts: Prediction = "velocity") -> None:
        super().__init__()
        check_choice("predicts", predicts, PREDICTIONS)
        self.net = net
        self.path = path
        self.predicts = predicts

    def evaluate(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        out: Tensor = self.net(x, t.expand(x.shape[0]), **conditions)
        return out

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """The network's own prediction: `evaluate`, so that module hooks and parallel wrappers see the call."""
        return self.evaluate(x, t, **conditions)


def check_field(name: str, field: object, needed: str) -> None:
    """Check that an argument is a field and not a plain function.

    Args:
        name: The argument's name, for the message.
        field: What came.
        needed: What of a field is needed, for the message.

    Raises:
        TypeError: If it is not a field.

    Example:
        >>> from flowlib import paths
        >>> check_field("field", FunctionField(lambda x, t: x, paths.linear()), "its score is")
    """
    if not isinstance(field, Field):
        raise TypeError(f"{name} must be a Field, because {needed} needed; got {type(field).__name__}")
