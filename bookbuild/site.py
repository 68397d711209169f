"""From executed notebooks to the HTML site: table of contents, API pages, the notebook cache, Sphinx."""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from bookbuild.execute import Result, notebook_file
from bookbuild.pages import BuildError, Page, expanded_toc


def write_toc(root: Path, build: Path) -> Path:
    """Write the expanded table of contents; returns its place."""
    place = build / "_toc.yml"
    _write(place, yaml.safe_dump(expanded_toc(root), sort_keys=False))
    return place


def write_api_pages(root: Path) -> list[Path]:
    """Write one reference page for each public module of the library, from its docstrings.

    Returns:
        The pages; those of modules that no longer exist are removed.
    """
    package = root / "flowlib"
    names = sorted(
        path.stem for path in package.iterdir()
        if not path.name.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").is_file())
    )  # fmt: skip
    folder = root / "book" / "api"
    pages = [folder / "index.md"]
    rows = []
    for name in names:
        path = folder / f"{name}.md"
        pages.append(path)
        modules = _modules(package, name)
        rows.append(f"| {{doc}}`flowlib.{name} <{name}>` | {_summary(package, name)} |")
        blocks = "\n".join(
            f"```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n   :ignore-module-all:\n"
            "   :member-order: bysource\n   :show-inheritance:\n```\n"
            for module in modules
        )
        _write(path, f"# flowlib.{name}\n\n{blocks}")
    table = "\n".join(["| module | what it holds |", "|---|---|", *rows])
    _write(
        pages[0],
        "---\nbook:\n  order: 0\n---\n\n(api)=\n# Library reference\n\nEvery public name of `flowlib`, from its "
        f"docstrings. The examples are run by the tests.\n\n{table}\n",
    )
    for stale in set(folder.glob("*.md")) - set(pages):
        stale.unlink()
    return pages


def fill_cache(pages: list[Page], results: list[Result], build: Path) -> None:
    """Hand the executed notebooks to the cache that the HTML build reads, and note which pages changed."""
    import nbformat
    from jupyter_cache import get_cache
    from jupyter_cache.cache.main import CacheBundleIn
    from myst_nb.core.read import read_myst_markdown_notebook

    cache = get_cache(build / ".jupyter_cache")
    state_file = build / ".jupyter_cache" / "keys.json"  # goes with the cache
    known = json.loads(state_file.read_text(encoding="utf-8")) if state_file.is_file() else {}
    texts = {page.docname: hashlib.sha256(page.path.read_bytes()).hexdigest() for page in pages}
    keys = {result.docname: f"{result.key}:{texts[result.docname]}" for result in results}
    for page in pages:
        if page.docname in keys and known.get(page.docname) != keys[page.docname]:
            executed = nbformat.read(notebook_file(page, build), as_version=4)
            # the cache finds a notebook by its cells and their metadata as the page has them now
            notebook = read_myst_markdown_notebook(page.path.read_text(encoding="utf-8"), path=page.path)
            for cell, done in zip(_code(notebook), _code(executed), strict=True):
                cell.outputs, cell.execution_count = done.outputs, done.execution_count
            bundle = CacheBundleIn(notebook, str(page.path), data={"version": 1})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    _write(state_file, json.dumps(known | keys, indent=1))


def build_html(root: Path, build: Path, toc: Path) -> None:
    """Run Jupyter Book with warnings as errors.

    Raises:
        BuildError: If it fails; the warnings, which name file and line, are in the message.
    """
    environment = os.environ | {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-m", "jupyter_book.cli.main", "build", str(root), "--toc", str(toc),
        "--path-output", str(root), "-W", "--keep-going", "-q",
    ]  # fmt: skip
    code = "from jupyter_book.cli.main import main; main()"
    command[1:3] = ["-c", code]
    finished = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    (build / "sphinx.log").write_text(finished.stdout + finished.stderr, encoding="utf-8")
    if finished.returncode:
        # Sphinx would take the pages it has read for good, and the next build would pass without its warnings
        shutil.rmtree(build / ".doctrees", ignore_errors=True)
        lines = (finished.stdout + finished.stderr).splitlines()
        telling = [line for line in lines if "WARNING" in line or "ERROR" in line or "Exception" in line]
        telling = [line for line in telling if "over TCP without encryption" not in line]
        raise BuildError("the HTML build failed (warnings are errors):\n" + "\n".join(telling or lines[-40:]))


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _modules(package: Path, name: str) -> list[str]:
    """The module and, for a package, its public submodules."""
    if not (package / name).is_dir():
        return [f"flowlib.{name}"]
    inner = sorted(path.stem for path in (package / name).glob("*.py") if not path.stem.startswith("_"))
    return [f"flowlib.{name}", *(f"flowlib.{name}.{module}" for module in inner)]


def _summary(package: Path, name: str) -> str:
    """The first line of a module's docstring."""
    path = package / name / "__init__.py"
    path = path if path.is_file() else package / f"{name}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise BuildError(f"flowlib/{path.relative_to(package)} has no docstring")
    return text.splitlines()[0]


def _write(path: Path, text: str) -> None:
    """Write only if the content changes, so that unchanged pages are not read again."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
