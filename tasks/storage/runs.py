"""What a workspace holds of earlier runs, read lazily and never written.

A record or table that is missing or damaged is told as such, by DamagedFile: one bad file costs the
part of a page that needs it.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from cutline.schemas.errors import DamagedFile
from cutline.schemas.records import Record, RunRecord
from cutline.tasks.storage.checksums import checked
from cutline.tasks.storage.tables import empty_table
from cutline.tasks.storage.workspace import Workspace, path_of

RUN_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")
REJECTING = ("ingest", "images", "tokens")  # stages that reject rows
# Columns that are shown: a table of an older version, without others, is no damaged one.
SHOWN = {
    "photos": ("photo_id", "path", "other_paths", "container", "offset", "size", "format", "split"),
    "captions": ("photo_id", "text", "split"),
    "captioned": ("photo_id", "path", "split", "caption", "score", "alternatives"),
    "predictions": ("photo_id", "caption", "score", "alternatives"),
    "rejects": ("stage", "kind", "name", "reason", "detail"),
    "scores": ("split", "metric", "value"),
    "joint_embedding_curve": ("epoch", "train_loss", "dev_recall", "best"),
    "leaks": ("kind", "split", "name", "other_split", "other_name", "similarity"),
    "curve": ("epoch", "train_loss", "dev_loss", "dev_cider", "best"),
}
# Stages that train, and the table of their curves.
CURVES = {"language_model": "curve", "fusion": "curve", "joint_embedding": "joint_embedding_curve"}


@dataclass(frozen=True)
class Damage:
    """A run's record that cannot be read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Captions:
    """The captions of a run, lazily: photo_id, caption, score, alternatives, and path and split.

    With `photos`, path and split are there: to be joined where they are needed, not before.
    """

    rows: pl.LazyFrame
    photos: pl.LazyFrame | None = None

    def named(self, rows: pl.LazyFrame | None = None) -> pl.LazyFrame:
        """Rows (all without any) with path and split."""
        rows = self.rows if rows is None else rows
        return rows if self.photos is None else rows.join(self.photos, on="photo_id", maintain_order="left")


class History:
    """The runs of a workspace, and the tables that they refer to."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._lock = threading.Lock()
        self._slim: dict[str, tuple[object, RunRecord | Damage]] = {}

    # -- runs ---------------------------------------------------------------------------------

    def runs(self) -> list[RunRecord]:
        """All runs, newest first, without the names of their shards and files."""
        return [run for run in self._all() if isinstance(run, RunRecord)]

    def damaged(self) -> list[Damage]:
        """The records of runs that cannot be read."""
        return [run for run in self._all() if isinstance(run, Damage)]

    def run(self, name: str) -> RunRecord:
        """One run, whole. Raises KeyError where there is none of that name, DamagedFile."""
        data = self.workspace.read_run(name) if RUN_ID.fullmatch(name) else None
        if data is None:
            raise KeyError(name)
        found = _parse(name, data)
        if isinstance(found, Damage):
            raise DamagedFile(f"{found.name}: {found.reason}")
        return found

    def newest_by_dataset(self) -> list[RunRecord]:
        """The newest run of each command and data set, newest first."""
        newest: dict[tuple[str, str], RunRecord] = {}
        for run in self.runs():
            newest.setdefault((run.command, run.dataset), run)
        return list(newest.values())

    def _all(self) -> list[RunRecord | Damage]:
        """Every run's record in its slim form; one that has not changed is not read again."""
        with self._lock:
            fresh: dict[str, tuple[object, RunRecord | Damage]] = {}
            for name, stamp in self.workspace.run_names().items():
                known = self._slim.get(name)
                if known is None or known[0] != stamp:
                    data = self.workspace.read_run(name)
                    known = stamp, _slim(_parse(name, data or b""))
                fresh[name] = known
            self._slim = fresh
            return [run for _, run in fresh.values()]

    # -- what they refer to -------------------------------------------------------------------

    def file(self, record: Record, name: str) -> Path:
        """An output, of the size that its record says. Raises DamagedFile."""
        if not record.has(name):
            raise DamagedFile(f"{record.stage} {record.key}: the record names no {name}")
        output = record.output(name)
        if output.path.startswith("/") or ".." in output.path.split("/"):
            raise DamagedFile(f"{output.path}: the record names a file outside the workspace")
        path = path_of(self.workspace, record, name)
        try:
            size = path.stat().st_size
        except OSError:
            raise DamagedFile(f"{output.path}: expected a file, found none; {AGAIN}") from None
        if size != output.size:
            raise DamagedFile(f"{output.path}: expected {output.size:,} bytes, found {size:,}; {AGAIN}")
        return path

    def table(self, run: RunRecord, stage: str, table: str) -> pl.LazyFrame:
        """A table of all shards of a stage, lazily. Raises DamagedFile."""
        records = self.workspace.records_of(run, stage)
        return _scan([self.file(record, f"{table}.parquet") for record in records], table)

    def captions(self, run: RunRecord) -> Captions:
        """What a run wrote under its photographs. Raises DamagedFile."""
        for report in self.workspace.records_of(run, "report"):
            return Captions(_scan([self.file(report, "captions.parquet")], "captioned"))
        photos = self.table(run, "ingest", "photos").select("photo_id", "path", "split")
        return Captions(self.table(run, "predictions", "predictions"), photos)

    def rejects(self, run: RunRecord) -> pl.LazyFrame:
        """What a run could not use; `row` numbers the rows, always in the same order."""
        files = [self.file(report, "rejects.parquet") for report in self.workspace.records_of(run, "report")]
        if not files:
            records = [record for stage in REJECTING for record in self.workspace.records_of(run, stage)]
            files = [
                self.file(record, "rejects.parquet") for record in records if record.has("rejects.parquet")
            ]
        return _scan(files, "rejects").with_row_index("row")

    def scores(self, run: RunRecord) -> pl.DataFrame:
        """The `scores` table of a run; empty where nothing was scored."""
        with reading():
            return self.table(run, "evaluate", "scores").collect()

    def curves(self, run: RunRecord) -> dict[str, pl.DataFrame]:
        """The curves of a run by the stage that trained, of the tables that `CURVES` tells."""
        with reading():
            return {
                stage: self.table(run, stage, table).collect()
                for stage, table in CURVES.items()
                if run.shards.get(stage)
            }


