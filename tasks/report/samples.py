"""A few captioned photographs of a run with their pictures, for pages that show some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from cutline.schemas.records import Record, RunRecord
from cutline.schemas.tables import UNLABELLED
from cutline.tasks.engine.partition import partition_of_row, partition_that_holds
from cutline.tasks.storage.tables import squares
from cutline.tasks.storage.workspace import Workspace

BEST_FIRST = ("test", "dev", UNLABELLED, "train")  # what a model has not learned from tells most


@dataclass(frozen=True)
class Sample:
    """A photograph, (H, W, 3) RGB uint8, with what was written under it."""

    path: str
    split: str
    square: np.ndarray
    caption: str
    score: float
    distance: float | None = None


def samples(workspace: Workspace, run: RunRecord, count: int, of: Sequence[str] = ()) -> list[Sample]:
    """The first `count` captioned photographs of the best held-out split, or of the ids in `of`.

    Reads no more shards than it shows photographs. Raises DamagedFile.
    """
    (table,) = workspace.outputs_of(run, "ingest", "photos.parquet")
    photos = pl.scan_parquet(table)
    if of:
        chosen = photos.filter(pl.col("photo_id").is_in(list(of[:count])))
    else:
        order = pl.col("split").replace_strict(BEST_FIRST, range(len(BEST_FIRST)), return_dtype=pl.Int8)
        chosen = photos.sort(order, "photo_id").head(count)
    rows = chosen.select("photo_id", "path", "split").collect()
    captions = _rows(workspace, workspace.records_of(run, "predictions"), rows, "predictions")
    images = _rows(workspace, workspace.records_of(run, "images"), rows, "images")
    if captions is None or images is None:
        return []
    found = rows.join(captions, on="photo_id").join(images, on="photo_id", maintain_order="left")
    names = found.select("path", "split", "caption", "score", "distance").rows(named=True)
    return [
        Sample(square=picture, **row) for picture, row in zip(squares(found["square"]), names, strict=True)
    ]


def _rows(
    workspace: Workspace, records: Sequence[Record], photos: pl.DataFrame, table: str
) -> pl.DataFrame | None:
    """The rows of `photos` from the shards that hold them."""
    places = {record.partition for record in records}
    rows = photos.select("split", "photo_id").iter_rows()
    wanted = {partition_that_holds(partition_of_row(*row), places) for row in rows}
    frames = [
        pl.scan_parquet(workspace.file(record.output(f"{table}.parquet").path))
        .filter(pl.col("photo_id").is_in(photos["photo_id"].to_list()))
        .collect()
        for record in records
        if record.partition in wanted
    ]
    return pl.concat(frames) if frames else None
