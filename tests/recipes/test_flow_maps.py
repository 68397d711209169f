"""The recipe runs, writes what it says, and the shipped maps jump better than an Euler step."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from flowlib import data, metrics, solvers
from flowlib.recipes import digits_flow, flow_maps


def test_checkerboard_recipe_writes_weights_and_a_record(tmp_path: Path) -> None:
    flow_maps.main(["checkerboard", "--steps", "20", "--out", str(tmp_path)])
    file = tmp_path / "flow_maps_checkerboard.safetensors"
    record = json.loads(file.with_suffix(".json").read_text())
    assert record["config"]["steps"] == 20
    assert record["runs"].keys() == set(flow_maps.METHODS)
    assert len(record["runs"]["eulerian"]["2"]["largest_grad_norm"]) == 1
    ends = [flow_maps.read_board(file, "progressive", seed).flow(torch.ones(1, 2), 0.0, 1.0) for seed in (0, 1)]
    assert not torch.allclose(*ends)


def test_training_repeats_bit_for_bit() -> None:
    config = flow_maps.Board(steps=5, batch_size=16, width=8)
    (one, first), (two, second) = (flow_maps.train_board("annealed", 3, config) for _ in range(2))
    assert first.loss == second.loss
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_digit_map_starts_as_its_teacher_on_the_diagonal() -> None:
    flow_map, teacher = flow_maps.DigitMap(), digits_flow.load()
    missing = flow_map.load_state_dict(teacher.net.state_dict(), strict=False).missing_keys
    assert missing
    assert all(key.startswith("gap.") for key in missing)
    x, y = torch.randn(5, 1, 8, 8), torch.tensor([0, 3, 5, 9, -1])
    t = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    torch.testing.assert_close(flow_map.eval()(x, t, t, y=y), teacher.velocity(x, t, y=y), rtol=1e-4, atol=1e-5)


def test_digit_recipe_writes_weights_and_a_record(tmp_path: Path) -> None:
    flow_maps.main(["digits", "--steps", "2", "--out", str(tmp_path)])
    file = tmp_path / "flow_maps_digits.safetensors"
    record = json.loads(file.with_suffix(".json").read_text())
    assert record["config"] == asdict(replace(flow_maps.DIGITS, steps=2))
    assert flow_maps.read_digits(file).flow(torch.zeros(2, 1, 8, 8), 0.0, 1.0).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("method", [m for m in flow_maps.METHODS if m != "flow"])
def test_one_jump_of_a_shipped_map_is_on_the_board_where_an_euler_step_is_not(method: str) -> None:
    board = data.toys.checkerboard()
    x0 = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    jump = solvers.jumps(flow_maps.load_board(method, 0), x0, steps=1).end
    euler = solvers.ode(flow_maps.load_board("flow", 0), x0, steps=1, keep=False).end
    reference = board.sample(4000, generator=torch.Generator().manual_seed(1))
    distances = [
        metrics.sliced_wasserstein2(x, reference, generator=torch.Generator().manual_seed(2)) for x in (jump, euler)
    ]
    assert distances[0] < 0.3 * distances[1]
    off = [float((board.log_prob(x) == -math.inf).double().mean()) for x in (jump, euler)]
    assert off[0] < off[1] - 0.1


def test_one_jump_of_the_shipped_digit_map_beats_one_euler_step_of_its_teacher() -> None:
    y = torch.arange(300) % 10
    x0 = torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    jump = solvers.jumps(flow_maps.load_digits(), x0, steps=1, y=y).end.clamp(-1, 1)
    euler = solvers.ode(digits_flow.load(), x0, steps=1, keep=False, y=y).end.clamp(-1, 1)
    test = data.digits.load("test")
    assert metrics.digits.frechet(jump, test.x) < 0.8 * metrics.digits.frechet(euler, test.x)
    assert metrics.digits.accuracy(jump, y) > 0.7


@pytest.mark.parametrize("name", ["checkerboard", "digits"])
def test_shipped_files_are_small_and_say_how_they_were_made(name: str) -> None:
    file = flow_maps.WEIGHTS / f"flow_maps_{name}.safetensors"
    assert file.stat().st_size < 1.3e6
    assert flow_maps.record(name)["command"] == f"python -m flowlib.recipes.flow_maps {name}"


@pytest.mark.bad_input
def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="method must be one of"):
        flow_maps.load_board("newton", 0)
    with pytest.raises(ValueError, match=r"seed must be one of \(0, 1, 2\), got 7"):
        flow_maps.load_board("lagrangian", 7)
    with pytest.raises(FileNotFoundError, match=r"run python -m flowlib\.recipes\.flow_maps"):
        flow_maps.read_digits(tmp_path / "nothing.safetensors")
