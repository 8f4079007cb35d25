"""Captions in files for people and other programs: Parquet, JSON lines, CSV, COCO results."""

from __future__ import annotations

import filecmp
import json
import re
import uuid
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cutline.schemas.errors import UsageError
from cutline.schemas.tables import check
from cutline.tasks.runtime.spreadsheets import write_csv
from cutline.tasks.storage.tables import write_table

ENDINGS = (".parquet", ".jsonl", ".csv", ".json")


def captioned(photos: pl.DataFrame, predictions: pl.DataFrame) -> pl.DataFrame:
    """The `captioned` table: a row for each file of a captioned photograph, sorted by path.

    A photograph that lies in several files has a row for each.
    """
    every = [
        pl.concat_list(pl.concat_list(name), f"other_{name}s").alias(name) for name in ("path", "source_id")
    ]
    files = photos.select("photo_id", "split", *every).explode("path", "source_id").sort("path", "photo_id")
    files = files.select("path", "photo_id", "source_id", "split")
    columns = predictions.select("photo_id", "caption", "score", "distance", "alternatives")
    return check(files.join(columns, on="photo_id", maintain_order="left"), "captioned")


def write_captions(frame: pl.DataFrame, path: Path) -> None:
    """Write the `captioned` table to `path`, whole or not at all, in the form of its ending.

    A file that holds the same already is left as it is.

    `.csv`, which knows no lists, has the texts of the alternatives in columns, without their scores; a text
    that a spreadsheet would take for a formula is neutralised (tasks/runtime/spreadsheets.py).
    `.json` is COCO results: a list of {image_id, caption}, where image_id is the data set's own
    number of the photograph, else the number that is its file's name, else the path. Where several
    photographs would have one image_id (cam1/0001.jpg, cam2/0001.jpg), each has its path.
    Raises UsageError for another ending.
    """
    check_ending(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        if path.suffix == ".parquet":
            write_table(frame, beside, "captioned")
        elif path.suffix == ".jsonl":
            frame.write_ndjson(beside)
        elif path.suffix == ".csv":
            write_csv(_with_alternatives_in_columns(frame), beside)
        else:
            beside.write_text(_coco_results(frame), encoding="utf-8")
        if not (path.is_file() and filecmp.cmp(beside, path, shallow=False)):
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_attention(tables: Iterable[pl.DataFrame], path: Path) -> None:
    """Write `attention` tables, at least one, to `path` as one Parquet file, whole or not at all.

    A table at a time is held in memory. Raises SchemaMismatch.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{path.suffix}")
    checked = (_checked_attention(table) for table in tables)
    try:
        first = next(checked)
        with pq.ParquetWriter(beside, first.schema, compression="zstd") as writer:
            for table in chain([first], checked):
                writer.write_table(table)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _checked_attention(table: pl.DataFrame) -> pa.Table:
    regions = table["weights"].dtype.inner.shape[0]  # type: ignore[attr-defined]
    return check(table, "attention", regions=regions).to_arrow()


def check_ending(path: Path) -> None:
    """Raise UsageError where captions cannot be written in the form of a file's ending."""
    if path.suffix not in ENDINGS:
        raise UsageError(
            f"'{path}': expected a name that ends in {', '.join(ENDINGS)}, found '{path.suffix}'"
        )


def _with_alternatives_in_columns(frame: pl.DataFrame) -> pl.DataFrame:
    """The table with `alternative_2`, `alternative_3`, … in place of the list, best first.

    The first of all is the caption itself, which has its own column. As many columns as the most that a
    row has; null where it has fewer.
    """
    texts = pl.col("alternatives").list.eval(pl.element().struct.field("caption"))
    others = (
        frame.select("path", "caption", other=texts)
        .explode("other")
        .filter(pl.col("other") != pl.col("caption"))
        .group_by("path", maintain_order=True)
        .agg("other")
    )
    most = others.select(pl.col("other").list.len().max()).item() or 0
    columns = [
        pl.col("other").list.get(i, null_on_oob=True).alias(f"alternative_{i + 2}") for i in range(most)
    ]
    joined = frame.drop("alternatives").join(others, on="path", how="left", maintain_order="left")
    return joined.with_columns(columns).drop("other")


def _coco_results(frame: pl.DataFrame) -> str:
    ids = [_coco_id(*names) for names in frame.select("source_id", "path").iter_rows()]
    photos: dict[int | str, set[str]] = {}
    for image_id, photo in zip(ids, frame["photo_id"], strict=True):
        photos.setdefault(image_id, set()).add(photo)
    results = [
        {"image_id": path if len(photos[image_id]) > 1 else image_id, "caption": caption}
        for image_id, path, caption in zip(ids, frame["path"], frame["caption"], strict=True)
    ]
    return json.dumps(results, ensure_ascii=False)


_NUMBER = re.compile(r"[0-9]{1,18}")  # more digits are no number of a photograph's, but a hash


def _coco_id(source_id: str | None, path: str) -> int | str:
    name = source_id or Path(path).stem
    return int(name) if _NUMBER.fullmatch(name) else source_id or path
