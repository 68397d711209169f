"""A plain training loop that resumes bit for bit."""

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from flowlib._checks import check_choice, check_positive
from flowlib.training import checkpoint as checkpoints
from flowlib.training.ema import EMA

__all__ = ["History", "fit"]

Batch = Tensor | tuple[Tensor, dict[str, Tensor]]


@runtime_checkable
class Source(Protocol):
    """Draws `n` states of noise."""

    def __call__(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw a batch."""


@runtime_checkable
class Target(Protocol):
    """Draws `n` states of data, alone or with a dictionary of conditions."""

    def __call__(self, n: int, *, generator: torch.Generator | None = None) -> Batch:
        """Draw a batch."""


@runtime_checkable
class PairSampler(Protocol):
    """Draws `n` pairs whose partners belong together, as `couplings.PairStore.sample` does."""

    def __call__(self, n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Draw noise, data and a dictionary of conditions."""


@runtime_checkable
class Objective(Protocol):
    """A loss of noise and data, as `flowlib.objectives` makes them: its value has a `total`."""

    def __call__(
        self, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None = None, **conditions: Tensor
    ) -> Any:
        """Compute the loss."""


@dataclass
class History:
    """What a training run recorded.

    Attributes:
        loss: The loss at each step.
        grad_norm: The gradient's norm at each step, before clipping.
        seconds: Wall-clock seconds spent, over all resumes.
        ema: The average of the weights, or `None`.
    """

    loss: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    seconds: float = 0.0
    ema: EMA | None = None

    @property
    def steps(self) -> int:
        """Number of steps done."""
        return len(self.loss)

    def smoothed(self, window: int = 100) -> Tensor:
        """The loss averaged over the last `window` steps at each step, `[steps]`.

        Example:
            >>> History(loss=[4.0, 2.0, 3.0]).smoothed(2)
            tensor([4.0000, 3.0000, 2.5000])
        """
        check_positive("window", window, integer=True)
        total = torch.tensor([0.0, *self.loss], dtype=torch.float64).cumsum(0)
        stop = torch.arange(1, len(self.loss) + 1)
        start = (stop - window).clamp_min(0)
        return ((total[stop] - total[start]) / (stop - start)).float()


def fit(
    network: nn.Module,
    objective: Objective,
    *,
    source: Source | None = None,
    target: Target | None = None,
    pairs: PairSampler | None = None,
    steps: int,
    batch_size: int = 256,
    lr: float = 1e-3,
    schedule: Literal["cosine", "constant"] = "cosine",
    warmup: int = 0,
    clip: float | None = 1.0,
    ema: float | None = 0.999,
    seed: int = 0,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    progress: bool | None = None,
    until: int | None = None,
) -> History:
    """Train a network (or a `NetworkField`) by stochastic gradient descent on an objective.

    At the end the network holds the averaged weights if `ema` is given. With `checkpoint`, the run saves itself
    every `checkpoint_every` steps and at the end, and starts from that file if it exists; the resumed run is equal,
    bit for bit, to one that was never interrupted. Random draws come from one generator seeded by `seed`, on the
    network's device; torch's global generator (dropout) is saved too.

    Args:
        network: What is trained, in place; it is left in evaluation mode.
        objective: Called as `objective(x0, x1, generator=..., **conditions)`; returns an object with `.total`.
        source: Draws noise: `source(n, generator=...)`.
        target: Draws data, alone or with a dictionary of conditions such as `{"y": labels}`.
        pairs: Draws noise and data together, instead of `source` and `target`:
            `x0, x1, conditions = pairs(n, generator=...)`, for example `couplings.PairStore.sample`.
        steps: Number of gradient steps in all.
        batch_size: Samples a step.
        lr: Peak learning rate.
        schedule: `"cosine"` decays the rate to zero at `steps`; `"constant"` keeps it.
        warmup: Steps over which the rate rises linearly from zero.
        clip: Largest gradient norm; `None` for no clipping.
        ema: Decay of the weight average; `None` for none.
        seed: Seed of the run.
        optimizer: From parameters to an optimiser; Adam if `None`.
        checkpoint: File to save to and resume from; `None` for none.
        checkpoint_every: Steps between saves.
        progress: Show a progress bar; `None` means on a terminal only (or as `FLOWLIB_PROGRESS` says, 0 or 1).
        until: Stop early after this step, with a checkpoint, as an interruption would; `None` runs to `steps`.

    Returns:
        Losses, gradient norms, seconds and the average.

    Raises:
        ValueError: If an argument is out of range, or the checkpoint is damaged or of another run.
        FloatingPointError: If the loss is not finite; the message names the step, and no checkpoint is written.

    Example:
        >>> from flowlib import data, fields, nets, objectives, paths
        >>> from flowlib.distributions import Normal
        >>> velocity = fields.NetworkField(nets.MLP(dim=2, width=16), paths.linear())
        >>> history = fit(velocity, objectives.flow_matching(velocity), source=Normal(2).sample,
        ...               target=data.toys.moons().sample, steps=3, batch_size=8)
        >>> history.steps
        3
    """
    draw = _drawing(source, target, pairs)
    check_positive("steps", steps, integer=True)
    check_positive("batch_size", batch_size, integer=True)
    check_positive("lr", lr)
    check_positive("checkpoint_every", checkpoint_every, integer=True)
    check_choice("schedule", schedule, ("cosine", "constant"))
    if clip is not None:
        check_positive("clip", clip)
    if until is not None:
        check_positive("until", until, integer=True)
    if warmup < 0:
        raise ValueError(f"warmup must not be negative, got {warmup}")
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("network has no parameter to train")

    generator = torch.Generator(parameters[0].device).manual_seed(seed)
    descent = optimizer(parameters) if optimizer else torch.optim.Adam(parameters, lr=lr, fused=True)
    average = EMA(network, ema) if ema is not None else None
    history = History(ema=average)
    settings = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "schedule": schedule, "warmup": warmup, "clip": clip,
        "ema": ema, "seed": seed, "optimizer": type(descent).__name__,
    }  # fmt: skip
    if checkpoint is not None and Path(checkpoint).is_file():
        _restore(checkpoints.load(checkpoint), settings, checkpoint, network, descent, average, generator, history)

    network.train()
    start, spent = time.perf_counter(), history.seconds
    last = steps if until is None else min(until, steps)
    with Bar(history.steps, steps, progress) as bar:
        for step in range(history.steps, last):
            for group in descent.param_groups:
                group["lr"] = lr * learning_rate(step, steps, warmup, schedule)
            x0, x1, conditions = draw(batch_size, generator=generator)
            loss = objective(x0, x1, generator=generator, **conditions).total
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} at step {step}; lower lr or check the data")
            descent.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, clip if clip is not None else math.inf)
            descent.step()
            if average is not None:
                average.update()
            history.loss.append(value)
            history.grad_norm.append(norm.item())
            bar.update(value)
            if checkpoint is not None and (step + 1 == last or (step + 1) % checkpoint_every == 0):
                history.seconds = spent + time.perf_counter() - start
                checkpoints.save(checkpoint, _state(settings, network, descent, average, generator, history))
    history.seconds = spent + time.perf_counter() - start
    if average is not None:
        average.copy_to_network()
    network.eval()
    return history


