"""The record of a run that failed: what it had made until then, so that its rejects can be shown.

One a data set, in `failed/` of the workspace; it goes when a run on the data set is finished.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from cutline.flows.pipeline.run_record import describe, new_name
from cutline.schemas.records import RunRecord
from cutline.schemas.settings import Settings
from cutline.tasks.engine.planner import Planner
from cutline.tasks.storage.workspace import Workspace, digest_of

FOLDER = "failed"


def write_failed(planner: Planner, command: str, dataset: Path, settings: Settings) -> RunRecord:
    """Write down what a run had made when it failed, and return it."""
    made = {
        stage_plan.stage.name: [record.key for record in stage_plan.present] for stage_plan in planner.stages
    }
    named = {"shards": made, "run": new_name(planner.workspace), "finished_at": datetime.now(UTC).isoformat()}
    record = describe(planner, command, dataset, settings).model_copy(update=named)
    planner.workspace.write_text(_path_of(str(dataset)), record.model_dump_json(indent=1))
    return record


def forget_failed(workspace: Workspace, dataset: Path) -> None:
    """Remove the record of a failed run on a data set, if there is one."""
    path = _path_of(str(dataset))
    if workspace.has(path):
        workspace.remove([path])


def failed_runs(workspace: Workspace) -> list[RunRecord]:
    """The last failed run of each data set, newest first; a damaged record is left out."""
    if workspace.store:
        found = [workspace.store.read(path) for path in workspace.store.listing(FOLDER)]
    else:
        found = [path.read_bytes() for path in (workspace.root / FOLDER).glob("*.json")]
    records = []
    for data in found:
        try:
            records.append(RunRecord.model_validate_json(data or b""))
        except ValidationError:
            continue
    return sorted(records, key=lambda record: record.run, reverse=True)


def _path_of(dataset: str) -> str:
    return f"{FOLDER}/{digest_of(dataset)[:16]}.json"
