"""Captioning with a trained bundle: photographs in, one file of captions out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import polars as pl

from cutline.flows import DEFAULT_WORKSPACE
from cutline.flows.commands.generate import say_model
from cutline.flows.pipeline.captioning import captions_of, plan_captions
from cutline.flows.pipeline.graph import demand_apart
from cutline.flows.pipeline.run_record import demand_ending, demand_writable, existing, finish
from cutline.flows.pipeline.settings import Tree, settings_with
from cutline.schemas.errors import UsageError
from cutline.schemas.records import RunRecord
from cutline.schemas.settings import Settings
from cutline.schemas.tables import dtypes_of
from cutline.tasks.bundles.bundle import PRETRAINED, Bundle, load_bundle
from cutline.tasks.dask_workers import LOCAL
from cutline.tasks.report.caption_export import check_ending, write_attention, write_captions
from cutline.tasks.runtime.formatting import count_of
from cutline.tasks.runtime.tensorflow import load_tensorflow
from cutline.tasks.storage.tables import read_table
from cutline.tasks.storage.workspace import Workspace, bundle_at


def caption(
    photos: Sequence[Path],
    model: Path | None,
    out: Path,
    tree: Tree,
    workspace: Path = DEFAULT_WORKSPACE,
    runner: str = LOCAL,
    attention: Path | None = None,
) -> tuple[RunRecord, float]:
    """Caption files, folders or a Parquet manifest, and write the captions to `out`.

    Without a `model` the one in the box is used. Where the model looked for each word is written to
    `attention`, if that is given. Returns the run's record and the highest rate of rejects that is no
    failure. Raises UsageError, StaleModel, UnknownDataset.
    """
    check_ending(out)
    demand_ending("--attention", attention, ".parquet")
    dataset, only = common_folder(photos)
    store = Workspace(workspace)
    demand_apart(dataset, store)
    demand_writable("--out", out)
    demand_writable("--attention", attention)
    bundle = load_bundle(bundle_at(model) if model else PRETRAINED)
    if attention:
        bundle.check_attention()
    settings = settings_with(bundle, tree)
    say_model(bundle.folder)
    planner = plan_captions(store, dataset, settings, bundle, only)
    if planner.complete:
        record = finish(planner, "caption", dataset, settings)
    else:
        from cutline.flows.orchestration.runners import start

        asked = (dataset, bundle.folder.absolute(), tree, only, workspace)
        record = start("caption_photos", *asked, root=store.root, runner=runner)
    captions = captions_of(store, record)
    write_captions(captions, out)
    _warn_of_far(captions)
    if attention:
        write_attention(_attention(store, record, bundle, captions, settings), attention)
    return record.model_copy(update={"captions": str(out.absolute())}), settings.ingest.max_reject_rate


def _warn_of_far(captions: pl.DataFrame) -> None:
    far = captions.filter(pl.col("distance") > 1).unique("photo_id").height
    if far:
        click.echo(
            f"cutline: {far:,} of {count_of(captions['photo_id'].n_unique(), 'photograph')} "
            f"{'is' if far == 1 else 'are'} unlike all that the model has learned from (a distance above 1): "
            "take what is said of them as a guess",
            err=True,
        )


def _attention(
    store: Workspace, run: RunRecord, bundle: Bundle, captions: pl.DataFrame, settings: Settings
) -> Iterator[pl.DataFrame]:
    """The `attention` table, a shard at a time; one without rows where no photograph could be used."""
    from cutline.tasks.features.cnn import load_network

    load_tensorflow()
    shards = store.records_of(run, "image_features")
    if not shards:
        network = load_network(settings.image_features, settings.images.side_px)
        yield pl.DataFrame(schema=dtypes_of("attention", regions=network.regions))
        return
    captioner = bundle.captioner()
    for shard in shards:
        path = store.file(shard.output("image_features.parquet").path)
        features = read_table(path, "image_features", ["photo_id", "regions"])
        yield captioner.attention(features, captions)


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
