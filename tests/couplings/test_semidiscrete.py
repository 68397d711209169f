"""Semi-discrete transport: closed forms on the line, convexity, and optimality of every map of the family."""

import math

import numpy as np
import ot as pot
import pytest
import torch
from torch import Tensor

from flowlib import couplings, data
from flowlib.couplings import SemiDiscrete
from flowlib.distributions import Normal

LINE = Normal(1, dtype=torch.float64).sample
PLANE = Normal(2, dtype=torch.float64).sample


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quantile(p: Tensor) -> Tensor:
    return math.sqrt(2) * torch.erfinv(2 * p - 1)


def exact_on_the_line(atoms: Tensor, weights: Tensor) -> SemiDiscrete:
    """Sorted atoms; neighbours k, k + 1 meet where the normal has the mass of the first k: z (y' - y) = h - h'."""
    walls = quantile(weights.cumsum(0)[:-1])
    heights = torch.cat([torch.zeros(1, dtype=atoms.dtype), -(walls * atoms[:, 0].diff()).cumsum(0)])
    return SemiDiscrete(atoms, weights, heights)


def random_problem(n: int = 40, dim: int = 2) -> SemiDiscrete:
    generator = seeded(n)
    atoms = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return SemiDiscrete(atoms, heights=0.3 * torch.randn(n, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize(("a", "p"), [(0.5, 0.5), (1.0, 0.1), (2.0, 0.8)])
def test_two_atoms_are_cut_at_the_quantile(a: float, p: float) -> None:
    atoms, weights = torch.tensor([[-a], [a]]).double(), torch.tensor([p, 1 - p]).double()
    ot = couplings.solve_semi_discrete(LINE, atoms, weights, steps=150, newton=40, generator=seeded(0))
    difference = float(ot.heights[0] - ot.heights[1])
    assert difference == pytest.approx(2 * a * float(quantile(weights[0])), abs=0.02)


def test_on_the_line_the_map_is_the_quantile_map() -> None:
    generator = seeded(1)
    atoms = torch.randn(8, 1, generator=generator, dtype=torch.float64).sort(0).values
    weights = torch.rand(8, generator=generator, dtype=torch.float64) + 0.3
    weights = weights / weights.sum()
    exact = exact_on_the_line(atoms, weights)
    certificate = exact.cell_masses(LINE, 1_000_000, generator=seeded(2))
    assert ((certificate.mass - weights).abs() < 5 * certificate.standard_error).all()
    ot = couplings.solve_semi_discrete(LINE, atoms, weights, samples=20_000, generator=seeded(3))
    z = LINE(10_000, generator=seeded(4))
    assert (ot.assign(z) == exact.assign(z)).double().mean() >= 0.99


def test_masses_equal_targets_to_a_thousandth_in_total_variation() -> None:
    """Certified on a fresh sample; the noise of that sample, 3e-4, is part of the distance."""
    atoms = data.toys.eight_gaussians(2.0, 0.1, dtype=torch.float64).sample(8, generator=seeded(0))
    weights = torch.arange(1, 9, dtype=torch.float64) / 36
    ot = couplings.solve_semi_discrete(
        PLANE, atoms, weights, samples=16_384, newton=100, generator=seeded(1)
    )  # fmt: skip
    certificate = ot.cell_masses(PLANE, 8_000_000, generator=seeded(2))
    assert certificate.empty == 0
    assert certificate.total_variation < 1e-3


@pytest.mark.parametrize(("dim", "gain"), [(2, 0.8), (16, 1.0)])
def test_solver_meets_the_floor_of_its_sample(dim: int, gain: float) -> None:
    """100 atoms: Newton steps bring the error below that of Adam alone, whatever the unit of the atoms."""
    source = Normal(dim, dtype=torch.float64).sample
    atoms = 50 + 20 * torch.randn(100, dim, generator=seeded(5), dtype=torch.float64)
    errors = []
    for newton in (0, 40):
        ot = couplings.solve_semi_discrete(source, atoms, steps=100, newton=newton, generator=seeded(6))
        certificate = ot.cell_masses(source, 500_000, generator=seeded(7))
        errors.append(certificate.total_variation)
    assert errors[1] < gain * errors[0]
    assert errors[1] < 1.5 * certificate.noise


def test_semi_dual_is_convex() -> None:
    """On one sample it is a mean of maxima of linear functions, so the inequality is exact."""
    ot, z = random_problem(), PLANE(500, generator=seeded(0))
    other = SemiDiscrete(ot.atoms, heights=random_problem().heights.flip(0))
    for share in (0.2, 0.5, 0.9):
        between = SemiDiscrete(ot.atoms, heights=share * ot.heights + (1 - share) * other.heights)
        assert between.energy(z) <= share * ot.energy(z) + (1 - share) * other.energy(z) + 1e-12


def test_gradient_of_the_semi_dual_is_mass_minus_target() -> None:
    ot, z = random_problem(), PLANE(4000, generator=seeded(0))
    heights = ot.heights.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(SemiDiscrete(ot.atoms, heights=heights).energy(z), heights)
    mass = torch.bincount(ot.assign(z), minlength=40).double() / 4000
    torch.testing.assert_close(gradient, mass - 1 / 40, rtol=0, atol=1e-6)


def test_hessian_from_the_walls_is_the_derivative_of_the_masses() -> None:
    """Two atoms on the line: d mass / d height is the density at the wall over the distance of the atoms."""
    ot = SemiDiscrete(torch.tensor([[-1.0], [2.0]]).double(), heights=torch.tensor([0.3, 0.0]).double())
    _, laplacian = couplings.semidiscrete._walls(ot, LINE(400_000, generator=seeded(0)))
    wall = 0.3 / 3
    expected = math.exp(-(wall**2) / 2) / math.sqrt(2 * math.pi) / 3
    torch.testing.assert_close(
        laplacian, expected * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double(), rtol=0.05, atol=0
    )


def test_a_common_constant_changes_nothing_and_labels_do_not_matter() -> None:
    ot, z = random_problem(), PLANE(500, generator=seeded(0))
    assert torch.equal(SemiDiscrete(ot.atoms, heights=ot.heights + 8.0).map(z), ot.map(z))
    order = torch.randperm(40, generator=seeded(1))
    assert torch.equal(SemiDiscrete(ot.atoms[order], heights=ot.heights[order]).map(z), ot.map(z))


@pytest.mark.parametrize("block", [1, 7, 39, 40, 100])
def test_blocks_change_no_index_and_the_lowest_index_wins_ties(block: int) -> None:
    ot = random_problem(dim=5)
    twice = SemiDiscrete(torch.cat([ot.atoms, ot.atoms]), heights=torch.cat([ot.heights, ot.heights]))
    z = torch.randn(3000, 5, generator=seeded(0), dtype=torch.float64)
    index = twice.assign(z)
    assert index.max() < 40
    assert torch.equal(twice.assign(z, block=block), index)
    assert torch.equal(ot.assign(z, block=block), index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_winner_is_the_maximum_in_every_dtype(dtype: torch.dtype) -> None:
    scores = torch.randint(0, 9, (50, 30), generator=seeded(0)).to(dtype)  # with ties
    value, index = couplings.semidiscrete._winners(scores)
    assert torch.equal(value, scores.amax(1))
    assert all(int(i) == row.tolist().index(max(row.tolist())) for i, row in zip(index, scores, strict=True))


def test_map_is_cyclically_monotone_at_any_heights() -> None:
    ot, z = random_problem(), PLANE(400, generator=seeded(0))
    moved = ot.map(z)
    gain = torch.einsum("ijd,ijd->ij", z[:, None] - z, moved[:, None] - moved)
    assert gain.min() >= -1e-6


def test_map_is_optimal_for_the_masses_it_has() -> None:
    ot, z = random_problem(), PLANE(600, generator=seeded(0))
    mass = torch.bincount(ot.assign(z), minlength=40).double() / 600
    used = mass > 0
    cost = couplings.squared_distances(z, ot.atoms[used]).numpy()
    best = pot.emd2(np.full(600, 1 / 600), mass[used].numpy(), cost)
    assert float((z - ot.map(z)).square().sum(1).mean()) == pytest.approx(best, rel=1e-6)


def test_fitted_cost_is_that_of_pot_between_the_same_points() -> None:
    atoms = torch.randn(20, 2, generator=seeded(3), dtype=torch.float64)
    ot = couplings.solve_semi_discrete(PLANE, atoms, steps=150, newton=20, generator=seeded(4))
    z = PLANE(2000, generator=seeded(5))
    best = pot.emd2([], [], couplings.squared_distances(z, atoms).numpy())
    assert float((z - ot.map(z)).square().sum(1).mean()) == pytest.approx(best, rel=0.03)


def test_images_are_mapped_to_images_in_float32() -> None:
    atoms = data.digits.load("test").x[:20]
    ot = couplings.solve_semi_discrete(Normal((1, 8, 8)).sample, atoms, steps=20, newton=2, generator=seeded(0))
    moved = ot.map(Normal((1, 8, 8)).sample(5, generator=seeded(1)))
    assert moved.dtype == torch.float32
    assert all(any(torch.equal(x, atom) for atom in atoms) for x in moved)


def test_one_seed_gives_one_solution() -> None:
    a, b = (couplings.solve_semi_discrete(PLANE, random_problem().atoms, steps=10, generator=seeded(0)) for _ in "ab")
    assert torch.equal(a.heights, b.heights)


@pytest.mark.bad_input
def test_bad_input() -> None:
    atoms = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"weights must have shape \[3\]"):
        SemiDiscrete(atoms, torch.ones(2) / 2)
    with pytest.raises(ValueError, match="weights must be positive and sum to 1"):
        SemiDiscrete(atoms, torch.ones(3))
    with pytest.raises(ValueError, match="heights must be finite"):
        SemiDiscrete(atoms, heights=torch.tensor([0.0, math.inf, 0.0]))
    with pytest.raises(ValueError, match="heights must be on the device of the atoms, cpu; got meta"):
        SemiDiscrete(atoms, heights=torch.zeros(3, device="meta"))
    with pytest.raises(TypeError, match="heights must have the dtype of the atoms"):
        SemiDiscrete(atoms, heights=torch.zeros(3).double())
    with pytest.raises(ValueError, match="z and atoms must have the same event shape"):
        SemiDiscrete(atoms).assign(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="block must be positive"):
        SemiDiscrete(atoms).assign(torch.zeros(4, 2), block=0)
    with pytest.raises(TypeError, match="a sample of the source and atoms must have the same dtype"):
        couplings.solve_semi_discrete(PLANE, atoms, steps=1)
    with pytest.raises(ValueError, match="steps must be a whole number, not negative; got -1"):
        couplings.solve_semi_discrete(Normal(2).sample, atoms, steps=-1)
