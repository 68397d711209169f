"""Stored pairs: partners stay together, interrupted stores resume bit for bit, damage is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowlib import couplings, fields, nets, objectives, paths, solvers, training
from flowlib.distributions import Normal


def solve(x0: Tensor, **conditions: Tensor) -> Tensor:
    shift = conditions["y"][:, None] if conditions else 0
    return torch.sin(3 * x0) + 2 * x0 + shift


def labelled(n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    return torch.randn(n, 2, generator=generator), {"y": torch.randint(10, (n,), generator=generator)}


def generate(folder: Path | None = None, **options) -> couplings.PairStore:
    settings = {"seed": 3, "shard_size": 16, "settings": {"steps": 20}} | options
    return couplings.generate_pairs(solve, labelled, 50, folder=folder, **settings)


def equal(a: couplings.PairStore, b: couplings.PairStore) -> bool:
    (x0, x1, c), (y0, y1, d) = a.all(), b.all()
    return torch.equal(x0, y0) and torch.equal(x1, y1) and torch.equal(c["y"], d["y"])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("disk", [False, True])
def test_every_drawn_pair_is_a_pair_of_the_solver(tmp_path: Path, disk: bool, generator: torch.Generator) -> None:
    store = generate(tmp_path if disk else None)
    assert len(store) == 50
    assert [len(shard["x0"]) for shard in store.shards] == [16, 16, 16, 2]
    x0, x1, conditions = store.sample(400, generator=generator)
    torch.testing.assert_close(x1, solve(x0, **conditions))
    assert len(x0.unique(dim=0)) == 50  # all of them turn up


def test_rows_come_in_the_order_asked_for_across_shards() -> None:
    store = generate()
    x0, x1, conditions = store.all()
    index = torch.tensor([49, 0, 17, 17, 33, 15, 16])
    a, b, c = store[index]
    assert torch.equal(a, x0[index])
    assert torch.equal(b, x1[index])
    assert torch.equal(c["y"], conditions["y"][index])


def test_a_folder_holds_the_pairs_of_memory(tmp_path: Path) -> None:
    assert equal(generate(tmp_path), generate())
    assert equal(couplings.open_pairs(tmp_path, verify=True), generate())


def test_shards_start_from_independent_fresh_draws() -> None:
    store = generate()
    assert len(store.all()[0].unique(dim=0)) == 50
    assert not equal(store, generate(seed=4))


@pytest.mark.parametrize("done", [1, 3])
def test_an_interrupted_store_resumes_bit_for_bit(tmp_path: Path, done: int) -> None:
    generate(tmp_path / "whole")
    part = generate(tmp_path / "part", shards=done)
    assert len(part) == done * 16
    torch.randn(5)  # the global generator moves in between
    generate(tmp_path / "part")
    assert files(tmp_path / "part") == files(tmp_path / "whole")


def test_resuming_makes_only_what_is_missing(tmp_path: Path) -> None:
    whole = generate(tmp_path)
    (tmp_path / "shard-000001.safetensors").unlink()
    calls = []

    def counted(x0: Tensor, **conditions: Tensor) -> Tensor:
        calls.append(len(x0))
        return solve(x0, **conditions)

    again = couplings.generate_pairs(
        counted, labelled, 50, folder=tmp_path, seed=3, shard_size=16, settings={"steps": 20}
    )
    assert calls == [16]
    assert equal(again, whole)


def test_a_crash_while_solving_leaves_a_store_that_resumes(tmp_path: Path) -> None:
    calls = []

    def crashing(x0: Tensor, **conditions: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("lights out")
        return solve(x0, **conditions)

    with pytest.raises(RuntimeError, match="lights out"):
        couplings.generate_pairs(crashing, labelled, 50, folder=tmp_path, seed=3, shard_size=16, settings={"steps": 20})
    assert sorted(files(tmp_path)) == ["pairs.json", "shard-000000.safetensors", "shard-000001.safetensors"]
    assert equal(generate(tmp_path), generate())


def train(store: couplings.PairStore, **options) -> tuple[fields.NetworkField, training.History]:
    torch.manual_seed(0)
    field = fields.NetworkField(nets.MLP(dim=2, width=32, depth=2, classes=10), paths.linear())
    settings = {"steps": 40, "batch_size": 32} | options
    return field, training.fit(field, objectives.flow_matching(field), pairs=store.sample, **settings)


def test_training_on_stored_pairs_resumes_bit_for_bit(tmp_path: Path) -> None:
    store = generate(tmp_path / "pairs")
    whole, history = train(store)
    train(store, checkpoint=tmp_path / "run.safetensors", until=17)
    torch.randn(7)
    resumed, later = train(couplings.open_pairs(tmp_path / "pairs"), checkpoint=tmp_path / "run.safetensors")
    assert later.loss == history.loss
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_training_on_a_folder_equals_training_in_memory(tmp_path: Path) -> None:
    assert train(generate(tmp_path))[1].loss == train(generate())[1].loss


def test_shuffled_partners_destroy_straightness() -> None:
    """A classic bug: with partners permuted the loss has the crossing energy of independent pairs again."""
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    store = couplings.generate_pairs(lambda x0: 2 * x0 @ turn.T, Normal(2).sample, 2000)
    x0, x1, _ = store.all()
    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(1))
    bent = {}
    for name, pairs in (("paired", store), ("shuffled", couplings.PairStore([{"x0": x0, "x1": x1[order]}]))):
        torch.manual_seed(0)
        field = fields.NetworkField(nets.MLP(dim=2, width=64, depth=2), paths.linear())
        training.fit(
            field, objectives.flow_matching(field), pairs=pairs.sample, steps=300, batch_size=256, lr=5e-3, ema=0.98
        )
        one = solvers.ode(field, x0, steps=1).end
        bent[name] = float((one - solvers.ode(field, x0, steps=50).end).square().sum(1).mean())
    assert bent["paired"] < 0.05
    assert bent["shuffled"] > 1.0


@pytest.mark.bad_input
class TestBadInput:
    def test_settings_of_another_run(self, tmp_path: Path) -> None:
        generate(tmp_path)
        with pytest.raises(ValueError, match=r"was written with settings=\{'steps': 20\}, this run has"):
            generate(tmp_path, settings={"steps": 10})
        with pytest.raises(ValueError, match="was written with seed=3, this run has 4"):
            generate(tmp_path, seed=4)

    def test_missing_shards_are_named(self, tmp_path: Path) -> None:
        generate(tmp_path)
        (tmp_path / "shard-000002.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"lacks 1 of 4 shards \(shard-000002.safetensors\)"):
            couplings.open_pairs(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"no pairs in .*pairs.json is missing"):
            couplings.open_pairs(tmp_path / "elsewhere")

    def test_damage(self, tmp_path: Path) -> None:
        generate(tmp_path)
        path = tmp_path / "shard-000001.safetensors"
        content = bytearray(path.read_bytes())
        path.write_bytes(content[:-8])
        with pytest.raises(ValueError, match=r"shard-000001.safetensors is truncated or damaged"):
            couplings.open_pairs(tmp_path)
        content[-3] ^= 1  # one bit of one number: headers look fine, the digest does not
        path.write_bytes(content)
        couplings.open_pairs(tmp_path)
        with pytest.raises(ValueError, match="does not match its digest"):
            couplings.open_pairs(tmp_path, verify=True)
        with pytest.raises(ValueError, match="does not match its digest"):
            generate(tmp_path)

    def test_shards_of_two_runs_do_not_mix(self, tmp_path: Path) -> None:
        generate(tmp_path / "a")
        generate(tmp_path / "b", seed=4)
        name = "shard-000001.safetensors"
        (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
        with pytest.raises(ValueError, match="belongs to another run"):
            couplings.open_pairs(tmp_path / "a")
        (tmp_path / "b" / "pairs.json").unlink()
        with pytest.raises(ValueError, match=r"holds shards but no pairs.json"):
            generate(tmp_path / "b")

    def test_manifest(self, tmp_path: Path) -> None:
        (tmp_path / "pairs.json").write_text("{")
        with pytest.raises(ValueError, match=r"pairs\.json is damaged"):
            couplings.open_pairs(tmp_path)
        (tmp_path / "pairs.json").write_text("[]")
        with pytest.raises(ValueError, match="does not describe a store of pairs"):
            couplings.open_pairs(tmp_path)

    def test_partners(self) -> None:
        normal = Normal(2).sample
        with pytest.raises(ValueError, match=r"x0 and solve\(x0\) must have the same shape"):
            couplings.generate_pairs(lambda x0: x0[:, :1], normal, 5)
        with pytest.raises(ValueError, match=r"solve\(x0\) has NaN"):
            couplings.generate_pairs(lambda x0: x0 * torch.nan, normal, 5)
        with pytest.raises(TypeError, match="solve must return a tensor"):
            couplings.generate_pairs(lambda x0: solvers.ode(lambda x, t: x, x0, steps=1), normal, 5)
        with pytest.raises(ValueError, match="must not name a condition x0 or x1"):
            couplings.generate_pairs(solve, lambda n, *, generator=None: (torch.zeros(n, 2), {"x0": torch.zeros(n)}), 5)
        with pytest.raises(ValueError, match="count must be positive"):
            couplings.generate_pairs(solve, normal, 0)

    def test_shards(self) -> None:
        x = torch.zeros(3, 2)
        with pytest.raises(ValueError, match="shards is empty"):
            couplings.PairStore([])
        with pytest.raises(ValueError, match="shard 0 must hold x0 and x1, got x0"):
            couplings.PairStore([{"x0": x}])
        with pytest.raises(ValueError, match="x0 of shard 0 and x1 of shard 0 must have the same shape"):
            couplings.PairStore([{"x0": x, "x1": x[:2]}])
        with pytest.raises(ValueError, match="y of shard 0 must have 3 rows"):
            couplings.PairStore([{"x0": x, "x1": x, "y": torch.zeros(2)}])
        with pytest.raises(ValueError, match="shard 1 holds x0, x1, y; the first shard holds x0, x1"):
            couplings.PairStore([{"x0": x, "x1": x}, {"x0": x, "x1": x, "y": torch.zeros(3)}])
        with pytest.raises(ValueError, match=r"rows of shape \[3\]"):
            couplings.PairStore([{"x0": x, "x1": x}, {"x0": x.new_zeros(2, 3), "x1": x.new_zeros(2, 3)}])
        store = couplings.PairStore([{"x0": x, "x1": x}])
        with pytest.raises(IndexError, match=r"index must lie in \[0, 3\)"):
            store[torch.tensor([3])]
        with pytest.raises(ValueError, match="index must be an int64 vector"):
            store[torch.tensor([0.5])]

    def test_fit_wants_one_way_to_draw(self) -> None:
        field = fields.NetworkField(nets.MLP(dim=2, width=8), paths.linear())
        loss = objectives.flow_matching(field)
        normal, store = Normal(2).sample, couplings.PairStore([{"x0": torch.zeros(3, 2), "x1": torch.zeros(3, 2)}])
        with pytest.raises(ValueError, match="give either pairs or source and target"):
            training.fit(field, loss, source=normal, target=normal, pairs=store.sample, steps=1)
        with pytest.raises(ValueError, match="give source and target, or pairs"):
            training.fit(field, loss, source=normal, steps=1)
