"""Captioning with a trained bundle: photographs in, one file of captions out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from flows.outcome import existing, last_run
from flows.pipeline import caption_stages
from schemas.errors import UsageError
from schemas.records import Record, RunRecord
from schemas.settings import Settings
from tasks.bundle import Bundle
from tasks.export import captioned
from tasks.tables import empty_table, read_table
from tasks.walk import Maker, Walk
from tasks.workspace import Workspace


def walk_captions(
    store: Workspace,
    dataset: Path,
    settings: Settings,
    bundle: Bundle,
    only: Sequence[str] = (),
    maker: Maker | None = None,
) -> Walk:
    """Look up what captioning needs, and have the missing made where there is a maker."""
    walk = Walk(store, maker, last_run(store, "caption", dataset))
    caption_stages(walk, dataset, settings, bundle, only)
    return walk


def common_folder(photos: Sequence[Path]) -> tuple[Path, list[str]]:
    """The folder that holds all of `photos`, and what of it is meant; all of it if that is empty.

    A single folder is a data set by itself. Raises UsageError where there is nothing, and for addresses.
    """
    paths = [_photographs_at(path) for path in photos]
    if len(paths) == 1 and paths[0].is_dir():
        return paths[0], []
    # Links to folders are not followed below a data set.
    paths = [path.resolve() if path.is_dir() else path.parent.resolve() / path.name for path in paths]
    folder = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in paths]))
    return folder, sorted({path.relative_to(folder).as_posix() for path in paths})


def _photographs_at(path: Path) -> Path:
    """The absolute path of a photograph or folder."""
    scheme, slash, place = str(path).partition(":/")  # a pathlib.Path drops the second one
    if slash and scheme.isalnum() and len(scheme) > 1:
        address = f"{scheme}://{place}"
        raise UsageError(
            f"'{address}': addresses are not read; download the photographs, and name their folder"
        )
    if not path.exists():
        raise UsageError(f"'{path}': expected a photograph or a folder, found nothing there")
    return existing(path)


def captions_of(workspace: Workspace, record: RunRecord) -> pl.DataFrame:
    """The `captioned` table of a run's photographs. Raises DamagedFile."""
    predictions = workspace.outputs_of(record, "caption", "predictions.parquet")
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
