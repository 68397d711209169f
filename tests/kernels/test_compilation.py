"""Every kernel compiles for sm_90 without a GPU and stays within its registers and shared memory."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import flowlib

SCRIPT = Path(__file__).parent.parent / "compile_kernels.py"
SHARED_MEMORY = 232448
"""Bytes a program may have on sm_90; more is no error of the compiler, only of the launch."""

# registers of a thread: at most 255; programs of many threads get fewer, 65536 over their number
LIMITS = {
    "adaln forward": 64,
    "adaln backward": 96,
    "pair forward": 96,
    "pair backward": 64,
    "sinkhorn softmin": 128,
    "sinkhorn gradient": 168,
}
TENSOR_CORES: set[str] = set()


@cache
def needs() -> dict[str, dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(flowlib.__file__).parent.parent)
    environment["TRITON_CACHE_DIR"] = str(Path(os.environ["PYTEST_KERNEL_CACHE"]))
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return result
