"""Every kernel compiles for sm_90 without a GPU and stays within its registers and shared memory."""

import inspect
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import compile_kernels
import pytest

import flowlib
from flowlib.kernels import _triton

SHARED_MEMORY = 232448
"""Bytes a program may have on sm_90. The compiler accepts more; the launch does not."""

# most registers a thread may need: 255 for the compiler, 65536 over the threads of a program for the launch
REGISTERS = {
    "adaln forward": 48,
    "adaln backward": 128,
    "pair forward": 64,
    "pair backward": 48,
    "attention forward": 255,
    "attention query gradient": 255,
    "attention key gradient": 255,
    "attention paged": 255,
    "linear states": 192,
    "linear scores": 255,
    "linear outputs": 128,
    "linear state gradient": 128,
    "linear value gradient": 160,
    "linear query and key gradient": 255,
    "scan forward": 128,
    "scan backward": 255,
    "sinkhorn softmin": 168,
    "sinkhorn gradient": 200,
}


@cache
def needs() -> dict[str, dict[str, Any]]:
    """What ptxas reports; compiled once, in a process without the interpreter and with an empty cache."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(flowlib.__file__).parent.parent)
    command = [sys.executable, compile_kernels.__file__]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("name", REGISTERS)
def test_kernel_fits(name: str) -> None:
    """No spills, at the widest head or token that bfloat16 training uses."""
    kernel = needs()[name]
    assert kernel["registers"] <= REGISTERS[name]
    assert kernel["registers"] * kernel["threads"] <= 65536
    assert kernel["spilled"] == 0
    assert kernel["shared"] <= SHARED_MEMORY


@pytest.mark.parametrize("name", [name for name in REGISTERS if name.startswith(("attention", "linear"))])
def test_bfloat16_products_use_warp_group_instructions(name: str) -> None:
    assert needs()[name]["wgmma"]


def test_every_kernel_is_compiled() -> None:
    """A kernel added to the library must be added to the list."""
    folder = Path(inspect.getfile(_triton)).parent
    defined = {
        f"{file.stem}.{line.split('(')[0].removeprefix('def ')}"
        for file in folder.glob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    }
    listed = compile_kernels.kernels()
    compiled = {f"{spec[0].fn.__module__.rpartition('.')[2]}.{spec[0].fn.__name__}" for spec in listed.values()}
    assert compiled == defined
    assert listed.keys() == REGISTERS.keys()
