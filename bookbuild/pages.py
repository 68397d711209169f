"""The pages of the book: where they are, what their headers say, and in which order they come."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"


class BuildError(Exception):
    """Something in the sources of the book is wrong; the message names the place."""


@dataclass(frozen=True)
class Page:
    """A Markdown page.

    Attributes:
        path: The file.
        root: The folder the book lives in.
    """

    path: Path
    root: Path = ROOT

    @property
    def docname(self) -> str:
        """Sphinx's name for the page: its path without the ending."""
        return self.path.relative_to(self.root).with_suffix("").as_posix()

    @property
    def name(self) -> str:
        """The file's name without the ending, such as `flow-matching`."""
        return self.path.stem

    @property
    def header(self) -> dict[str, Any]:
        """The YAML at the top of the file, empty if there is none."""
        text = self.path.read_text(encoding="utf-8")
        if not text.startswith("---\n"):
            return {}
        try:
            header = yaml.safe_load(text[4 : text.index("\n---", 4)])
        except (ValueError, yaml.YAMLError) as error:
            raise BuildError(f"{self.docname}.md: the YAML header cannot be read: {error}") from error
        return header if isinstance(header, dict) else {}

    @property
    def order(self) -> float:
        """Place of the page in its part: `book: {order: ...}` in the header."""
        settings = self.header.get("book", {})
        return float(settings.get("order", 1000)) if isinstance(settings, dict) else 1000.0

    @property
    def is_notebook(self) -> bool:
        """Whether the page has cells to run."""
        return "jupytext" in self.header and "```{code-cell}" in self.path.read_text(encoding="utf-8")


def chapters(root: Path = ROOT) -> list[Page]:
    """All chapters, in the order of their parts and headers."""
    found = [Page(path, root) for path in (root / "chapters").glob("*/*.md")]
    return sorted(found, key=lambda page: (page.path.parent.name, page.order, page.name))


def notebooks(root: Path = ROOT) -> list[Page]:
    """All pages with cells: the chapters and the front matter that computes."""
    front = [Page(path, root) for path in sorted((root / "book").glob("*.md"))]
    return [page for page in [*chapters(root), *front] if page.is_notebook]


def find(name: str, root: Path = ROOT) -> Page:
    """The notebook called `name`.

    Raises:
        BuildError: If there is none; the message lists all.
    """
    pages = notebooks(root)
    for page in pages:
        if name in (page.name, page.docname):
            return page
    raise BuildError(f"no chapter is called {name!r}; there are: {', '.join(page.name for page in pages)}")


def expanded_toc(root: Path = ROOT) -> dict[str, Any]:
    """The table of contents with its globs replaced by pages, sorted by their headers; empty parts are dropped.

    `_toc.yml` names folders, so a new chapter needs no change there.
    """
    toc: dict[str, Any] = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    parts = []
    for part in toc["parts"]:
        entries = []
        for entry in part["chapters"]:
            if "glob" in entry:
                paths = [Page(path, root) for path in root.glob(f"{entry['glob']}.md")]
                pages = sorted(paths, key=lambda page: (page.path.parent.name, page.order, page.name))
                entries += [{"file": page.docname} for page in pages]
            else:
                entries.append(entry)
        if entries:
            parts.append(part | {"chapters": entries})
    return toc | {"parts": parts}
