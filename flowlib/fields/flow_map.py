r"""Two-time flow maps: where the probability-flow ODE takes a state from time $s$ to time $t$, in one evaluation."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowlib._checks import batch_time, check_state, expand_time
from flowlib.fields.base import Field
from flowlib.paths import GaussianPath

__all__ = ["FlowMap", "FunctionFlowMap", "NetworkFlowMap"]


class FlowMap(Field):
    r"""A two-time map $\psi_{s,t}(x) = x + (t - s)\,u_{s,t}(x)$, given by its average velocity $u$.

    $u_{s,t}(x)$ is the velocity averaged along the trajectory that leaves $x$ at time $s$ and ends at time $t$. On the
    diagonal it is the velocity itself, $u_{t,t} = v$ (Boffi et al., 2025), so a flow map is also a `Field`: its
    velocity, score, data and noise are those of its diagonal. A subclass implements `average`.
    """

    predicts = "velocity"

    @abstractmethod
    def average(self, x: Tensor, s: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        r"""The average velocity $u_{s,t}(x)$, without input checks; what a subclass implements.

        Args:
            x: States at time `s`, `[batch, *event]`.
            s: Times of the states, 0-d or `[batch]`.
            t: Times wanted, 0-d or `[batch]`.
            **conditions: Labels `y=`, context, ...; passed on untouched.

        Returns:
            Velocities, shaped like `x`.
        """

    def evaluate(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """The diagonal $u_{t,t}(x)$."""
        return self.average(x, t, t, **conditions)

    def jump(self, x: Tensor, s: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        r"""$\psi_{s,t}(x)$ without input checks; arguments as `average`."""
        return x + expand_time(t - s, x) * self.average(x, s, t, **conditions)

    def flow(
        self, x: Float[Tensor, "batch *event"], s: float | Tensor, t: float | Tensor, **conditions: Any
    ) -> Float[Tensor, "batch *event"]:
        r"""$\psi_{s,t}(x)$: the states that are at `x` at time `s`, moved to time `t`.

        Args:
            x: States at time `s`.
            s: Times in [0, 1]: a float, a 0-d tensor or `[batch]`.
            t: Times wanted, alike.
            **conditions: Passed on to the map.

        Returns:
            States at time `t`, shaped like `x`.

        Raises:
            TypeError: If `x` is not floating point or a time has another dtype.
            ValueError: If shapes or times are invalid.

        Example:
            >>> from flowlib import paths
            >>> still = FunctionFlowMap(lambda x, s, t: torch.ones_like(x), paths.linear())
            >>> still.flow(torch.zeros(1, 2), 0.25, 0.75)
            tensor([[0.5000, 0.5000]])
        """
        check_state("x", x, finite=False)
        return self.jump(x, batch_time(s, x, name="s"), batch_time(t, x), **conditions)

    def tangent(
        self,
        x: Tensor,
        s: Tensor,
        t: Tensor,
        *,
        dx: Tensor | None = None,
        ds: float = 0.0,
        dt: float = 0.0,
        **conditions: Any,
    ) -> tuple[Tensor, Tensor]:
        r"""The map and one directional derivative, $\partial_s\psi\,ds + \nabla\psi\,dx + \partial_t\psi\,dt$.

        One forward-mode product: about twice the work of the map alone, whatever the number of dimensions. Both
        results can be differentiated again. Without input checks.

        Args:
            x: States at time `s`, `[batch, *event]`.
            s: Times `[batch]`.
            t: Times `[batch]`.
            dx: Direction in space, shaped like `x`; none if `None`.
            ds: Direction in the first time.
            dt: Direction in the second time.
            **conditions: Passed on to the map.

        Returns:
            $\psi_{s,t}(x)$ and the derivative, both shaped like `x`.

        Example:
            >>> from flowlib import paths
            >>> square = FunctionFlowMap(lambda x, s, t: x * (t - s)[:, None], paths.linear())
            >>> one = torch.ones(1)
            >>> square.tangent(torch.ones(1, 2), 0 * one, one, dt=1.0)[1]      # d/dt of x + t^2 x at t = 1
            tensor([[2., 2.]])
        """
        primals, tangents = (x, s, t), (dx, torch.full_like(s, ds), torch.full_like(t, dt))
        moving = [i for i, used in enumerate((dx is not None, ds != 0, dt != 0)) if used]

        def move(*chosen: Tensor) -> Tensor:
            now = list(primals)
            for i, value in zip(moving, chosen, strict=True):
                now[i] = value
            return self.jump(*now, **conditions)

        at, towards = (tuple(values[i] for i in moving) for values in (primals, tangents))
        value, derivative = torch.func.jvp(move, at, towards)[:2]
        return value, derivative


class FunctionFlowMap(FlowMap):
    """A plain function as a flow map.

    Args:
        function: `(x, s, t, **conditions) -> average velocity`, with times 0-d or `[batch]`.
        path: The path.

    Example:
        >>> from flowlib import paths
        >>> FunctionFlowMap(lambda x, s, t: -x, paths.linear()).velocity(torch.ones(1, 2), 0.5)
        tensor([[-1., -1.]])
    """

    def __init__(self, function: Callable[..., Tensor], path: GaussianPath) -> None:
        self._average = function
        self.path = path

    def average(self, x: Tensor, s: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return self._average(x, s, t, **conditions)


class NetworkFlowMap(nn.Module, FlowMap):
    """A network as a flow map. It is an `nn.Module`: `.parameters()`, `.to()`, `.train()` and `.eval()` work.

    Args:
        net: A module called as `net(x, s, t, **conditions)` with times of shape `[batch]`, returning the average
            velocity in the shape of `x`.
        path: The path.

    Example:
        >>> from flowlib import nets, paths
        >>> flow_map = NetworkFlowMap(nets.TwoTimeMLP(torch.zeros(2), torch.ones(2)), paths.linear())
        >>> flow_map.flow(torch.zeros(3, 2), 0.0, 1.0).shape
        torch.Size([3, 2])
    """

    def __init__(self, net: nn.Module, path: GaussianPath) -> None:
        super().__init__()
        self.net = net
        self.path = path

    def average(self, x: Tensor, s: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        n = x.shape[0]
        out: Tensor = self.net(x, s.expand(n), t.expand(n), **conditions)
        return out

    def forward(self, x: Tensor, s: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """`average`, so that module hooks and parallel wrappers see the call."""
        return self.average(x, s, t, **conditions)
