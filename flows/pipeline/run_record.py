"""What a walk over the stages came to: the record of a run, its scores and its rate of rejects."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from cutline.schemas.errors import UsageError
from cutline.schemas.records import Record, RunRecord
from cutline.schemas.settings import Settings
from cutline.tasks.bundles.bundle import PRETRAINED
from cutline.tasks.engine.planner import Planner
from cutline.tasks.runtime.unicode import is_valid, printable
from cutline.tasks.storage.runs import REJECTING
from cutline.tasks.storage.workspace import Workspace, bundle_at


def newest_bundle(workspace: Path) -> Path:
    """The bundle of the newest run that made one, else the pretrained model."""
    for record in Workspace(workspace).runs():
        if record.bundle and (folder := bundle_at(record.bundle)).is_dir():
            return folder
    return PRETRAINED


def name_of_model(bundle: Path) -> str:
    """What people call the model of a bundle: its folder's name, or the pretrained model."""
    return "the pretrained model" if bundle == PRETRAINED else bundle.name


MODEL_PARTS = ("language_model", "fusion", "vocabulary", "joint_embedding")
TIME = "%Y%m%d-%H%M%S"  # with which the names of runs begin, so that they sort by it


def existing(dataset: Path) -> Path:
    """The absolute path of photographs; UsageError where there is nothing."""
    if not dataset.exists():
        raise UsageError(f"'{printable(str(dataset))}': expected a folder or a file, found nothing there")
    if not is_valid(str(address_of(dataset))):
        raise UsageError(f"'{printable(str(dataset))}': expected a path in UTF-8; rename the folder")
    return address_of(dataset)


def address_of(dataset: Path) -> Path:
    """The one path that a data set is known by: absolute, without `..`; a link in it stays."""
    return Path(os.path.abspath(dataset))  # noqa: PTH100


def demand_ending(option: str, file: Path | None, *endings: str) -> None:
    """Raise UsageError where what an option writes would lie under a name that says something else."""
    if file and file.suffix.lower() not in endings:
        raise UsageError(
            f"{option} '{file}': expected a name that ends in {' or '.join(endings)}, found '{file.suffix}'"
        )


def demand_writable(option: str, file: Path | None) -> None:
    """Raise UsageError where a file cannot be written; a folder for it is made where there is none."""
    if file is None:
        return
    beside = file.with_name(f".cutline-{secrets.token_hex(6)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise UsageError(
            f"{option} '{file}': expected a folder that can be written, found: {error.strerror or error}; "
            "name another place, or change who may write there (chmod, chown)"
        ) from None


def last_run(workspace: Workspace, command: str, dataset: Path) -> RunRecord | None:
    """The newest run of the same command on the same data set."""
    for record in workspace.runs():
        if record.command == command and record.dataset == str(dataset):
            return record
    return None


def finish(planner: Planner, command: str, dataset: Path, settings: Settings) -> RunRecord:
    """Write the record of a complete walk down, and return it.

    A walk that made nothing and comes to what the last run came to is that run.
    """
    record = describe(planner, command, dataset, settings)
    if planner.last and not any(stage.made for stage in record.stages):
        of_this = {"run": record.run, "finished_at": record.finished_at, "stages": record.stages}
        if planner.last.model_copy(update=of_this) == record:
            return planner.last.model_copy(update={"stages": record.stages})
    record = record.model_copy(update={"run": new_name(planner.workspace)})
    planner.workspace.write_run(record)
    return record


def describe(planner: Planner, command: str, dataset: Path, settings: Settings) -> RunRecord:
    """The record of a walk, complete or not."""
    report, bundle, evaluate, leaks = (
        _one(planner, name) for name in ("report", "bundle", "evaluate", "leaks")
    )
    workspace = planner.workspace
    return RunRecord(
        run=_name_at(datetime.now(UTC)),
        command=command,
        dataset=str(dataset),
        workspace=workspace.where,
        settings=settings.model_dump(),
        shards={
            stage_plan.stage.name: [shard.key for shard in stage_plan.shards if shard]
            for stage_plan in planner.stages
        },
        report=workspace.reached_at(report.output("report.html").path) if report else None,
        captions=workspace.reached_at(report.output("captions.parquet").path) if report else None,
        rejects=workspace.reached_at(report.output("rejects.parquet").path) if report else None,
        bundle=workspace.reached_at(bundle.output("bundle.json").path.rpartition("/")[0]) if bundle else None,
        scores=held_out_scores(workspace.file(evaluate.output("scores.parquet").path)) if evaluate else {},
        # Where they have to be looked for again, what was known last is better than nothing.
        leaks=workspace.reached_at(leaks.output("leaks.parquet").path)
        if leaks
        else planner.last and planner.last.leaks,
        model=_model(planner) if command == "caption" else {},
        reject_rate=reject_rate(planner),
        stages=[stage_plan.summary() for stage_plan in planner.stages],
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def new_name(workspace: Workspace) -> str:
    """The name of a run that ends now: after that of every other, also where the clock was set back."""
    time = datetime.now(UTC)
    newest = next((name for name in workspace.run_names() if re.match(r"\d{8}-\d{6}-", name)), "")
    with suppress(ValueError, OverflowError):  # there is none, or it is of no time that there is
        time = max(time, datetime.strptime(newest[:15], TIME).replace(tzinfo=UTC) + timedelta(seconds=1))
    return _name_at(time)


def _name_at(time: datetime) -> str:
    return f"{time:{TIME}}-{secrets.token_hex(3)}"


def _one(planner: Planner, name: str) -> Record | None:
    return next((stage_plan.one for stage_plan in planner.stages if stage_plan.stage.name == name), None)


def _model(planner: Planner) -> dict[str, str]:
    """Where the files lie that photographs were captioned and indexed with, by name."""
    files: dict[str, str] = {}
    for stage_plan in planner.stages:
        shard = next((shard for shard in stage_plan.shards if shard), None)
        if shard and stage_plan.stage.name in ("predictions", "index"):
            files |= {name: shard.sources[name] for name in MODEL_PARTS if name in shard.sources}
    return files


def held_out_scores(path: Path) -> dict[str, float]:
    """The scores of the test split by metric, of dev where there is no test split; else empty."""
    scores = pl.read_parquet(path)
    for split in ("test", "dev"):
        rows = scores.filter(pl.col("split") == split)
        if rows.height:
            return dict(rows.select("metric", "value").iter_rows())
    return {}


def reject_rate(planner: Planner) -> float:
    """Share, 0 to 1, of the rows read from the data set that were rejected; notices do not count."""
    rejecting = [stage_plan for stage_plan in planner.stages if stage_plan.stage.name in REJECTING]
    rejected = sum(record.rejected for stage_plan in rejecting for record in stage_plan.present)
    rows = sum(record.rows_in for stage_plan in rejecting[:1] for record in stage_plan.present)
    return rejected / rows if rows else 0.0
