"""Reprocessing: making a data set anew with changed settings, and comparing two runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cutline.flows import DEFAULT_WORKSPACE
from cutline.flows.pipeline.plan import plan
from cutline.flows.pipeline.rerun import last_before, moved, what_to_make
from cutline.flows.pipeline.run_record import finish
from cutline.schemas.errors import UsageError
from cutline.schemas.records import RunRecord
from cutline.tasks.evaluation.compare_runs import Comparison, choose_runs
from cutline.tasks.evaluation.compare_runs import compare as compare_runs
from cutline.tasks.storage.workspace import Workspace


def reprocess(
    dataset: Path | None, changes: Sequence[str], workspace: Path = DEFAULT_WORKSPACE
) -> tuple[RunRecord, Comparison | None]:
    """Run again with the settings of the last run and `changes` to them; makes what depends on those.

    Without `dataset`, that of the newest run. Returns the run's record, and its comparison with the
    last one unless it is the last one. Raises UsageError.
    """
    dataset, settings = what_to_make(dataset, changes, workspace)
    before = last_before(dataset, workspace)
    planner = plan(dataset, settings, workspace)
    if planner.complete:
        record = finish(planner, "run", dataset, settings)
    else:
        from cutline.flows.orchestration.runners import start

        asked = (dataset, tuple(changes), False, workspace)
        record = start("reprocess", *asked, root=planner.workspace.root)
    return record, moved(before, record, workspace)


def compare(before: str | None, after: str | None, workspace: Path = DEFAULT_WORKSPACE) -> Comparison:
    """Compare two runs by their ids; without them the newest with the one before. Raises UsageError."""
    store = Workspace(workspace)
    runs = list(store.runs())
    newest = next((run for run in runs if run.command == "run"), None)
    if newest and not before and not after:
        # Those of other data sets, and those that only captioned, are none to compare it with.
        runs = [run for run in runs if (run.command, run.dataset) == (newest.command, newest.dataset)]
        if len(runs) == 1:
            raise UsageError(
                f"expected a run before {newest.run} on {newest.dataset}, found none; make one: "
                "`cutline reprocess --set STAGE.KEY=VALUE`"
            )
    return compare_runs(store, *choose_runs(runs, before, after))
