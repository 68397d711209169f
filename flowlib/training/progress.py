"""What a run on many processes tells while it goes on, and how it is told to stop."""

import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowlib._files import replacing
from flowlib.training.cost import peak_flops
from flowlib.training.loop import Bar
from flowlib.training.settings import Run

__all__ = ["Log", "Stop", "read_log"]


def read_log(out: Path) -> dict[str, list[float]]:
    """The log of a run: a list for each of `step`, `loss`, `grad_norm`, `lr`, one entry a step.

    Raises:
        FileNotFoundError: If there is no log.
    """
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {key: [row[key] for row in rows] for key in ("step", "loss", "grad_norm", "lr")}


class Log:
    """Losses stay on the device until they are looked at; then one line a step, TensorBoard, and the progress line."""

    def __init__(self, fabric: Any, run: Run, start: int, flops: float | None) -> None:
        self.fabric, self.run, self.flops = fabric, run, flops
        self.rows: list[tuple[int, Tensor, Tensor, float]] = []
        self.since, self.writer, self.file = time.perf_counter(), None, run.out / "log.jsonl"
        self.bar = Bar(start, run.steps, None if fabric.is_global_zero else False)
        if fabric.is_global_zero:
            lines = self.file.read_text().splitlines() if self.file.is_file() else []
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= start]
            with replacing(self.file) as part:  # steps after the checkpoint are done again
                part.write_text("".join(line + "\n" for line in kept))
            self.writer = _tensorboard(run.out)
        self.peak = peak_flops(fabric.device) if run.precision == "bf16" else None

    def add(self, step: int, loss: Tensor, norm: Tensor, lr: float, *, flush: bool) -> None:
        """Note a step; look at the notes at every `log_every`-th step, at saves and at the end."""
        self.rows.append((step, loss, norm, lr))
        if not flush and step % self.run.log_every:
            return
        losses = self.fabric.all_reduce(torch.stack([row[1] for row in self.rows]), reduce_op="mean")
        values = torch.stack([losses, torch.stack([row[2] for row in self.rows])]).tolist()
        seconds = (time.perf_counter() - self.since) / len(self.rows)
        lines = [
            {"step": at, "loss": loss, "grad_norm": norm, "lr": rate}
            for (at, _, _, rate), loss, norm in zip(self.rows, *values, strict=True)
        ]
        self.rows, self.since = [], time.perf_counter()
        for line in lines:
            if not math.isfinite(line["loss"]):
                raise FloatingPointError(
                    f"the loss is {line['loss']} at step {line['step']}; lower lr or check the data"
                )
        if not self.fabric.is_global_zero:
            return
        with self.file.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        rates = self._rates(seconds)
        if self.writer is not None:
            for name, value in {**{k: v for k, v in lines[-1].items() if k != "step"}, **rates}.items():
                self.writer.add_scalar(name, value, step)
        for line in lines[:-1]:
            self.bar.update(line["loss"])
        self.bar.update(lines[-1]["loss"], **{name: f"{value:.3g}" for name, value in rates.items()})

    def _rates(self, seconds: float) -> dict[str, float]:
        """Samples a second, memory in GiB and, where the peak is known, the utilisation of one device."""
        rates = {"samples_per_second": self.run.batch_size / seconds}
        if self.fabric.device.type == "cuda":
            rates["memory_gib"] = torch.cuda.max_memory_allocated(self.fabric.device) / 2**30
        if self.flops is not None:
            achieved = 3 * self.flops * rates["samples_per_second"] / self.fabric.world_size
            rates["tflops"] = achieved / 1e12
            if self.peak is not None:
                rates["mfu"] = achieved / self.peak
        return rates

    def close(self) -> None:
        """Close the bar and TensorBoard's file."""
        self.bar.__exit__()
        if self.writer is not None:
            self.writer.close()


class Stop:
    """Notes SIGTERM and SIGINT; the processes agree on a common step to stop after."""

    EVERY = 10

    def __init__(self, fabric: Any) -> None:
        self.fabric, self.asked = fabric, False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        def note(number: int, frame: object) -> None:
            self.asked = True

        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, note)
        return self

    def agreed(self, step: int) -> bool:
        """Whether any process was asked to stop; asked on every tenth step, or on every one on a CPU."""
        if self.fabric.world_size == 1:
            return self.asked
        if step % self.EVERY and self.fabric.device.type != "cpu":
            return False
        flag = torch.tensor(float(self.asked), device=self.fabric.device)
        return bool(self.fabric.all_reduce(flag, reduce_op="sum") > 0)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _tensorboard(out: Path) -> Any:
    """TensorBoard's writer, or `None` where tensorboard is not installed (the log file is always written)."""
    from importlib.util import find_spec

    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(out / "tensorboard")
