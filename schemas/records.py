"""What is written down about a shard that was made and about a run that asked for it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """Base of the records: frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Output(Frozen):
    """One file of a shard."""

    name: str  # what it holds, with its ending: "photos.parquet"
    path: str  # below the workspace
    size: int  # bytes
    mtime_ns: int  # a file touched since then is hashed again before it is trusted
    digest: str  # BLAKE2b of its bytes


class Record(Frozen):
    """One shard that was made: the cache itself, written after its outputs."""

    stage: str
    key: str
    partition: str  # which part of the rows ("train/0110"); where a stage has one shard, the data set
    inputs: dict[str, str]  # name -> digest of what was read
    settings: dict[str, Any]
    code: str  # digest of the definitions that made it; the definitions lie in code/
    lineage: str  # digest of settings and code from the files up to here: equal lineage, equal rows
    outputs: list[Output]
    rows_in: int
    rows_out: int
    rejected: int  # rows that could not be used; notices are not counted
    reused_rows: int = 0  # rows taken over from an earlier shard of the same lineage
    gone_over: int = 0  # rows as progress counts them: a training goes over its own again and again
    transient: int = 0  # rejects that may be gone next time: a record that has any is tried again
    took_s: float
    made_at: str  # ISO 8601, UTC
    versions: dict[str, str]  # libraries, for people; never part of a key
    # Said to the run that found it made meanwhile by another; never written down.
    taken_over: bool = Field(default=False, exclude=True)

    def output(self, name: str) -> Output:
        """The output called `name`; KeyError where there is none."""
        for output in self.outputs:
            if output.name == name:
                return output
        raise KeyError(f"{self.stage} {self.key} has no output '{name}'")

    def has(self, name: str) -> bool:
        """Whether there is an output called `name`."""
        return any(output.name == name for output in self.outputs)


class StageSummary(Frozen):
    """One line of the table that a run ends with."""

    name: str
    made: int  # shards
    reused: int  # shards
    rows_in: int
    rows_out: int
    rejected: int
    took_s: float  # spent in this run
    why: str  # why anything was made
    outputs: list[str]  # paths
    estimate_s: float | None = None  # to make what is missing, where a walk only looked


class RunRecord(Frozen):
    """One run: what it asked for and what it refers to."""

    run: str
    command: str  # run or caption
    dataset: str
    workspace: str
    settings: dict[str, Any]
    shards: dict[str, list[str]]  # stage -> keys of its shards, in order
    report: str | None = None
    captions: str | None = None
    rejects: str | None = None
    leaks: str | None = None
    bundle: str | None = None
    model: dict[str, str] = {}  # where the files of a model lie that the run did not train, by name
    scores: dict[str, float] = {}
    reject_rate: float = 0.0
    stages: list[StageSummary]
    finished_at: str
