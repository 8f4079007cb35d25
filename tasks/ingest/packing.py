"""Copies the images of a Parquet file into a pack."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cutline.tasks.ingest.files import Files

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Pack:
    """Where the image bytes of a Parquet file are: by row, the offset and the size in bytes, (rows,) int64.

    A size of -1: the row has no bytes. An offset of -1: the bytes could not be had, or are too many.
    """

    container: str
    offsets: np.ndarray
    sizes: np.ndarray


def packed(files: Files, path: str, parquet: Any, column: str, max_file_bytes: int, packs: Path) -> Pack:
    """The pack of the image bytes in `column` of a Parquet file, made where there is none yet.

    `column` holds bytes, or is `name.bytes` of a struct. The pack is named by the file's path, size,
    time and inode, so a changed file has another one. The index is put in place last, and tells how
    long the pack has to be. Raises OSError, and Arrow's errors.
    """
    import numpy as np

    row = files.rows[path]
    told = (path, files.sizes[row], files.mtimes_ns[row], files.inodes[row], max_file_bytes, column)
    name = hashlib.blake2b(repr((os.fspath(files.root), told)).encode(), digest_size=16).hexdigest()
    pack, index = packs / f"{name}.pack", packs / f"{name}.npy"
    for _ in range(2):
        try:
            offsets, sizes = np.load(index, allow_pickle=False)
            if len(offsets) == parquet.metadata.num_rows and pack.stat().st_size == _end(offsets, sizes):
                return Pack(f"pack:{pack.name}", offsets, sizes)
        except (OSError, ValueError, EOFError):
            pass  # there is none, or what is there is not whole
        packs.mkdir(parents=True, exist_ok=True)
        _write_pack(parquet, column, max_file_bytes, pack, index)
    raise OSError(f"the pack '{pack}' cannot be read back")


def _end(offsets: np.ndarray, sizes: np.ndarray) -> int:
    return int((offsets + sizes)[offsets >= 0].max(initial=0))


def _write_pack(parquet: Any, column: str, max_file_bytes: int, pack: Path, index: Path) -> None:
    """Copy the image bytes of a Parquet file, the same bytes once, and write where they lie."""
    import numpy as np

    places = np.full((2, parquet.metadata.num_rows), -1, np.int64)
    with _beside(pack) as file:
        try:
            _copy_images(parquet, column, max_file_bytes, file, places)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(pack)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    with _beside(pack) as file:
        np.save(file, places, allow_pickle=False)
    Path(file.name).replace(index)


def _beside(pack: Path) -> Any:
    return tempfile.NamedTemporaryFile(dir=pack.parent, prefix=pack.stem, suffix=".partial", delete=False)


def _copy_images(parquet: Any, column: str, max_file_bytes: int, file: IO[bytes], places: np.ndarray) -> None:
    """Fill `places`, (2, rows): offsets and sizes."""
    import pyarrow as pa

    held: dict[bytes, int] = {}  # digest of bytes that are in the pack -> their offset
    first = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        number = first
        try:
            for batch in parquet.iter_batches(32, row_groups=[group], columns=[column]):
                values = batch.column(0)
                for value in values.field("bytes") if pa.types.is_struct(values.type) else values:
                    data = value.as_buffer() if value.is_valid else None
                    if data is not None:
                        places[:, number] = -1, data.size
                    if data is not None and data.size <= max_file_bytes:
                        digest = hashlib.blake2b(data, digest_size=16).digest()
                        if digest not in held:
                            held[digest] = file.tell()
                            file.write(data)
                        places[0, number] = held[digest]
                    number += 1
        except (pa.ArrowException, OSError):
            places[:, number : first + rows] = [[-1], [0]]
        first += rows
