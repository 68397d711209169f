"""Training: resumed runs are equal bit for bit, averages are what they say, checkpoints are whole or refused."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flowlib import data, fields, nets, objectives, paths, training
from flowlib.distributions import Normal
from flowlib.training import EMA, checkpoint


class Dropped(nn.Module):
    """A network with dropout, whose masks come from torch's global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.MLP(dim=2, width=16, depth=2)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(self.dropout(x), t)


def run(seed: int = 0, dropout: bool = False, **options) -> tuple[nn.Module, training.History]:
    torch.manual_seed(seed)
    field = fields.NetworkField(Dropped() if dropout else nets.MLP(dim=2, width=16, depth=2), paths.linear())
    settings = {"steps": 60, "batch_size": 16, "seed": seed} | options
    history = training.fit(
        field, objectives.flow_matching(field), source=Normal(2).sample, target=data.toys.moons().sample, **settings
    )
    return field, history


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("stop", [1, 30, 59])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path: Path, stop: int, dropout: bool) -> None:
    whole, history = run(dropout=dropout)
    path = tmp_path / "run.safetensors"
    run(dropout=dropout, checkpoint=path, until=stop)
    torch.manual_seed(1234)  # whatever else happened in between
    torch.rand(7)
    field = fields.NetworkField(Dropped() if dropout else nets.MLP(dim=2, width=16, depth=2), paths.linear())
    resumed = training.fit(
        field, objectives.flow_matching(field), source=Normal(2).sample, target=data.toys.moons().sample,
        steps=60, batch_size=16, seed=0, checkpoint=path,
    )  # fmt: skip
    assert resumed.loss == history.loss
    assert resumed.grad_norm == history.grad_norm
    assert equal(field, whole)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    first, history = run(checkpoint=path)
    content = path.read_bytes()
    second, again = run(checkpoint=path)
    assert equal(first, second)
    assert again.loss == history.loss
    assert path.read_bytes() == content


def test_one_seed_gives_one_run_and_another_seed_another() -> None:
    a, b, c = run()[1].loss, run()[1].loss, run(seed=1)[1].loss
    assert a == b
    assert a != c


def test_the_default_optimiser_is_adam_to_rounding() -> None:
    ours, _ = run(ema=None)
    textbook, _ = run(ema=None, optimizer=lambda parameters: torch.optim.Adam(parameters, fused=False, foreach=False))
    torch.testing.assert_close(ours.state_dict(), textbook.state_dict(), rtol=1e-4, atol=1e-6)


def test_the_loss_falls_towards_its_floor() -> None:
    _, history = run(steps=400, batch_size=128, lr=3e-3)
    smoothed = history.smoothed(50)
    assert float(smoothed[-1]) < 0.9 * float(smoothed[49])
    assert history.steps == 400
    assert history.seconds > 0


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            norms = [p.grad.norm() for group in self.param_groups for p in group["params"]]
            seen.append(float(torch.stack(norms).norm()))
            return super().step(closure)

    _, history = run(steps=5, clip=0.01, optimizer=lambda parameters: Recorder(parameters, lr=1e-3))
    assert max(seen) <= 0.01 * 1.001
    assert min(history.grad_norm) > 0.01  # recorded before clipping


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_learning_rates_follow_the_schedule(schedule: str) -> None:
    rates = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    run(steps=10, lr=0.1, schedule=schedule, warmup=4, optimizer=lambda parameters: Recorder(parameters, lr=1.0))
    assert rates[0] == pytest.approx(0.025)
    if schedule == "constant":
        assert rates[4:] == [0.1] * 6
    else:
        assert rates[5] == pytest.approx(0.05)
        assert all(a > b for a, b in itertools.pairwise(rates[4:]))


