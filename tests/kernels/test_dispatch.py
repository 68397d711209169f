"""Which implementation runs, what is imported for it, and what is said when it cannot run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import flowlib
from flowlib import kernels
from flowlib.kernels._dispatch import use_triton


def python(code: str) -> str:
    """What a fresh process prints, without the interpreter's flag."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(flowlib.__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


CALL = """
import torch
from flowlib.kernels import adaln_modulate
x, zero = torch.randn(2, 3, 8), torch.zeros(2, 1, 8)
_, y = adaln_modulate(x, zero, zero)
print(torch.allclose(y, torch.nn.functional.layer_norm(x, (8,)), atol=1e-6))
try:
    adaln_modulate(x, zero, zero, implementation="triton")
except RuntimeError as error:
    print(error)
"""


def test_without_triton_the_reference_runs() -> None:
    out = python("import sys\nsys.modules['triton'] = None" + CALL).splitlines()
    assert out[0] == "True"
    assert "needs the package triton: pip install 'flowlib[gpu]'" in out[1]


def test_on_the_cpu_the_kernel_needs_the_interpreter_and_says_so() -> None:
    out = python(CALL).splitlines()
    assert out[0] == "True"
    assert "TRITON_INTERPRET=1" in out[1]


def test_triton_is_not_imported_for_the_reference() -> None:
    code = "import sys" + CALL.partition("try:")[0] + "print('triton' in sys.modules)"
    assert python(code).split() == ["True", "False"]


def test_choice_follows_the_device() -> None:
    x = torch.zeros(3)
    assert not use_triton("auto", x)
    assert not use_triton("reference", x)
    if torch.cuda.is_available():
        assert use_triton("auto", x.cuda())
    else:
        assert use_triton("triton", x)  # in the interpreter


@pytest.mark.bad_input
def test_an_unknown_choice_is_named() -> None:
    with pytest.raises(ValueError, match="implementation must be one of 'auto', 'reference', 'triton'; got 'fast'"):
        use_triton("fast", torch.zeros(3))


@pytest.mark.bad_input
def test_more_rows_than_a_grid_takes_are_refused_before_the_launch() -> None:
    x = torch.zeros(1, 1, 1).expand(65_536, 1, 1)
    assert kernels.adaln_modulate(x, x, x)[1].shape == x.shape
    with pytest.raises(ValueError, match="at most 65535 for a Triton kernel, got 65536"):
        kernels.adaln_modulate(x, x, x, implementation="triton")
    heads = torch.zeros(1, 1, 1, 1).expand(256, 256, 1, 1)
    with pytest.raises(ValueError, match="got 65536"):
        kernels.block_causal_attention(heads, heads, heads, frame=1, implementation="triton")
