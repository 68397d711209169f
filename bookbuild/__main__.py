"""The commands of the build; see `python -m bookbuild --help`."""

import argparse
import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bookbuild import claims, execute, site
from bookbuild.pages import ROOT, BuildError, find
from bookbuild.pages import notebooks as all_notebooks


def book(root: Path, workers: int | None = None) -> None:
    """Run what changed and build the whole site."""
    start = time.perf_counter()
    build = root / "_build"
    pages = all_notebooks(root)
    print(f"Running the notebooks ({len(pages)} in all):", flush=True)
    results = execute.run_all(pages, build, workers)
    rows = claims.gather(pages, build)
    print("Building the pages (warnings are errors) ...", flush=True)
    site.write_api_pages(root)
    toc = site.write_toc(root, build)
    site.fill_cache(pages, results, build)
    site.build_html(root, build, toc)
    _summary(root, results, rows, time.perf_counter() - start)


def chapter(root: Path, name: str) -> None:
    """Run one chapter and build the site with it; other chapters keep what they last showed."""
    start = time.perf_counter()
    build = root / "_build"
    page = find(name, root)
    print(f"Running {page.docname}:", flush=True)
    results = execute.run_all([page], build)
    pages = all_notebooks(root)
    others = [other for other in pages if other.docname != page.docname]
    shown = {other.docname: execute.last_shown(other, build) for other in others}
    missing = [other for other in others if shown[other.docname] is None]
    if missing:
        print(f"Not yet run as they are, so they run now: {', '.join(p.docname for p in missing)}", flush=True)
        results += execute.run_all(missing, build)
    results += [result for result in shown.values() if result is not None]
    rows = claims.gather(pages, build)
    site.write_api_pages(root)
    toc = site.write_toc(root, build)
    site.fill_cache(pages, results, build)
    site.build_html(root, build, toc)
    _summary(root, results, rows, time.perf_counter() - start)
    print(f"The chapter:       {(build / 'html' / page.docname).with_suffix('.html')}")


def write_notebooks(root: Path, target: Path) -> None:
    """Write every chapter as a clean notebook, with stable cell ids."""
    import jupytext
    import nbformat

    pages = all_notebooks(root)
    for page in pages:
        notebook = jupytext.read(page.path)
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"{page.name[:50]}-{number}"
        notebook.metadata.pop("jupytext", None)
        place = (target / page.docname).with_suffix(".ipynb")
        place.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, place)
    print(f"{len(pages)} notebooks are in {target}")


def _summary(root: Path, results: list[execute.Result], rows: list[dict[str, object]], seconds: float) -> None:
    ran = [result for result in results if result.fresh]
    verdicts = [str(row["verdict"]) for row in rows]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in sorted(set(verdicts)))
    print("\nSlowest first (a chapter's budget is 40 s on two idle cores):")
    for result in sorted(results, key=lambda result: -result.seconds):
        mark = "  OVER BUDGET" if result.seconds > execute.BUDGET else ""
        state = "ran" if result.fresh else "unchanged"
        print(f"  {result.seconds:6.1f} s  {result.docname} ({state}){mark}")
    print(f"\nThe book:          {root / '_build' / 'html' / 'index.html'}")
    print(f"Notebooks run:     {len(ran)} of {len(results)}")
    print(f"Claims checked:    {len(rows)} ({counts or 'none'})")
    print(f"Total time:        {seconds:.1f} s")


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the build folder, so that two builds at once cannot mix their results."""
    place = root / "_build" / ".lock"
    place.parent.mkdir(exist_ok=True)
    with open(place, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BuildError(f"another build is running in {place.parent}; wait for it to end") from None
        yield


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run a command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bookbuild", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the book")
    commands = parser.add_subparsers(dest="command", required=True)
    whole = commands.add_parser("book", help="run what changed and build the site")
    whole.add_argument("--workers", type=int, default=None, help="notebooks at a time (default: the cores)")
    one = commands.add_parser("chapter", help="run one chapter and build the site")
    one.add_argument("name")
    export = commands.add_parser("notebooks", help="write every chapter as .ipynb")
    export.add_argument("--out", type=Path, default=None)
    single = commands.add_parser("run-one", help="execute one notebook in this process")
    single.add_argument("source", type=Path)
    single.add_argument("target", type=Path)
    given = parser.parse_args(arguments)
    root = given.root.resolve()
    try:
        if given.command == "book":
            with _alone(root):
                book(root, given.workers)
        elif given.command == "chapter":
            with _alone(root):
                chapter(root, given.name)
        elif given.command == "notebooks":
            write_notebooks(root, given.out or root / "notebooks")
        else:
            execute.run_one(given.source, given.target)
    except BuildError as error:
        print(f"\nThe build failed.\n\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
