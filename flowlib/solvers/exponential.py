r"""DDIM: exponential Euler for Gaussian paths (Song et al., 2021a; Lu et al., 2022).

The conditional path $x_t = \alpha_t \hat x_1 + \sigma_t \hat x_0$ is solved exactly with one of the two predictions
frozen over a step from $t$ to $u$:

$$ x_u = \frac{\sigma_u}{\sigma_t}x_t + \Big(\alpha_u - \alpha_t\frac{\sigma_u}{\sigma_t}\Big)\hat x_1(x_t, t)
       = \alpha_u\hat x_1(x_t, t) + \sigma_u\hat x_0(x_t, t). $$

On the linear path this is Euler's method on the velocity; on other paths it is not.
"""

from collections.abc import Callable

from torch import Tensor

from flowlib.fields import Field
from flowlib.paths import Prediction
from flowlib.solvers.trajectory import CountedVelocity

__all__ = ["ddim_stepper"]


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
        ratio = schedule.sigma(u) / schedule.sigma(t)
        predicted = counter(x, t) - center
        return center + ratio * (x - center) + (schedule.alpha(u) - schedule.alpha(t) * ratio) * predicted

    def towards_noise(x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        ratio = schedule.alpha(u) / schedule.alpha(t)
        return center + ratio * (x - center) + (schedule.sigma(u) - schedule.sigma(t) * ratio) * counter(x, t)

    return towards_data if kind == "data" else towards_noise
