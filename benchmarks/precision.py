"""(d) Work and precision of each solver on an exact field."""

import torch

from benchmarks.timing import Table
from flowlib import data, fields, metrics, paths, solvers


def run() -> Table:
    """Wasserstein-2 distance between a solver's sample and the exact flow's sample from the same noise."""
    mixture = data.toys.eight_gaussians(dtype=torch.float64)
    table = Table(
        "Precision.",
        "How far is a solver's sample of 1000 points from that of the exact flow (W2) after so many evaluations?",
        ["path", "solver", "NFE 8", "NFE 16", "NFE 32", "NFE 64"],
    )
    for name in ("linear", "cosine", "vp"):
        path = paths.by_name(name)
        field = fields.MixtureField(mixture, path)
        x0 = path.sample_prior((1000, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        exact = solvers.ode(field, x0, steps=2000, method="rk4", keep=False).end
        for method, cost in (("euler", 1), ("ddim", 1), ("ab2", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)):
            row = [name, method]
            for nfe in (8, 16, 32, 64):
                steps = nfe - 1 if method == "ab2" else nfe // cost
                solved = solvers.ode(field, x0, steps=steps, method=method, keep=False)
                assert solved.nfe == nfe, (method, solved.nfe, nfe)
                row.append(f"{metrics.wasserstein2(solved.end, exact):.2g}")
            table.rows.append(row)
    generator = torch.Generator().manual_seed(1)
    floor = metrics.wasserstein2(*(mixture.sample(1000, generator=generator) for _ in range(2)))
    table.reading = (
        "Both samples start from the same noise, so this is the solver's error alone; two independent exact samples "
        f"of this size are {floor:.2f} apart. The mixture is eight Gaussians of standard deviation 0.2 on a circle of "
        "radius 2; steps are equal in time, which suits the linear path and not the variance-preserving one."
    )
    return table
