"""Captions by a trained bundle: what they need, and those that a run has written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from cutline.flows.pipeline.graph import plan_captioning
from cutline.flows.pipeline.run_record import last_run
from cutline.schemas.records import Record, RunRecord
from cutline.schemas.settings import Settings
from cutline.tasks.bundles.bundle import Bundle
from cutline.tasks.engine.planner import Maker, Planner
from cutline.tasks.report.caption_export import captioned
from cutline.tasks.storage.tables import empty_table, read_table
from cutline.tasks.storage.workspace import Workspace


def plan_captions(
    store: Workspace,
    dataset: Path,
    settings: Settings,
    bundle: Bundle,
    only: Sequence[str] = (),
    maker: Maker | None = None,
) -> Planner:
    """Look up what captioning needs, and have the missing made where there is a maker."""
    planner = Planner(store, maker, last_run(store, "caption", dataset))
    plan_captioning(planner, dataset, settings, bundle, only)
    return planner


def captions_of(workspace: Workspace, record: RunRecord) -> pl.DataFrame:
    """The `captioned` table of a run's photographs. Raises DamagedFile."""
    predictions = workspace.outputs_of(record, "predictions", "predictions.parquet")
    photos = read_table(workspace.outputs_of(record, "ingest", "photos.parquet"), "photos")
    rows = read_table(predictions, "predictions") if predictions else empty_table("predictions")
    return captioned(photos, rows)


def photos_of(workspace: Workspace, captioned: Sequence[Record]) -> pl.Series:
    """The photographs that some shards of captions hold, by id."""
    paths = [record.output("predictions.parquet").path for record in captioned]
    found = (
        read_table(workspace.files(paths), "predictions", ["photo_id"])
        if paths
        else empty_table("predictions")
    )
    return found["photo_id"]
