"""What the commands that make something do: look first, and start Prefect only where something is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import polars as pl

from flows import DEFAULT_WORKSPACE
from flows.captioning import captions_of, common_folder, walk_captions
from flows.config import Tree, settings_of_run, settings_with
from flows.generating import say_model
from flows.outcome import address_of, demand_ending, existing, finish
from flows.plan import plan
from flows.reprocessing import last_before, moved, what_to_make
from flows.runners import start
from schemas.errors import UsageError
from schemas.records import RunRecord
from schemas.settings import Settings
from schemas.tables import dtypes_of
from tasks.bundle import IN_THE_BOX, Bundle, load_bundle
from tasks.cluster import LOCAL
from tasks.compare import Comparison
from tasks.export import check_ending, write_attention, write_captions
from tasks.history import History
from tasks.quiet import load_tensorflow
from tasks.shown import count_of
from tasks.tables import read_table
from tasks.workspace import Workspace, bundle_at


def run(
    dataset: Path,
    settings: Settings,
    workspace: Path = DEFAULT_WORKSPACE,
    deep: bool = False,
    runner: str = LOCAL,
) -> RunRecord:
    """Make what is missing of a data set's captions, scores, bundle and report.

    Raises UsageError, UnknownDataset, and what a stage or a runner raises (`CutlineError`).
    """
    store = Workspace(workspace)
    recalled = store.recall_code()
    walk = plan(dataset, settings, workspace, deep)
    if walk.complete:
        if not recalled:
            store.keep_code()
        return finish(walk, "run", existing(dataset), settings)
    root = walk.workspace.root
    return start("run_dataset", existing(dataset), settings, workspace, root=root, runner=runner)


def reprocess(
    dataset: Path | None, changes: Sequence[str], workspace: Path = DEFAULT_WORKSPACE
) -> tuple[RunRecord, Comparison | None]:
    """Run again with the settings of the last run and `changes` to them; makes what depends on those.

    Without `dataset`, that of the newest run. Returns the run's record, and its comparison with the
    last one unless it is the last one. Raises UsageError.
    """
    dataset, settings = what_to_make(dataset, changes, workspace)
    before = last_before(dataset, workspace)
    walk = plan(dataset, settings, workspace)
    if walk.complete:
        record = finish(walk, "run", dataset, settings)
    else:
        asked = (dataset, tuple(changes), False, workspace)
        record = start("reprocess", *asked, root=walk.workspace.root)
    return record, moved(before, record, workspace)


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
    bundle = load_bundle(bundle_at(model) if model else IN_THE_BOX)
    if attention:
        bundle.check_attention()
    settings = settings_with(bundle, tree)
    say_model(bundle.folder)
    walk = walk_captions(store, dataset, settings, bundle, only)
    if walk.complete:
        record = finish(walk, "caption", dataset, settings)
    else:
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
    from tasks.networks import load_network

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


def retry_rejects(dataset: Path | None, workspace: Path = DEFAULT_WORKSPACE) -> RunRecord:
    """Run again as last time, reading anew whatever was rejected.

    Raises UsageError where there was no run, or the last one captioned photographs by a bundle.
    """
    last = _last_of(dataset, workspace)
    if last.command != "run":
        raise UsageError(
            f"--retry repeats `cutline run`, and the last run captioned '{last.dataset}': call `cutline "
            "caption` again as before; it reads files that have changed, and those that could not be read"
        )
    settings = settings_of_run(last)
    root = Workspace(workspace).root
    return start("run_dataset", Path(last.dataset), settings, workspace, root=root, retry=True)


def last_rejects(dataset: Path | None, workspace: Path = DEFAULT_WORKSPACE) -> tuple[RunRecord, pl.DataFrame]:
    """The last run, and its rejects table. Raises UsageError, DamagedFile."""
    last = _last_of(dataset, workspace)
    return last, History(Workspace(workspace)).rejects(last).drop("row").collect()


def _last_of(dataset: Path | None, workspace: Path) -> RunRecord:
    wanted = str(address_of(dataset)) if dataset else None
    runs = Workspace(workspace).runs()
    last = next((run for run in runs if wanted in (None, run.dataset)), None)
    if last is None:
        what = f" on '{dataset}'" if dataset else ""
        raise UsageError(
            f"expected an earlier run{what} in {workspace}, found none; start with `cutline run`"
        )
    return last
