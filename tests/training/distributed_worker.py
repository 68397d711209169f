"""A small run for the tests of flowlib.training.distributed: `python distributed_worker.py '[{"out": ...}]'`."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from flowlib import data, fields, nets, objectives, paths
from flowlib.training import distributed


class Digits:
    """The digits, read by index; can kill its process, or ask it to stop, when a batch is read."""

    def __init__(self, action: str | None, at: int) -> None:
        self.images, self.action, self.reads = data.digits.load("train"), action, at

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        self.reads -= 1
        if self.reads == 0 and self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.reads == 0 and self.action == "stop" and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        return self.images.x[indices], {"y": self.images.y[indices]}


def run(given: dict) -> dict:
    """One call of `train`; what it returned."""
    given = {**given, "out": Path(given["out"])}
    action, at, net = given.pop("action", None), given.pop("at", 0), given.pop("net", {})
    settings = distributed.Run(**{**DEFAULTS, **given})
    torch.manual_seed(settings.seed)
    network = nets.DiT(**{"width": 32, "depth": 2, "heads": 2, "classes": 10, **net})
    for layer in network.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=0.02)  # so that every part learns from the first step
    graphs: list[torch.fx.GraphModule] = []
    if action == "trace":
        torch.compile = partial(torch.compile, fullgraph=True, backend=partial(as_traced, graphs))
    result = distributed.train(
        network,
        lambda wrapped: objectives.flow_matching(fields.NetworkField(wrapped, paths.linear()), drop_condition=0.1),
        Digits(action, at),
        settings,
    )
    return {"step": result.step, "finished": result.finished, **({"graphs": len(graphs)} if graphs else {})}


def as_traced(graphs: list[torch.fx.GraphModule], graph: torch.fx.GraphModule, inputs: object) -> object:
    """A backend of torch.compile that generates nothing."""
    graphs.append(graph)
    return graph.forward


DEFAULTS = dict(
    steps=12, batch_size=32, micro_batch=8, lr=1e-3, warmup=2, schedule="cosine", ema=0.9, precision="fp32",
    accelerator="cpu", workers=0, save_every=5, log_every=4,
)  # fmt: skip

if __name__ == "__main__":
    for given in json.loads(sys.argv[1]):
        done = json.dumps(run(given))
        if os.environ.get("RANK", "0") == "0":  # two processes would print into each other's lines
            print(done)
