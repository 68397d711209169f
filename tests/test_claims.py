"""Claims: every form of expectation, every verdict, and what is recorded."""

import json
import math
from pathlib import Path

import pytest

from flowlib import claims
from flowlib.claims import ClaimError, check


@pytest.mark.parametrize(
    ("expected", "inside", "outside"),
    [
        ("< 1", [0.99], [1.0, 2.0]),
        ("<= 1", [1.0], [1.001]),
        ("> -0.5", [0.0], [-0.5]),
        (">= 1e-3", [1e-3], [9e-4]),
        ("0.9 .. 1.1", [0.9, 1.1], [0.89, 1.11]),
        ("1 +- 0.1", [0.95, 1.05], [0.8]),
        (">=.5", [0.5], [0.4]),
    ],
)
def test_expectations_are_inequalities(expected: str, inside: list[float], outside: list[float]) -> None:
    for value in inside:
        assert check("paper/claim", value, expected, source="s").verdict == "holds"
    for value in outside:
        with pytest.raises(ClaimError, match="paper/claim should hold and does not"):
            check("paper/claim", value, expected, source="s")
        assert check("paper/claim", value, expected, source="s", expected_to_hold=False).verdict == "not reproduced"


def test_mean_and_spread_over_seeds() -> None:
    claim = check("some-paper/some-claim", [1.0, 2.0, 4.0], "< 3", source="Thm 1", note="three seeds")
    assert claim.measured == pytest.approx(7 / 3)
    assert claim.spread == pytest.approx(math.sqrt(7 / 3))
    assert claim.values == (1.0, 2.0, 4.0)
    assert claim.paper == "some-paper"
    assert "n = 3" in claim.text()
    assert check("paper/claim", 1.0, "< 3", source="s").spread is None


def test_the_mean_decides_not_the_best_seed() -> None:
    with pytest.raises(ClaimError):
        check("paper/claim", [0.1, 5.0], "< 1", source="s")


def test_a_claim_that_starts_to_hold_must_be_brought_up_to_date() -> None:
    with pytest.raises(ClaimError, match="expected_to_hold=False, but it holds now"):
        check("paper/claim", 0.5, "< 1", source="s", expected_to_hold=False)


def test_box_escapes_and_names_the_outcome() -> None:
    box = check("paper/claim", 0.5, "< 1", source="Thm <3>", note="a & b")._repr_html_()
    assert "Thm &lt;3&gt;" in box
    assert "a &amp; b" in box
    assert "holds" in box
    assert "http" not in box


def test_rows_are_recorded_only_where_the_build_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWLIB_CLAIMS_FILE", raising=False)
    check("paper/silent", 0.5, "< 1", source="s")
    place = tmp_path / "folder" / "claims.jsonl"
    monkeypatch.setenv("FLOWLIB_CLAIMS_FILE", str(place))
    monkeypatch.setenv("FLOWLIB_CHAPTER", "chapters/x")
    check("paper/one", [0.5, 0.6], "< 1", source="s", note="n")
    check("paper/two", 3.0, "< 1", source="s", expected_to_hold=False)
    with pytest.raises(ClaimError):
        check("paper/three", 3.0, "< 1", source="s")
    rows = [json.loads(line) for line in place.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["paper/one", "paper/two"]
    assert rows[0]["paper"] == "paper"
    assert rows[0]["chapter"] == "chapters/x"
    assert rows[1]["verdict"] == "not reproduced"


@pytest.mark.bad_input
class TestBadInput:
    @pytest.mark.parametrize("identity", ["claim", "Paper/claim", "paper/claim_1", "a/b/c", "paper/", " paper/claim"])
    def test_ids(self, identity: str) -> None:
        with pytest.raises(ValueError, match="id must look like paper-card/claim"):
            check(identity, 0.5, "< 1", source="s")

    @pytest.mark.parametrize("measured", [[], math.nan, [0.1, math.inf]])
    def test_measurements(self, measured) -> None:
        with pytest.raises(ValueError, match="paper/claim: measured must hold finite numbers"):
            check("paper/claim", measured, "< 1", source="s")

    @pytest.mark.parametrize("expected", ["1", "about 1", "< x", "== 1", "< 1 or > 2", ""])
    def test_expectations(self, expected: str) -> None:
        with pytest.raises(ValueError, match="expected must look like"):
            claims.parse_expectation(expected)

    def test_text_is_no_measurement(self) -> None:
        with pytest.raises(ValueError, match="measured must hold numbers"):
            check("paper/claim", "12", "< 20", source="s")
        with pytest.raises(ValueError, match="negative tolerance"):
            claims.parse_expectation("1 +- -0.1")

    def test_empty_range(self) -> None:
        with pytest.raises(ValueError, match="empty range"):
            claims.parse_expectation("2 .. 1")
