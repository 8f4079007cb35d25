"""Walks the stages of a run: looks every shard up, says why it is missing, has it made.

Without a maker it only looks: so whether there is anything to do is known before Prefect or
TensorFlow is imported.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from cutline.schemas.records import Record, RunRecord, StageSummary
from cutline.tasks.engine.explain import why_made
from cutline.tasks.engine.partition import Overlaps, partition_that_holds
from cutline.tasks.engine.stage import Shard, Stage
from cutline.tasks.runtime.formatting import count_of
from cutline.tasks.storage.workspace import Workspace

EXPLAINED_SHARDS = 50  # why is told for so many shards of a stage, then only counted

# Makes shards, in order, if any; the number is how many others of the stage are reused.
Maker = Callable[[Stage, list[Shard], int], list[Record]]


@dataclass
class StagePlan:
    """What became of one stage: a record for each shard, None where it is not made yet."""

    stage: Stage
    shards: list[Shard | None]
    records: list[Record | None]
    reasons: list[str] = field(default_factory=list)  # one for each shard that was missing
    made: list[Record] = field(default_factory=list)  # by this walk
    took_s: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every shard of the stage is there."""
        return all(record is not None for record in self.records)

    @property
    def one(self) -> Record | None:
        """The record of a stage that has a single shard."""
        return self.records[0]

    @property
    def present(self) -> list[Record]:
        """The records that there are."""
        return [record for record in self.records if record is not None]

    def of(self, *groups: str) -> list[Record | None]:
        """The records of some families of rows ("train", "dev-text" …), in order."""
        return [
            record
            for shard, record in zip(self.shards, self.records, strict=True)
            if shard is None or shard.partition.partition("/")[0] in groups
        ]

    def summary(self) -> StageSummary:
        """The stage's line in the table of a run."""
        present = self.present
        return StageSummary(
            name=self.stage.name,
            made=len(self.reasons),
            reused=len(self.shards) - len(self.reasons),
            rows_in=sum(record.rows_in for record in present),
            rows_out=sum(record.rows_out for record in present),
            rejected=sum(record.rejected for record in present),
            took_s=round(self.took_s, 2),
            why=summarise(self.reasons),
            outputs=[output.path for record in present for output in record.outputs],
        )


def summarise(reasons: Sequence[str]) -> str:
    """The reasons of a stage, most frequent first, each with its number of shards."""
    counts = Counter(reasons).most_common()
    told = [reason if n == 1 and len(counts) == 1 else f"{reason} ({n}×)" for reason, n in counts[:3]]
    return "; ".join(told) + (f"; {len(counts) - 3} more reasons" if len(counts) > 3 else "")


class Planner:
    """One walk over the stages of a run on one workspace."""

    def __init__(
        self,
        workspace: Workspace,
        maker: Maker | None = None,
        last: RunRecord | None = None,
        deep: bool = False,
        retry: bool = False,
        preview: Workspace | None = None,
    ) -> None:
        """`deep` hashes every output again, `retry` makes shards with rejects again, and in
        `preview` a walk that only looks may read what is new in a data set."""
        self.workspace = workspace
        self.maker = maker
        self.last = last
        self.deep = deep
        self.retry = retry
        self.preview = preview
        self.stages: list[StagePlan] = []

    @property
    def complete(self) -> bool:
        """Whether every shard of every stage is there."""
        return all(stage_plan.complete for stage_plan in self.stages)

    def of(self, name: str) -> StagePlan:
        """What was found of a stage that the walk has passed. Raises KeyError."""
        return {stage_plan.stage.name: stage_plan for stage_plan in self.stages}[name]

    def stage(self, stage: Stage, shards: Sequence[Shard | None]) -> StagePlan:
        """Look up all shards of a stage and have the missing ones made, where there is a maker.

        A shard is None where what it needs has not been made.
        """
        started = time.monotonic()
        stage_plan = StagePlan(stage, list(shards), [None] * len(shards))
        missing: list[tuple[int, Shard]] = []
        reasons: dict[int, str] = {}
        earlier = _Earlier(self.workspace, stage, self.last)
        self.workspace.look_ahead(stage.name, [shard.key for shard in shards if shard])
        for place, shard in enumerate(shards):
            if shard is None:
                reasons[place] = "what it needs is made first"
                continue
            record, found = self.workspace.lookup(stage.name, shard.key, self.deep)
            # Ingest looks at the data set again in any case: a photograph's pack may be gone.
            if record and self.retry and (record.rejected or stage.name == "ingest"):
                found = (
                    f"{count_of(record.rejected, 'reject')} to try again"
                    if record.rejected
                    else "the data set is looked at again"
                )
                record = None
                shard = replace(shard, sources=shard.sources | {"again": True})
            stage_plan.records[place] = record
            if record is None:
                missing.append((place, shard))
                explained = len(missing) <= EXPLAINED_SHARDS or found
                before = earlier.at(shard) if explained else None
                reasons[place] = (
                    why_made(shard, before, self.workspace, found) if explained else "as the others"
                )
        if self.maker:
            ready = earlier.with_donors([shard for _, shard in missing])
            records = self.maker(stage, ready, len(shards) - len(missing))
            for (place, _), record in zip(missing, records, strict=True):
                stage_plan.records[place] = record
                if record.taken_over:
                    del reasons[place]
            stage_plan.made = [record for record in records if not record.taken_over]
            stage_plan.took_s = time.monotonic() - started
        stage_plan.reasons = list(reasons.values())
        self.stages.append(stage_plan)
        return stage_plan


class _Earlier:
    """What earlier runs made of a stage; read only when something is missing."""

    def __init__(self, workspace: Workspace, stage: Stage, last: RunRecord | None) -> None:
        self.workspace = workspace
        self.stage = stage
        self.last = last
        self._by_place: dict[str, Record] | None = None

    def at(self, shard: Shard) -> Record | None:
        """The last run's record for the same rows, or for the rows that hold them."""
        if self._by_place is None:
            keys = self.last.shards.get(self.stage.name, []) if self.last else []
            read = (self.workspace.read_record(self.stage.name, key) for key in keys)
            self._by_place = {record.partition: record for record in read if record}
        place = partition_that_holds(shard.partition, self._by_place)
        return self._by_place[place] if place is not None else None

    def with_donors(self, shards: list[Shard]) -> list[Shard]:
        """The same shards, each knowing the shards of its lineage that may hold some of its rows."""
        lineages = {shard.lineage for shard in shards if shard.lineage}
        if not lineages:
            return shards
        held: dict[str, dict[str, list[str]]] = {lineage: {} for lineage in lineages}
        for record in self.workspace.records(self.stage.name):  # newest first
            if record.lineage in held:
                held[record.lineage].setdefault(record.partition, []).append(record.key)
        overlaps = {lineage: Overlaps(places) for lineage, places in held.items() if places}
        if not overlaps:
            return shards
        ready = []
        for shard in shards:
            places = overlaps[shard.lineage].of(shard.partition) if shard.lineage in overlaps else []
            donors = [key for place in places for key in held[shard.lineage][place]]
            ready.append(replace(shard, sources=shard.sources | {"donors": donors}))
        return ready
