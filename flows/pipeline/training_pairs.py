"""Whether there is anything to learn from: a training caption with its photograph, before any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from cutline.schemas.errors import UsageError
from cutline.schemas.records import Record
from cutline.tasks.engine.planner import StagePlan
from cutline.tasks.storage.tables import read_table
from cutline.tasks.storage.workspace import Workspace

SHOWN = 3  # names, and rejects, in a message


def demand_pairs(workspace: Workspace, dataset: Path, ingest: StagePlan) -> None:
    """Raise UsageError where captions teach, but none of them has its photograph.

    The message says which photographs the data set names, and which it has.
    """
    record = ingest.one
    if record is None:
        return
    captions = _table(workspace, record, "captions").filter(pl.col("split") == "train")
    if captions.is_empty() or captions["photo_id"].drop_nulls().len():
        return
    named = captions["missing_photo"].drop_nulls().unique().sort()
    photos = _table(workspace, record, "photos")
    found = _listed(photos["path"].sort(), "no photograph that can be used")
    counts = photos["split"].value_counts().sort("split").rows()
    by_split = ", ".join(f"{count:,} {split}" for split, count in counts)
    raise UsageError(
        f"'{dataset}': none of the {captions.height:,} training captions has its photograph, so there is "
        f"nothing to learn from; expected photographs called {_listed(named, '(no name)')}; found {found}"
        f"{f' ({by_split})' if by_split else ''}; the names have to agree from their last part on, endings "
        f"included{_rejected(workspace, [record])}"
    )


def demand_images(workspace: Workspace, dataset: Path, images: StagePlan) -> None:
    """Raise UsageError where no photograph of the training split could be decoded."""
    made = images.of("train")
    if not made or any(record is None or record.rows_out for record in made):
        return
    raise UsageError(
        f"'{dataset}': expected photographs to learn from, found none that can be decoded"
        f"{_rejected(workspace, [record for record in made if record])}"
    )


def _table(workspace: Workspace, record: Record, name: str) -> pl.DataFrame:
    return read_table(workspace.file(record.output(f"{name}.parquet").path), name)


def _listed(names: pl.Series, none: str) -> str:
    shown = ", ".join(f"'{name[:80]}'" for name in names.head(SHOWN))
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return shown + more or none


def _rejected(workspace: Workspace, records: Sequence[Record]) -> str:
    """A line for each of the first photographs and files that were rejected, and where all are listed."""
    tables = [_table(workspace, record, "rejects") for record in records if record.has("rejects.parquet")]
    if not tables:
        return ""
    rows = pl.concat(tables).filter(
        (pl.col("kind") != "caption") & ~pl.col("reason").is_in(["missing_photo", "duplicate", "leak"])
    )
    told = rows.head(SHOWN).select("name", "reason", "detail").iter_rows()
    lines = [f"\n  {name}: {reason}: {detail}" for name, reason, detail in told]
    return "".join([*lines, "\n  `cutline rejects` lists all that could not be used"])
