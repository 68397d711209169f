"""The next-token recipe runs end to end, alone and on two processes, with one loss curve."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed")
pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from flowlib import fields, nets, paths, solvers
from flowlib.data.shards import Shards
from flowlib.recipes import imagenet_ar
from flowlib.training.distributed import read_log

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole pipeline by one process."""
    folder = tmp_path_factory.mktemp("smoke-ar") / "one"
    imagenet_ar.main(["--smoke", str(folder)])
    return folder


@pytest.mark.slow
def test_two_processes_give_the_curve_the_samples_and_the_figures_of_one(one: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "flowlib.recipes.imagenet_ar", "--smoke", str(tmp_path / "two")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    a, b = (torch.tensor(read_log(folder / "run")["loss"]) for folder in (one, tmp_path / "two"))
    assert len(a) == 12
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    first, second = (Shards(folder / "samples") for folder in (one, tmp_path / "two"))
    mine, theirs = (shards.__getitems__(list(range(48))) for shards in (first, second))
    assert len(second.files) == 2  # each process wrote its own
    order = theirs["number"].argsort()
    assert torch.equal(mine["y"], theirs["y"][order])
    assert int((mine["image"].int() - theirs["image"][order].int()).abs().max()) <= 1  # rounding to 8 bits


def test_smoke_run_resumed_once_and_left_what_it_should(one: Path) -> None:
    log = read_log(one / "run")
    assert log["step"] == list(range(1, 13))
    assert log["loss"][-1] < log["loss"][0]
    assert {path.name for path in (one / "run" / "checkpoints").iterdir()} == {"step-000000006", "step-000000012"}
    record = json.loads((one / "run" / "weights.json").read_text())
    assert (record["recipe"], record["step"], record["config"]["model"]["draws"]) == ("imagenet_ar", 12, 2)
    figures = json.loads((one / "samples" / "evaluation.json").read_text())
    assert (figures["samples"], figures["reference"]) == (48, 96)
    assert figures["fid"] > 0


def test_a_run_with_a_break_is_bit_for_bit_the_run_without(one: Path, tmp_path: Path) -> None:
    record = json.loads((one / "run" / "weights.json").read_text())["config"]
    run = imagenet_ar.Run(**{**record["run"], "out": tmp_path / "whole"})
    config = imagenet_ar.Config(one / "latents", imagenet_ar.Model(**record["model"]), run=run)
    imagenet_ar.train(config)
    assert read_log(tmp_path / "whole")["loss"] == read_log(one / "run")["loss"]


def small() -> nets.NextToken:
    torch.manual_seed(0)
    net = nets.NextToken(size=4, channels=1, patch=2, width=16, depth=1, heads=2, head_width=16, classes=3)
    for parameter in net.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    return net.double().requires_grad_(False)


def by_hand(net: nets.NextToken, x0: torch.Tensor, y: torch.Tensor, guidance: float) -> torch.Tensor:
    """Token by token, without a cache: the parallel pass on what is finished, and Euler steps written out."""
    tokens = torch.zeros_like(x0)
    for i in range(4):
        known, blind = net.conditions(tokens, y)[:, i], net.conditions(tokens)[:, i]
        x = x0[:, i]
        for k in range(5):
            t = torch.tensor(k / 5, dtype=x.dtype)
            with_class, without = net.head(x, t, known), net.head(x, t, blind)
            x = x + (without + guidance * (with_class - without)) / 5
        tokens = tokens.index_copy(1, torch.tensor([i]), x[:, None])
    return net.images(tokens)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_decoding_is_the_definition_step_by_step(guidance: float) -> None:
    net, y = small(), torch.tensor([0, 2, 1])
    x0 = torch.randn(3, 4, 4, dtype=torch.float64)
    found = imagenet_ar.decode(net, x0, y, steps=5, method="euler", guidance=guidance)
    torch.testing.assert_close(found, by_hand(net, x0, y, guidance), rtol=1e-10, atol=1e-10)


def test_first_tokens_do_not_know_the_later_noise() -> None:
    net, y = small(), torch.tensor([1])
    x0 = torch.randn(1, 4, 4, dtype=torch.float64)
    other = torch.cat([x0[:, :2], torch.randn(1, 2, 4, dtype=torch.float64)], 1)
    a, b = (imagenet_ar.decode(net, noise, y, steps=3) for noise in (x0, other))
    assert torch.equal(a[..., :2, :], b[..., :2, :])
    assert not torch.equal(a[..., 2:, :], b[..., 2:, :])


def test_the_head_alone_is_a_field() -> None:
    net = small()
    field = fields.NetworkField(net.head, paths.linear())
    x0, z = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 16, dtype=torch.float64)
    assert solvers.ode(field, x0, steps=3, method="heun", keep=False, z=z).nfe == 6


