"""What the benchmarks work on: a data set of real photographs or the sample, and a finished run on it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from cutline.schemas.records import RunRecord
from cutline.schemas.settings import IngestSettings, Settings
from cutline.tasks.storage.workspace import Workspace
from tests import REPOSITORY

SAMPLE = REPOSITORY / "data" / "sample"


@dataclass(frozen=True)
class Place:
    """The data set that contests take their input from, a folder for what they write, one that stays.

    In `workspace` lies a run, or one is made there when it is needed.
    """

    dataset: Path
    scratch: Path
    out: Path
    workspace: Path

    @classmethod
    def of_environment(cls, scratch: Path, out: Path, workspace: Path | None) -> Place:
        """Flickr8k in the folder that CUTLINE_REAL_DATA names, else the drawn sample."""
        real = os.environ.get("CUTLINE_REAL_DATA")
        dataset = Path(real, "data/flickr8k") if real else SAMPLE
        return cls(dataset, scratch, out, workspace or out / f"run-{dataset.name}")

    @property
    def name(self) -> str:
        return "the sample" if self.dataset == SAMPLE else self.dataset.name

    def finished(self) -> Finished:
        """The newest run in the workspace; `cutline run` makes one where there is none."""
        store = Workspace(self.workspace)
        if not any(run.bundle for run in store.runs()):
            cutline("run", self.dataset, "--workspace", self.workspace)
        return Finished(store, next(run for run in store.runs() if run.bundle))


@dataclass(frozen=True)
class Finished:
    """A finished run and its files."""

    workspace: Workspace
    record: RunRecord

    @property
    def settings(self) -> Settings:
        return Settings.model_validate(self.record.settings)

    def files(self, stage: str, name: str) -> list[Path]:
        """The files of that name of a stage, in the order of its shards."""
        records = [self.workspace.read_record(stage, key) for key in self.record.shards[stage]]
        return [self.workspace.root / record.output(name).path for record in records if record]

    def table(self, stage: str, name: str) -> pl.DataFrame:
        return pl.concat(pl.read_parquet(path) for path in self.files(stage, f"{name}.parquet"))

    def stage_seconds(self) -> float:
        """What making all its shards took, whenever that was."""
        shards = ((stage, key) for stage, keys in self.record.shards.items() for key in keys)
        return sum(record.took_s for shard in shards if (record := self.workspace.read_record(*shard)))


def cutline(*arguments: str | Path) -> str:
    """What the command line prints to standard output; raises where it fails."""
    command = [sys.executable, "-m", "cutline.flows", *map(str, arguments)]
    return subprocess.run(
        command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout


def photos_of(dataset: Path, scratch: Path) -> pl.DataFrame:
    """The `photos` table of a data set."""
    from cutline.tasks.ingest.ingest import ingest

    return ingest(dataset, IngestSettings(), scratch / "packs", None, nobody).photos


def nobody(rows: int) -> None:
    """Hears of progress, and tells nobody."""
