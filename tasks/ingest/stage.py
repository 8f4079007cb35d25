"""The stage that reads a data set."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from cutline.tasks.engine.stage import Stage, StageContext, StageResult
from cutline.tasks.storage.tables import count_lost, read_table, write_table

INGEST = Stage("ingest", "cutline.tasks.ingest.stage:make_ingest")


EVERY_NAME = pl.concat_list(pl.concat_list("path"), "other_paths").alias("name")  # of a photograph


# -- the stages --------------------------------------------------------------------------------


def make_ingest(work: StageContext) -> StageResult:
    """Photographs, captions and rejects of a data set; reads only files that are new or changed."""
    from cutline.tasks.ingest.ingest import ingest

    sources = work.shard.sources
    known = read_table(work.path("known"), "files") if sources.get("known") else None
    if known is not None and sources.get("again"):
        known = known.filter(pl.col("reason").is_null())
    found = ingest(
        Path(sources["dataset"]),
        work.settings.ingest,
        work.packs,
        known,
        work.advance,
        sources["only"],
    )
    work.workspace.share("packs")
    rejects = found.rejects
    if found.listing != work.shard.inputs["files"]:
        detail = "the folder changed while it was looked through; the next run looks again"
        changed = ("ingest", "file", ".", "changed", detail)
        rejects = pl.concat([rejects, pl.DataFrame([changed], rejects.schema, orient="row")])
    for table in ("photos", "captions", "files"):
        write_table(getattr(found, table), work.out / f"{table}.parquet", table)
    rows_out = found.photos.height + found.captions.height
    read = found.files.filter(pl.col("reason").is_null()).height + found.captions.height
    return StageResult(read + count_lost(rejects), rows_out, rejects)
