"""How long a stage will take, by the rates of the shards that an earlier run was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.records import Record, RunRecord
from tasks.shards import Shard
from tasks.walk import Walk, Walked
from tasks.workspace import Workspace

RECORDS_A_STAGE = 50  # so many shards tell a stage's rate


def estimates(walk: Walk, settings: Mapping[str, Any], earlier: RunRecord | None) -> dict[str, float | None]:
    """Stage → seconds to make what a walk that only looked found missing; None where no rate is known.

    Rates are those of the shards that `earlier` refers to: rows, times epochs, a second. Rows that
    will be taken over count as if they were computed, so this is rather too much than too little; a
    wider network is slower than it says, and starting TensorFlow comes on top.
    """
    keys = earlier.shards if earlier else {}
    before = {stage: _records(walk.workspace, stage, keys[stage]) for stage in keys}
    growth = _growth(walk, before.get("ingest", []))
    found: dict[str, float | None] = {}
    for walked in walk.stages:
        name = walked.stage.name
        stage = _Stage(before.get(name, []), len(keys.get(name, [])), settings.get(name, {}), growth)
        found[name] = stage.seconds(walked)
    return found


class _Stage:
    """What an earlier run tells of a stage."""

    def __init__(
        self, records: Sequence[Record], shards: int, settings: Mapping[str, Any], growth: float
    ) -> None:
        effort = sum((record.rows_in - record.reused_rows) * _passes(record.settings) for record in records)
        self.rate = sum(record.took_s for record in records) / effort if effort else None  # seconds a row
        self.rows_a_shard = sum(record.rows_in for record in records) / max(len(records), 1)
        self.rows = self.rows_a_shard * shards * growth
        self.passes = _passes(settings)

    def seconds(self, walked: Walked) -> float | None:
        """To make what is missing of the stage."""
        missing = [
            shard for shard, record in zip(walked.shards, walked.records, strict=True) if record is None
        ]
        if not missing:  # all there, or made aside while looking
            return sum(record.took_s for record in walked.present) if walked.whys else 0.0
        if self.rate is None:
            return None
        if missing == [None] * len(walked.shards):  # of the stage only its former size is known
            return self.rate * self.passes * self.rows
        return self.rate * self.passes * sum(self._rows_of(shard) for shard in missing)

    def _rows_of(self, shard: Shard | None) -> float:
        if shard is None:
            return self.rows_a_shard
        if self.passes > 1:  # a training counts for progress what each of its passes goes over
            return self.rows or self.rows_a_shard
        return shard.rows or self.rows or self.rows_a_shard


def _records(workspace: Workspace, stage: str, keys: Sequence[str]) -> list[Record]:
    found = (workspace.read_record(stage, key) for key in keys[:RECORDS_A_STAGE])
    return [record for record in found if record is not None]


def _growth(walk: Walk, before: Sequence[Record]) -> float:
    """How many times as large as the earlier run's the data set is."""
    now = sum(record.rows_out for walked in walk.stages[:1] for record in walked.present)
    then = sum(record.rows_out for record in before)
    return now / then if now and then else 1.0


def _passes(settings: Mapping[str, Any]) -> int:
    """How often a stage goes over its rows."""
    return max(int(settings.get("epochs", 1)), 1)
