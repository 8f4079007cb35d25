"""The one module of tasks that knows Prefect: shards as task runs, numbers as artifacts.

Prefect shows what happens; it decides nothing. Whether a shard is there is known from its record,
so Prefect's own cache and results are off.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from threading import Lock
from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from cutline.schemas.errors import ClusterFailed
from cutline.schemas.records import Record
from cutline.schemas.safe_text import for_log, for_terminal
from cutline.tasks.dask_workers import check_workers, photo_to_see, wait_for
from cutline.tasks.engine.executor import make_shard
from cutline.tasks.engine.stage import Advance, Shard, Stage
from cutline.tasks.runtime.formatting import count_of
from cutline.tasks.runtime.memory import give_back
from cutline.tasks.storage.workspace import Workspace

SECONDS_BETWEEN_UPDATES = 5.0
# Prefect's server writes 25 to 50 task runs a second down, and a flow's page shows some hundreds.
TASK_RUNS_A_STAGE = 400
COUNTS = ("rows_in", "rows_out", "rejected")

# Shows a stage while it is made: (name, rows) -> what to call with the rows just done.
Display = Callable[[str, int], Advance]

_one_at_a_time = Lock()  # a shard uses all cores by itself, also on a worker of several threads


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{title}")
def make(
    title: str, shards: Sequence[Shard], keys: Sequence[str], where: str, advance: Advance | None
) -> State[list[Record]]:
    """Make shards, each unless another run, or a worker that was lost, has made it meanwhile.

    Where another process is at one, that is waited for. `keys` are the shards' keys as the flow has
    them: a worker with other code has others. The state says what was made.
    """
    return _make(shards, keys, where, advance)


def _make(
    shards: Sequence[Shard], keys: Sequence[str], where: str, advance: Advance | None
) -> State[list[Record]]:
    workspace = _workspace(where)
    records = []
    with _one_at_a_time:
        for shard, key in zip(shards, keys, strict=True):
            if shard.key != key:
                raise ClusterFailed(
                    f"{shard.stage.name}: this worker has other code than the machine that runs the flow; "
                    "install the same version of Cutline there, and start the worker anew"
                )
            with workspace.alone_on(key, partial(_wait_for, shard.stage.name)):
                records.append(_made(shard, workspace, advance or _nobody_counts))
    made = [record for record in records if not record.taken_over]
    if not made:
        return Completed(name="Cached", message="another run made it meanwhile", data=records)
    read, written, rejected = (sum(getattr(record, name) for record in made) for name in COUNTS)
    took_s = sum(record.took_s for record in made)
    told = f"{read:,} rows read, {written:,} written, {rejected:,} rejected, in {took_s:,.1f} s"
    return Completed(message=told, data=records)


def _made(shard: Shard, workspace: Workspace, advance: Advance) -> Record:
    """The record of a shard, which is made where it is not there."""
    if not shard.sources.get("again"):
        record, _ = workspace.lookup(shard.stage.name, shard.key)
        if record is not None:
            advance(shard.rows)
            return record.model_copy(update={"taken_over": True})
    return make_shard(shard, workspace, advance)


@cache  # it is told once of a stage
def _wait_for(stage: str, process: str) -> None:
    print(
        f"cutline: {stage}: {process or 'another process'} makes the same for this workspace; "
        "waiting for what it makes",
        file=sys.stderr,
        flush=True,
    )


def _nobody_counts(_rows: int) -> None:
    """On a worker: the flow counts the rows of a shard when its record arrives."""


@lru_cache(maxsize=4)
def _workspace(where: str) -> Workspace:
    """One a process, so that a store is connected to once."""
    return Workspace(where)


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{title}")
def reuse(title: str, shards: int) -> State:
    """Show that shards were there already."""
    return Completed(name="Cached", message=f"{count_of(shards, 'shard')} made before")


class PrefectMaker:
    """Makes the missing shards of a stage as Prefect task runs, with progress for people.

    On a cluster, stages of many shards go to its workers; others, and those that read photographs
    which the workers do not see, are made here.
    """

    def __init__(self, workspace: Workspace, display: Display) -> None:
        self.workspace = workspace
        self.display = display
        self._sees_photos: bool | None = None  # None: no worker was asked yet

    def __call__(self, stage: Stage, shards: list[Shard], reused: int) -> list[Record]:
        """The records of `shards`, in order; the first failure ends the stage."""
        rows = sum(shard.rows for shard in shards)
        if reused:
            reuse(f"{stage.name}: {reused} reused", reused)
        if not shards:
            return []
        advance = _Progress(stage.name, rows, self.display(stage.name, rows))
        client = _cluster()
        if client is not None and self._goes_to(client, stage, shards[0]):
            records = self._on_cluster(client, shards, advance)
        elif client is not None:
            states: list[Any] = [make(*self._asked(batch), advance) for batch in _batches(shards)]
            records = [record for state in states for record in state.result()]
        else:
            futures: list[Any] = [make.submit(*self._asked(batch), advance) for batch in _batches(shards)]
            records = [record for future in futures for record in future.result()]
        advance.finish()
        give_back(tensorflow=stage.tensorflow)
        return records

    def _asked(self, batch: Sequence[Shard]) -> tuple[str, Sequence[Shard], list[str], str]:
        return _title(batch), batch, [shard.key for shard in batch], self.workspace.where

    def _goes_to(self, client: Any, stage: Stage, shard: Shard) -> bool:
        """Whether the shards of a stage are made by the workers of a cluster."""
        if not shard.lineage:  # a stage of one shard, as training is
            return False
        seen = photo_to_see(shard, self.workspace) if stage.reads_photos else None
        if self._sees_photos is None or seen:
            dataset = shard.sources["dataset"]
            self._sees_photos = check_workers(client, self.workspace, dataset, seen)
            if not self._sees_photos:
                print(
                    f"cutline: not every worker sees the photographs of '{for_terminal(dataset)}', so "
                    f"{stage.name} are made on this machine; the workers do the rest",
                    file=sys.stderr,
                )
        return self._sees_photos or not stage.reads_photos

    def _on_cluster(self, client: Any, shards: Sequence[Shard], advance: _Progress) -> list[Record]:
        workers = len(client.scheduler_info()["workers"])
        batches = _batches(shards, max(TASK_RUNS_A_STAGE, 4 * workers))
        futures = [make.submit(*self._asked(batch), None) for batch in batches]
        records = []
        for future, batch in zip(futures, batches, strict=True):
            wait_for(client, partial(_is_done, future))
            records += _result(future, batch)
            advance(sum(shard.rows for shard in batch))
        return records


def _cluster() -> Any:
    """The Dask client of the flow that runs; None where it runs on this machine alone."""
    context = FlowRunContext.get()
    runner = context.task_runner if context else None
    return None if runner is None or isinstance(runner, ThreadPoolTaskRunner) else runner.client  # type: ignore[attr-defined]


def _is_done(future: Any, seconds: float) -> bool:
    """Wait so long at most for a task run on the cluster."""
    future.wait(seconds)
    return bool(future.wrapped_future.done())


def _result(future: Any, batch: Sequence[Shard]) -> list[Record]:
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    try:
        return future.result()
    except FutureCancelledError:
        raise ClusterFailed(
            f"{_title(batch)}: the Dask scheduler was lost; start it and its workers, and run again: "
            "what was made is kept"
        ) from None
    except KilledWorker as error:
        raise ClusterFailed(
            f"{_title(batch)}: every worker that tried it died ({error}); it may need more memory than a "
            "worker has (`dask worker --memory-limit`); run again: what was made is kept"
        ) from None


def _batches(shards: Sequence[Shard], most: int = TASK_RUNS_A_STAGE) -> list[Sequence[Shard]]:
    """The shards in `most` task runs at the most, in order."""
    size = -(-len(shards) // most)
    return [shards[start : start + size] for start in range(0, len(shards), size)]


def _title(batch: Sequence[Shard]) -> str:
    """The stage, which part of the rows, and how many: `images train/0110: 250 rows`."""
    first, rows = batch[0], sum(shard.rows for shard in batch)
    part = first.partition if "/" in first.partition and not first.partition.startswith("/") else ""
    more = f" and {len(batch) - 1:,} more" if len(batch) > 1 else ""
    counted = f": {count_of(rows, 'row')}" if rows else ""
    return for_log(f"{first.stage.name} {part.removesuffix('/')}".strip() + more + counted)


class _Progress:
    """Counts rows and keeps a progress artifact in Prefect up to date, not too often."""

    def __init__(self, name: str, rows: int, show: Advance) -> None:
        self.name = name
        self.rows = rows
        self.show = show
        self.done = 0
        self.started = self.updated = time.monotonic()
        self.artifact: UUID = create_progress_artifact(0.0, description=self._told())  # type: ignore[assignment]

    def __call__(self, rows: int) -> None:
        self.done += rows
        self.show(rows)
        if time.monotonic() - self.updated >= SECONDS_BETWEEN_UPDATES:
            self._update(min(100.0, 100 * self.done / max(self.rows, 1)))

    def finish(self) -> None:
        """Fill what a training that ended early, or a stage without rows, left open."""
        self.show(max(0, self.rows - self.done))
        self._update(100.0)

    def _update(self, percent: float) -> None:
        self.updated = time.monotonic()
        update_progress_artifact(self.artifact, percent, description=self._told())

    def _told(self) -> str:
        if not self.rows:
            return self.name
        rate = self.done / max(self.updated - self.started, 1e-9)
        return f"{self.name}: {self.done:,} of {count_of(self.rows, 'row')}, {rate:,.1f} a second"
