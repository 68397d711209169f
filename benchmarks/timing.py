"""Fair timing: candidates take turns, and the median of their times is reported."""

import importlib.metadata
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Candidate = Callable[[], Any]


@dataclass
class Table:
    """One comparison: what was asked, the numbers, and how to read them."""

    title: str
    question: str
    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    reading: str = ""

    def show(self) -> None:
        """Print the table."""
        widths = [max(len(str(row[i])) for row in [self.columns, *self.rows]) for i in range(len(self.columns))]
        print(f"\n{self.title} {self.question}")
        for row in [self.columns, *self.rows]:
            print("  " + "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)))


def race(candidates: dict[str, Candidate], repeats: int, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each candidate; they take turns, so that a noisy moment hits all of them."""
    for _ in range(warmup):
        for run in candidates.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats):
        order = list(candidates.items())
        order = order[turn % len(order) :] + order[: turn % len(order)]
        for name, run in order:
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def milliseconds(seconds: float) -> str:
    """Seconds as a short text in milliseconds."""
    return f"{1000 * seconds:.3g}"


def version(name: str) -> str:
    """The installed version of a package, or "missing"."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
