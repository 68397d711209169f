"""Sphinx extension: what the build knows about executed notebooks and claims.

- A page whose notebook ran again is read again, although its Markdown file did not change.
- Each chapter may bring a `.bib` file of its own beside it.
- The directive `claims-table` lists all claims of the book from `_build/claims.json`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx import addnodes

_COLUMNS = {"claim, source, conditions": 53, "measured": 17, "expected": 13, "verdict": 17}  # widths in per cent


def _build_folder(app: Any) -> Path:
    return Path(app.srcdir) / "_build"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _outdated(app: Any, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    keys = _read(_build_folder(app) / "executed" / "keys.json") or {}
    known = getattr(env, "flowlib_keys", {})
    stale = [name for name, key in keys.items() if known.get(name) != key]
    env.flowlib_keys = keys
    rows = json.dumps(_read(_build_folder(app) / "claims.json"))
    digest = hashlib.sha256(rows.encode()).hexdigest()
    if getattr(env, "flowlib_claims", None) != digest:
        stale.append("book/verifies")
        env.flowlib_claims = digest
    # API pages follow the docstrings, which Sphinx notes as dependencies by itself
    return [name for name in stale if name in env.found_docs]


def _bibliographies(app: Any, config: Any) -> None:
    root = Path(app.srcdir)
    config.bibtex_bibfiles = [
        *config.bibtex_bibfiles,
        *sorted(path.relative_to(root).as_posix() for path in (root / "chapters").glob("*/*.bib")),
    ]


class ClaimsTable(Directive):
    """`{claims-table}`: all claims, one table for each chapter, with a count of the verdicts first."""

    def run(self) -> list[nodes.Node]:
        """Build the tables."""
        app = self.state.document.settings.env.app
        rows = _read(_build_folder(app) / "claims.json") or []
        verdicts = [row["verdict"] for row in rows]
        counts = ", ".join(f"{verdicts.count(name)} {name}" for name in ("holds", "not reproduced") if name in verdicts)
        out: list[nodes.Node] = [nodes.paragraph(text=f"{len(rows)} claims: {counts}." if rows else "No claims yet.")]
        for chapter in dict.fromkeys(row["chapter"] for row in rows):
            # resolved after all pages are read, when titles are known
            link = addnodes.pending_xref(
                "", nodes.inline(), refdomain="std", reftype="doc", reftarget=f"/{chapter}", refexplicit=False,
                refdoc=self.state.document.settings.env.docname, refwarn=True,
            )  # fmt: skip
            out += [nodes.rubric("", "", link), _table([row for row in rows if row["chapter"] == chapter])]
        return out


def _table(rows: list[dict[str, Any]]) -> nodes.table:
    table = nodes.table(classes=["claims", "colwidths-given"])
    group = nodes.tgroup(cols=len(_COLUMNS))
    table += group
    for width in _COLUMNS.values():
        group += nodes.colspec(colwidth=width)
    head, body = nodes.thead(), nodes.tbody()
    group += [head, body]
    head += _row([[nodes.Text(name)] for name in _COLUMNS])
    for row in rows:
        spread = "" if row["spread"] is None else f" ± {row['spread']:.2g} (n = {len(row['values'])})"
        about = nodes.inline(text=f"{row['source']}. {row['note']}", classes=["claim-note"])
        made = _row(
            [
                [nodes.literal(text=row["id"]), nodes.Text(" "), about],
                [nodes.Text(f"{row['measured']:.4g}{spread}")],
                [nodes.Text(row["expected"])],
                [nodes.Text(row["verdict"])],
            ]
        )
        made[3]["classes"].append(f"verdict-{row['verdict'].replace(' ', '-')}")
        body += made
    return table


def _row(contents: list[list[nodes.Node]]) -> nodes.row:
    row = nodes.row()
    for content in contents:
        row += nodes.entry("", nodes.paragraph("", "", *content))
    return row


def setup(app: Any) -> dict[str, bool]:
    """Register the directive and the hooks."""
    app.add_directive("claims-table", ClaimsTable)
    app.connect("config-inited", _bibliographies, priority=100)
    app.connect("env-get-outdated", _outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
