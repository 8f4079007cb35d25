"""Reads the bytes of photographs, safely, from folders and containers."""

from __future__ import annotations

import hashlib
import os
import stat
from functools import lru_cache
from pathlib import Path

from cutline.schemas.errors import BadPhoto
from cutline.tasks.images.links import may_read

_PACK_GONE = (
    "the copy of the Parquet file's photographs is gone from the workspace; "
    "`cutline rejects --retry` makes it again"
)


def photo_id(data: bytes) -> str:
    """Name a photograph by its bytes: the first 128 bits of BLAKE2b, as 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


# ---- bytes ----


def read_bytes(dataset: Path, path: str, container: str | None, offset: int | None, size: int) -> bytes:
    """Read the `size` bytes of one photograph of a data set, and never more than that.

    A plain file is `dataset / path`. With `container` (relative to the data set, or the absolute path
    of a pack) they are the bytes from `offset` on in that file, and `path` is their name.
    Raises BadPhoto: outside_dataset (`..`, an absolute path or a link that leaves the folder),
    vanished, unreadable (also a folder, a pipe or a device, which are never opened), empty_file,
    changed (a plain file is not `size` bytes long), truncated (a container ends too early).
    """
    start = None if container is None else offset or 0
    found, data = _read(dataset, path if container is None else container, start, size)
    if container is None and found not in (0, size):
        raise BadPhoto("changed", f"{found:,} bytes where {size:,} were listed")
    if not data and (container is None or size == 0):
        raise BadPhoto("empty_file", "the file holds no bytes")
    if len(data) != size:
        raise BadPhoto("truncated", f"{len(data):,} of {size:,} bytes are in '{container}'")
    return data


def read_file(dataset: Path, path: str, max_bytes: int) -> bytes:
    """Read a plain file of a data set whose size is not known.

    Raises BadPhoto: too_many_bytes, and as `read_bytes` outside_dataset, vanished and unreadable.
    """
    found, data = _read(dataset, path, None, max_bytes)
    if found > max_bytes:
        raise BadPhoto("too_many_bytes", f"{found:,} bytes is over {max_bytes:,}")
    return data


def _read(dataset: Path, path: str, start: int | None, most: int) -> tuple[int, bytes]:
    """How many bytes a file has from `start` on, and at most `most` of them; no `start`: a plain file."""
    file = _locate(dataset, path, trusted=start is not None)
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise BadPhoto("unreadable", "not a regular file")
        # Should a pipe have taken the file's place since: O_NONBLOCK does not wait for its writer.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as opened:
            opened.seek(start or 0)
            found = os.fstat(descriptor).st_size - (start or 0)
            return found, opened.read(max(0, min(most, found)))
    except (FileNotFoundError, NotADirectoryError):
        is_pack = Path(path).is_absolute()
        raise BadPhoto("vanished", _PACK_GONE if is_pack else "the file was listed and is gone") from None
    except (OSError, ValueError) as error:
        raise BadPhoto("unreadable", f"the file cannot be read: {_cause(error)}") from None


def _locate(dataset: Path, path: str, *, trusted: bool) -> Path:
    """The real place of `path`; outside the data set's folder only if absolute and `trusted`."""
    try:
        file = (dataset / path).resolve()
        inside = may_read(str(file), str(_real_root(dataset)))
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
        raise BadPhoto("unreadable", f"the file cannot be found: {_cause(error)}") from None
    if not inside and not (trusted and Path(path).is_absolute()):
        raise BadPhoto("outside_dataset", "the path leads out of the data set's folder")
    return file


def _real_root(dataset: Path) -> Path:
    try:
        now = dataset.stat()
    except FileNotFoundError:  # then so are its files
        return dataset.resolve()
    return _resolved(dataset, now.st_dev, now.st_ino)


@lru_cache(maxsize=8)
def _resolved(folder: Path, _device: int, _inode: int) -> Path:
    """The real place of a folder: looked up once, and again when another one has its name."""
    return folder.resolve()


def _cause(error: Exception) -> str:
    if isinstance(error, RuntimeError):
        return "its links lead in a circle"
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
