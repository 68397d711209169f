r"""DDIM: exponential Euler for Gaussian paths (Song et al., 2021a; Lu et al., 2022).

The conditional path $x_t = \alpha_t \hat x_1 + \sigma_t \hat x_0$ is solved exactly with one of the two predictions
frozen over a step from $t$ to $u$:

$$ x_u = \frac{\sigma_u}{\sigma_t}x_t + \Big(\alpha_u - \alpha_t\frac{\sigma_u}{\sigma_t}\Big)\hat x_1(x_t, t)
       = \alpha_u\hat x_1(x_t, t) + \sigma_u\hat x_0(x_t, t). $$

On the linear path this is Euler's method on the velocity; on other paths it is not. `data_step` is the step with any
factor in the place of $\sigma_u$: `flowlib.solvers.ancestral` replaces a part of the predicted noise by fresh noise.
"""

from collections.abc import Callable

from torch import Tensor

from flowlib.fields import Field
from flowlib.paths import GaussianPath, Prediction
from flowlib.solvers.trajectory import CountedVelocity

__all__ = ["data_step", "ddim_stepper"]


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


def ddim_stepper(counter: CountedVelocity, field: Field, grid: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    r"""The DDIM step of a field.

    Towards data it freezes $\hat x_1$ and is regular from $\alpha = 0$ to $\sigma = 0$; towards noise it freezes
    $\hat x_0$. In exact arithmetic both are the same map.

    Args:
        counter: Where evaluations are counted; its function is replaced by the prediction in use.
        field: The field.
        grid: The times of the solve.

    Returns:
        A function of a state and the two times of a step.

    Raises:
        ValueError: If the prediction has no limit at one of the times but the last.
    """
    kind: Prediction = "data" if grid[-1] > grid[0] else "noise"
    field.check_times(kind, grid[:-1])
    counter.function = field.function(kind)
    schedule, center = field.path.schedule, field.path.center

    def towards_data(x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        return data_step(field.path, x, counter(x, t), t, u, schedule.sigma(u))

    def towards_noise(x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        ratio = schedule.alpha(u) / schedule.alpha(t)
        return center + ratio * (x - center) + (schedule.sigma(u) - schedule.sigma(t) * ratio) * counter(x, t)

    return towards_data if kind == "data" else towards_noise
