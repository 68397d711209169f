"""A distributed run is a function of its settings: not of the number of processes, the strategy or interruptions."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed")

sys.path.insert(0, str(Path(__file__).parent))
import distributed_worker as worker

from flowlib import nets
from flowlib.training import distributed, randomness, sharded
from flowlib.training.distributed import Run, read_log

WORKER = Path(__file__).with_name("distributed_worker.py")


def launch(*runs: dict, processes: int) -> subprocess.CompletedProcess[str]:
    """Call the worker in processes of its own, one after another on the same ones."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    if processes == 1:
        command = [sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parents[2]), "PYTHONWARNINGS": "ignore"}
    command += [str(WORKER), json.dumps(runs)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, by one process, never interrupted."""
    out = tmp_path_factory.mktemp("reference")
    assert worker.run({"out": str(out)}) == {"step": 12, "finished": True}
    return out


def assert_same_run(one: Path, two: Path, tolerance: float) -> None:
    a, b = read_log(one), read_log(two)
    assert a["step"] == b["step"] == list(range(1, 13))
    assert a["lr"] == b["lr"]
    torch.testing.assert_close(torch.tensor(a["loss"]), torch.tensor(b["loss"]), rtol=tolerance, atol=tolerance)
    first, second = (load_file(out / "weights.safetensors") for out in (one, two))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=20 * tolerance, atol=20 * tolerance, msg=name)


@pytest.mark.slow
def test_two_processes_and_sharded_weights_give_the_curve_of_one_process(reference: Path, tmp_path: Path) -> None:
    done = launch(
        {"out": str(tmp_path / "ddp")},
        {"out": str(tmp_path / "fsdp"), "strategy": "fsdp", "checkpoint_activations": True},
        {"out": str(tmp_path / "bf16"), "strategy": "fsdp", "precision": "bf16"},
        processes=2,
    )
    assert done.returncode == 0, done.stderr
    for strategy in ("ddp", "fsdp"):
        assert_same_run(reference, tmp_path / strategy, 1e-5)
    exact, rounded = (torch.tensor(read_log(out)["loss"]) for out in (reference, tmp_path / "bf16"))
    assert 0 < float((exact - rounded).abs().max()) < 0.02 * float(exact.mean())
    assert max(read_log(reference)["loss"]) > 1.1 * min(read_log(reference)["loss"])  # the steps differ


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(reference: Path, tmp_path: Path) -> None:
    """SIGKILL at a random read of the data; the same command then ends as if nothing had happened."""
    at = random.Random(os.getpid()).randint(22, 47)  # four reads a step; the first checkpoint is after step 5
    killed = launch({"out": str(tmp_path), "action": "kill", "at": at}, processes=1)
    assert killed.returncode == -signal.SIGKILL, f"at {at}: {killed.stderr}"
    assert not (tmp_path / "weights.safetensors").exists()
    assert worker.run({"out": str(tmp_path)}) == {"step": 12, "finished": True}
    assert_same_run(reference, tmp_path, 0.0)


@pytest.mark.slow
def test_sigterm_saves_and_another_number_of_processes_goes_on(reference: Path, tmp_path: Path) -> None:
    """Two sharded processes are asked to stop through one of them; one process finishes the run."""
    stopped = launch({"out": str(tmp_path), "action": "stop", "at": 6, "strategy": "fsdp"}, processes=2)
    assert stopped.returncode == 0, stopped.stderr
    first = json.loads(stopped.stdout.splitlines()[-1])
    assert not first["finished"]
    assert 0 < first["step"] < 5  # stopped at once, not at the next scheduled checkpoint
    assert (tmp_path / "checkpoints" / f"step-{first['step']:09d}").is_dir()
    assert worker.run({"out": str(tmp_path)}) == {"step": 12, "finished": True}
    assert_same_run(reference, tmp_path, 1e-5)


def test_a_finished_run_is_not_done_again(reference: Path) -> None:
    before = (reference / "log.jsonl").read_bytes()
    assert worker.run({"out": str(reference)}) == {"step": 12, "finished": True}
    assert (reference / "log.jsonl").read_bytes() == before


def test_half_a_checkpoint_is_not_looked_at(reference: Path, tmp_path: Path) -> None:
    """What was being written when the process died stands under another name."""
    (tmp_path / "checkpoints" / ".step-000000009.part").mkdir(parents=True)
    worker.run({"out": str(tmp_path)})
    assert_same_run(reference, tmp_path, 0.0)


def test_activation_checkpoints_are_gone_after_training(tmp_path: Path) -> None:
    """Each block runs once in a forward and backward pass again; in training it ran twice."""
    network, calls = nets.DiT(width=32, depth=2, heads=2, classes=10), []
    for block in network.blocks:
        block.attention.register_forward_hook(lambda *_: calls.append(1))
    settings = Run(**{**worker.DEFAULTS, "out": tmp_path, "steps": 1, "checkpoint_activations": True})
    objective = worker.objectives.flow_matching
    distributed.train(
        network,
        lambda net: objective(worker.fields.NetworkField(net, worker.paths.linear())),
        worker.Digits(None, 0),
        settings,
    )
    assert len(calls) == 2 * 2 * settings.micro_batches
    calls.clear()
    network(torch.zeros(1, 1, 8, 8), torch.zeros(1), y=torch.zeros(1, dtype=torch.long)).sum().backward()
    assert len(calls) == 2


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    worker.run({"out": str(tmp_path), "save_every": 2, "keep": 3, "steps": 8})
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000004", "step-000000006", "step-000000008"]


def test_micro_batches_accumulate_to_the_mean_gradient(tmp_path: Path) -> None:
    """One step of plain SGD-like bookkeeping by hand: the logged norm is that of the mean over micro-batches."""
    worker.run({"out": str(tmp_path), "steps": 1, "warmup": 0})
    logged = read_log(tmp_path)
    settings = Run(**{**worker.DEFAULTS, "steps": 1})
    torch.manual_seed(0)
    network = nets.DiT(width=32, depth=2, heads=2, classes=10)
    for layer in network.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=0.02)
    images, losses = worker.data.digits.load("train"), []
    objective = worker.objectives.flow_matching(
        worker.fields.NetworkField(network, worker.paths.linear()), drop_condition=0.1
    )
    for micro in range(settings.micro_batches):
        generator = torch.Generator().manual_seed(randomness.seed_of(0, 0, micro))
        index = randomness.order(len(images), 0, micro * 8, 8)
        x1 = images.x[index]
        x0 = torch.randn(x1.shape, generator=generator)
        losses.append(objective(x0, x1, generator=generator, y=images.y[index]).total)
    mean = torch.stack(losses).mean()
    mean.backward()
    norm = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm()
    assert logged["loss"][0] == pytest.approx(mean.item(), rel=1e-5)
    assert logged["grad_norm"][0] == pytest.approx(float(norm), rel=1e-5)


def test_reading_order_visits_every_item_once_an_epoch_and_depends_on_the_seed() -> None:
    seen = randomness.order(10, 3, 0, 20)
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert randomness.order(10, 4, 0, 10) != seen[:10]
    assert [place for first in range(0, 20, 4) for place in randomness.order(10, 3, first, 4)] == seen


def test_activation_checkpoints_do_not_change_the_run(reference: Path, tmp_path: Path) -> None:
    worker.run({"out": str(tmp_path), "checkpoint_activations": True})
    assert_same_run(reference, tmp_path, 1e-6)


@pytest.mark.slow
def test_a_compiled_network_is_one_graph_and_the_run_is_the_same(reference: Path, tmp_path: Path) -> None:
    """The graph runs as it was traced: generating code for it would take half a minute."""
    done = launch({"out": str(tmp_path), "compile": True, "action": "trace"}, processes=1)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"step": 12, "finished": True, "graphs": 1}
    assert_same_run(reference, tmp_path, 1e-6)


def test_bf16_follows_fp32(reference: Path, tmp_path: Path) -> None:
    worker.run({"out": str(tmp_path), "precision": "bf16"})
    a, b = (torch.tensor(read_log(out)["loss"]) for out in (reference, tmp_path))
    assert float((a - b).abs().max()) < 0.02 * float(a.mean())
    assert float((a - b).abs().max()) > 0  # autocast was on


def test_tensorboard_gets_the_losses(reference: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(reference / "tensorboard")).Reload()
    assert {"loss", "grad_norm", "lr", "samples_per_second"} <= set(events.Tags()["scalars"])
    logged = {event.step: event.value for event in events.Scalars("loss")}
    assert logged[12] == pytest.approx(read_log(reference)["loss"][-1], rel=1e-6)


def test_flops_are_those_of_the_matrix_products() -> None:
    """Twice the multiply-adds of each product; attention adds two products of tokens by tokens."""
    net = nets.DiT(size=8, patch=2, width=32, depth=1, heads=2)
    tokens, width = 16, 32
    per_token = 4 * width + 4 * width**2 + 8 * width**2 + 4 * width + 2 * tokens * width
    counted = distributed.count_flops(net, torch.zeros(3, 1, 8, 8), torch.zeros(3))
    conditioning = 2 * (8 * width**2 + 2 * net.time.layers[0].weight.numel() // 2 + net.time.layers[2].weight.numel())
    assert counted == pytest.approx(2 * tokens * per_token + conditioning, rel=1e-6)


def test_the_price_is_three_forward_passes_at_the_stated_utilisation() -> None:
    assert distributed.gpu_hours(1e9, 3600, peak=1e12, utilisation=0.5) == pytest.approx(3 * 1e9 / (1e12 * 0.5))


@pytest.mark.bad_input
def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="micro_batch must divide batch_size, got 7 and 32"):
        Run(batch_size=32, micro_batch=7)
    with pytest.raises(ValueError, match="lr must be positive"):
        Run(lr=0.0)
    with pytest.raises(ValueError, match=r"ema must lie in \[0, 1\)"):
        Run(ema=1.0)
    with pytest.raises(ValueError, match="strategy must be one of"):
        Run(strategy="dp")
    with pytest.raises(ValueError, match="warmup must not be negative"):
        Run(warmup=-1)
    with pytest.raises(ValueError, match="utilisation must lie"):
        distributed.gpu_hours(1.0, 1.0, peak=1.0, utilisation=40.0)


@pytest.mark.bad_input
def test_bad_runs_stop_before_any_work(tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = {"out": str(tmp_path / "run")}
    with pytest.raises(ValueError, match="fewer than one micro-batch of 4096"):
        worker.run({**fine, "batch_size": 4096, "micro_batch": 4096})
    with pytest.raises(ValueError, match="network must have a list `blocks`"):
        distributed.train(nn.Linear(2, 2), lambda net: None, [0] * 99, Run(**{**worker.DEFAULTS, "strategy": "fsdp"}))
    with pytest.raises(ValueError, match=r"was written with lr=0\.001, this run has 0\.01"):
        worker.run({"out": str(reference), "lr": 0.01})
    with pytest.raises(ValueError, match="holds another network"):
        worker.run({"out": str(reference), "net": {"width": 16}})
    monkeypatch.setattr(sharded.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="for 2 checkpoints, the disk has 1e-06 GB"):
        worker.run(fine)
    assert not (tmp_path / "run").exists()


@pytest.mark.bad_input
def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    worker.run({"out": str(tmp_path), "steps": 12, "keep": 1})
    (data,) = (tmp_path / "checkpoints" / "step-000000012").glob("*.distcp")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(ValueError, match="step-000000012 is damaged"):
        worker.run({"out": str(tmp_path), "steps": 12, "keep": 1})


@pytest.mark.bad_input
def test_a_loss_that_is_not_finite_stops_the_run_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"the loss is .* at step \d+; lower lr"):
        worker.run({"out": str(tmp_path), "lr": 1e12, "warmup": 0, "clip": 0.0})
    assert not list((tmp_path / "checkpoints").glob("step-*"))


@pytest.mark.bad_input
def test_processes_that_do_not_share_the_batch_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    class Three:
        world_size = 3

        def __init__(self, **options: object) -> None: ...

        def launch(self) -> None: ...

    monkeypatch.setattr("lightning_fabric.Fabric", Three)
    with pytest.raises(ValueError, match="3 processes do not share 4 micro-batches evenly"):
        distributed.connect(Run(**worker.DEFAULTS))
