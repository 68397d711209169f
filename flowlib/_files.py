"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write beside a file's place, then move there in one step: a reader sees the old file or the new one.

    If the block raises, the old file stays. What a killed process left beside the place is removed, so only one
    process may write a file at a time. The folder is created.

    Args:
        path: The file's place.

    Returns:
        For the `with` block, the name to write to.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "new" / "note.txt"
        >>> with replacing(place) as part:
        ...     _ = part.write_text("whole")
        >>> place.read_text(), len(list(place.parent.iterdir()))
        ('whole', 1)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        for left in path.parent.glob(f".{path.name}.*.part"):
            left.unlink(missing_ok=True)
