r"""Pairs that an ODE connects: made in seeded shards, kept in memory or on disk, drawn together.

Reflow (Liu et al., 2023) trains a flow on pairs $(z_0, z_1)$ where $z_1$ is where an earlier flow takes $z_0$. The
two partners must never be separated: shuffled, they are independent pairs again and reflow teaches nothing.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from flowlib._checks import check_positive, check_same, check_state
from flowlib._files import replacing
from flowlib.couplings._shards import read_shard, write_shard

__all__ = ["PairStore", "generate_pairs", "open_pairs"]

PairBatch = tuple[Tensor, Tensor, dict[str, Tensor]]
_FORMAT = "flowlib-pairs-1"
_MANIFEST = "pairs.json"


@runtime_checkable
class StartSampler(Protocol):
    """Draws `n` starting states, alone or with a dictionary of conditions."""

    def __call__(
        self, n: int, *, generator: torch.Generator | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Draw a batch."""


class PairStore:
    """Pairs in shards, as a sequence of pairs from which batches are drawn; `sample` fits `training.fit(pairs=...)`.

    Args:
        shards: Dictionaries of tensors with one length each: `"x0"`, its partners `"x1"`, and conditions under their
            own names. Shards of a folder are mapped into memory, so only the rows that are drawn are read.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If there is no shard, partners differ in number or shape, or shards do not match each other.

    Example:
        >>> store = PairStore([{"x0": torch.zeros(5, 2), "x1": torch.ones(5, 2), "y": torch.arange(5)}])
        >>> x0, x1, conditions = store.sample(3)
        >>> len(store), x1.shape, conditions["y"].shape
        (5, torch.Size([3, 2]), torch.Size([3]))
    """

    def __init__(self, shards: Sequence[Mapping[str, Tensor]]) -> None:
        if not shards:
            raise ValueError("shards is empty: a store needs at least one pair")
        for k, shard in enumerate(shards):
            _check_shard(f"shard {k}", shard, like=shards[0])
        self.shards = tuple(dict(shard) for shard in shards)
        ends = torch.tensor([len(shard["x0"]) for shard in self.shards]).cumsum(0)
        self._starts = torch.cat([ends.new_zeros(1), ends])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: Tensor) -> PairBatch:
        """The pairs at `index`, an int64 tensor `[n]` of numbers from 0 to the length less one."""
        if index.ndim != 1 or index.dtype != torch.int64:
            raise ValueError(f"index must be an int64 vector, got {index.dtype} of shape {list(index.shape)}")
        if bool(((index < 0) | (index >= len(self))).any()):
            raise IndexError(f"index must lie in [0, {len(self)}), got {int(index.min())} to {int(index.max())}")
        index = index.cpu()
        home = torch.bucketize(index, self._starts[1:], right=True)
        out = {name: value.new_empty((len(index), *value.shape[1:])) for name, value in self.shards[0].items()}
        for k in sorted(set(home.tolist())):
            chosen = home == k
            rows = index[chosen] - self._starts[k]
            for name, value in out.items():
                value[chosen] = self.shards[k][name][rows]  # one index for all tensors keeps partners together
        return out.pop("x0"), out.pop("x1"), out

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> PairBatch:
        """Draw `n` pairs with replacement.

        Args:
            n: How many.
            generator: Random generator; the batch comes back on its device.

        Returns:
            `x0`, `x1` and the dictionary of conditions.
        """
        check_positive("n", n, integer=True)
        device = generator.device if generator is not None else torch.device("cpu")
        index = torch.randint(len(self), (n,), generator=generator, device=device).cpu()
        x0, x1, conditions = self[index]
        if generator is None:
            return x0, x1, conditions
        return x0.to(device), x1.to(device), {name: value.to(device) for name, value in conditions.items()}

    def all(self) -> PairBatch:
        """Every pair, in order."""
        return self[torch.arange(len(self))]


def generate_pairs(
    solve: Callable[..., Tensor],
    source: StartSampler,
    count: int,
    *,
    seed: int = 0,
    shard_size: int = 4096,
    folder: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    shards: int | None = None,
) -> PairStore:
    r"""Draw fresh starts, carry each to its partner, and keep the pairs.

    Shard k has a random generator of its own, seeded from `(seed, k)`. With a folder each shard is one file that
    appears complete or not at all, so an interrupted run, even a killed one, called again, makes only what is missing
    and ends with the same store, bit for bit. One process writes a folder at a time; several processes take a folder
    and a seed each.

    Args:
        solve: From starts `[n, *event]` (and their conditions, by name) to partners, deterministic, for example
            `lambda x0: solvers.ode(flow, x0, steps=50, method="heun", keep=False).end`.
        source: Draws starts: `source(n, generator=...)`, alone or with a dictionary of conditions.
        count: Number of pairs.
        seed: Seed of the store.
        shard_size: Pairs in a shard; the last one may be smaller.
        folder: Where to write; `None` keeps the pairs in memory.
        settings: What else defines the pairs (solver, steps, checkpoint), numbers and strings; a folder refuses to be
            continued with other settings.
        device: Device of the generators; the pairs are stored on the CPU.
        shards: Stop after this many new shards, as an interruption would, and return the part that exists.

    Returns:
        The store.

    Raises:
        TypeError: If starts and partners differ in dtype.
        ValueError: If an argument is out of range, a partner is not finite or has another shape, or the folder holds
            pairs of other settings or a damaged shard.
        OSError: If the disk is full; nothing half-written stays behind.

    Example:
        >>> from flowlib.distributions import Normal
        >>> store = generate_pairs(lambda x0: 2 * x0, Normal(2).sample, 10, shard_size=4)
        >>> x0, x1, _ = store.all()
        >>> len(store.shards), bool((x1 == 2 * x0).all())
        (3, True)
    """
    check_positive("count", count, integer=True)
    check_positive("shard_size", shard_size, integer=True)
    if shards is not None:
        check_positive("shards", shards, integer=True)
    sizes = [min(shard_size, count - start) for start in range(0, count, shard_size)]
    if folder is None:
        return PairStore([_make(solve, source, n, seed, k, device) for k, n in enumerate(sizes[:shards])])

    folder = Path(folder)
    manifest = {
        "format": _FORMAT, "count": count, "shard_size": shard_size, "seed": seed, "settings": dict(settings or {}),
    }  # fmt: skip
    manifest = json.loads(json.dumps(manifest))  # what a reader will see
    _claim(folder, manifest)
    kept: list[dict[str, Tensor]] = []
    new = 0
    for k, (n, path) in enumerate(zip(sizes, _files(folder, manifest), strict=True)):
        if path.is_file():
            shard = read_shard(path, _run(manifest), verify=True)
        elif new == shards:
            break
        else:
            shard = _make(solve, source, n, seed, k, device)
            if kept:
                _check_shard(f"shard {k}", shard, like=kept[0])
            write_shard(path, shard, _run(manifest))
            shard = read_shard(path, _run(manifest))
            new += 1
        kept.append(shard)
    return PairStore(kept)


