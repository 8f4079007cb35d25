"""The one module of `tasks` that knows Prefect: shards as task runs, numbers as artifacts.

Prefect shows what happens; it decides nothing. Whether a shard is there is known from its record,
so Prefect's own cache and results are off.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed

from schemas.records import Record
from tasks.pages import count_of
from tasks.shards import Advance, Shard, Stage
from tasks.stages import make_shard
from tasks.workspace import Workspace

SECONDS_BETWEEN_UPDATES = 5.0

# Shows a stage while it is made: (name, rows) -> what to call with the rows just done.
Display = Callable[[str, int], Advance]


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{title}")
def make(title: str, shard: Shard, root: Path, advance: Advance) -> State:
    """Make one shard, unless another run has made it meanwhile; the state says which."""
    workspace = Workspace(root)
    if not shard.sources.get("again"):
        record, _ = workspace.lookup(shard.stage.name, shard.key)
        if record:
            return Completed(name="Cached", message="another run made it meanwhile", data=record)
    record = make_shard(shard, workspace, advance)
    told = f"{record.rows_in:,} rows read, {record.rows_out:,} written, {record.rejected:,} rejected"
    return Completed(message=f"{told}, in {record.took_s:,.1f} s", data=record)


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{title}")
def reuse(title: str, shards: int) -> State:
    """Show that shards were there already."""
    return Completed(name="Cached", message=f"{count_of(shards, 'shard')} made before")


class PrefectMaker:
    """Makes the missing shards of a stage as Prefect task runs, with progress for people."""

    def __init__(self, workspace: Workspace, display: Display) -> None:
        self.workspace = workspace
        self.display = display

    def __call__(self, stage: Stage, shards: list[Shard], reused: int) -> list[Record]:
        """The records of `shards`, in order; the first failure ends the stage."""
        rows = sum(shard.rows for shard in shards)
        if reused:
            reuse(f"{stage.name}: {reused} reused", reused)
        if not shards:
            return []
        show = self.display(stage.name, rows)
        advance = _Progress(stage.name, rows, show)
        futures: list[PrefectFuture[Any]] = [
            make.submit(_title(shard), shard, self.workspace.root, advance) for shard in shards
        ]
        records = [future.result() for future in futures]
        advance.finish()
        return records


def _title(shard: Shard) -> str:
    """The stage, which part of the rows, and how many: `images train/0110: 250 rows`."""
    part = shard.place if "/" in shard.place and not shard.place.startswith("/") else ""
    rows = f": {count_of(shard.rows, 'row')}" if shard.rows else ""
    return f"{shard.stage.name} {part.removesuffix('/')}".strip() + rows


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
