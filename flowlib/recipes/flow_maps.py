r"""Train the flow maps of the chapter on flow maps: `python -m flowlib.recipes.flow_maps`.

`checkerboard` trains a small network by each of the losses of `METHODS`, three seeds each, with the same steps,
batches and network; `digits` distils the shipped flow of `digits_flow` into a class-conditional map of 8 by 8 digits.
Minutes on one core. `load_board` and `load_digits` return them as flow maps.
"""

import argparse
import json
import platform
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from flowlib import data, nets, paths
from flowlib._checks import check_choice
from flowlib.distributions import Normal
from flowlib.fields import NetworkFlowMap
from flowlib.objectives import AnnealedTriangle, self_distillation
from flowlib.objectives.flow_map import Kind
from flowlib.objectives.flow_matching import PairObjective
from flowlib.recipes import _digits, digits_flow
from flowlib.recipes._digits import WEIGHTS, DigitNet
from flowlib.training import History, fit

__all__ = [
    "METHODS",
    "SEEDS",
    "Board",
    "DigitMap",
    "load_board",
    "load_digits",
    "main",
    "record",
    "train_board",
    "train_digits",
]

METHODS = ("flow", "lagrangian", "annealed", "eulerian", "mean_flow", "progressive")
"""Plain flow matching; the three self-distillations; `annealed` is Lagrangian with growing time gaps."""
SEEDS = (0, 1, 2)
CLIP = 10.0
DIAGONAL = 0.25
"""Share of a batch of digits on the diagonal, which has a teacher and starts as it."""
DIGITS = _digits.Config(steps=4000, lr=5e-4, dropout=0.0, drop_condition=0.0)


@dataclass(frozen=True)
class Board:
    """Settings of the checkerboard.

    Attributes:
        steps: Gradient steps.
        batch_size: Samples a step.
        lr: Peak learning rate of Adam; it falls to zero along a cosine.
        width: Width of the network.
        depth: Hidden layers of the network.
        ema: Decay of the average of the weights.
        diagonal: Share of the batch on the diagonal.
    """

    steps: int = 1500
    batch_size: int = 256
    lr: float = 5e-3
    width: int = 64
    depth: int = 4
    ema: float = 0.995
    diagonal: float = 0.75


class DigitMap(DigitNet):
    """The average velocity of noisy digits between two times: `digits_flow.FlowNet` with one more input, the gap.

    Untrained, it ignores the gap inside its perceptron; on the diagonal it is a `FlowNet` of the same weights.

    Args:
        width: Width.
        blocks: Number of residual blocks.
        dropout: Dropout rate.

    Example:
        >>> net = DigitMap(width=16, blocks=1)
        >>> net(torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.ones(2), y=torch.tensor([3, -1])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, width: int = 256, blocks: int = 3, dropout: float = 0.0) -> None:
        super().__init__(width, blocks, dropout)
        self.gap = nets.TimeEmbedding(width, 8, 1.0)  # slow features: the loss differentiates in them
        for parameter in self.gap.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Average velocities of states `[batch, 1, 8, 8]` between times `[batch]`."""
        base, scaled, scale = nets.gaussian_average(x, s, t, self.mean, self.std)
        h = self.first(scaled.flatten(1))
        embedding = self.time(s) + self.gap(t - s) + self.labels(y, len(x))
        for block in self.body:
            h = block(h, embedding)
        out: Tensor = base + scale * self.last(h).reshape(x.shape)
        return out


def board_map(config: Board) -> NetworkFlowMap:
    """An untrained map for the checkerboard."""
    std = torch.full((2,), (4 / 3) ** 0.5)  # uniform on [-2, 2]
    net = nets.TwoTimeMLP(torch.zeros(2), std, config.width, config.depth, waves=(1, 2, 4, 8))
    return NetworkFlowMap(net.float(), paths.linear())


def train_board(method: str, seed: int, config: Board) -> tuple[NetworkFlowMap, History]:
    """Train one map on the checkerboard.

    Args:
        method: One of `METHODS`.
        seed: Seed of initialisation, batches and noise.
        config: The settings.

    Returns:
        The map and the history of its training.

    Raises:
        ValueError: If the method is unknown.

    Example:
        >>> train_board("progressive", 0, Board(steps=2, batch_size=8, width=8))[1].steps
        2
    """
    check_choice("method", method, METHODS)
    torch.manual_seed(seed)
    flow_map = board_map(config)
    history = fit(
        flow_map,
        _objective(flow_map, method, config),
        source=lambda n, *, generator=None: Normal(2).sample(n, generator=generator).float(),
        target=lambda n, *, generator=None: data.toys.checkerboard().sample(n, generator=generator).float(),
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr,
        clip=CLIP,
        ema=config.ema,
        seed=seed,
    )
    return flow_map.requires_grad_(False), history


