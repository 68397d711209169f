"""The recipe runs, writes what it says, and the shipped velocity networks are what the records claim."""

import json
from pathlib import Path

import pytest
import torch

from flowlib import data, metrics, solvers
from flowlib.recipes import digits_flow


def test_recipe_writes_weights_and_record_that_read_reads(tmp_path: Path) -> None:
    digits_flow.main(["--weak", "--steps", "40", "--every", "20", "--width", "16", "--out", str(tmp_path)])
    file = tmp_path / "digits_flow_weak.safetensors"
    record = json.loads(file.with_suffix(".json").read_text())
    assert (record["config"]["steps"], record["config"]["blocks"]) == (40, 1)
    assert record["best_step"] in (20, 40)
    field = digits_flow.read(file)
    assert field.predicts == "velocity"
    assert field.net.first.weight.shape == (16, 64)


def test_training_repeats_bit_for_bit() -> None:
    config = digits_flow.Config(steps=20, every=10, width=8, blocks=1)
    (one, first), (two, second) = (digits_flow.train(config) for _ in range(2))
    assert first == second
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_its_perceptron_the_network_is_exact_for_independent_gaussian_pixels() -> None:
    """With F = 0 the velocity is that of N(m, d^2) for each pixel, also at both ends of time."""
    net = digits_flow.FlowNet(width=8, blocks=1).double()
    torch.nn.init.zeros_(net.last[-1].weight)
    torch.nn.init.zeros_(net.last[-1].bias)
    generator = torch.Generator().manual_seed(0)
    net.mean.copy_(torch.randn(1, 8, 8, generator=generator))
    net.std.copy_(0.1 + torch.rand(1, 8, 8, generator=generator))
    t = torch.tensor([0.0, 0.3, 0.9, 1.0], dtype=torch.float64)
    at, m, d2 = t[:, None, None, None], net.mean, net.std**2
    x = torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64)
    rate = (at * d2 - (1 - at)) / (at**2 * d2 + (1 - at) ** 2)  # half the logarithmic derivative of the variance
    torch.testing.assert_close(net(x, t), m + rate * (x - at * m), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("weak", [False, True])
def test_shipped_field_beats_a_gaussian_fit_of_the_pixels(weak: bool) -> None:
    test, generator = data.digits.load("test"), torch.Generator().manual_seed(1)
    x1 = data.digits.dequantize(test.x, generator=generator)
    x0 = torch.randn(x1.shape, generator=generator)
    field, alone = digits_flow.load(weak=weak), digits_flow.load(weak=weak)
    torch.nn.init.zeros_(alone.net.last[-1].weight)
    torch.nn.init.zeros_(alone.net.last[-1].bias)
    for t in (0.1, 0.5, 0.9):
        xt = field.path.interpolate(x0, x1, t)
        errors = [float((which.velocity(xt, t, y=test.y) - (x1 - x0)).square().mean()) for which in (field, alone)]
        assert errors[0] < errors[1]


def test_shipped_field_draws_digits_of_the_class_asked_for_and_the_weak_one_worse_ones() -> None:
    y = torch.arange(200) % 10
    x0 = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    results = []
    for weak in (False, True):
        field = digits_flow.load(weak=weak)
        x = solvers.ode(field, x0, steps=20, method="heun", keep=False, y=y).end.clamp(-1, 1)
        results.append((metrics.digits.frechet(x, data.digits.load("test").x), metrics.digits.accuracy(x, y)))
    assert results[0][0] < 6
    assert results[0][1] > 0.95
    assert results[1][0] > 2 * results[0][0]
    assert 0.3 < results[1][1] < results[0][1]


@pytest.mark.parametrize("weak", [False, True])
def test_shipped_files_are_small_and_say_how_they_were_made(weak: bool) -> None:
    file = digits_flow.WEIGHTS / f"digits_flow{'_weak' if weak else ''}.safetensors"
    record = json.loads(file.with_suffix(".json").read_text())
    assert file.stat().st_size < 1.1e6
    assert record["command"] == "python -m flowlib.recipes.digits_flow" + (" --weak" if weak else "")
    assert record["loss"]["test"] < record["loss"]["train"] + 0.08


@pytest.mark.bad_input
def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run python -m flowlib\.recipes\.digits_flow"):
        digits_flow.read(tmp_path / "nothing.safetensors")
