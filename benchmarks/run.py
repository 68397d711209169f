"""Run all comparisons, print them, and write book/results/benchmarks.json: `python -m benchmarks.run`.

With names (`python -m benchmarks.run sinkhorn semidiscrete`) only these run, and replace their recorded tables.
"""

import json
import os
import platform
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks import pairing, precision, semidiscrete, sinkhorn, stepping, training
from benchmarks.timing import version

RESULTS = Path(__file__).resolve().parent.parent / "book" / "results" / "benchmarks.json"
COMPARISONS = {
    "pairing": pairing,
    "stepping": stepping,
    "training": training,
    "precision": precision,
    "sinkhorn": sinkhorn,
    "semidiscrete": semidiscrete,
}
PEERS = ("torch", "numpy", "POT", "torchdiffeq", "torchcfm", "flow_matching", "geomloss")


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main(names: list[str]) -> None:
    """Run everything, or the comparisons named, with one thread."""
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    tables = []
    for name in names or COMPARISONS:
        table = COMPARISONS[name].run()
        table.show()
        tables.append(asdict(table))
    if names:
        record = json.loads(RESULTS.read_text(encoding="utf-8"))
        ends = f"load {load:.2f} at the start and {os.getloadavg()[0]:.2f} at the end"
        for table in tables:
            table["reading"] += f" Recorded on {date.today().isoformat()} in a run of its own, {ends}."
        new = {table["title"]: table for table in tables}
        kept = [new.pop(table["title"], table) for table in record["tables"]]
        record["tables"] = [*kept, *new.values()]
        record["versions"] |= {name: version(name) for name in PEERS if name not in record["versions"]}
        save(record)
        return
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
    save(record)


def save(record: dict[str, Any]) -> None:
    """Write the results."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote {RESULTS.relative_to(RESULTS.parent.parent.parent)}")


if __name__ == "__main__":
    main(sys.argv[1:])
