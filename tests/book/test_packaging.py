"""pyproject.toml, constraints.txt and environment.yml agree; importing the library is cheap; layers are enforced."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from bookbuild.pages import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements() -> list[Requirement]:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(line) for group in groups for line in group]


def constraints() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(name): Version(version) for name, version in pinned}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("requirement", requirements(), ids=lambda r: r.name)
def test_the_version_seen_together_satisfies_the_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(constraints()[canonical(requirement.name)])


def test_extras_are_the_documented_ones() -> None:
    assert set(PROJECT["optional-dependencies"]) == {"book", "gpu", "recipes", "dev"}


def test_conda_environment_installs_the_project_itself() -> None:
    """Packages come through pip from pyproject.toml, so there is one list of dependencies, with the same versions."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert {re.split(r"[<>=]", entry)[0] for entry in plain} == {"python", "pip", "make"}
    (python,) = [entry for entry in plain if entry.startswith("python")]
    assert PROJECT["requires-python"] in python.removeprefix("python")
    (editable,) = [line for line in pip if "--editable" in line]
    extras = re.search(r"\[(.*)\]", editable)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])
    assert {"book", "dev"} <= set(extras[1].split(","))
    assert any("constraints.txt" in line for line in pip)


def test_importing_the_library_costs_little_over_torch() -> None:
    """The budget is 0.3 s where torch takes 1.5 s; as a fraction of torch's time it holds on any machine."""
    script = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
from flowlib import couplings, data, distributions, fields, kernels, nets, objectives, paths, solvers, training
print((time.perf_counter() - middle) / (middle - start))
"""
    command = [sys.executable, "-c", script]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.25


def test_importing_the_library_does_not_import_what_it_may_not_need() -> None:
    heavy = ("matplotlib", "ot", "sklearn", "torchdiffeq", "triton", "IPython", "beartype", "scipy", "lightning_fabric")
    code = (
        "import sys, torch\nbefore = set(sys.modules)\n"
        "from flowlib import claims, couplings, data, fields, kernels, metrics, nets, objectives, paths\n"
        "from flowlib import plots, solvers, training\n"
        f"print([name for name in {heavy} if name in set(sys.modules) - before])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_a_broken_layer_rule_is_reported_with_its_place(tmp_path: Path) -> None:
    """A copy of the library in which paths imports from solvers fails the layers check, naming both modules."""
    import shutil

    shutil.copytree(ROOT / "flowlib", tmp_path / "flowlib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    target = tmp_path / "flowlib" / "paths" / "schedules.py"
    target.write_text(target.read_text() + "\nfrom flowlib.solvers import ode  # noqa\n")
    program = Path(sys.executable).parent / "lint-imports"
    out = subprocess.run(
        [sys.executable, str(program), "--no-cache"], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert out.returncode != 0
    assert "flowlib.paths.schedules -> flowlib.solvers" in re.sub(r"\s+", " ", out.stdout)


def test_every_module_has_tests_or_is_tested_with_its_package() -> None:
    tested = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for path in (ROOT / "flowlib").iterdir():
        name = path.stem
        if not name.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").is_file()):
            assert re.search(rf"\b{name}\b", tested), f"no test mentions flowlib.{name}"
