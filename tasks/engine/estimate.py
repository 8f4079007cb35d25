"""How long a stage will take, by the rates of the shards that an earlier run was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cutline.schemas.records import Record, RunRecord
from cutline.tasks.engine.planner import Planner, StagePlan
from cutline.tasks.storage.workspace import Workspace

RECORDS_PER_STAGE = 50  # so many shards tell a stage's rate
RUNS = 5  # that are asked for a stage's rate, while of none of them much was computed


def estimates(
    planner: Planner, settings: Mapping[str, Any], earlier: Sequence[RunRecord]
) -> dict[str, float | None]:
    """Stage → seconds to make what a walk that only looked found missing; None where no rate is known.

    Rates are those of the shards that the `earlier` runs refer to: rows, as often as they are gone over, a
    second. The first of these runs tells how large the data set was; a rate is that of the run, of
    the first few, which computed most, as a few rows take no time beside starting TensorFlow. Rows that
    will be taken over count as if they were computed, so this is rather too much than too little; a
    wider network is slower than it says.
    """
    before = [
        {stage: _records(planner.workspace, stage, keys) for stage, keys in run.shards.items()}
        for run in earlier[:RUNS]
    ]
    newest = before[0] if before else {}
    growth = _growth(planner, newest.get("ingest", []))
    found: dict[str, float | None] = {}
    for stage_plan in planner.stages:
        name = stage_plan.stage.name
        shards = len(earlier[0].shards.get(name, [])) if earlier else 0
        tell = max((run.get(name, []) for run in before), key=_computed, default=[])
        stage = _Stage(newest.get(name, []), tell, shards, settings.get(name, {}), growth)
        found[name] = stage.seconds(stage_plan)
    return found


class _Stage:
    """What earlier runs tell of a stage: of its size the newest, of its rate the one that `tells`."""

    def __init__(
        self,
        newest: Sequence[Record],
        tells: Sequence[Record],
        shards: int,
        settings: Mapping[str, Any],
        growth: float,
    ) -> None:
        computed = _computed(tells)
        self.rate = sum(record.took_s for record in tells) / computed if computed else None  # s a row
        self.rows_a_shard = sum(map(_gone_over, newest)) / max(len(newest), 1)
        now, then = _passes(settings), _passes(newest[0].settings) if newest else 1
        self.rows = self.rows_a_shard * shards * growth * now / then

    def seconds(self, stage_plan: StagePlan) -> float | None:
        """To make what is missing of the stage."""
        missing = [
            shard
            for shard, record in zip(stage_plan.shards, stage_plan.records, strict=True)
            if record is None
        ]
        if not missing:  # all there, or made aside while looking
            return sum(record.took_s for record in stage_plan.present) if stage_plan.reasons else 0.0
        if self.rate is None:
            return None
        if missing == [None] * len(stage_plan.shards):  # of the stage only its former size is known
            return self.rate * self.rows
        return self.rate * sum((shard and shard.rows) or self.rows_a_shard for shard in missing)


def _gone_over(record: Record) -> int:
    return record.gone_over or record.rows_in * _passes(record.settings)


def _computed(records: Sequence[Record]) -> int:
    """Rows that were gone over and not taken over."""
    return sum(_gone_over(record) - record.reused_rows for record in records)


def _records(workspace: Workspace, stage: str, keys: Sequence[str]) -> list[Record]:
    found = (workspace.read_record(stage, key) for key in keys[:RECORDS_PER_STAGE])
    return [record for record in found if record is not None]


def _growth(planner: Planner, before: Sequence[Record]) -> float:
    """How many times as large as the earlier run's the data set is."""
    now = sum(record.rows_out for stage_plan in planner.stages[:1] for record in stage_plan.present)
    then = sum(record.rows_out for record in before)
    return now / then if now and then else 1.0


def _passes(settings: Mapping[str, Any]) -> int:
    """How often a stage goes over its rows, about."""
    return max(int(settings.get("epochs", 1)) + int(settings.get("text_epochs", 0)), 1)
