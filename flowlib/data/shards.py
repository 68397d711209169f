"""Large data sets as a folder of safetensors shards with an index: written once, read by row from anywhere.

The index, `index.json`, lists every shard with its rows and bytes, the fields with their shapes and dtypes, and what
the writer wants to remember (`record`: how latents are scaled, the command). Nothing is unpickled; a row is read
through the memory map of its shard, so a data set may be larger than memory.
"""

import bisect
import json
import shutil
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowlib._checks import check_positive
from flowlib._files import replacing

__all__ = ["INDEX", "ShardWriter", "Shards", "write_index"]

INDEX = "index.json"


class ShardWriter:
    """Writes rows into shards; each is complete on disk before it has its name.

    Several processes may write one data set, each under its own `prefix`; then one of them calls `write_index`.

    Args:
        folder: Where the shards go; created.
        rows: Rows of a full shard.
        prefix: Start of the shards' names.

    Raises:
        ValueError: If `rows` is not positive.
        FileExistsError: If the folder already holds a finished data set, or shards of this prefix.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "set"
        >>> writer = ShardWriter(folder, rows=2)
        >>> writer.add(x=torch.arange(6.0).reshape(3, 2), y=torch.tensor([0, 1, 2]))
        >>> writer.close()
        >>> write_index(folder, {"scale": 1.0})
        >>> Shards(folder).__getitems__([2, 0])["y"]
        tensor([2, 0])
    """

    def __init__(self, folder: str | Path, rows: int = 4096, prefix: str = "") -> None:
        check_positive("rows", rows, integer=True)
        self.folder, self.rows, self.prefix = Path(folder), rows, prefix
        if (self.folder / INDEX).is_file():
            raise FileExistsError(f"{folder} already holds a finished data set; choose another folder or delete it")
        if any(self.folder.glob(f"{prefix}*.safetensors")):
            raise FileExistsError(f"{folder} already holds shards {prefix}*; choose another folder or delete it")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pending: dict[str, list[Tensor]] = {}
        self.count, self.shards = 0, 0

    def add(self, **fields: Tensor) -> None:
        """Append rows: tensors `[n, ...]` by field, with one `n` and the same fields each time.

        Raises:
            ValueError: If fields or lengths differ.
            OSError: If the disk is full; what was complete stays.
        """
        lengths = {name: value.shape[0] for name, value in fields.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"fields must have one number of rows, got {lengths}")
        if self.pending and set(self.pending) != set(fields):
            raise ValueError(f"fields must stay {sorted(self.pending)}, got {sorted(fields)}")
        for name, value in fields.items():
            kept = self.pending.setdefault(name, [])
            if kept and (kept[0].shape[1:], kept[0].dtype) != (value.shape[1:], value.dtype):
                raise ValueError(
                    f"{name} must stay {kept[0].dtype} of shape {list(kept[0].shape[1:])}, "
                    f"got {value.dtype} of shape {list(value.shape[1:])}"
                )
            kept.append(value.detach().cpu())
        self.count += next(iter(lengths.values()))
        while self.count >= self.rows:
            self._flush(self.rows)

    def close(self) -> None:
        """Write the rows that do not fill a shard."""
        if self.count:
            self._flush(self.count)

    def _flush(self, rows: int) -> None:
        from safetensors.torch import save_file

        whole = {name: torch.cat(parts) for name, parts in self.pending.items()}
        size = sum(value[:rows].numel() * value.element_size() for value in whole.values())
        free = shutil.disk_usage(self.folder).free
        if free < size + (1 << 20):
            raise OSError(
                f"{self.folder} needs {size / 1e9:.3g} GB for the next shard, the disk has {free / 1e9:.3g} GB"
            )
        file = self.folder / f"{self.prefix}{self.shards:06d}.safetensors"
        with replacing(file) as part:
            save_file({name: value[:rows].contiguous() for name, value in whole.items()}, part)
        # a tensor of no rows keeps shape and dtype for the check of the next rows
        self.pending = {name: [value[rows:].clone()] for name, value in whole.items()}
        self.count, self.shards = self.count - rows, self.shards + 1


