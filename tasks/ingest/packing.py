"""Copies the images of a Parquet file into a pack."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cutline.tasks.ingest.files import Files
from cutline.tasks.runtime.npz import Expected, read_npy
from cutline.tasks.storage.packs import _is_same, _put

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
    row = files.rows[path]
    told = (path, files.sizes[row], files.mtimes_ns[row], files.inodes[row], max_file_bytes, column)
    name = hashlib.blake2b(repr((os.fspath(files.root), told)).encode(), digest_size=16).hexdigest()
    pack, index = packs / f"{name}.pack", packs / f"{name}.npy"
    for _ in range(2):
        try:
            offsets, sizes = read_npy(index, Expected("i", 2))
            if len(offsets) == parquet.num_rows and pack.stat().st_size == _end(offsets, sizes):
                return Pack(f"pack:{pack.name}", offsets, sizes)
        except (OSError, ValueError):
            pass  # there is none, or what is there is not whole
        packs.mkdir(parents=True, exist_ok=True)
        _write_pack(parquet, column, max_file_bytes, pack, index)
    raise OSError(f"the pack '{pack}' cannot be read back")


def _end(offsets: np.ndarray, sizes: np.ndarray) -> int:
    return int((offsets + sizes)[offsets >= 0].max(initial=0))


def _write_pack(parquet: Any, column: str, max_file_bytes: int, pack: Path, index: Path) -> None:
    """Copy the image bytes of a Parquet file, the same bytes once, and write where they lie."""
    import numpy as np

    places = np.full((2, parquet.num_rows), -1, np.int64)
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
    for group, rows in enumerate(parquet.rows):
        number = first
        dictionary: Any = None
        known: dict[int, tuple[int, int]] = {}  # by its place in the dictionary
        try:
            for batch in parquet.batches(group, [column]):
                values = batch.column(0)
                values = values.field("bytes") if pa.types.is_struct(values.type) else values
                values = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
                if not _is_same(values.dictionary, dictionary):
                    dictionary, known = values.dictionary, {}
                for index in values.indices.to_pylist():
                    if index is not None and index not in known:
                        known[index] = _put(dictionary[index].as_buffer(), max_file_bytes, held, file)
                    if index is not None:
                        places[:, number] = known[index]
                    number += 1
        except (pa.ArrowException, OSError, ValueError):
            places[:, number : first + rows] = [[-1], [0]]
        first += rows
