"""Reads each photograph once: its digest and header, or why it cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from cutline.schemas.errors import BadPhoto
from cutline.schemas.settings import IngestSettings
from cutline.schemas.tables import TRANSIENT
from cutline.tasks.images.files import photo_id, read_bytes
from cutline.tasks.images.headers import read_header
from cutline.tasks.runtime.unicode import printable
from cutline.tasks.storage.packs import located

_THREADS = 4  # they wait for the disk, and each may hold a file of ingest.max_file_bytes
_PHOTOS_PER_BATCH = 512

# A known reject for one of these reasons is looked at again: the settings may have changed since.
_BY_SETTINGS = frozenset({"too_many_pixels", "too_many_bytes"})

FILE_COLUMNS = ["path", "source", "file_size", "mtime_ns", "inode"]
_PLACE = ["path", "container", "offset", "size"]
INSPECTED: dict[str, Any] = {
    "photo_id": pl.String,
    "width": pl.Int32,
    "height": pl.Int32,
    "format": pl.String,
    "reason": pl.String,
    "detail": pl.String,
}


class _Look(NamedTuple):
    """The result of reading one photograph: its identity and header, or a reason and a detail."""

    photo_id: str | None
    width: int | None
    height: int | None
    format: str | None
    reason: str | None = None
    detail: str | None = None


def inspect_photos(
    photos: pl.DataFrame,
    root: Path,
    packs: Path,
    known: pl.DataFrame | None,
    settings: IngestSettings,
    advance: Callable[[int], None],
) -> pl.DataFrame:
    """Add photo_id, width, height, format, reason and detail; known files are not read again.

    `known` is the `files` table of an earlier ingest, or None.
    """
    photos = _with_known(photos, known, settings)
    seen = pl.col("photo_id").is_not_null() | pl.col("reason").is_not_null()
    old, new = photos.filter(seen), photos.filter(~seen).drop(*INSPECTED)
    advance(old.height)
    looks: list[_Look] = []

    def look(row: tuple[str, str | None, int | None, int]) -> _Look:
        return _look(root, *row, settings)

    with ThreadPoolExecutor(_THREADS) as pool:
        for part in located(new, packs).select(*_PLACE).iter_slices(_PHOTOS_PER_BATCH):
            looks.extend(pool.map(look, part.iter_rows()))
            advance(part.height)
    return pl.concat([old, new.hstack(pl.DataFrame(looks, schema=INSPECTED, orient="row"))]).sort("row")


def _with_known(photos: pl.DataFrame, known: pl.DataFrame | None, settings: IngestSettings) -> pl.DataFrame:
    """Add what an earlier ingest found in the same files where it still holds, else nulls."""
    if known is None:
        return photos.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in INSPECTED.items())
    known = known.rename({"container": "source", "size": "file_size"}).select(*FILE_COLUMNS, *INSPECTED)
    is_retried = pl.col("reason").is_in([*TRANSIENT, *_BY_SETTINGS]).fill_null(value=False)
    too_large = (pl.col("width").cast(pl.Int64) * pl.col("height") > settings.max_pixels).fill_null(
        value=False
    )
    known = known.filter(~is_retried, ~too_large).unique(FILE_COLUMNS, keep="first", maintain_order=True)
    joined = photos.join(known, on=FILE_COLUMNS, how="left", nulls_equal=True, maintain_order="left")
    fits = pl.col("size") <= settings.max_file_bytes
    return joined.with_columns(pl.when(fits).then(name).alias(name) for name in INSPECTED)


def _look(
    root: Path, path: str, container: str | None, offset: int | None, size: int, settings: IngestSettings
) -> _Look:
    try:
        if size > settings.max_file_bytes:
            limit = (
                f"max_file_bytes={settings.max_file_bytes:,}; raise ingest.max_file_bytes or drop the file"
            )
            raise BadPhoto("too_many_bytes", f"{size:,} bytes is over {limit}")
        data = read_bytes(root, path, container, offset, size)
        header = read_header(data, settings.max_pixels)
    except BadPhoto as bad:
        return _Look(None, None, None, None, bad.reason, printable(bad.detail))
    return _Look(photo_id(data), header.width, header.height, header.format)