AGAIN = "`cutline run` makes it again"


@contextmanager
def reading() -> Iterator[None]:
    """Turns what reading a damaged table raises into DamagedFile."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        text = " ".join(str(error).split())[:300]
        raise DamagedFile(f"a table cannot be read: {text}; {AGAIN}") from None


def _scan(files: Sequence[Path], table: str) -> pl.LazyFrame:
    expected = empty_table(table)
    if not files:
        return expected.lazy()
    with reading():
        frame = pl.scan_parquet(list(files), glob=False)
        found = frame.collect_schema()
    for column in SHOWN[table]:
        if found.get(column) != expected.schema[column]:
            raise DamagedFile(
                f"{files[0].name}: expected a column '{column}' of {expected.schema[column]}, "
                f"found {found.get(column, 'none')}"
            )
    return frame


def _parse(name: str, data: bytes) -> RunRecord | Damage:
    try:
        run = checked(RunRecord, data)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        return Damage(f"runs/{name}.json", f"{where}: {problem['msg']}" if where else problem["msg"])
    except ValueError as error:
        return Damage(f"runs/{name}.json", str(error))
    if run.run != name or not RUN_ID.fullmatch(name):
        return Damage(f"runs/{name}.json", f"the record calls itself '{run.run[:60]}'")
    return run


def _slim(run: RunRecord | Damage) -> RunRecord | Damage:
    if isinstance(run, Damage):
        return run
    stages = [stage.model_copy(update={"outputs": []}) for stage in run.stages]
    return run.model_copy(update={"shards": {}, "stages": stages})


# -- runs side by side --------------------------------------------------------------------------


@dataclass(frozen=True)
class SettingRow:
    """One setting in several runs; None where a run does not have it."""

    name: str
    values: list[str | None]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def settings_of(runs: Sequence[RunRecord]) -> list[SettingRow]:
    """Every setting of several runs, those that differ first."""
    flat = [{name: _shown(value) for name, value in flat_settings(run.settings).items()} for run in runs]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    rows = [SettingRow(name, [settings.get(name) for settings in flat]) for name in names]
    return sorted(rows, key=lambda row: not row.differs)


def flat_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run by stage and name; those of a damaged record whatever they are.

    >>> flat_settings({"images": {"crop": "pad", "side_px": 224}})
    {'images.crop': 'pad', 'images.side_px': 224}
    """
    return {
        f"{stage}.{name}": value
        for stage, of_stage in settings.items()
        for name, value in (of_stage.items() if isinstance(of_stage, dict) else [("", of_stage)])
    }


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
