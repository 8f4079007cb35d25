"""How a data set is: what it holds, split by split, and what of it could not be used."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from cutline.schemas.tables import NOTICES, REASONS, SPLITS, UNLABELLED
from cutline.tasks.report.gallery import Page, page_of
from cutline.tasks.storage.runs import reading


@dataclass(frozen=True)
class SplitCounts:
    """Rows of one split."""

    name: str
    photos: int
    captions: int  # that have a photograph
    text_only: int  # captions without one


@dataclass(frozen=True)
class Rejected:
    """How many rows were rejected for one reason; a notice is no loss."""

    reason: str
    meaning: str
    rows: int
    notice: bool


def split_counts(photos: pl.LazyFrame, captions: pl.LazyFrame) -> list[SplitCounts]:
    """Photographs and captions of each split that has any. Raises DamagedFile."""
    text_only = pl.col("photo_id").is_null()
    with reading():
        of_photos = dict(photos.group_by("split").len().collect().iter_rows())
        counted = captions.group_by("split").agg((~text_only).sum(), text_only.sum().alias("text_only"))
        of_captions = {split: (paired, alone) for split, paired, alone in counted.collect().iter_rows()}
    rows = [
        SplitCounts(name, of_photos.get(name, 0), *of_captions.get(name, (0, 0)))
        for name in (*SPLITS, UNLABELLED)
    ]
    return [row for row in rows if row.photos or row.captions or row.text_only]


def formats(photos: pl.LazyFrame) -> list[tuple[str, int]]:
    """Image formats with their number of photographs, most frequent first. Raises DamagedFile."""
    with reading():
        counted = photos.group_by("format").len().sort(["len", "format"], descending=[True, False]).collect()
    return list(counted.iter_rows())


def reasons(rejects: pl.LazyFrame) -> list[Rejected]:
    """Rejects by reason: losses first, then notices, each most frequent first. Raises DamagedFile."""
    with reading():
        counted = rejects.group_by("reason").len().sort(["len", "reason"], descending=[True, False]).collect()
    found = [
        Rejected(reason, REASONS.get(reason, reason), rows, reason in NOTICES)
        for reason, rows in counted.iter_rows()
    ]
    return sorted(found, key=lambda row: row.notice)


def rejects_page(rejects: pl.LazyFrame, reason: str, page: int, size: int) -> Page:
    """The rejects of one reason: row, stage, kind, name, reason, detail. Raises DamagedFile."""
    return page_of(rejects.filter(pl.col("reason") == reason), page, size)
