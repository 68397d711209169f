"""Rows come back as they went in; damage is noticed when the data set is opened."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from flowlib.data import shards
from flowlib.data.shards import INDEX, Shards, ShardWriter, write_index


def rows(n: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "latent": torch.randn(n, 4, 3, generator=generator).half(),
        "y": torch.randint(1000, (n,), generator=generator),
    }


def written(folder: Path, parts: tuple[int, ...] = (5, 1, 9, 3), per_shard: int = 4) -> dict[str, Tensor]:
    writer, whole = ShardWriter(folder, per_shard), [rows(n, seed) for seed, n in enumerate(parts)]
    for part in whole:
        writer.add(**part)
    writer.close()
    write_index(folder, {"scale": 0.18215})
    return {name: torch.cat([part[name] for part in whole]) for name in whole[0]}


def test_rows_come_back_in_any_order_across_shards(tmp_path: Path) -> None:
    everything = written(tmp_path / "set")
    data = Shards(tmp_path / "set")
    assert len(data) == 18
    assert [count for _, count in data.files] == [4, 4, 4, 4, 2]
    assert data.record == {"scale": 0.18215}
    order = torch.randperm(18).tolist()
    got = data.__getitems__(order)
    for name, value in everything.items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name], value[order])
    assert torch.equal(data[7]["latent"], everything["latent"][7])


def test_an_open_data_set_goes_to_a_worker_process(tmp_path: Path) -> None:
    everything = written(tmp_path)
    data = Shards(tmp_path)
    data.__getitems__([0])
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy.__getitems__([17])["y"], everything["y"][17:])


def test_several_writers_make_one_data_set(tmp_path: Path) -> None:
    for rank in range(2):
        writer = ShardWriter(tmp_path, 4, prefix=f"{rank}-")
        writer.add(**rows(6, rank))
        writer.close()
    write_index(tmp_path, {})
    assert torch.equal(Shards(tmp_path).__getitems__([6])["y"], rows(6, 1)["y"][:1])


@pytest.mark.bad_input
def test_damage_is_named_when_the_data_set_is_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such data set"):
        Shards(tmp_path / "nothing")
    written(tmp_path)
    first = tmp_path / "000000.safetensors"
    content = first.read_bytes()
    first.write_bytes(content[:-7])
    with pytest.raises(ValueError, match=r"000000\.safetensors has .* bytes, the index says"):
        Shards(tmp_path)
    first.write_bytes(b"\xff" * len(content))
    with pytest.raises(ValueError, match=r"000000\.safetensors is damaged"):
        Shards(tmp_path).__getitems__([0])
    first.unlink()
    with pytest.raises(FileNotFoundError, match=r"000000\.safetensors is missing"):
        Shards(tmp_path)
    (tmp_path / INDEX).write_text('{"record": {}}')
    with pytest.raises(ValueError, match=r"index\.json is damaged"):
        Shards(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(FileNotFoundError, match="the writer did not finish"):
        Shards(tmp_path)


@pytest.mark.bad_input
def test_a_shard_of_another_data_set_is_noticed(tmp_path: Path) -> None:
    """Of the same size, but its rows are of another shape."""
    written(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    index["fields"]["latent"]["shape"] = [3, 4]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="is not the one of the index"):
        Shards(tmp_path).__getitems__([0])


@pytest.mark.bad_input
def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="rows must be positive"):
        ShardWriter(tmp_path, 0)
    writer = ShardWriter(tmp_path, 4)
    with pytest.raises(ValueError, match="one number of rows"):
        writer.add(latent=torch.zeros(2, 1), y=torch.zeros(3))
    writer.add(**rows(2))
    with pytest.raises(ValueError, match="fields must stay"):
        writer.add(latent=rows(2)["latent"])
    with pytest.raises(ValueError, match="latent must stay"):
        writer.add(**{**rows(2), "latent": torch.zeros(2, 4, 3)})
    with pytest.raises(ValueError, match="has no shard to index"):
        write_index(tmp_path, {})
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="the disk has 1e-07 GB"):
        writer.close()
    monkeypatch.undo()
    writer.close()
    with pytest.raises(FileExistsError, match="already holds shards"):  # of a call that did not finish
        ShardWriter(tmp_path, 4)
    ShardWriter(tmp_path, 4, prefix="another-")
    write_index(tmp_path, {})
    with pytest.raises(IndexError, match=r"index must lie in 0\.\.1, got 2"):
        Shards(tmp_path).__getitems__([2])
    with pytest.raises(FileExistsError, match="already holds a finished data set"):
        ShardWriter(tmp_path)
