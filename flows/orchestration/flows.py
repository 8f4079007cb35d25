"""The Prefect flows: what `cutline` runs when there is work, and what a deployment serves.

Each walks the stages of `pipeline.graph` with Prefect making the missing shards, leaves artifacts
for people, and says in its last state what came of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from httpx import TransportError

import cutline.flows.orchestration.own_server  # noqa: F401  (before Prefect reads its settings)

# isort: split
from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import Field

from cutline.flows import DEFAULT_WORKSPACE
from cutline.flows.orchestration.artifacts import leave_artifacts, leave_comparison, leave_plan
from cutline.flows.orchestration.progress import display
from cutline.flows.orchestration.stale_runs import claim_run
from cutline.flows.pipeline.captioning import captions_of, photos_of, plan_captions
from cutline.flows.pipeline.failed_runs import forget_failed, write_failed
from cutline.flows.pipeline.graph import plan_run
from cutline.flows.pipeline.rerun import dry_run as look
from cutline.flows.pipeline.rerun import last_before, moved, what_to_make
from cutline.flows.pipeline.run_record import existing, finish, last_run, name_of_model, newest_bundle
from cutline.flows.pipeline.settings import Tree, settings_with
from cutline.schemas.errors import CutlineError, ServerLost, UnknownDataset
from cutline.schemas.records import RunRecord
from cutline.schemas.safe_text import for_log
from cutline.schemas.settings import IngestSettings, Settings
from cutline.tasks.bundles.bundle import Bundle, load_bundle
from cutline.tasks.engine.planner import Planner
from cutline.tasks.prefect_tasks import PrefectMaker
from cutline.tasks.report.caption_export import check_ending, write_captions
from cutline.tasks.runtime.formatting import count_of
from cutline.tasks.storage.workspace import Workspace, bundle_at, digest_of

# A shard uses all cores by itself (OpenCV's threads, TensorFlow's), so one is made at a time.
ONE_SHARD_AT_A_TIME: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1)

# Names of final states beside Prefect's own; deployment/lost-runs.yaml knows them too.
NOTHING_NEW, DRY_RUN = "Nothing new", "Dry run"

DEFAULTS, INGEST_DEFAULTS = Settings(), IngestSettings()


def _named(what: str, folder: str) -> Callable[[], str]:
    """What names a flow run: what it does, and the name of the folder that one of its parameters holds."""
    return lambda: for_log(f"{what} {Path(flow_run.parameters[folder]).name}")


Change = Annotated[str, Field(pattern=r"^\w+\.\w+=", description="such as images.crop=pad")]


@flow(
    name="run",
    flow_run_name=_named("run", "dataset"),
    task_runner=ONE_SHARD_AT_A_TIME,
    validate_parameters=True,
    persist_result=False,
)
def run_dataset(
    dataset: Path, settings: Settings = DEFAULTS, workspace: Path = DEFAULT_WORKSPACE, retry: bool = False
) -> State[RunRecord]:
    """From a data set to captions, scores, a bundle and a report; makes only what is missing.

    Args:
        dataset: a folder or a Parquet file
        settings: of every stage
        workspace: folder for everything that is made
        retry: read anew whatever was rejected
    """
    claim_run()
    record = _run(existing(dataset), settings, workspace, retry)
    leave_artifacts(record)
    return Completed(message=_said(record), data=record)


def _run(dataset: Path, settings: Settings, workspace: Path, retry: bool = False) -> RunRecord:
    store = Workspace(workspace)
    with store.at_work_on(), display() as show:
        planner = Planner(store, PrefectMaker(store, show), last_run(store, "run", dataset), retry=retry)
        try:
            plan_run(planner, dataset, settings)
        except Exception:
            with suppress(CutlineError, OSError):  # what went wrong first is what is told
                write_failed(planner, "run", dataset, settings)
            raise
        forget_failed(store, dataset)
        return finish(planner, "run", dataset, settings)


def _said(record: RunRecord) -> str:
    """What a run came to, in a sentence."""
    made, reused = (sum(getattr(stage, name) for stage in record.stages) for name in ("made", "reused"))
    score = f"; CIDEr {record.scores['CIDEr']:.3f}" if "CIDEr" in record.scores else ""
    return f"{count_of(made, 'shard')} made, {reused:,} reused{score}"


@flow(
    name="reprocess",
    flow_run_name=_named("reprocess", "dataset"),
    task_runner=ONE_SHARD_AT_A_TIME,
    persist_result=False,
)
def reprocess(
    dataset: Path,
    changes: tuple[Change, ...] = (),
    dry_run: bool = False,
    workspace: Path = DEFAULT_WORKSPACE,
) -> State[RunRecord]:
    """Make a data set anew with the settings of its last run and some changed; says first which and why.

    Args:
        dataset: one without a run takes the settings of the newest run
        changes: such as images.crop=pad
        dry_run: only say what would be made, why, and about how long it would take
        workspace: the one that holds the earlier runs
    """
    claim_run()
    dataset, settings = what_to_make(dataset, changes, workspace)
    planned = look(dataset, changes, workspace)
    leave_plan(planned)
    if dry_run:
        return Completed(name=DRY_RUN, message=_said(planned).replace("made", "to make"), data=planned)
    before = last_before(dataset, workspace)
    record = _run(dataset, settings, workspace)
    leave_artifacts(record)
    if comparison := moved(before, record, workspace):
        leave_comparison(comparison, record)
    return Completed(message=_said(record), data=record)


@flow(
    name="caption",
    flow_run_name=_named("caption", "dataset"),
    task_runner=ONE_SHARD_AT_A_TIME,
    persist_result=False,
)
def caption_photos(
    dataset: Path, model: Path, tree: Tree, only: list[str], workspace: Path = DEFAULT_WORKSPACE
) -> State[RunRecord]:
    """Caption the photographs of a folder with a trained bundle; makes only what is missing.

    `tree` overrides the settings of ingest and caption; `only` names files below `dataset`, all if
    empty.
    """
    claim_run()
    bundle = load_bundle(model)
    record, new, captioned = _caption(dataset, bundle, settings_with(bundle, tree), only, workspace)
    leave_artifacts(record, new)
    return Completed(message=f"{count_of(captioned, 'photograph')} captioned", data=record)


def _caption(
    dataset: Path, bundle: Bundle, settings: Settings, only: list[str], workspace: Path
) -> tuple[RunRecord, list[str], int]:
    """The record, the photographs that the last run did not caption, and how many captions are new.

    A new photograph counts also where its caption was taken over from another folder's run.
    """
    store = Workspace(workspace)
    with store.at_work_on(), display() as show:
        planner = plan_captions(store, dataset, settings, bundle, only, PrefectMaker(store, show))
        record = finish(planner, "caption", dataset, settings)
    captions = planner.of("predictions")
    before = (
        [store.lookup("predictions", key)[0] for key in planner.last.shards["predictions"]]
        if planner.last
        else []
    )
    ids = photos_of(store, captions.present)
    new = ids.filter(~ids.is_in(photos_of(store, [record for record in before if record]).implode()))
    computed = sum(shard.rows_in - shard.reused_rows for shard in captions.made)
    return record, new.to_list(), max(computed, len(new))


@flow(
    name="nightly-captions",
    flow_run_name=_named("captions of", "photos"),
    task_runner=ONE_SHARD_AT_A_TIME,
    persist_result=False,
)
def caption_new(
    photos: Path,
    model: Path | None = None,
    out: Path | None = None,
    ingest: IngestSettings = INGEST_DEFAULTS,
    workspace: Path = DEFAULT_WORKSPACE,
) -> State[RunRecord | None]:
    """Caption what is new in a folder, and say so where nothing is.

    Args:
        photos: the folder
        model: a bundle; without it the newest run's, else the pretrained model
        out: the captions of all photographs of the folder go here, else to captions/ in the workspace
        ingest: which photographs are taken
        workspace: folder for everything that is made
    """
    claim_run()
    photos = existing(photos)
    store = Workspace(workspace)
    own = own_captions(photos)
    file = out or store.root / own
    check_ending(file)
    bundle = load_bundle(bundle_at(model) if model else newest_bundle(workspace))
    called = name_of_model(bundle.folder)
    get_run_logger().info("model: %s", for_log(called))
    settings = settings_with(bundle, {"ingest": ingest.model_dump(exclude_unset=True)})
    try:
        planner = plan_captions(store, photos, settings, bundle)
    except UnknownDataset as empty:
        found = str(empty).splitlines()[-1]
        return Completed(name=NOTHING_NEW, message=for_log(f"no photographs in {photos}: {found}"))
    captioned = 0
    if planner.complete:
        record = finish(planner, "caption", photos, settings)
    else:
        record, fresh, captioned = _caption(photos, bundle, settings, [], workspace)
        leave_artifacts(record, fresh)
    # Also where nothing is new: the night before may have been cut off, or the file was taken away.
    captions = captions_of(Workspace(workspace), record)
    write_captions(captions, file)
    if out is None:
        store.upload(own)
    new = f"{count_of(captioned, 'photograph')} captioned by {called}"
    known = f"{count_of(captions['photo_id'].n_unique(), 'photograph')} captioned before, none is new"
    see = f"{record.reject_rate:.1%} of the files rejected; see {out or store.reached_at(own)}"
    name, said = (None, new) if captioned else (NOTHING_NEW, known)
    return Completed(name=name, message=for_log(f"{said}, {see}"), data=record)


def own_captions(photos: Path) -> str:
    """Where the captions of a folder lie in the workspace: /a/inbox and /b/inbox have files of their own."""
    return f"captions/{photos.name}-{digest_of(str(photos))[:8]}.parquet"


def from_terminal(flow: Callable[..., Any], server: str, *args: Any, **kwargs: Any) -> RunRecord:
    """Call a flow, watched by the server at an address, without its heartbeat, whose thread costs a second.

    A person watches; deployments keep it. Errors are shown by the command line, not by Prefect.
    Raises ServerLost.
    """
    for name in ("prefect", "prefect._internal"):  # the second has a level of its own
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with temporary_settings({PREFECT_API_URL: server, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            return flow(*args, **kwargs)
    except TransportError as error:
        raise ServerLost(
            f"Prefect's server, which watched this run, stopped answering ({error}); run it again: what was "
            "made is kept"
        ) from error
