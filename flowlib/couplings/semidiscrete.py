"""Semi-discrete optimal transport: from a source that can be sampled to finitely many weighted atoms."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowlib._checks import check_positive, check_same, check_state

__all__ = ["CellMasses", "SemiDiscrete", "solve_semi_discrete"]

_SCORES = 2**18
"""Scores held at once: 2 MB in float64, so that they are still in the cache when the winners are looked for."""

_CHUNK = 2**18
_NEWTON_ATOMS = 2048
_LEAST_COUNT = 10


class SemiDiscrete:
    r"""The map $T(z) = y_{i^*(z)}$, $i^*(z) = \arg\max_i \langle z, y_i\rangle + h_i$, onto atoms $y_i$.

    It is the gradient of the convex potential $u_h(z) = \max_i \langle z, y_i\rangle + h_i$, hence the optimal map, for
    the squared distance, between any source and the law of its image (Aurenhammer et al., 1998). It is optimal for
    given target weights when the cells $\{i^* = i\}$ have these masses; `solve_semi_discrete` finds such heights.

    Args:
        atoms: $y$, `[n, *event]`.
        weights: Target weights `[n]`, positive, summing to one; equal if `None`.
        heights: $h$, `[n]`; only differences matter. If `None`, $-|y_i|^2/2$: cells are those of the nearest atom.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes or devices disagree, values are not finite, or weights are not positive or do not sum to
            one.

    Example:
        >>> ot = SemiDiscrete(torch.tensor([[-1.0], [1.0]]))
        >>> ot.map(torch.tensor([[0.3], [-2.0]]))
        tensor([[ 1.],
                [-1.]])
    """

    def __init__(self, atoms: Tensor, weights: Tensor | None = None, heights: Tensor | None = None) -> None:
        check_state("atoms", atoms)
        n = atoms.shape[0]
        self.atoms = atoms
        self.weights = torch.full_like(atoms.flatten(1)[:, 0], 1 / n) if weights is None else weights
        self.heights = -atoms.flatten(1).square().sum(1) / 2 if heights is None else heights
        for name, values in (("weights", self.weights), ("heights", self.heights)):
            if values.dtype != atoms.dtype:
                raise TypeError(f"{name} must have the dtype of the atoms, {atoms.dtype}; got {values.dtype}")
            if values.shape != (n,):
                raise ValueError(f"{name} must have shape [{n}], got {list(values.shape)}")
            if values.device != atoms.device:
                raise ValueError(f"{name} must be on the device of the atoms, {atoms.device}; got {values.device}")
            if not bool(torch.isfinite(values).all()):
                raise ValueError(f"{name} must be finite")
        total = float(self.weights.sum())
        if not bool((self.weights > 0).all()) or abs(total - 1) > 1e-5:
            raise ValueError(f"weights must be positive and sum to 1, got sum {total:.6g}")

    def assign(self, z: Float[Tensor, "batch *event"], *, block: int | None = None) -> Int[Tensor, " batch"]:
        """The index of each point's atom; of equal scores the lowest index wins.

        Args:
            z: Points of the source.
            block: Atoms scored at once; all of them if `None`. Points are always taken in chunks.

        Returns:
            Indices `[batch]`.
        """
        return self._best(z, block)[1]

    def map(self, z: Float[Tensor, "batch *event"], *, block: int | None = None) -> Float[Tensor, "batch *event"]:
        """The atom $T(z)$ of each point."""
        return self.atoms[self.assign(z, block=block)]

    def potential(self, z: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """The convex potential $u_h(z)$."""
        return self._best(z, None)[0]

    def energy(self, z: Float[Tensor, "batch *event"]) -> Float[Tensor, ""]:
        r"""The semi-dual $E(h) = \mathbb E[u_h(z)] - \sum_i \nu_i h_i$ on a sample; convex in $h$.

        Its derivative in $h_i$ is the mass of cell i minus its target $\nu_i$.
        """
        return self.potential(z).mean() - (self.weights * self.heights).sum()

    def cell_masses(
        self, source: Callable[..., Tensor], n: int, *, generator: torch.Generator | None = None
    ) -> "CellMasses":
        """Certify the heights: estimate the masses of the cells from a fresh sample.

        Args:
            source: Sampler `(n, generator=...)` of points `[n, *event]`.
            n: Sample size, positive; drawn in chunks.
            generator: Random generator; use one that the solver has not seen.

        Returns:
            Masses with their errors.

        Example:
            >>> from flowlib.distributions import Normal
            >>> ot = SemiDiscrete(torch.tensor([[-1.0], [1.0]]))
            >>> ot.cell_masses(Normal(1).sample, 10_000, generator=torch.Generator().manual_seed(0)).empty
            0
        """
        check_positive("n", n, integer=True)
        count = torch.zeros_like(self.weights, dtype=torch.long)  # exact, also beyond the integers of float32
        for size in _chunks(n):
            count += torch.bincount(self.assign(source(size, generator=generator)), minlength=len(count))
        return CellMasses((count.double() / n).to(self.weights), self.weights, n)

    def _best(self, z: Tensor, block: int | None) -> tuple[Tensor, Tensor]:
        check_state("z", z)
        check_same("z", z, "atoms", self.atoms, shape=False)
        n = self.atoms.shape[0]
        block = n if block is None else block
        check_positive("block", block, integer=True)
        y = self.atoms.flatten(1)
        values, indices = [], []
        for rows in torch.split(z.flatten(1), max(1, _SCORES // min(block, n))):
            best, index = _winners(torch.addmm(self.heights[:block], rows, y[:block].T))
            for start in range(block, n, block):
                part = slice(start, start + block)
                value, where = _winners(torch.addmm(self.heights[part], rows, y[part].T))
                index = torch.where(value > best, where + start, index)
                best = torch.maximum(value, best)
            values.append(best)
            indices.append(index)
        return torch.cat(values), torch.cat(indices)

    def __repr__(self) -> str:
        return f"SemiDiscrete(atoms={self.atoms.shape[0]}, event={tuple(self.atoms.shape[1:])})"


@dataclass(frozen=True)
class CellMasses:
    """What a fresh sample says about the cells.

    Attributes:
        mass: Share of the sample in each cell, `[n]`.
        target: Target weights `[n]`.
        samples: Size of the sample.
    """

    mass: Tensor
    target: Tensor
    samples: int

    @property
    def standard_error(self) -> Tensor:
        """Of each mass, `[n]`."""
        return (self.mass * (1 - self.mass) / self.samples).sqrt()

    @property
    def empty(self) -> int:
        """Cells that no point of the sample fell into."""
        return int((self.mass == 0).sum())

    @property
    def total_variation(self) -> float:
        """Half the summed distance of masses and targets. Sampling alone adds about `noise`."""
        return float((self.mass - self.target).abs().sum()) / 2

    @property
    def noise(self) -> float:
        """The total variation that a sample of this size shows on average for perfect cells."""
        return float((2 * self.target * (1 - self.target) / (math.pi * self.samples)).sqrt().sum()) / 2

    @property
    def worst(self) -> float:
        """The largest distance of a mass from its target."""
        return float((self.mass - self.target).abs().max())


@torch.no_grad()
def solve_semi_discrete(
    source: Callable[..., Tensor],
    atoms: Float[Tensor, "n *event"],
    weights: Float[Tensor, " n"] | None = None,
    *,
    steps: int = 300,
    newton: int = 60,
    samples: int | None = None,
    lr: float = 0.1,
    generator: torch.Generator | None = None,
    callback: Callable[[int, SemiDiscrete], None] | None = None,
) -> SemiDiscrete:
    r"""Heights whose cells have the target masses, by stochastic minimisation of the semi-dual $E(h)$.

    1. Start from the cells of the nearest atom after the atoms are scaled to the source's spread.
    2. `steps` steps of Adam on $\partial E/\partial h_i = \mu(W_i) - \nu_i$, counted on fresh points, with a cosine
       decay of the step and twice as many points in each quarter as in the one before.
    3. `newton` steps of stochastic Newton with gain $1/k$, which averages them: the error is then that of one count
       over all their points. The Hessian is a graph Laplacian whose edges are the densities of the walls between
       cells (Kitagawa, Merigot and Thibert, 2019), counted as points near a wall. Skipped if a cell is too small to
       have its walls counted or there are more than 2048 atoms, and dropped if a fresh sample shows that it lost.

    Nothing here certifies the result: call `cell_masses` with a generator of its own.

    Args:
        source: Sampler `(n, generator=...)` of points `[n, *event]`, with the dtype of the atoms.
        atoms: $y$, `[n, *event]`.
        weights: $\nu$, `[n]`, positive, summing to one; equal if `None`.
        steps: Adam steps, not negative.
        newton: Newton steps, not negative.
        samples: Points of a step in the first quarter; ten for each atom, and at least 4096, if `None`.
        lr: Adam's first step, in units of the spread of $\langle z, y_i\rangle$.
        generator: Random generator of the source.
        callback: Called as `callback(step, semi_discrete)` before each Adam step, for pictures; it must copy heights
            that it keeps.

    Returns:
        The map.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If an argument is invalid.

    Example:
        >>> from flowlib.distributions import Normal
        >>> generator = torch.Generator().manual_seed(0)
        >>> ot = solve_semi_discrete(Normal(1).sample, torch.tensor([[-1.0], [1.0]]), generator=generator)
        >>> ot.cell_masses(Normal(1).sample, 100_000, generator=generator).worst < 0.01
        True
    """
    for name, value in (("steps", steps), ("newton", newton)):
        if not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} must be a whole number, not negative; got {value!r}")
    samples = max(4096, 10 * atoms.shape[0]) if samples is None else samples
    check_positive("samples", samples, integer=True)
    check_positive("lr", lr)
    ot = SemiDiscrete(atoms, weights)
    scale = _start(ot, source(samples, generator=generator))
    first, second = torch.zeros_like(ot.heights), torch.zeros_like(ot.heights)
    for step in range(steps):
        if callback is not None:
            callback(step, ot)
        size = samples * 2 ** (4 * step // steps)
        excess = ot.cell_masses(source, size, generator=generator).mass - ot.weights
        first, second = 0.9 * first + 0.1 * excess, 0.99 * second + 0.01 * excess.square()
        rms = (second / (1 - 0.99 ** (step + 1))).sqrt().clamp_min(1e-30)
        decay = (1 + math.cos(math.pi * step / steps)) / 2
        ot.heights = ot.heights - lr * decay * scale * first / (1 - 0.9 ** (step + 1)) / rms
        ot.heights -= ot.heights.mean()
    return _newton(ot, source, newton, 8 * samples, generator)


def _start(ot: SemiDiscrete, z: Tensor) -> float:
    """Set heights to the cells of the nearest atom, after scaling to the source; return the spread of the scores."""
    check_same("a sample of the source", z, "atoms", ot.atoms, shape=False)
    z, y = z.flatten(1), ot.atoms.flatten(1)
    offset = y @ z.mean(0)
    z, y = z - z.mean(0), y - ot.weights @ y
    ratio = z.square().sum(1).mean().sqrt() / (ot.weights @ y.square().sum(1)).sqrt().clamp_min(1e-30)
    ot.heights = -ratio * y.square().sum(1) / 2 - offset
    return float((z[:1024] @ y.T).square().mean().sqrt()) or 1.0


def _newton(
    ot: SemiDiscrete, source: Callable[..., Tensor], steps: int, size: int, generator: torch.Generator | None
) -> SemiDiscrete:
    """Stochastic Newton from heights that are nearly right, unless a fresh sample shows that it made them worse."""
    n = len(ot.heights)
    if steps == 0 or not 1 < n <= _NEWTON_ATOMS:
        return ot
    mass, laplacian = _walls(ot, source(size, generator=generator))
    if float(mass.min()) * size < _LEAST_COUNT or float(laplacian.diagonal().min()) <= 0:
        return ot
    scale = laplacian.diagonal().mean()
    inverse = torch.linalg.inv(laplacian + scale * (1 / n + 1e-6 * torch.eye(n).to(laplacian)))
    better = SemiDiscrete(ot.atoms, ot.weights, ot.heights)
    for k in range(1, steps + 1):
        excess = better.cell_masses(source, size, generator=generator).mass - ot.weights
        better.heights = better.heights - inverse @ excess / k
        better.heights -= better.heights.mean()
    before, after = (o.cell_masses(source, 8 * size, generator=generator) for o in (ot, better))
    return better if after.total_variation < before.total_variation + after.noise else ot


def _walls(ot: SemiDiscrete, z: Tensor) -> tuple[Tensor, Tensor]:
    """Masses of the cells, and the Hessian of the semi-dual from the points nearest to the walls between cells."""
    n, y = len(ot.heights), ot.atoms.flatten(1)
    gaps, firsts, seconds = [], [], []
    for rows in torch.split(z.flatten(1), max(1, _SCORES // n)):
        scores = torch.addmm(ot.heights, rows, y.T)
        best, first = _winners(scores)
        next_best, second = _winners(scores.scatter_(1, first[:, None], -math.inf))
        gaps.append(best - next_best)
        firsts.append(first)
        seconds.append(second)
    gap, first, second = torch.cat(gaps), torch.cat(firsts), torch.cat(seconds)
    between = (y[first] - y[second]).norm(dim=1).clamp_min(1e-30)  # of the two atoms; gap / between is to the wall
    distance = gap / between
    width = distance.sort().values[len(gap) // 5].clamp_min(1e-30)  # a fifth of the points stand near a wall
    near = distance < width
    flat = torch.zeros(n * n).to(y).index_add_(0, (first * n + second)[near], 1 / between[near])
    edges = flat.reshape(n, n) / (2 * len(gap) * width)
    edges = edges + edges.T
    laplacian = torch.diag(edges.sum(1)) - edges
    return torch.bincount(first, minlength=n).to(y) / len(gap), laplacian


def _winners(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The largest score of each row and its column, the lowest of equals; NumPy's search is vectorised, torch's not."""
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        index = torch.from_numpy(scores.detach().numpy().argmax(1))
    else:
        index = scores.argmax(1)
    return scores.gather(1, index[:, None])[:, 0], index


def _chunks(n: int) -> list[int]:
    return [_CHUNK] * (n // _CHUNK) + ([n % _CHUNK] if n % _CHUNK else [])