def _objective(flow_map: NetworkFlowMap, method: str, config: Board) -> PairObjective:
    if method == "flow":
        return self_distillation(flow_map, "lagrangian", diagonal=1.0)
    if method == "annealed":
        pairs = AnnealedTriangle(config.steps // 2)
        return self_distillation(flow_map, "lagrangian", diagonal=config.diagonal, pairs=pairs)
    kind = cast("Kind", method)  # the others are above
    return self_distillation(flow_map, kind, diagonal=config.diagonal)


def train_digits(config: _digits.Config, *, verbose: bool = False) -> tuple[NetworkFlowMap, dict[str, Any]]:
    """Distil the shipped flow of the digits with the Lagrangian loss.

    Args:
        config: The settings.
        verbose: Print the losses on the way.

    Returns:
        The map with the weights of the smallest held-out loss, and what to record.

    Example:
        >>> from dataclasses import replace
        >>> train_digits(replace(DIGITS, steps=2, every=1))[1]["best_step"] in (1, 2)
        True
    """
    torch.manual_seed(config.seed)
    teacher = digits_flow.load()
    net = DigitMap(config.width, config.blocks, config.dropout).float()
    net.load_state_dict(teacher.net.state_dict(), strict=False)  # all but the embedding of the gap, which is silent
    flow_map = NetworkFlowMap(net, paths.linear())
    objective = self_distillation(flow_map, "lagrangian", diagonal=DIAGONAL, teacher=teacher)
    return flow_map, _digits.fit(flow_map, objective, config, report="digits" if verbose else None)


def record(name: str) -> dict[str, Any]:
    """How the weights in `flow_maps_{name}.safetensors` were made; for the checkerboard also each run's gradient norms.

    Example:
        >>> sorted(record("checkerboard")["runs"]["lagrangian"])
        ['0', '1', '2']
    """
    return _digits.settings(WEIGHTS / f"flow_maps_{name}.safetensors", "flow_maps")


def load_board(method: str, seed: int) -> NetworkFlowMap:
    """The shipped map of the checkerboard.

    Args:
        method: One of `METHODS`.
        seed: One of `SEEDS`.

    Returns:
        The map, in evaluation mode, float32, on the CPU.

    Raises:
        ValueError: If there is no such map.
        FileNotFoundError: If the weights are missing.

    Example:
        >>> load_board("lagrangian", 0).flow(torch.zeros(3, 2), 0.0, 1.0).shape
        torch.Size([3, 2])
    """
    check_choice("method", method, METHODS)
    if seed not in SEEDS:
        raise ValueError(f"seed must be one of {SEEDS}, got {seed}")
    return read_board(WEIGHTS / "flow_maps_checkerboard.safetensors", method, seed)


def read_board(file: Path, method: str, seed: int) -> NetworkFlowMap:
    """One map of a file that `main` wrote."""
    from safetensors import safe_open

    config = Board(**_digits.settings(file, "flow_maps")["config"])
    flow_map, prefix = board_map(config), f"{method}.{seed}."
    with safe_open(file, framework="pt") as stored:
        keys = stored.keys()  # not a dictionary
        names = [key for key in keys if key.startswith(prefix)]
        state = {key.removeprefix(prefix): stored.get_tensor(key).float() for key in names}
    flow_map.load_state_dict(state)
    return flow_map.eval().requires_grad_(False)


def load_digits() -> NetworkFlowMap:
    """The shipped map of the digits.

    Returns:
        The map, in evaluation mode, float32, on the CPU. Labels go to `y=`; -1, or none at all, means no class.

    Raises:
        FileNotFoundError: If the weights are missing.

    Example:
        >>> load_digits().flow(torch.zeros(2, 1, 8, 8), 0.0, 1.0, y=torch.tensor([3, 8])).shape
        torch.Size([2, 1, 8, 8])
    """
    return read_digits(WEIGHTS / "flow_maps_digits.safetensors")


def read_digits(file: Path) -> NetworkFlowMap:
    """The map in a file that `main` wrote."""
    config = _digits.settings(file, "flow_maps")["config"]
    net = DigitMap(config["width"], config["blocks"]).float()
    _digits.restore(net, file)
    return NetworkFlowMap(net, paths.linear()).eval().requires_grad_(False)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, train, and write weights (float16) and their records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("checkerboard", "digits"))
    parser.add_argument("--steps", type=int, help="gradient steps, instead of the recipe's")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the folder of the files")
    given = parser.parse_args(arguments)
    command = f"python -m flowlib.recipes.flow_maps {given.what}"
    if given.what == "digits":
        config = replace(DIGITS, steps=given.steps) if given.steps else DIGITS
        flow_map, result = train_digits(config, verbose=True)
        file = given.out / "flow_maps_digits.safetensors"
        _digits.write(file, flow_map.net, {"command": command, **result}, config)
        return

    from safetensors.torch import save_file

    board = Board(steps=given.steps) if given.steps else Board()
    state: dict[str, Tensor] = {}
    runs: dict[str, dict[str, Any]] = {method: {} for method in METHODS}
    for method in METHODS:
        for seed in SEEDS:
            trained, history = train_board(method, seed, board)
            state |= {f"{method}.{seed}.{key}": value.half() for key, value in trained.state_dict().items()}
            norms = torch.tensor(history.grad_norm)
            blocks = norms[: len(norms) // 20 * 20].reshape(-1, 20)
            runs[method][str(seed)] = {
                "largest_grad_norm": [round(value, 4) for value in blocks.amax(1).tolist()],
                "median_grad_norm": [round(value, 4) for value in blocks.median(1).values.tolist()],
            }
            print(f"{method} {seed}: loss {history.smoothed(200)[-1]:.4f}", file=sys.stderr)
    file = given.out / "flow_maps_checkerboard.safetensors"
    given.out.mkdir(parents=True, exist_ok=True)
    save_file(state, file)
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    whole = {"command": command, "config": asdict(board), "grad_norms_every": 20, "runs": runs, **versions}
    file.with_suffix(".json").write_text(json.dumps(whole) + "\n")


if __name__ == "__main__":
    main()
