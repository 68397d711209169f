"""The recipe runs, writes what it says, and the shipped fields are what the records claim."""

import json
from pathlib import Path

import pytest
import torch

from flowlib import data, metrics, solvers
from flowlib.recipes import digits_scores

NAMES = list(digits_scores.PATHS)
FRECHET = 8.0


def test_recipe_writes_weights_and_record_that_load_reads(tmp_path: Path) -> None:
    small = ["--steps", "40", "--every", "20", "--width", "16", "--blocks", "1"]
    digits_scores.main(["sub_vp", *small, "--out", str(tmp_path)])
    file = tmp_path / "digits_score_sub_vp.safetensors"
    record = json.loads(file.with_suffix(".json").read_text())
    assert record["config"]["steps"] == 40
    assert record["best_step"] in (20, 40)
    assert record["loss"].keys() == {"train", "held_out", "test"}
    field = digits_scores.read(file)
    assert field.net.first.weight.shape == (16, 64)
    x = torch.zeros(2, 1, 8, 8)
    assert bool(torch.isfinite(field.score(x, 0.5)).all())


def test_training_repeats_bit_for_bit_and_keeps_the_best_weights() -> None:
    config = digits_scores.Config(steps=30, every=10, width=8, blocks=1)
    (one, first), (two, second) = (digits_scores.train("vp", config) for _ in range(2))
    assert first == second
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_its_perceptron_the_network_is_exact_for_independent_gaussian_pixels() -> None:
    """With F = 0 the noise is that of N(m, d^2) for each pixel: -sigma times the exact score."""
    for name, make in digits_scores.PATHS.items():
        path = make()
        net = digits_scores.ScoreNet(path, width=8, blocks=1)
        torch.nn.init.zeros_(net.last[-1].weight)
        torch.nn.init.zeros_(net.last[-1].bias)
        generator = torch.Generator().manual_seed(0)
        net.mean.copy_(torch.randn(1, 8, 8, generator=generator))
        net.std.copy_(0.1 + torch.rand(1, 8, 8, generator=generator))
        t = torch.tensor([0.0, 0.3, 0.9])
        alpha, sigma = (f(t)[:, None, None, None] for f in (path.schedule.alpha, path.schedule.sigma))
        x = alpha * net.mean + torch.randn(3, 1, 8, 8, generator=generator) * (alpha + sigma)
        exact = sigma * (x - alpha * net.mean) / (alpha**2 * net.std**2 + sigma**2)
        torch.testing.assert_close(net(x, t), exact, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_field_is_small_and_has_the_recorded_loss(name: str) -> None:
    """The test loss of the float16 weights, with fresh noise, is the recorded one."""
    file = digits_scores.WEIGHTS / f"digits_score_{name}.safetensors"
    record = json.loads(file.with_suffix(".json").read_text())
    assert file.stat().st_size < 1.1e6
    assert record["command"] == f"python -m flowlib.recipes.digits_scores {name}"
    assert record["loss"]["test"] < record["loss"]["train"] + 0.03
    assert digits_scores.load(name).predicts == "noise"


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_shipped_field_beats_a_gaussian_fit_of_the_pixels(name: str, t: float) -> None:
    test, generator = data.digits.load("test"), torch.Generator().manual_seed(1)
    x1 = data.digits.dequantize(test.x, generator=generator)
    x0 = torch.randn(x1.shape, generator=generator)
    field, alone = digits_scores.load(name), digits_scores.load(name)
    torch.nn.init.zeros_(alone.net.last[-1].weight)
    torch.nn.init.zeros_(alone.net.last[-1].bias)
    xt = field.path.interpolate(x0, x1, t)
    errors = [float((which.noise(xt, t, y=test.y) - x0).square().mean()) for which in (field, alone)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_field_draws_digits_of_the_class_asked_for(name: str) -> None:
    field, y = digits_scores.load(name), torch.arange(200) % 10
    generator = torch.Generator().manual_seed(0)
    x = solvers.predictor_corrector(
        field, field.path.sample_prior((200, 1, 8, 8), generator=generator),
        times=torch.linspace(0, digits_scores.END, 61), predictor="ancestral", corrector_steps=0,
        generator=generator, keep=False, y=y,
    ).end.clamp(-1, 1)  # fmt: skip
    assert metrics.digits.frechet(x, data.digits.load("test").x) < FRECHET
    assert metrics.digits.accuracy(x, y) > 0.9


@pytest.mark.bad_input
def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name must be one of"):
        digits_scores.load("edm")
    with pytest.raises(FileNotFoundError, match=r"run python -m flowlib\.recipes\.digits_scores"):
        digits_scores.read(tmp_path / "nothing.safetensors")
