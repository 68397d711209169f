"""What the result of a notebook depends on, as one hash.

A chapter runs again when its own cells change, or the part of the library it imports: the files reached from its
import statements, followed through the library's own imports. Prose does not count, nor do other modules. Data that a
notebook or one of those modules names (shipped weights, recorded results) count by content, and so do the versions
of all packages.
"""

import ast
import hashlib
import platform
from functools import lru_cache
from pathlib import Path

from bookbuild.pages import Page

PACKAGE = "flowlib"


def cells(page: Page) -> list[str]:
    """The source of each code cell."""
    import jupytext

    notebook = jupytext.read(page.path)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def key(page: Page) -> str:
    """The hash of everything the notebook's outputs depend on."""
    sources = cells(page)
    digest = hashlib.sha256()
    for part in (platform.python_version(), *sources):
        digest.update(part.encode() + b"\0")
    for path in sorted(dependencies(sources, page.root)):
        digest.update(path.relative_to(page.root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def dependencies(sources: list[str], root: Path) -> set[Path]:
    """The files that code depends on: modules of the package, transitively, and the data they name."""
    found: set[Path] = set()
    waiting: set[str] = set()
    for source in sources:
        tree = _parse(source)
        if tree is not None:
            waiting |= imported(tree, "", root)
            found |= _named_data(tree, root)
    seen: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        path = _file(module, root)
        if path is None:
            continue
        found.add(path)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        waiting |= imported(tree, package, root)
        found |= _named_data(tree, root)
    constraints = root / "constraints.txt"
    return found | ({constraints} if constraints.is_file() else set())


def imported(tree: ast.AST, package: str, root: Path) -> set[str]:
    """The package's modules that code imports or reaches as `flowlib.name`, with their parents."""
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *([base] if base else [])])
            modules |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            name = _dotted(node)
            if name.startswith(f"{PACKAGE}."):
                modules |= {name}
    mine = {name for name in modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")}
    parts = {".".join(name.split(".")[:length]) for name in mine for length in range(1, name.count(".") + 2)}
    return {name for name in parts if _file(name, root) is not None}


def _named_data(tree: ast.AST, root: Path) -> set[Path]:
    """Files of `flowlib/weights` and `book/results` whose names occur in the code's strings."""
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    data = [*(root / PACKAGE / "weights").glob("*"), *(root / "book" / "results").glob("*")]
    return {path for path in data if path.is_file() and any(path.stem in text for text in strings)}


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""


def _file(module: str, root: Path) -> Path | None:
    base = root.joinpath(*module.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


@lru_cache(maxsize=1024)
def _parse(source: str) -> ast.Module | None:
    """Parse a cell; magics and shell lines are dropped."""
    lines = ["" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()]
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError:
        return None  # the cell will fail when it runs, and say where
