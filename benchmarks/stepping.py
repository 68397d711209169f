"""(b) What a solver adds to the network's own cost, over a hundred Euler steps."""

import torch

from benchmarks.timing import Candidate, Table, milliseconds, race
from flowlib import fields, nets, paths, solvers

STEPS = 100


def run() -> Table:
    """Measure batches of 16 and 256 points with a small network."""
    torch.manual_seed(0)
    net = nets.MLP(dim=2, width=64, depth=3).eval()
    field = fields.NetworkField(net, paths.linear())
    table = Table(
        "Stepping.",
        f"What does a solver add to {STEPS} Euler steps of an MLP with three layers of 64?",
        ["batch", "solver", "ms", "over hand-written"],
    )
    for n in (16, 256):
        x0 = torch.randn(n, 2)
        times = race(_candidates(net, field, x0), repeats=41, warmup=3)
        for name, seconds in times.items():
            table.rows.append([n, name, milliseconds(seconds), f"{seconds / times['hand-written']:.2f}"])
        for name in ("flow_matching", "torchdiffeq"):
            if name not in times:
                table.rows.append([n, name, "missing", ""])
    table.reading = "The hand-written loop is the least that 100 evaluations can cost: a line of PyTorch a step."
    return table


def _candidates(net: nets.MLP, field: fields.NetworkField, x0: torch.Tensor) -> dict[str, Candidate]:
    @torch.no_grad()
    def by_hand() -> torch.Tensor:
        x, h = x0, 1 / STEPS
        for i in range(STEPS):
            x = x + h * net(x, torch.full((len(x),), i * h))
        return x

    candidates: dict[str, Candidate] = {
        "hand-written": by_hand,
        "flowlib": lambda: solvers.ode(field, x0, steps=STEPS, keep=False).end,
        "flowlib, all states kept": lambda: solvers.ode(field, x0, steps=STEPS).end,
    }
    try:
        from flow_matching.solver import ODESolver
        from flow_matching.utils import ModelWrapper

        class Wrapped(ModelWrapper):
            def forward(self, x: torch.Tensor, t: torch.Tensor, **extras: object) -> torch.Tensor:
                return self.model(x, t.expand(len(x)))

        solver = ODESolver(velocity_model=Wrapped(net))
        grid = torch.tensor([0.0, 1.0])
        candidates["flow_matching"] = lambda: solver.sample(
            x_init=x0, step_size=1 / STEPS, method="euler", time_grid=grid
        )
    except ImportError:
        pass
    try:
        from torchdiffeq import odeint

        times = torch.linspace(0, 1, STEPS + 1)

        @torch.no_grad()
        def torchdiffeq() -> torch.Tensor:
            return odeint(lambda t, x: net(x, t.expand(len(x))), x0, times, method="euler")[-1]

        candidates["torchdiffeq"] = torchdiffeq
    except ImportError:
        pass
    return candidates
