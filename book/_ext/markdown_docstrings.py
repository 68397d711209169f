"""Sphinx extension: docstrings are Markdown, autodoc wants reStructuredText.

The library's docstrings are read in an editor, in a terminal and on the API pages. They use four pieces of Markdown:
`$inline$` and `$$display$$` mathematics, `` `code` `` in backticks, and pipe tables. This hook turns these into their
reStructuredText equivalents after napoleon has read the Google-style sections.
"""

import re
from typing import Any

_TABLE_ROW = re.compile(r"^\s*\|.*\|\s*$")
_TABLE_RULE = re.compile(r"^\s*\|[\s:|-]+\|\s*$")
_CODE = re.compile(r"(?<![`:])`(?!`)([^`\n]+)`(?!`)")
_MATH = re.compile(r"(?<!\$)\$(?!\$)([^$]+?)\$(?!\$)", re.DOTALL)


def to_rest(lines: list[str]) -> list[str]:
    """Convert the Markdown pieces of a docstring.

    Args:
        lines: The docstring, one entry a line.

    Returns:
        The same text as reStructuredText, with the same indentation.
    """
    out: list[str] = []
    position = 0
    while position < len(lines):
        line = lines[position]
        if line.lstrip().startswith(">>>"):
            while position < len(lines) and lines[position].strip():
                out.append(lines[position])
                position += 1
        elif line.strip().startswith("$$"):
            position = _display(lines, position, out)
        elif _TABLE_ROW.match(line):
            position = _table(lines, position, out)
        else:
            end = position + 1
            while end < len(lines) and not _starts_block(lines[end]):
                end += 1
            out += _inline("\n".join(lines[position:end])).split("\n")
            position = end
    return out


def _starts_block(line: str) -> bool:
    stripped = line.strip()
    return stripped.startswith((">>>", "$$")) or bool(_TABLE_ROW.match(line))


def _inline(text: str) -> str:
    """Inline mathematics and code; mathematics may run over a line break."""
    pieces = re.split(r"(``[^`]+``)", text)
    for i in range(0, len(pieces), 2):
        kept: list[str] = []

        def keep(match: re.Match[str], kept: list[str] = kept) -> str:
            kept.append(" ".join(match.group(1).split()))
            return f"\x00{len(kept) - 1}\x00"

        piece = _MATH.sub(keep, pieces[i])
        piece = _CODE.sub(r"``\1``", piece)
        # a backslash-space ends the role where a letter follows directly
        pieces[i] = re.sub(r"\x00(\d+)\x00", lambda m, kept=kept: rf":math:`{kept[int(m.group(1))]}`\ ", piece)
    return "".join(pieces)


def _display(lines: list[str], position: int, out: list[str]) -> int:
    indent = " " * (len(lines[position]) - len(lines[position].lstrip()))
    body: list[str] = []
    text = lines[position].strip()[2:]
    while True:
        if "$$" in text:
            head, _, tail = text.partition("$$")
            body.append(head)
            break
        body.append(text)
        position += 1
        text = lines[position].strip()
    out += ["", f"{indent}.. math::", ""]
    out += [f"{indent}   {part.strip()}" for part in body if part.strip()]
    out += [""]
    if tail.strip(" .,;"):
        out.append(indent + _inline(tail.strip()))
    return position + 1


def _table(lines: list[str], position: int, out: list[str]) -> int:
    indent = " " * (len(lines[position]) - len(lines[position].lstrip()))
    rows: list[list[str]] = []
    while position < len(lines) and _TABLE_ROW.match(lines[position]):
        if not _TABLE_RULE.match(lines[position]):
            rows.append([cell.strip() for cell in lines[position].strip().strip("|").split("|")])
        position += 1
    out += ["", f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
    for row in rows:
        for i, cell in enumerate(row):
            out.append(f"{indent}   {'* -' if i == 0 else '  -'} {_inline(cell)}")
    out.append("")
    return position


def _convert(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = to_rest(lines)


def setup(app: Any) -> dict[str, bool]:
    """Register the hook after napoleon's own (which runs at the default priority)."""
    app.connect("autodoc-process-docstring", _convert, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
