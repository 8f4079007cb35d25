"""What a run would make: looks every shard up, makes none, and imports neither Prefect nor TensorFlow."""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path

from cutline.flows import DEFAULT_WORKSPACE
from cutline.flows.pipeline.graph import plan_run
from cutline.flows.pipeline.run_record import describe, existing, last_run
from cutline.schemas.records import RunRecord
from cutline.schemas.settings import Settings
from cutline.tasks.engine.estimate import RUNS, estimates
from cutline.tasks.engine.planner import Planner
from cutline.tasks.storage.workspace import ReadOnlyWorkspace, Workspace


def plan(
    dataset: Path, settings: Settings, workspace: Path = DEFAULT_WORKSPACE, deep: bool = False
) -> Planner:
    """Look every shard of a run up, without making any; imports neither Prefect nor TensorFlow.

    With `deep`, every output's bytes are hashed again. Raises UsageError, UnknownDataset.
    """
    dataset = existing(dataset)
    store = Workspace(workspace)
    planner = Planner(store, last=last_run(store, "run", dataset), deep=deep)
    plan_run(planner, dataset, settings)
    return planner


def status(
    dataset: Path, settings: Settings, workspace: Path = DEFAULT_WORKSPACE, deep: bool = False
) -> RunRecord:
    """What a run would make, and why; the workspace stays as it is.

    New and changed photographs are read, so that the shards they fall into can be named. How long
    it would take is told by the rates of the last run on the data set, else of the newest run.
    """
    dataset = existing(dataset)
    store = ReadOnlyWorkspace(workspace)
    with tempfile.TemporaryDirectory(prefix="cutline-status-") as folder:
        preview = Workspace(Path(folder))
        preview.borrow_packs(store)
        planner = Planner(store, last=last_run(store, "run", dataset), deep=deep, preview=preview)
        plan_run(planner, dataset, settings)
        record = describe(planner, "run", dataset, settings)
        others = (run for run in store.runs() if run.command == "run" and run != planner.last)
        earlier = [*([planner.last] if planner.last else []), *islice(others, RUNS)]
        seconds = estimates(planner, record.settings, earlier)
    stages = [stage.model_copy(update={"estimate_s": seconds[stage.name]}) for stage in record.stages]
    return record.model_copy(update={"stages": stages})
