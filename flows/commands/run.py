"""Running the stages over a data set: looks first, and starts Prefect only where something is missing."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path

import polars as pl

from cutline.flows import DEFAULT_WORKSPACE
from cutline.flows.pipeline.failed_runs import failed_runs, forget_failed
from cutline.flows.pipeline.plan import plan
from cutline.flows.pipeline.run_record import address_of, existing, finish
from cutline.flows.pipeline.settings import settings_of_run
from cutline.schemas.errors import UsageError
from cutline.schemas.records import RunRecord
from cutline.schemas.settings import Settings
from cutline.tasks.dask_workers import LOCAL
from cutline.tasks.engine.fingerprint import KNOWN_CODE, load_known_code, save_known_code
from cutline.tasks.storage.runs import History
from cutline.tasks.storage.workspace import Workspace


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
    code = store.root / KNOWN_CODE
    loaded = load_known_code(code)
    planner = plan(dataset, settings, workspace, deep)
    if planner.complete:
        if not loaded:
            save_known_code(code)
        forget_failed(store, existing(dataset))
        return finish(planner, "run", existing(dataset), settings)
    from cutline.flows.orchestration.runners import start

    root = planner.workspace.root
    return start("run_dataset", existing(dataset), settings, workspace, root=root, runner=runner)


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
    from cutline.flows.orchestration.runners import start

    settings = settings_of_run(last)
    root = Workspace(workspace).root
    return start("run_dataset", Path(last.dataset), settings, workspace, root=root, retry=True)


def last_rejects(dataset: Path | None, workspace: Path = DEFAULT_WORKSPACE) -> tuple[RunRecord, pl.DataFrame]:
    """The last run, finished or failed, and its rejects table. Raises UsageError, DamagedFile."""
    last = _last_of(dataset, workspace)
    return last, History(Workspace(workspace)).rejects(last).drop("row").collect()


def _last_of(dataset: Path | None, workspace: Path) -> RunRecord:
    wanted = str(address_of(dataset)) if dataset else None
    store = Workspace(workspace)
    runs = chain(
        islice((run for run in store.runs() if wanted in (None, run.dataset)), 1), failed_runs(store)
    )
    fitting = [run for run in runs if wanted in (None, run.dataset)]
    last = max(fitting, key=lambda run: run.run, default=None)
    if last is None:
        what = f" on '{dataset}'" if dataset else ""
        raise UsageError(
            f"expected an earlier run{what} in {workspace}, found none; start with `cutline run`"
        )
    return last