def open_pairs(folder: str | Path, *, verify: bool = False) -> PairStore:
    """Open the pairs of a folder, mapped into memory.

    Args:
        folder: What `generate_pairs` wrote.
        verify: Read every shard whole and compare it with its digest; otherwise only headers and sizes are checked.

    Returns:
        The store.

    Raises:
        FileNotFoundError: If the folder holds no pairs, or shards are missing; the message names them.
        ValueError: If the manifest or a shard is damaged or belongs to another run.
    """
    manifest = _manifest(Path(folder))
    files = list(_files(Path(folder), manifest))
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of {len(files)} shards ({shown}); generate_pairs with the same settings "
            "makes them"
        )
    store = PairStore([read_shard(path, _run(manifest), verify=verify) for path in files])
    if len(store) != manifest["count"]:
        raise ValueError(f"{folder} holds {len(store)} pairs, its manifest says {manifest['count']}")
    return store


def _make(
    solve: Callable[..., Tensor], source: StartSampler, n: int, seed: int, k: int, device: torch.device | str
) -> dict[str, Tensor]:
    """Shard k: fresh starts from its own generator, and where they go."""
    own = int.from_bytes(hashlib.sha256(f"{seed}/{k}".encode()).digest()[:8], "big") >> 1
    drawn = source(n, generator=torch.Generator(device).manual_seed(own))
    x0, conditions = drawn if isinstance(drawn, tuple) else (drawn, {})
    if {"x0", "x1"} & conditions.keys():
        raise ValueError("source must not name a condition x0 or x1")
    with torch.no_grad():
        x1 = solve(x0, **conditions)
    if not isinstance(x1, Tensor):
        raise TypeError(f"solve must return a tensor, got {type(x1).__name__}")
    check_state("solve(x0)", x1)
    check_same("x0", x0, "solve(x0)", x1)
    # clones: two tensors that share memory could not be written
    return {name: value.detach().cpu().clone() for name, value in {"x0": x0, "x1": x1, **conditions}.items()}


def _check_shard(what: str, shard: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    if not {"x0", "x1"} <= shard.keys():
        raise ValueError(f"{what} must hold x0 and x1, got {', '.join(sorted(shard)) or 'nothing'}")
    check_state(f"x0 of {what}", shard["x0"], finite=False)
    check_same(f"x0 of {what}", shard["x0"], f"x1 of {what}", shard["x1"])
    if shard.keys() != like.keys():
        raise ValueError(f"{what} holds {', '.join(sorted(shard))}; the first shard holds {', '.join(sorted(like))}")
    for name, value in shard.items():
        if value.shape[:1] != shard["x0"].shape[:1]:
            raise ValueError(f"{name} of {what} must have {len(shard['x0'])} rows, got shape {list(value.shape)}")
        if value.shape[1:] != like[name].shape[1:] or value.dtype != like[name].dtype:
            raise ValueError(
                f"{name} of {what} has rows of shape {list(value.shape[1:])} and {value.dtype}; those of the first "
                f"shard have {list(like[name].shape[1:])} and {like[name].dtype}"
            )


def _files(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Path]:
    count = -(-manifest["count"] // manifest["shard_size"])
    return (folder / f"shard-{k:06d}.safetensors" for k in range(count))


def _run(manifest: Mapping[str, Any]) -> str:
    """What a shard is stamped with, so that shards of two runs do not mix."""
    return json.dumps(manifest, sort_keys=True)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no pairs in {folder}: {_MANIFEST} is missing")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise ValueError(f"{path} does not describe a store of pairs")
    return manifest


def _claim(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of a new folder, or insist that an old one is the same."""
    if not (folder / _MANIFEST).is_file():
        if folder.is_dir() and any(folder.glob("shard-*.safetensors")):
            raise ValueError(f"{folder} holds shards but no {_MANIFEST}; use another folder")
        with replacing(folder / _MANIFEST) as part:
            part.write_text(json.dumps(manifest, indent=2, sort_keys=True))
        return
    found = _manifest(folder)
    for name, value in manifest.items():
        if found.get(name) != value:
            raise ValueError(f"{folder} was written with {name}={found.get(name)!r}, this run has {value!r}")
