"""The recipe runs, writes what it says, and the shipped weights are what the record claims."""

import json
from pathlib import Path

import pytest
import torch

from flowlib import data
from flowlib.metrics import digits
from flowlib.recipes import digits_classifier


def test_recipe_writes_weights_and_record(tmp_path: Path) -> None:
    out = tmp_path / "classifier.safetensors"
    digits_classifier.main(["--steps", "150", "--out", str(out)])
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["config"]["steps"] == 150
    assert record["test_accuracy"] > 0.8
    assert out.stat().st_size < 300_000


def test_shipped_weights_have_the_recorded_accuracy() -> None:
    record = json.loads(digits.WEIGHTS.with_suffix(".json").read_text())
    test = data.digits.load("test")
    assert digits.accuracy(test.x, test.y) == pytest.approx(record["test_accuracy"], abs=1e-3)
    assert record["command"] == "python -m flowlib.recipes.digits_classifier"


def test_augmentation_moves_by_at_most_a_pixel() -> None:
    x = -torch.ones(200, 1, 8, 8)
    x[:, :, 4, 4] = 1.0
    moved = digits_classifier._augmented(x, 0.0, torch.Generator().manual_seed(0))
    places = (moved[:, 0] == 1.0).nonzero()[:, 1:]
    assert len(places) == 200
    assert set(map(tuple, places.tolist())) == {(i, j) for i in (3, 4, 5) for j in (3, 4, 5)}
