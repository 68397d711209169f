"""Claims: statements of a paper that a chapter measures while the book is built.

`check` compares a measured number (or one for each seed) with an expectation, shows the outcome as a box in the
notebook, and records a row for the page *What this book verifies*. A claim that should hold and does not stops the
build; so does one that was recorded as not reproduced and now holds.
"""

import html
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Claim", "ClaimError", "check", "parse_expectation"]

_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*/[a-z0-9]+(-[a-z0-9]+)*")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_COMPARISON = re.compile(rf"(<=|>=|<|>)\s*({_NUMBER})")
_RANGE = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})")
_NEAR = re.compile(rf"({_NUMBER})\s*\+-\s*({_NUMBER})")

_COLOURS = {"holds": "#117733", "fails": "#aa3344", "not reproduced": "#997700"}


class ClaimError(AssertionError):
    """A claim whose outcome is not the one the chapter states."""


@dataclass(frozen=True)
class Claim:
    """The outcome of a check.

    Attributes:
        id: `paper-card/claim`.
        measured: Mean of the measured values.
        spread: Standard deviation over the values (n - 1), or `None` for a single one.
        values: The measured values.
        expected: The expectation as written.
        verdict: `"holds"`, `"fails"` or `"not reproduced"`.
        source: Where the claim stands: theorem, table, equation.
        note: Conditions of the measurement.
    """

    id: str
    measured: float
    spread: float | None
    values: tuple[float, ...]
    expected: str
    verdict: str
    source: str
    note: str

    @property
    def paper(self) -> str:
        """The card of the paper, the part of the id before the slash."""
        return self.id.split("/")[0]

    def __repr__(self) -> str:
        return f"[{self.verdict}] {self.id}: measured {self.text()}, expected {self.expected} ({self.source})"

    def text(self) -> str:
        """The measured value with its spread, as text.

        Example:
            >>> check("rectified-flow/example", [1.0, 3.0], "< 4", source="example").text()
            '2 ± 1.41 (n = 2)'
        """
        if self.spread is None:
            return f"{self.measured:.4g}"
        return f"{self.measured:.4g} ± {self.spread:.3g} (n = {len(self.values)})"

    def _repr_html_(self) -> str:
        colour = _COLOURS[self.verdict]
        note = f"<br><small>{html.escape(self.note)}</small>" if self.note else ""
        return (
            f'<div class="claim-box" role="note" style="border-left: 5px solid {colour}; padding: .5em 1em; '
            f'margin: .5em 0; background: rgba(127, 127, 127, .08)">'
            f'<strong style="color: {colour}">{html.escape(self.verdict)}</strong> '
            f"<code>{html.escape(self.id)}</code> <small>({html.escape(self.source)})</small><br>"
            f"measured <strong>{html.escape(self.text())}</strong>, expected "
            f"<strong>{html.escape(self.expected)}</strong>{note}</div>"
        )


def check(
    id: str,
    measured: float | Sequence[float],
    expected: str,
    source: str,
    note: str = "",
    expected_to_hold: bool = True,
) -> Claim:
    """Check a claim, record it and return the box to show.

    Args:
        id: `paper-card/claim`, in lower case with hyphens, unique in the book.
        measured: The measured value, or one value for each seed; the mean is compared.
        expected: An inequality `"< 1"`, `"<= 1"`, `"> 1"`, `">= 1"`, a range `"0.9 .. 1.1"`, or `"1 +- 0.1"`.
        source: Where the claim stands.
        note: Conditions: data, seeds, budget.
        expected_to_hold: `False` for a claim known not to reproduce at this scale; the text says why.

    Returns:
        The outcome; as the last value of a notebook cell it shows a box.

    Raises:
        ValueError: If the id or the expectation is malformed, or a measured value is missing or not finite.
        ClaimError: If the claim should hold and does not, or should not and does.

    Example:
        >>> check("rectified-flow/example", measured=[0.61, 0.63], expected="< 1", source="Thm 3.5")
        [holds] rectified-flow/example: measured 0.62 ± 0.0141 (n = 2), expected < 1 (Thm 3.5)
    """
    if not _ID.fullmatch(id):
        raise ValueError(f"id must look like paper-card/claim in lower case with hyphens, got {id!r}")
    if isinstance(measured, str):
        raise ValueError(f"claim {id}: measured must hold numbers, got the text {measured!r}")
    values = tuple(float(value) for value in measured) if isinstance(measured, Sequence) else (float(measured),)
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"claim {id}: measured must hold finite numbers, got {measured}")
    mean = sum(values) / len(values)
    spread = None
    if len(values) > 1:
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    holds = parse_expectation(expected)(mean)
    verdict = "holds" if holds else ("fails" if expected_to_hold else "not reproduced")
    claim = Claim(id, mean, spread, values, expected, verdict, source, note)
    if holds != expected_to_hold:
        why = "should hold and does not" if expected_to_hold else "is marked expected_to_hold=False, but it holds now"
        raise ClaimError(f"claim {id} {why}: measured {claim.text()}, expected {expected} ({source}; {note})")
    _record(claim)
    return claim


def parse_expectation(expected: str) -> Callable[[float], bool]:
    """Turn the text of an expectation into a test of a number.

    Args:
        expected: See `check`.

    Returns:
        A function of the measured mean.

    Raises:
        ValueError: If the text has none of the known forms.

    Example:
        >>> parse_expectation("0.9 .. 1.1")(1.05)
        True
    """
    text = expected.strip()
    if match := _COMPARISON.fullmatch(text):
        bound = float(match[2])
        tests: dict[str, Callable[[float], bool]] = {
            "<": lambda value: value < bound,
            "<=": lambda value: value <= bound,
            ">": lambda value: value > bound,
            ">=": lambda value: value >= bound,
        }
        return tests[match[1]]
    if match := _RANGE.fullmatch(text):
        low, high = float(match[1]), float(match[2])
        if low > high:
            raise ValueError(f"expected is an empty range: {expected!r}")
        return lambda value: low <= value <= high
    if match := _NEAR.fullmatch(text):
        centre, tolerance = float(match[1]), float(match[2])
        if tolerance < 0:
            raise ValueError(f"expected has a negative tolerance: {expected!r}")
        return lambda value: abs(value - centre) <= tolerance
    raise ValueError(f"expected must look like '< 1', '>= 1', '0.9 .. 1.1' or '1 +- 0.1', got {expected!r}")


def _record(claim: Claim) -> None:
    """Append the row to the file the build names, if it names one."""
    place = os.environ.get("FLOWLIB_CLAIMS_FILE")
    if not place:
        return
    row = asdict(claim) | {"paper": claim.paper, "chapter": os.environ.get("FLOWLIB_CHAPTER", "")}
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    with open(place, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
