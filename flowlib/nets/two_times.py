r"""A perceptron with two times: the network of the flow-map experiments."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowlib._checks import expand_time
from flowlib.nets.embeddings import LabelEmbedding, TimeEmbedding, check_input

__all__ = ["TwoTimeMLP", "gaussian_average"]


class TwoTimeMLP(nn.Module):
    r"""Predicts the average velocity $u_{s,t}(x)$ of a flow map: a Gaussian's exact one plus a correction.

    With the mean $m$ and deviation $d$ of each entry of the data, $g_t = \sqrt{t^2 d^2 + (1 - t)^2}$ is the deviation
    at time $t$ on the linear path and $z = (x - s\,m)/g_s$ has unit size at every time. The network is

    $$ u_{s,t}(x) = m + \frac{g_t - g_s}{t - s}\,z + \frac{d}{g_s}\,F\big(z, s, t - s\big), \qquad
       \frac{g_t - g_s}{t - s} = \frac{d^2(t + s) - (2 - s - t)}{g_s + g_t} . $$

    The first two terms are exact for independent Gaussian entries, also at $s = t$, and the last layer of $F$ starts at
    zero: the untrained network is a flow map. The times enter through smooth embeddings of bounded frequency, since
    losses differentiate in them, and $z$ through its values and, for each wave number $k$, $\sin kz$ and $\cos kz$.

    Args:
        mean: $m$, `[*event]`.
        std: $d \ge 0$, `[*event]`.
        width: Hidden width.
        depth: Number of hidden layers, at least one.
        classes: Number of classes for conditioning; `None` for none.
        waves: Wave numbers $k$.
        max_frequency: The fastest time feature, in cycles over the whole path.

    Raises:
        ValueError: If a size is not positive or the shapes of mean and deviation differ.

    Example:
        >>> net = TwoTimeMLP(torch.zeros(2), torch.full((2,), 3.0))
        >>> x = torch.ones(1, 2)
        >>> x + net(x, torch.zeros(1), torch.ones(1))       # N(0, 1) to N(0, 3^2): untrained, it scales by 3
        tensor([[3., 3.]], grad_fn=<AddBackward0>)
    """

    mean: Tensor
    std: Tensor
    waves: Tensor

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        width: int = 128,
        depth: int = 3,
        classes: int | None = None,
        waves: Sequence[float] = (),
        max_frequency: float = 1.0,
    ) -> None:
        super().__init__()
        if mean.shape != std.shape or mean.ndim == 0:
            raise ValueError(f"mean and std must have one event shape, got {list(mean.shape)} and {list(std.shape)}")
        if width < 1 or depth < 1:
            raise ValueError(f"width and depth must be positive, got {width} and {depth}")
        self.event, self.classes = tuple(mean.shape), classes
        size = mean.numel()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        self.register_buffer("waves", mean.new_tensor(list(waves)))
        self.start = TimeEmbedding(width, 8, max_frequency)
        self.gap = TimeEmbedding(width, 8, max_frequency)
        self.labels = LabelEmbedding(classes, width) if classes is not None else None
        self.first = nn.Linear(size * (1 + 2 * len(waves)), width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nn.Linear(width, size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Average velocities of states `[batch, *event]` from times `s` to `t`, 0-d or `[batch]`."""
        s = check_input(x, s, self.event, y, self.classes, like=self.first.weight)
        t = check_input(x, t, self.event, y, self.classes, like=self.first.weight)
        embedding = self.start(s) + self.gap(t - s)
        if self.labels is not None:
            embedding = embedding + self.labels(y, x.shape[0])
        base, z, scale = gaussian_average(x, s, t, self.mean, self.std)
        return base + scale * self._correction(z.flatten(1), embedding).reshape(x.shape)

    def _correction(self, z: Tensor, embedding: Tensor) -> Tensor:
        angles = (z[..., None] * self.waves).flatten(1)
        h = self.first(torch.cat([z, angles.sin(), angles.cos()], 1)) + embedding
        h = nn.functional.silu(h)
        for layer in self.hidden:
            h = nn.functional.silu(layer(h))
        out: Tensor = self.last(h)
        return out


def gaussian_average(x: Tensor, s: Tensor, t: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The exact average velocity for independent Gaussian entries on the linear path, and the scales around it.

    Args:
        x: States at time `s`, `[batch, *event]`.
        s: Times, 0-d or `[batch]`.
        t: Times, 0-d or `[batch]`.
        mean: $m$, `[*event]`.
        std: $d$, `[*event]`.

    Returns:
        $m + \frac{g_t - g_s}{t - s} z$, the scaled state $z = (x - s\,m)/g_s$, and $d/g_s$.

    Example:
        >>> s, t = torch.tensor(0.0), torch.tensor(1.0)
        >>> gaussian_average(torch.ones(1, 1), s, t, torch.zeros(1), torch.tensor([3.0]))[0]
        tensor([[2.]])
    """
    s, t = expand_time(s, x), expand_time(t, x)
    variance = std**2
    here = (s**2 * variance + (1 - s) ** 2).sqrt()
    there = (t**2 * variance + (1 - t) ** 2).sqrt()
    z = (x - s * mean) / here
    slope = (variance * (t + s) - (2 - s - t)) / (here + there)  # (g_t - g_s)/(t - s), also where t = s
    return mean + slope * z, z, std / here