def test_average_is_the_stated_recursion() -> None:
    net = nn.Linear(1, 1, bias=False)
    ema = EMA(net, decay=0.5)
    expected = float(net.weight)
    for k in range(20):
        with torch.no_grad():
            net.weight.copy_(torch.tensor([[float(k)]]))
        ema.update()
        decay = min(0.5, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * k
    assert float(ema.state["weight"]) == pytest.approx(expected, rel=1e-5)


def test_average_is_used_inside_the_block_only() -> None:
    net = nn.BatchNorm1d(2)
    ema = EMA(net, decay=0.9)
    with torch.no_grad():
        net.weight.add_(1.0)
    net.num_batches_tracked += 5
    ema.update()
    before = net.weight.clone()
    with ema.applied():
        assert not torch.equal(net.weight, before)
        assert int(net.num_batches_tracked) == 5
    assert torch.equal(net.weight, before)


def test_network_ends_with_the_average() -> None:
    field, history = run(ema=0.9)
    assert history.ema is not None
    assert all(torch.equal(v, history.ema.state[k]) for k, v in field.state_dict().items())
    assert not field.training


def test_conditions_reach_the_objective() -> None:
    labels = []

    net = nn.Linear(1, 1)
    digits = data.digits.load("test")

    def fresh(x0, x1, *, generator=None, y):
        labels.append(y)
        return objectives.Loss((net.weight.sum() * x1.mean() - 1).square() + 0 * net.bias.sum())

    training.fit(net, fresh, source=Normal((1, 8, 8)).sample, target=digits.sample, steps=2, batch_size=8)
    assert [y.shape for y in labels] == [(8,), (8,)]


def test_checkpoints_keep_nested_states_exactly(tmp_path: Path) -> None:
    state = {
        "a": torch.randn(3, 2), "n": {1: [torch.arange(3), None, True], "f": 0.1, "s": "text"},
        "empty": torch.zeros(0), "scalar": torch.tensor(2.5, dtype=torch.float64), "bytes": torch.arange(9).byte(),
    }  # fmt: skip
    checkpoint.save(tmp_path / "c", state)
    back = checkpoint.load(tmp_path / "c")
    assert torch.equal(back["a"], state["a"])
    assert torch.equal(back["n"][1][0], torch.arange(3))
    assert back["n"][1][1:] == [None, True]
    assert back["n"]["f"] == 0.1
    assert back["scalar"].dtype == torch.float64
    assert torch.equal(back["bytes"], state["bytes"])


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    checkpoint.save(path, {"step": 1})

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.bad_input
class TestBadInput:
    @pytest.mark.parametrize("keep", [0, 5, 100, -1])
    def test_truncated_checkpoint_changes_nothing(self, tmp_path: Path, keep: int) -> None:
        path = tmp_path / "run.safetensors"
        run(steps=4, checkpoint=path)
        content = path.read_bytes()
        path.write_bytes(content[:keep])
        field = fields.NetworkField(nets.MLP(dim=2, width=16, depth=2), paths.linear())
        before = {k: v.clone() for k, v in field.state_dict().items()}
        with pytest.raises(ValueError, match="truncated or damaged"):
            training.fit(
                field, objectives.flow_matching(field), source=Normal(2).sample, target=data.toys.moons().sample,
                steps=4, batch_size=16, checkpoint=path,
            )  # fmt: skip
        assert all(torch.equal(v, before[k]) for k, v in field.state_dict().items())
        assert path.read_bytes() == content[:keep]

    def test_one_changed_byte_anywhere_is_noticed(self, tmp_path: Path) -> None:
        path = tmp_path / "run.safetensors"
        run(steps=4, checkpoint=path)
        content = path.read_bytes()
        for position in range(0, len(content), len(content) // 50):
            damaged = bytearray(content)
            damaged[position] ^= 0x01
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"run\.safetensors"):
                checkpoint.load(path)

    def test_checkpoint_of_another_optimiser_or_clipping(self, tmp_path: Path) -> None:
        path = tmp_path / "run.safetensors"
        run(steps=4, checkpoint=path)
        with pytest.raises(ValueError, match=r"written with clip=1\.0, this run has 0\.1"):
            run(steps=4, checkpoint=path, clip=0.1)
        with pytest.raises(ValueError, match="written with optimizer='Adam', this run has 'SGD'"):
            run(steps=4, checkpoint=path, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))

    def test_checkpoint_of_another_run(self, tmp_path: Path) -> None:
        path = tmp_path / "run.safetensors"
        run(steps=4, checkpoint=path)
        with pytest.raises(ValueError, match="written with steps=4, this run has 5"):
            run(steps=5, checkpoint=path)
        net = fields.NetworkField(nets.MLP(dim=2, width=8, depth=2), paths.linear())
        with pytest.raises(ValueError, match="holds another network"):
            training.fit(
                net, objectives.flow_matching(net), source=Normal(2).sample, target=data.toys.moons().sample,
                steps=4, batch_size=16, checkpoint=path,
            )  # fmt: skip

    def test_other_files(self, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        with pytest.raises(FileNotFoundError, match="no checkpoint"):
            checkpoint.load(tmp_path / "absent")
        save_file({"a": torch.zeros(1)}, tmp_path / "b")
        with pytest.raises(ValueError, match="not a flowlib checkpoint"):
            checkpoint.load(tmp_path / "b")
        with pytest.raises(TypeError, match="cannot hold /f of type function"):
            checkpoint.save(tmp_path / "c", {"f": run})
        assert not (tmp_path / "c").exists()
        checkpoint.save(tmp_path / "d", {"step": 1})
        with pytest.raises(ValueError, match="does not hold a training run"):
            run(steps=4, checkpoint=tmp_path / "d")

    def test_a_loss_that_is_not_finite_names_the_step(self, tmp_path: Path) -> None:
        net = nn.Linear(1, 1)
        calls = []

        def objective(x0, x1, *, generator=None):
            calls.append(1)
            value = net.weight.sum() + net.bias.sum()
            return objectives.Loss(value * (float("nan") if len(calls) == 3 else 1.0))

        path = tmp_path / "c"
        with pytest.raises(FloatingPointError, match="the loss is nan at step 2"):
            training.fit(net, objective, source=Normal(1).sample, target=Normal(1).sample, steps=5, checkpoint=path)
        assert not path.exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": 0}, "steps must be positive"),
            ({"batch_size": -1}, "batch_size must be positive"),
            ({"lr": 0.0}, "lr must be positive"),
            ({"schedule": "linear"}, "schedule must be one of 'cosine', 'constant'"),
            ({"ema": 1.0}, r"decay must lie in \[0, 1\)"),
            ({"clip": -1.0}, "clip must be positive"),
            ({"warmup": -1}, "warmup must not be negative"),
            ({"until": 0}, "until must be positive"),
        ],
    )
    def test_options(self, options, message) -> None:
        with pytest.raises(ValueError, match=message):
            run(**options)

    def test_a_network_without_parameters(self) -> None:
        with pytest.raises(ValueError, match="no parameter to train"):
            training.fit(nn.Identity(), run, source=Normal(1).sample, target=Normal(1).sample, steps=1)
