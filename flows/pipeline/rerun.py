"""What is to be made anew with changed settings or on another data set, and what that changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cutline.flows import DEFAULT_WORKSPACE
from cutline.flows.pipeline.plan import status
from cutline.flows.pipeline.run_record import existing, last_run
from cutline.flows.pipeline.settings import make_settings, merge, parse_assignments
from cutline.schemas.errors import UsageError
from cutline.schemas.records import RunRecord
from cutline.schemas.settings import Settings
from cutline.tasks.evaluation.compare_runs import Comparison
from cutline.tasks.evaluation.compare_runs import compare as compare_runs
from cutline.tasks.storage.workspace import Workspace


def dry_run(dataset: Path | None, changes: Sequence[str], workspace: Path = DEFAULT_WORKSPACE) -> RunRecord:
    """What `reprocess` would make, why, and how long by the rates of the last run; makes nothing.

    Raises UsageError, UnknownDataset.
    """
    dataset, settings = what_to_make(dataset, changes, workspace)
    return status(dataset, settings, workspace)


def what_to_make(dataset: Path | None, changes: Sequence[str], workspace: Path) -> tuple[Path, Settings]:
    """The data set, and the settings of its last run (else of the newest run) with the changes.

    Raises UsageError where there was no run, and for settings that there are not.
    """
    newest = next((run for run in Workspace(workspace).runs() if run.command == "run"), None)
    if newest is None:
        raise UsageError(f"expected an earlier run in {workspace}, found none; start with `cutline run`")
    dataset = existing(dataset or Path(newest.dataset))
    base = last_run(Workspace(workspace), "run", dataset) or newest
    return dataset, make_settings(merge(base.settings, parse_assignments(changes)))


def last_before(dataset: Path, workspace: Path) -> RunRecord | None:
    """The run that a new one on the data set is compared with."""
    return last_run(Workspace(workspace), "run", dataset)


def moved(before: RunRecord | None, after: RunRecord, workspace: Path) -> Comparison | None:
    """The comparison of a run with the one before; None where there is none or they are the same."""
    if before is None or before.run == after.run:
        return None
    return compare_runs(Workspace(workspace), before, after)