def write_index(folder: str | Path, record: dict[str, Any]) -> None:
    """Read the headers of all shards of a folder and write their index: the data set is finished then.

    Args:
        folder: The folder.
        record: What to remember, JSON.

    Raises:
        ValueError: If there is no shard, one cannot be read, or two differ in fields.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no shard to index")
    shards, fields = [], None
    for file in files:
        header, rows = _header(file)
        if fields is not None and header != fields:
            raise ValueError(f"{file} has fields {header}, the shards before it {fields}")
        fields = header
        shards.append({"file": file.name, "rows": rows, "bytes": file.stat().st_size})
    with replacing(folder / INDEX) as part:
        part.write_text(json.dumps({"fields": fields, "shards": shards, "record": record}, indent=1) + "\n")


class Shards:
    """A finished data set of shards, read by row.

    Every shard's existence and size are checked when the data set is opened, so that a copy that stopped half-way is
    noticed before the training starts.

    Args:
        folder: The folder.

    Attributes:
        record: What the writer remembered.
        fields: Shape and dtype of a row by field.

    Raises:
        FileNotFoundError: If there is no index, or a shard is missing.
        ValueError: If a shard or the index is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        index = self.folder / INDEX
        if not index.is_file():
            unfinished = any(self.folder.glob("*.safetensors"))
            why = (
                "its shards were never indexed: the writer did not finish"
                if unfinished
                else "there is no such data set"
            )
            raise FileNotFoundError(f"{index} is missing; {why}")
        try:
            content = json.loads(index.read_text())
            self.record: dict[str, Any] = content["record"]
            self.fields: dict[str, Any] = content["fields"]
            self.files = [(self.folder / shard["file"], shard["rows"]) for shard in content["shards"]]
            sizes = [shard["bytes"] for shard in content["shards"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{index} is damaged: {error!r}") from error
        for (file, _), size in zip(self.files, sizes, strict=True):
            if not file.is_file():
                raise FileNotFoundError(f"shard {file} is missing; the index lists it")
            if file.stat().st_size != size:
                raise ValueError(
                    f"shard {file} has {file.stat().st_size} bytes, the index says {size}: copied half-way?"
                )
        self.ends: list[int] = list(accumulate(rows for _, rows in self.files))
        self.open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "open": {}}  # a worker process opens the files itself

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Rows by index, as one tensor `[n, ...]` for each field.

        Raises:
            IndexError: If an index is out of range.
            ValueError: If a shard cannot be read.
        """
        rows: dict[str, list[Tensor]] = {name: [] for name in self.fields}
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"index must lie in 0..{len(self) - 1}, got {index}")
            shard = bisect.bisect_right(self.ends, index)
            row = index - (self.ends[shard - 1] if shard else 0)
            slices = self._slices(shard)
            for name, part in slices.items():
                rows[name].append(part[row : row + 1])
        return {name: torch.cat(parts) for name, parts in rows.items()}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One row: a tensor for each field."""
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def _slices(self, shard: int) -> Any:
        if shard not in self.open:
            from safetensors import safe_open

            file, rows = self.files[shard]
            header, found = _header(file)
            if header != self.fields or found != rows:
                raise ValueError(f"shard {file} is not the one of the index: {found} rows of {header}")
            handle: Any = safe_open(file, framework="pt")
            self.open[shard] = {name: handle.get_slice(name) for name in self.fields}
        return self.open[shard]


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The fields of a shard, as in the index, and its rows."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as handle:
            parts = {name: handle.get_slice(name) for name in sorted(handle.keys())}
            shapes = {name: part.get_shape() for name, part in parts.items()}
            kinds = {name: part.get_dtype() for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"shard {file} is damaged: {error}") from error
    rows = {shape[0] for shape in shapes.values()}
    if len(rows) != 1:
        raise ValueError(f"shard {file} has fields of different lengths: {shapes}")
    return {name: {"shape": shapes[name][1:], "dtype": kinds[name]} for name in shapes}, rows.pop()