def learning_rate(step: int, steps: int, warmup: int, schedule: str) -> float:
    """The learning rate at a step as a fraction of its peak: linear warm-up, then constant or a cosine to zero.

    Example:
        >>> learning_rate(0, 10, 5, "constant"), learning_rate(5, 10, 0, "cosine")
        (0.2, 0.5)
    """
    rate = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rate if schedule == "constant" else rate * 0.5 * (1 + math.cos(math.pi * step / steps))


def _drawing(source: Source | None, target: Target | None, pairs: PairSampler | None) -> PairSampler:
    """One function that draws a batch, whichever way it was given."""
    if pairs is not None:
        if source is not None or target is not None:
            raise ValueError("give either pairs or source and target, got both")
        return pairs
    if source is None or target is None:
        raise ValueError("give source and target, or pairs")

    def draw(n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        x0 = source(n, generator=generator)
        batch = target(n, generator=generator)
        x1, conditions = batch if isinstance(batch, tuple) else (batch, {})
        return x0, x1, conditions

    return draw


def _state(
    settings: dict[str, Any],
    network: nn.Module,
    descent: torch.optim.Optimizer,
    average: EMA | None,
    generator: torch.Generator,
    history: History,
) -> dict[str, Any]:
    return {
        "settings": settings,
        "network": dict(network.state_dict()),
        "optimizer": descent.state_dict(),
        "average": {"state": average.state, "updates": average.updates} if average else None,
        "generator": generator.get_state(),
        "global_generator": torch.get_rng_state(),
        "cuda_generators": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "history": {
            "loss": torch.tensor(history.loss, dtype=torch.float64),
            "grad_norm": torch.tensor(history.grad_norm, dtype=torch.float64),
            "seconds": history.seconds,
        },
    }


def _restore(
    state: dict[str, Any],
    settings: dict[str, Any],
    path: str | Path,
    network: nn.Module,
    descent: torch.optim.Optimizer,
    average: EMA | None,
    generator: torch.Generator,
    history: History,
) -> None:
    """Load a checkpoint into a run; everything is checked before the network changes."""
    if not {"settings", "network", "optimizer", "average", "generator", "history"} <= state.keys():
        raise ValueError(f"{path} does not hold a training run")
    for name, value in settings.items():
        if state["settings"].get(name) != value:
            raise ValueError(f"{path} was written with {name}={state['settings'].get(name)!r}, this run has {value!r}")
    mine = {name: (tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()}
    if mine != {name: (tensor.shape, tensor.dtype) for name, tensor in state["network"].items()}:
        raise ValueError(f"{path} holds another network: its parameters differ in name, shape or dtype")
    descent.load_state_dict(state["optimizer"])  # raises if its parameter groups differ
    network.load_state_dict(state["network"])
    if average is not None:
        for name, tensor in average.state.items():
            tensor.copy_(state["average"]["state"][name])
        average.updates = state["average"]["updates"]
    generator.set_state(state["generator"].cpu())
    torch.set_rng_state(state["global_generator"].cpu())
    if state["cuda_generators"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([value.cpu() for value in state["cuda_generators"]])
    history.loss[:] = state["history"]["loss"].tolist()
    history.grad_norm[:] = state["history"]["grad_norm"].tolist()
    history.seconds = state["history"]["seconds"]


class Bar:
    """A tqdm bar with the smoothed loss, or nothing.

    Args:
        done: Steps done.
        steps: Steps in all.
        progress: Whether to show it; `None` means on a terminal only, or as `FLOWLIB_PROGRESS` says.
    """

    def __init__(self, done: int, steps: int, progress: bool | None) -> None:
        if progress is None:
            progress = os.environ.get("FLOWLIB_PROGRESS", "1" if sys.stderr.isatty() else "0") == "1"
        self.bar: Any = None
        self.smooth: float | None = None
        if progress:
            from tqdm import tqdm

            self.bar = tqdm(total=steps, initial=done, desc="training", mininterval=0.5)

    def __enter__(self) -> "Bar":
        return self

    def update(self, loss: float, **figures: str) -> None:
        """Advance by a step; further figures stand beside the loss."""
        if self.bar is not None:
            self.smooth = loss if self.smooth is None else 0.98 * self.smooth + 0.02 * loss
            self.bar.set_postfix(loss=f"{self.smooth:.4f}", **figures, refresh=False)
            self.bar.update()

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()
