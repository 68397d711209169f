"""Settings every test shares: one thread, fixed seeds, and shapes checked by jaxtyping and beartype.

Shapes in annotations are checked while the tests run, through an import hook on flowlib. A test of bad input wants
the library's own message, so the marker `bad_input` switches the hook off for that test.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("FLOWLIB_PROGRESS", "0")

import jaxtyping
import pytest
import torch

# kernels run as Python where there is no GPU; set before the first import of triton: an optimiser imports it
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


class _Kernels:
    """Imports Triton's files as they are: Triton reads their source, so nothing may be wrapped around a kernel."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, path) if name.startswith("flowlib.kernels._triton") else None


sys.path.insert(0, str(Path(__file__).parent))
jaxtyping.install_import_hook("flowlib", "typechecker.typechecker")
sys.meta_path.insert(0, _Kernels)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _shape_checks(request: pytest.FixtureRequest):
    """Switch shape checking off for tests of bad input."""
    if request.node.get_closest_marker("bad_input") is None:
        yield
        return
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Tests that forget a generator are still reproducible."""
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh, seeded generator."""
    return torch.Generator().manual_seed(0)
