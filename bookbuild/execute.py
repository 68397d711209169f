"""Running notebooks: in parallel, each in its own process, only where something changed."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bookbuild.keys import key
from bookbuild.pages import BuildError, Page

BUDGET = 40.0
"""Seconds a chapter should take at most; it is stopped at ten times that."""
PORT_TAKEN = "Address already in use"
"""What a kernel says that could not start because another one took its port."""


@dataclass(frozen=True)
class Result:
    """How a notebook's last run went.

    Attributes:
        docname: The page.
        key: Hash of what it depended on.
        seconds: How long the run took.
        fresh: Whether it ran in this build.
    """

    docname: str
    key: str
    seconds: float
    fresh: bool


def run_all(pages: list[Page], build: Path, workers: int | None = None) -> list[Result]:
    """Bring every notebook up to date.

    Args:
        pages: The notebooks.
        build: The build folder.
        workers: Processes at a time; the number of cores if `None`.

    Returns:
        A result for each page.

    Raises:
        BuildError: If a notebook fails; the message names chapter, cell and error of every one that did.
    """
    results, stale = [], []
    for page in pages:
        now = key(page)
        record = _record(page, build)
        if record is not None and record["key"] == now and notebook_file(page, build).is_file():
            results.append(Result(page.docname, now, record["seconds"], False))
            print(f"  {page.docname}: unchanged ({record['seconds']:.1f} s when it last ran)", flush=True)
        else:
            stale.append((page, now))
    failures: list[str] = []
    stale.sort(key=lambda item: -_expected_seconds(item[0], build))
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        running = {pool.submit(_run, page, now, build): page for page, now in stale}
        for done, future in enumerate(as_completed(running), 1):
            page = running[future]
            try:
                result = future.result()
            except BuildError as error:
                failures.append(str(error))
                print(f"  [{done}/{len(stale)}] {page.docname}: FAILED", flush=True)
            else:
                results.append(result)
                over = "  OVER BUDGET" if result.seconds > BUDGET else ""
                print(f"  [{done}/{len(stale)}] {page.docname}: {result.seconds:.1f} s{over}", flush=True)
    if failures:
        raise BuildError("\n\n".join(failures))
    return results


def last_shown(page: Page, build: Path) -> Result | None:
    """How a page's last run went, if its code is still the code that ran; the library may have changed since."""
    import jupytext
    import nbformat

    record, file = _record(page, build), notebook_file(page, build)
    if record is None or not file.is_file():
        return None
    then, now = nbformat.read(file, as_version=4), jupytext.read(page.path)
    code = [[cell.source for cell in notebook.cells if cell.cell_type == "code"] for notebook in (then, now)]
    return Result(page.docname, record["key"], record["seconds"], False) if code[0] == code[1] else None


def notebook_file(page: Page, build: Path) -> Path:
    """Where the executed notebook is kept."""
    return build / "executed" / f"{page.docname}.ipynb"


def claims_file(page: Page, build: Path) -> Path:
    """Where the notebook's claims are kept."""
    return build / "claims" / f"{page.docname.replace('/', '.')}.jsonl"


def run_one(source: Path, target: Path) -> None:
    """Execute a notebook in this process; called in a process of its own.

    Args:
        source: The Markdown file.
        target: Where the executed notebook goes.
    """
    import nbformat
    from myst_nb.core.read import read_myst_markdown_notebook
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    notebook = read_myst_markdown_notebook(source.read_text(encoding="utf-8"), add_source_map=True, path=source)
    lines = notebook.metadata.pop("source_map")
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(source.parent)}},
    )
    try:
        client.execute()
    except (CellExecutionError, DeadKernelError) as error:
        print(_describe(notebook, lines, error), file=sys.stderr)
        raise SystemExit(1) from None
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".part")
    nbformat.write(notebook, partial)
    os.replace(partial, target)


def _run(page: Page, now: str, build: Path) -> Result:
    claims = claims_file(page, build)
    claims.unlink(missing_ok=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "FLOWLIB_PROGRESS": "0",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "FLOWLIB_CLAIMS_FILE": str(claims),
        "FLOWLIB_CHAPTER": page.docname,
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    target = notebook_file(page, build)
    command = [sys.executable, "-m", "bookbuild", "run-one", str(page.path), str(target)]
    # the book's own library first, then this package
    roots = [str(page.root), str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(root for root in roots if root)
    for _ in range(3):
        start = time.perf_counter()
        try:
            finished = subprocess.run(
                command, env=environment, cwd=page.root, capture_output=True, text=True, timeout=10 * BUDGET
            )
        except subprocess.TimeoutExpired:
            raise BuildError(f"{page.docname}.md was stopped after {10 * BUDGET:.0f} s, ten times its budget") from None
        if not (finished.returncode and PORT_TAKEN in finished.stderr):
            break  # two kernels that start at once may choose one port; then the later one starts again
    if finished.returncode:
        raise BuildError(f"{page.docname}.md failed\n{finished.stderr.strip()[-4000:]}")
    result = Result(page.docname, now, time.perf_counter() - start, True)
    place = target.with_suffix(".json")
    place.write_text(json.dumps(asdict(result)), encoding="utf-8")
    return result


def _describe(notebook: Any, lines: list[int], error: Exception) -> str:
    """Name the cell that failed and show its first lines and the error."""
    for number, cell in enumerate(notebook.cells, 1):
        if any(output.get("output_type") == "error" for output in cell.get("outputs", [])):
            head = "\n".join(f"    | {line}" for line in cell.source.splitlines()[:6])
            failure = next(o for o in cell["outputs"] if o["output_type"] == "error")
            line = lines[number - 1]
            what = f"{failure['ename']}: {failure['evalue']}"
            return f"  in cell {number} (line {line}):\n{head}\n  {what}\n\n{_tail(str(error))}"
    return str(error)


def _tail(text: str, lines: int = 25) -> str:
    import re

    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return "\n".join(plain.splitlines()[-lines:])


def _record(page: Page, build: Path) -> dict[str, Any] | None:
    path = notebook_file(page, build).with_suffix(".json")
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def _expected_seconds(page: Page, build: Path) -> float:
    record = _record(page, build)
    return float(record["seconds"]) if record else BUDGET
