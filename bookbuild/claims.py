"""The claims of all notebooks, gathered into one file."""

import json
from pathlib import Path
from typing import Any

from bookbuild.execute import claims_file
from bookbuild.pages import BuildError, Page


def gather(pages: list[Page], build: Path) -> list[dict[str, Any]]:
    """Read the rows of every notebook and write `claims.json`.

    Args:
        pages: The notebooks, in the book's order.
        build: The build folder.

    Returns:
        The rows.

    Raises:
        BuildError: If an id occurs twice.
    """
    rows: list[dict[str, Any]] = []
    owner: dict[str, str] = {}
    for page in pages:
        path = claims_file(page, build)
        if not path.is_file():
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["id"] in owner:
                raise BuildError(f"claim {row['id']} is checked twice: in {owner[row['id']]} and {row['chapter']}")
            owner[row["id"]] = row["chapter"]
            rows.append(row)
    text = json.dumps(rows, indent=1)
    target = build / "claims.json"
    if not target.is_file() or target.read_text(encoding="utf-8") != text:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return rows
