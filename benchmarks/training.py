"""(c) What the training loop adds to a hand-written one."""

import torch
from torch import nn

from benchmarks.timing import Table, milliseconds, race
from flowlib import data, fields, nets, objectives, paths, training
from flowlib.distributions import Normal

STEPS, BATCH = 200, 256


def run() -> Table:
    """Time the same 200 steps (Adam, clipping, weight average) in `training.fit` and by hand."""
    target, source = data.toys.eight_gaussians(), Normal(2)

    def with_flowlib() -> None:
        torch.manual_seed(0)
        field = fields.NetworkField(nets.MLP(dim=2, width=128, depth=3), paths.linear())
        training.fit(
            field, objectives.flow_matching(field), source=source.sample, target=target.sample,
            steps=STEPS, batch_size=BATCH, schedule="constant", progress=False,
        )  # fmt: skip

    def by_hand() -> None:
        torch.manual_seed(0)
        net = nets.MLP(dim=2, width=128, depth=3)
        average = [p.detach().clone() for p in net.parameters()]
        generator = torch.Generator().manual_seed(0)
        descent = torch.optim.Adam(net.parameters(), lr=1e-3)
        losses = []
        for _ in range(STEPS):
            x0 = torch.randn(BATCH, 2, generator=generator)
            x1 = target.sample(BATCH, generator=generator)
            t = torch.rand(BATCH, generator=generator)
            xt = t[:, None] * x1 + (1 - t[:, None]) * x0
            loss = (net(xt, t) - (x1 - x0)).square().mean()
            descent.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            descent.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, list(net.parameters()), 1e-3)
            losses.append(loss.item())

    times = race({"hand-written": by_hand, "flowlib": with_flowlib}, repeats=21)
    table = Table(
        "Training.",
        f"What does `training.fit` add to a step of an MLP with three layers of 128 at batch {BATCH}?",
        ["loop", "ms a step", "over hand-written"],
    )
    for name, seconds in times.items():
        table.rows.append([name, milliseconds(seconds / STEPS), f"{seconds / times['hand-written']:.3f}"])
    table.reading = "Both draw the same batches, clip gradients, average weights and record the loss."
    return table
