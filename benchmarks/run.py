"""Run all comparisons, print them, and write book/results/benchmarks.json: `python -m benchmarks.run`."""

import importlib.metadata
import json
import os
import platform
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch

from benchmarks import pairing, precision, stepping, training

RESULTS = Path(__file__).resolve().parent.parent / "book" / "results" / "benchmarks.json"
PEERS = ("torch", "numpy", "POT", "torchdiffeq", "torchcfm", "flow_matching")


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def version(name: str) -> str:
    """The installed version of a package, or "missing"."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def main() -> None:
    """Run everything with one thread."""
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    tables = []
    for comparison in (pairing, stepping, training, precision):
        table = comparison.run()
        table.show()
        tables.append(asdict(table))
    record = {
        "command": "make bench",
        "date": date.today().isoformat(),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "Python": platform.python_version(),
            "load at the start": round(load, 2),
            "load at the end": round(os.getloadavg()[0], 2),
        },
        "versions": {name: version(name) for name in PEERS},
        "tables": tables,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote {RESULTS.relative_to(RESULTS.parent.parent.parent)}")


if __name__ == "__main__":
    main()
