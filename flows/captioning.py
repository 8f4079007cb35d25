"""Captioning with a trained bundle: photographs in, one file of captions out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from flows.config import Tree, make_settings, merge
from flows.pipeline import caption_stages
from flows.run import WORKSPACE, existing, finish, last_run
from schemas.errors import UsageError
from schemas.records import Record, RunRecord
from schemas.settings import Settings
from tasks.bundle import Bundle, FeatureOrigin, load_bundle
from tasks.export import captioned, check_ending, write_captions
from tasks.networks import weights_digest
from tasks.tables import empty_table, read_table
from tasks.walk import Walk
from tasks.workspace import Workspace

CHANGEABLE = ("ingest", "caption", "image_features")


def caption(
    photos: Sequence[Path], model: Path, out: Path, tree: Tree, workspace: Path = WORKSPACE
) -> tuple[RunRecord, float]:
    """Caption files, folders or a Parquet manifest, and write the captions to `out`.

    Returns the run's record and the highest rate of rejects that is no failure. Raises UsageError,
    StaleModel, UnknownDataset.
    """
    check_ending(out)
    dataset, only = common_folder(photos)
    bundle = load_bundle(model)
    settings = settings_with(bundle, tree)
    store = Workspace(workspace)
    walk = Walk(store, last=last_run(store, "caption", dataset))
    caption_stages(walk, dataset, settings, bundle, only)
    if walk.complete:
        record = finish(walk, "caption", dataset, settings)
    else:
        from flows.server import choose_server

        choose_server(workspace)
        from flows.prefect_flows import caption_photos, from_terminal

        record = from_terminal(caption_photos, dataset, model.absolute(), tree, only, workspace)
    write_captions(captions_of(store, record), out)
    return record.model_copy(update={"captions": str(out.absolute())}), settings.ingest.max_reject_rate


def common_folder(photos: Sequence[Path]) -> tuple[Path, list[str]]:
    """The folder that holds all of `photos`, and what of it is meant; all of it if that is empty.

    A single folder is a data set by itself.
    """
    paths = [existing(path) for path in photos]
    if len(paths) == 1 and paths[0].is_dir():
        return paths[0], []
    folder = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in paths]))
    return folder, sorted({path.relative_to(folder).as_posix() for path in paths})


def settings_with(bundle: Bundle, tree: Tree) -> Settings:
    """The settings that a bundle was trained with, and `tree` where that changes no feature.

    Raises UsageError for a stage that captioning does not have, StaleModel for features that the
    bundle was not trained on.
    """
    foreign = [stage for stage in tree if stage not in CHANGEABLE]
    if foreign:
        raise UsageError(
            f"setting {foreign[0]}: the bundle was trained with its own; "
            f"here {', '.join(CHANGEABLE)} can be set"
        )
    trained = bundle.description
    of_bundle: Tree = {
        "images": trained.features.images.model_dump(),
        "image_features": {"network": trained.features.network},
        "language_model": trained.language_model.model_dump(),
        "fusion": trained.fusion.model_dump(),
        "caption": trained.caption.model_dump(),
    }
    settings = make_settings(merge(of_bundle, tree))
    ours = weights_digest(settings.image_features)
    bundle.check_features(
        FeatureOrigin.of(settings.images, settings.image_features, ours, trained.features.channels)
    )
    return settings


def captions_of(workspace: Workspace, record: RunRecord) -> pl.DataFrame:
    """The `captioned` table of a run's photographs."""
    predictions = [
        workspace.root / found.output("predictions.parquet").path
        for found in _records(workspace, record, "caption")
    ]
    (ingest,) = _records(workspace, record, "ingest")
    photos = read_table(workspace.root / ingest.output("photos.parquet").path, "photos")
    rows = read_table(predictions, "predictions") if predictions else empty_table("predictions")
    return captioned(photos, rows)


def _records(workspace: Workspace, run: RunRecord, stage: str) -> list[Record]:
    return [record for key in run.shards[stage] if (record := workspace.read_record(stage, key))]
