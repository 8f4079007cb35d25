"""Packs: the image bytes of a Parquet file, which cannot be addressed there, one behind the other.

A table says `pack:NAME` where a photograph lies in a pack, whatever folder the packs are in: so it is
the same in every workspace, and stays true in one that is moved.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl


# No tar of a data set can be called so: it would not end in ".tar".
_CONTAINER = re.compile(r"^pack:([0-9a-f]{32}\.pack)$")


def located(photos: pl.DataFrame, packs: Path) -> pl.DataFrame:
    """The same photographs with the path of the pack, in the folder `packs`, where one is their container.

    Only a pack has an absolute path for a container; other containers are relative to the data set.
    """
    import polars as pl

    name = pl.col("container").str.extract(_CONTAINER.pattern)
    folder = f"{os.path.abspath(packs)}/"  # noqa: PTH100 (a link in the workspace's path may stay)
    return photos.with_columns(pl.coalesce(pl.lit(folder) + name, "container").alias("container"))


def files_of(container: str, packs: Path) -> list[Path]:
    """The files in the folder `packs` that a container stands for; none unless it is a pack."""
    name = _CONTAINER.fullmatch(container)
    return [packs / name[1], (packs / name[1]).with_suffix(".npy")] if name else []


def _is_same(one: Any, other: Any) -> bool:
    """Whether two dictionaries are one in memory, as those of the batches of a column chunk are."""
    if other is None or len(one) != len(other):
        return False
    return all(a.address == b.address for a, b in zip(one.buffers()[1:], other.buffers()[1:], strict=True))


def _put(data: Any, max_file_bytes: int, held: dict[bytes, int], file: IO[bytes]) -> tuple[int, int]:
    """Offset and size of `data` in the pack, at whose end it is put where it is not there yet."""
    if data.size > max_file_bytes:
        return -1, data.size
    digest = hashlib.blake2b(data, digest_size=16).digest()
    if digest not in held:
        held[digest] = file.tell()
        file.write(data)
    return held[digest], data.size
