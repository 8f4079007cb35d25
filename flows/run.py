"""A run from its plan to its record: looks first, and starts Prefect only when something is missing."""

from __future__ import annotations

import os
import secrets
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from flows.pipeline import run_stages
from schemas.errors import UsageError
from schemas.records import Record, RunRecord
from schemas.settings import Settings
from schemas.tables import NOTICES, REJECTS_DTYPES
from tasks.walk import Walk
from tasks.workspace import Workspace

WORKSPACE = Path("data/workspace")


def plan(dataset: Path, settings: Settings, workspace: Path = WORKSPACE, deep: bool = False) -> Walk:
    """Look every shard of a run up, without making any; imports neither Prefect nor TensorFlow.

    With `deep`, every output's bytes are hashed again. Raises UsageError, UnknownDataset.
    """
    dataset = existing(dataset)
    store = Workspace(workspace)
    walk = Walk(store, last=last_run(store, "run", dataset), deep=deep)
    run_stages(walk, dataset, settings)
    return walk


def run(dataset: Path, settings: Settings, workspace: Path = WORKSPACE, deep: bool = False) -> RunRecord:
    """Make what is missing of a data set's captions, scores, bundle and report."""
    walk = plan(dataset, settings, workspace, deep)
    if walk.complete:
        return finish(walk, "run", existing(dataset), settings)
    from flows.server import choose_server

    choose_server(workspace)
    from flows.prefect_flows import from_terminal, run_dataset

    return from_terminal(run_dataset, existing(dataset), settings, workspace)


def status(dataset: Path, settings: Settings, workspace: Path = WORKSPACE, deep: bool = False) -> RunRecord:
    """What a run would make, and why; the workspace stays as it is.

    New and changed photographs of a known data set are read, so that the shards they fall into can
    be named.
    """
    dataset = existing(dataset)
    store = Workspace(workspace)
    with tempfile.TemporaryDirectory(prefix="cutline-status-") as folder:
        preview = Workspace(Path(folder))
        walk = Walk(store, last=last_run(store, "run", dataset), deep=deep, preview=preview)
        run_stages(walk, dataset, settings)
        return describe(walk, "run", dataset, settings)


def retry_rejects(dataset: Path | None, workspace: Path = WORKSPACE) -> RunRecord:
    """Run again as last time, reading anew whatever was rejected."""
    last = _last_of(dataset, workspace)
    from flows.server import choose_server

    choose_server(workspace)
    from flows.prefect_flows import from_terminal, run_dataset

    return from_terminal(
        run_dataset, Path(last.dataset), Settings.model_validate(last.settings), workspace, retry=True
    )


def last_rejects(dataset: Path | None, workspace: Path = WORKSPACE) -> pl.DataFrame:
    """The rejects table of the last run."""
    last = _last_of(dataset, workspace)
    return pl.read_parquet(last.rejects) if last.rejects else pl.DataFrame(schema=REJECTS_DTYPES)


def _last_of(dataset: Path | None, workspace: Path) -> RunRecord:
    runs = [
        run
        for run in Workspace(workspace).runs()
        if dataset is None or run.dataset == str(dataset.absolute())
    ]
    if not runs:
        what = f" on '{dataset}'" if dataset else ""
        raise UsageError(
            f"expected an earlier run{what} in {workspace}, found none; start with `cutline run`"
        )
    return runs[0]


def existing(dataset: Path) -> Path:
    """The absolute path of a data set; UsageError where there is none."""
    if not dataset.exists():
        raise UsageError(f"data set '{dataset}': expected a folder or a Parquet file, found nothing there")
    return dataset.absolute()


def last_run(workspace: Workspace, command: str, dataset: Path) -> RunRecord | None:
    """The newest run of the same command on the same data set."""
    for record in workspace.runs():
        if record.command == command and record.dataset == str(dataset):
            return record
    return None


def finish(walk: Walk, command: str, dataset: Path, settings: Settings) -> RunRecord:
    """Write the record of a complete walk down, and return it.

    A walk that made nothing and refers to what the last run refers to is that run.
    """
    record = describe(walk, command, dataset, settings)
    last = walk.last
    if last and last.shards == record.shards and not any(stage.made for stage in record.stages):
        return last.model_copy(update={"stages": record.stages})
    walk.workspace.write_run(record)
    return record


def describe(walk: Walk, command: str, dataset: Path, settings: Settings) -> RunRecord:
    """The record of a walk, complete or not."""
    report, bundle, evaluate = (_one(walk, name) for name in ("report", "bundle", "evaluate"))
    root = walk.workspace.root
    return RunRecord(
        run=f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
        command=command,
        dataset=str(dataset),
        workspace=str(root),
        settings=settings.model_dump(),
        shards={walked.stage.name: [shard.key for shard in walked.shards if shard] for walked in walk.stages},
        report=str(root / report.output("report.html").path) if report else None,
        captions=str(root / report.output("captions.parquet").path) if report else None,
        rejects=str(root / report.output("rejects.parquet").path) if report else None,
        bundle=str((root / bundle.output("bundle.json").path).parent) if bundle else None,
        scores=held_out_scores(root / evaluate.output("scores.parquet").path) if evaluate else {},
        reject_rate=reject_rate(walk),
        stages=[walked.summary() for walked in walk.stages],
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _one(walk: Walk, name: str) -> Record | None:
    return next((walked.one for walked in walk.stages if walked.stage.name == name), None)


def held_out_scores(path: Path) -> dict[str, float]:
    """The scores of the test split, of dev where there is no test split."""
    scores = pl.read_parquet(path)
    for split in ("test", "dev"):
        rows = scores.filter(pl.col("split") == split)
        if rows.height:
            return dict(rows.select("metric", "value").iter_rows())
    return {}


def reject_rate(walk: Walk) -> float:
    """Share of the rows read from the data set that were rejected; notices do not count."""
    rejected = rows = 0
    for walked in walk.stages[:3]:
        for record in walked.present:
            if record.stage == "ingest":
                rows = record.rows_in
            if record.has("rejects.parquet"):
                reasons = pl.read_parquet(walk.workspace.root / record.output("rejects.parquet").path)[
                    "reason"
                ]
                rejected += int((~reasons.is_in(list(NOTICES))).sum())
    return rejected / rows if rows else 0.0


class RunMarker:
    """Says that a run is at work on a workspace, so that nothing is pruned under it."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.path = workspace.root / "running" / f"{os.getpid()}"

    def __enter__(self) -> RunMarker:
        self.workspace.mark()
        self.workspace.clear_scratch()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(datetime.now(UTC).isoformat(timespec="seconds"))
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)
