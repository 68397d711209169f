"""(e) Entropic transport: time and memory of Sinkhorn, with and without the matrix of costs."""

import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Table
from flowlib import couplings, data

EPSILON = 2.0
TOLERANCE = 1e-5
SIZES = (1024, 2048, 4096, 8192)
METHODS = ("flowlib online", "flowlib matrix", "POT log", "geomloss")


def points(n: int) -> tuple[Tensor, Tensor]:
    """Noise, and eight Gaussians of radius four, in float64."""
    generator = torch.Generator().manual_seed(n)
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return x0, data.toys.eight_gaussians(radius=4.0, std=0.3, dtype=torch.float64).sample(n, generator=generator)


def row_error(x0: Tensor, x1: Tensor, f: Tensor, g: Tensor) -> float:
    """Total variation between the rows' masses and equal weights, in blocks."""
    n, total = len(x0), 0.0
    for part in torch.arange(n).split(512):
        scores = (f[part, None] + g - couplings.squared_distances(x0[part], x1)) / EPSILON
        total += float((scores.exp().mean(1) - 1).abs().sum()) / n
    return total / 2


def solve(method: str, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Potentials of the entropic problem with cost |x - y|^2."""
    if method.startswith("flowlib"):
        if method.endswith("online"):
            plan = couplings.sinkhorn_potentials(x0, x1, EPSILON, tolerance=TOLERANCE, block=256)
        else:
            cost = couplings.squared_distances(x0, x1)
            plan = couplings.sinkhorn_cost_potentials(cost, EPSILON, tolerance=TOLERANCE)
        return plan.f, plan.g
    if method == "POT log":
        import ot

        # its criterion is the Euclidean norm of the marginal error; with equal errors that is 2 tol / sqrt(n) here
        stop = 2 * TOLERANCE / len(x0) ** 0.5
        cost = ot.dist(x0.numpy(), x1.numpy())
        _, log = ot.sinkhorn([], [], cost, EPSILON, method="sinkhorn_log", stopThr=stop, numItermax=1000, log=True)
        # POT regularises by the entropy itself, so its potentials absorb log(1/n)
        shift = EPSILON * torch.tensor(float(len(x0))).log()
        return EPSILON * torch.as_tensor(log["log_u"]) + shift, EPSILON * torch.as_tensor(log["log_v"]) + shift
    from geomloss import SamplesLoss

    # cost |x - y|^2 / 2 and blur^2 = epsilon / 2; it anneals epsilon with a fixed schedule and has no tolerance
    loss = SamplesLoss(
        "sinkhorn", p=2, blur=(EPSILON / 2) ** 0.5, debias=False, potentials=True, backend="tensorized", scaling=0.9
    )
    f, g = loss(x0, x1)
    return 2 * f.detach().flatten(), 2 * g.detach().flatten()


def measure(method: str, n: int) -> dict[str, Any]:
    """One solve in this process: seconds, megabytes over the start, and the marginal error reached."""
    torch.set_num_threads(1)
    x0, x1 = points(n)
    solve(method, *points(64))  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    f, g = solve(method, x0, x1)
    seconds = time.perf_counter() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": seconds, "megabytes": memory, "error": row_error(x0, x1, f, g)}


def run() -> Table:
    """Measure each solve in a process of its own, so that the peaks of memory are its own."""
    table = Table(
        "Sinkhorn.",
        "How long does entropic transport between n and n points take, and how much memory?",
        ["n", "method", "seconds", "peak MB", "marginal error"],
    )
    missing = ""
    for n in SIZES:
        for method in METHODS:
            command = [sys.executable, "-m", "benchmarks.sinkhorn", method, str(n)]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
            if done.returncode:
                missing = done.stderr.strip().splitlines()[-1]
                table.rows.append([n, method, "missing", "", ""])
                continue
            got = json.loads(done.stdout.splitlines()[-1])
            row = [f"{got['seconds']:.3g}", f"{got['megabytes']:.0f}", f"{got['error']:.1e}"]
            table.rows.append([n, method, *row])
    table.reading = (
        f"Noise to eight Gaussians of radius 4 in the plane, float64, epsilon {EPSILON:g}, equal weights. flowlib "
        f"stops at a total variation of {TOLERANCE:g} and POT at the corresponding norm; geomloss (tensorized) follows "
        "a fixed schedule of epsilon and has no tolerance, so compare its error. POT looks at its criterion every ten "
        "iterations and so ends with a smaller error than was asked. Peak MB is the growth of the process's peak "
        "memory during the solve. The online form recomputes distances in blocks of 256 rows."
        + (f" A missing method was not run: {missing}." if missing else "")
    )
    return table


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
