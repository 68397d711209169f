"""(f) Semi-discrete transport: time and certified error against the number of atoms."""

import time

import torch

from benchmarks.timing import Table
from flowlib import couplings, data
from flowlib.distributions import Normal


def run() -> Table:
    """Solve for random atoms in the plane and for digits, and count the cells on a fresh sample."""
    table = Table(
        "Semi-discrete.",
        "How long does it take to give n atoms their masses, and how exact are these?",
        ["atoms", "d", "seconds", "total variation", "noise of the certificate", "largest error x n", "empty"],
    )
    digits = data.digits.load("train").x.flatten(1)
    for dim, n in ((2, 16), (2, 64), (2, 256), (2, 1024), (2, 2048), (64, 64), (64, 256)):
        source = Normal(dim).sample
        generator = torch.Generator().manual_seed(n)
        atoms = torch.randn(n, 2, generator=generator) if dim == 2 else digits[:n]
        start = time.perf_counter()
        semi = couplings.solve_semi_discrete(source, atoms, generator=generator)
        seconds = time.perf_counter() - start
        found = semi.cell_masses(source, 1_000_000, generator=torch.Generator().manual_seed(1))
        row = [f"{found.total_variation:.4f}", f"{found.noise:.4f}", f"{found.worst * n:.3f}", found.empty]
        table.rows.append([n, dim, f"{seconds:.3g}", *row])
    table.reading = (
        "Standard normal source, float32, default settings. The masses are counted on a million fresh points, and the "
        "total variation includes the noise of that count, which perfect cells would also show. Atoms are standard "
        "normal points in the plane, and handwritten digits with 64 entries. The time grows with the square of n: ten "
        "source points for each atom, each scored against all atoms."
    )
    return table
