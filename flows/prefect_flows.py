"""The Prefect flows: what `cutline` runs when there is work, and what a deployment serves.

Each walks the stages of `flows.pipeline` with Prefect making the missing shards, and leaves the
stage table, the scores, the rejects and a link to the report as artifacts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.config import Tree, settings_with
from flows.outcome import WORKSPACE, RunMarker, existing, finish, last_run
from flows.pipeline import caption_stages, run_stages
from flows.progress import display
from schemas.records import RunRecord
from schemas.settings import Settings
from tasks.bundle import load_bundle
from tasks.prefect_tasks import PrefectMaker
from tasks.walk import Walk
from tasks.workspace import Workspace

# A shard uses all cores by itself (OpenCV's threads, TensorFlow's), so one is made at a time.
ONE_SHARD_AT_A_TIME: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1)


@flow(
    name="run",
    flow_run_name="run {dataset}",
    task_runner=ONE_SHARD_AT_A_TIME,
    validate_parameters=True,
    persist_result=False,
)
def run_dataset(
    dataset: Path, settings: Settings, workspace: Path = WORKSPACE, retry: bool = False
) -> RunRecord:
    """From a data set to captions, scores, a bundle and a report; makes only what is missing."""
    store = Workspace(workspace)
    dataset = existing(dataset)
    with RunMarker(store), display() as show:
        walk = Walk(store, PrefectMaker(store, show), last_run(store, "run", dataset), retry=retry)
        run_stages(walk, dataset, settings)
        record = finish(walk, "run", dataset, settings)
    leave_artifacts(record)
    return record


@flow(
    name="caption",
    flow_run_name="caption {dataset}",
    task_runner=ONE_SHARD_AT_A_TIME,
    persist_result=False,
)
def caption_photos(
    dataset: Path, model: Path, tree: Tree, only: list[str], workspace: Path = WORKSPACE
) -> RunRecord:
    """Caption the photographs of a folder with a trained bundle; makes only what is missing.

    `tree` overrides the settings of ingest and caption; `only` names files below `dataset`, all if
    empty.
    """
    store = Workspace(workspace)
    bundle = load_bundle(model)
    settings = settings_with(bundle, tree)
    with RunMarker(store), display() as show:
        walk = Walk(store, PrefectMaker(store, show), last_run(store, "caption", dataset))
        caption_stages(walk, dataset, settings, bundle, only)
        record = finish(walk, "caption", dataset, settings)
    leave_artifacts(record)
    return record


def from_terminal(flow: Callable[..., RunRecord], *args: Any, **kwargs: Any) -> RunRecord:
    """Call a flow without its heartbeat, whose thread costs a second at the end.

    A person watches; deployments keep it. Errors are shown by the command line, not by Prefect.
    """
    logging.getLogger("prefect").setLevel(logging.CRITICAL)
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        return flow(*args, **kwargs)


def leave_artifacts(record: RunRecord) -> None:
    """Put the stage table, the scores, the rejects and a link to the report on the run's page."""
    columns = ("name", "made", "reused", "rows_in", "rows_out", "rejected", "took_s", "why")
    rows = [{column: getattr(stage, column) for column in columns} for stage in record.stages]
    create_table_artifact(rows, key="stages", description=f"Stages of run {record.run}")
    if record.scores:
        scores = [{"metric": name, "value": round(value, 4)} for name, value in record.scores.items()]
        create_table_artifact(scores, key="scores", description="Scores on the held-out split")
    if record.rejects:
        rejects = (
            pl.read_parquet(record.rejects).group_by("stage", "reason").len("rows").sort("stage", "reason")
        )
        create_table_artifact(rejects.to_dicts(), key="rejects", description=f"All rejects: {record.rejects}")
    if record.report:
        create_link_artifact(Path(record.report).as_uri(), link_text="Report of the run", key="report")
        create_markdown_artifact(
            f"- report: `{record.report}`\n- captions: `{record.captions}`\n"
            f"- rejects: `{record.rejects}`\n- bundle: `{record.bundle}`",
            key="files",
            description="Where the files of the run lie",
        )