@pytest.mark.parametrize(("preset", "blocks"), [("ar-b", 24), ("ar-l", 32), ("ar-h", 40)])
def test_presets_have_the_size_their_formula_says(preset: str, blocks: int) -> None:
    """12 W^2 + 13 W a transformer block, 6 W^2 + 6 W its modulation; 5 V^2 + 5 V a head block of width V."""
    model = imagenet_ar.PRESETS[preset][1].model
    found = imagenet_ar.estimate(preset)
    w, v, d = model.width, model.head_width, 16
    body = blocks * (18 * w**2 + 15 * w) + 1001 * w + (d + 1) * w + 2 * w
    head = model.head_depth * (5 * v**2 + 5 * v) + (w + 1) * v + (d + 1) * v + 2 * v * (v + 1) + (v + 1) * d
    head += (2 * 16 + 1) * v + (v + 1) * v  # embedding of time
    assert found["parameters"] == body + head


def test_estimate_counts_the_products() -> None:
    """Two operations a multiply-add: 12 W^2 a token and block, 2 T W for attention, 6 W^2 an image for modulation."""
    model = imagenet_ar.PRESETS["ar-l"][1].model
    w, v, tokens, d, draws = model.width, model.head_width, 256, 16, 4
    block = 12 * w**2 * tokens + 2 * tokens**2 * w + 6 * w**2
    head = model.head_depth * 5 * v**2 + w * v + d * v + 2 * v**2 + v * d + 32 * v + v**2
    expected = 2 * (model.depth * block + tokens * d * w + draws * tokens * head)
    assert imagenet_ar.estimate("ar-l")["forward_flops"] == pytest.approx(expected, rel=1e-3)


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        imagenet_ar.main(["train", "ar-l", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in ("(default: 2048)", "Width of the flow head.", "--run.steps INT"):
        assert text in shown


@pytest.mark.bad_input
def test_bad_input(one: Path, tmp_path: Path) -> None:
    few = imagenet_ar.Model(size=16, channels=3, patch=4, width=16, depth=1, heads=2, classes=3)
    with pytest.raises(ValueError, match="has 4 classes, the model knows 3"):
        imagenet_ar.train(imagenet_ar.Config(one / "latents", few))
    with pytest.raises(ValueError, match=r"has latents \[3, 16, 16\], the model takes \[4, 32, 32\]"):
        imagenet_ar.train(imagenet_ar.Config(one / "latents"))
    with pytest.raises(FileNotFoundError, match=r"weights .* is missing"):
        imagenet_ar.sample(tmp_path / "weights.safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match="preset must be one of ar-b, ar-l, ar-h"):
        imagenet_ar.estimate("ar-xl")
    weights = one / "run" / "weights.safetensors"
    with pytest.raises(ValueError, match=r"count must .*0"):
        imagenet_ar.sample(weights, tmp_path / "out", count=0)
    record = json.loads((one / "run" / "weights.json").read_text())
    (tmp_path / "weights.safetensors").write_bytes(weights.read_bytes())
    (tmp_path / "weights.json").write_text(json.dumps({**record, "recipe": "imagenet_flow"}))
    with pytest.raises(ValueError, match="made by the recipe 'imagenet_flow', not by 'imagenet_ar'"):
        imagenet_ar.load(tmp_path / "weights.safetensors")
    net = small()
    x0 = torch.zeros(2, 4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"x0 must have shape \[n, 4, 4\]"):
        imagenet_ar.decode(net, x0[:, :3])
    with pytest.raises(ValueError, match="y must be given with guidance"):
        imagenet_ar.decode(net, x0, guidance=2.0)
