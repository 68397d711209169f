r"""Two-dimensional toy distributions. All have mean near zero and standard deviation about one to three.

`eight_gaussians` and `two_gaussians` are `GaussianMixture`s, so their exact fields are known; `checkerboard` has a
closed-form density; `moons`, `spirals` and `pinwheel` can only be sampled.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowlib._checks import check_positive, check_state
from flowlib.distributions import GaussianMixture

__all__ = ["Checkerboard", "Moons", "Pinwheel", "Spirals", "checkerboard", "eight_gaussians", "moons", "pinwheel",
           "spirals", "two_gaussians"]  # fmt: skip


def eight_gaussians(
    radius: float = 2.0, std: float = 0.2, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> GaussianMixture:
    """Eight equal isotropic Gaussians on a circle.

    Args:
        radius: Radius of the circle, positive.
        std: Standard deviation of each, positive.
        dtype: Floating-point type; torch's default if `None`.
        device: Device; torch's default if `None`.

    Returns:
        The mixture.

    Example:
        >>> eight_gaussians().sample(5).shape
        torch.Size([5, 2])
    """
    check_positive("radius", radius)
    check_positive("std", std)
    angle = 2 * math.pi * torch.arange(8, dtype=dtype or torch.get_default_dtype(), device=device) / 8
    return GaussianMixture(radius * torch.stack([angle.cos(), angle.sin()], 1), std**2)


def two_gaussians(
    distance: float = 4.0,
    std: float = 0.5,
    weight: float = 0.5,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> GaussianMixture:
    """Two isotropic Gaussians on the first axis, symmetric about the origin.

    Args:
        distance: Distance of their means, positive.
        std: Standard deviation of each, positive.
        weight: Probability of the left one, between 0 and 1.
        dtype: Floating-point type; torch's default if `None`.
        device: Device; torch's default if `None`.

    Returns:
        The mixture.

    Raises:
        ValueError: If a parameter is out of range.

    Example:
        >>> two_gaussians(weight=0.2).weights
        tensor([0.2000, 0.8000])
    """
    check_positive("distance", distance)
    check_positive("std", std)
    if not 0 < weight < 1:
        raise ValueError(f"weight must lie strictly between 0 and 1, got {weight}")
    means = torch.tensor([[-distance / 2, 0.0], [distance / 2, 0.0]], dtype=dtype, device=device)
    return GaussianMixture(means, std**2, torch.tensor([weight, 1 - weight], dtype=means.dtype, device=device))


@dataclass(frozen=True)
class Moons:
    """Two interleaved half circles with Gaussian noise, centred, of unit radius times `scale`.

    Example:
        >>> moons().sample(4).shape
        torch.Size([4, 2])
    """

    scale: float = 1.5
    noise: float = 0.08

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)
        _check_noise(self.noise)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` points `[n, 2]`."""
        check_positive("n", n, integer=True)
        device = generator.device if generator is not None else None
        upper = torch.rand(n, generator=generator, device=device) < 0.5
        angle = math.pi * torch.rand(n, generator=generator, device=device)
        x = torch.where(upper, angle.cos(), 1 - angle.cos())
        y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
        centred = torch.stack([x - 0.5, y - 0.25], 1)
        return self.scale * (centred + self.noise * torch.randn(n, 2, generator=generator, device=device))


@dataclass(frozen=True)
class Checkerboard:
    """Uniform on the black squares of a `cells` by `cells` board that covers [-2, 2] in both coordinates.

    Example:
        >>> import torch
        >>> checkerboard().log_prob(torch.tensor([[-1.5, -1.5], [-0.5, -1.5]]))
        tensor([-2.0794,    -inf])
    """

    cells: int = 4

    def __post_init__(self) -> None:
        if self.cells < 2 or self.cells % 2:
            raise ValueError(f"cells must be an even number of at least 2, got {self.cells}")

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` points `[n, 2]`."""
        check_positive("n", n, integer=True)
        device = generator.device if generator is not None else None
        column = torch.randint(self.cells, (n,), generator=generator, device=device)
        row = 2 * torch.randint(self.cells // 2, (n,), generator=generator, device=device) + column % 2
        corner = torch.stack([column, row], 1)
        return (corner + torch.rand(n, 2, generator=generator, device=device)) * (4 / self.cells) - 2

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats of points `[n, 2]`; minus infinity on white squares and off the board."""
        check_state("x", x, dim=2)
        cell = ((x + 2) * self.cells / 4).floor()
        inside = ((cell >= 0) & (cell < self.cells)).all(1)
        black = inside & (cell.sum(1) % 2 == 0)
        return torch.where(black, x.new_tensor(math.log(1 / 8)), x.new_tensor(-math.inf))


@dataclass(frozen=True)
class Spirals:
    """Two intertwined spiral arms with Gaussian noise.

    Example:
        >>> spirals().sample(4).shape
        torch.Size([4, 2])
    """

    turns: float = 1.5
    radius: float = 3.0
    noise: float = 0.08

    def __post_init__(self) -> None:
        check_positive("turns", self.turns)
        check_positive("radius", self.radius)
        _check_noise(self.noise)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` points `[n, 2]`."""
        check_positive("n", n, integer=True)
        device = generator.device if generator is not None else None
        along = torch.rand(n, generator=generator, device=device).sqrt()  # roughly even along the arm
        arm = math.pi * torch.randint(2, (n,), generator=generator, device=device)
        angle = 2 * math.pi * self.turns * along + arm
        points = self.radius * along[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        return points + self.noise * torch.randn(n, 2, generator=generator, device=device)


@dataclass(frozen=True)
class Pinwheel:
    """Bent Gaussian blades around the origin (Johnson et al., 2016).

    Example:
        >>> pinwheel().sample(4).shape
        torch.Size([4, 2])
    """

    blades: int = 5
    radial: float = 0.3
    tangential: float = 0.05
    rate: float = 0.25

    def __post_init__(self) -> None:
        check_positive("blades", self.blades, integer=True)
        _check_noise(self.radial)
        _check_noise(self.tangential)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` points `[n, 2]`."""
        check_positive("n", n, integer=True)
        device = generator.device if generator is not None else None
        radius = 1 + self.radial * torch.randn(n, generator=generator, device=device)
        offset = self.tangential * torch.randn(n, generator=generator, device=device)
        blade = torch.randint(self.blades, (n,), generator=generator, device=device)
        angle = 2 * math.pi * blade / self.blades + self.rate * radius.exp()
        x = radius * angle.cos() - offset * angle.sin()
        y = radius * angle.sin() + offset * angle.cos()
        return 1.5 * torch.stack([x, y], 1)


def moons(scale: float = 1.5, noise: float = 0.08) -> Moons:
    """The two moons; see `Moons`."""
    return Moons(scale, noise)


def checkerboard(cells: int = 4) -> Checkerboard:
    """The checkerboard; see `Checkerboard`."""
    return Checkerboard(cells)


def spirals(turns: float = 1.5) -> Spirals:
    """The two spirals; see `Spirals`."""
    return Spirals(turns)


def pinwheel(blades: int = 5) -> Pinwheel:
    """The pinwheel; see `Pinwheel`."""
    return Pinwheel(blades)


def _check_noise(noise: float) -> None:
    if not noise >= 0:
        raise ValueError(f"noise must not be negative, got {noise}")
