"""What goes onto the run's page is shown, not read as Markdown or HTML."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cutline.flows.orchestration import artifacts
from cutline.flows.orchestration.artifacts import leave_rejects, sample_table
from cutline.schemas.records import RunRecord, StageSummary
from cutline.schemas.tables import dtypes_of
from cutline.tasks.report.samples import Sample


def test_a_name_or_caption_that_is_markup_stays_text_within_its_cell() -> None:
    square = np.full((8, 8, 3), 200, np.uint8)
    name = "<script>alert(1)</script>|![x](http://e.example)`_*\n.png"
    table = sample_table([Sample(name, "test", square, "a [dog](javascript:1) & <b>", -1.0)])
    row = table.splitlines()[2]
    assert len(table.splitlines()) == 3
    assert row.count("|") == 6
    assert row.count("](") == 1  # the picture of ours
    assert "<" not in row
    assert "data:image/jpeg;base64," in row


def test_a_sample_that_is_unlike_all_that_was_learned_from_is_marked_as_a_guess() -> None:
    square = np.full((8, 8, 3), 200, np.uint8)
    found = [Sample("a.jpg", "test", square, "a dog", -1.0, distance) for distance in (0.5, 1.5, None)]
    near, far, untold = sample_table(found).splitlines()[2:]
    assert near.endswith("| −1.00 | 0.50 | test |")
    assert far.endswith("| −1.00 | 1.50: a guess | test |")
    assert untold.endswith("| −1.00 | – | test |")


def test_notices_are_told_from_rejects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        ("ingest", "file", f"{i}.jpg", reason, "-") for i, reason in enumerate(("leak", "truncated", "leak"))
    ]
    pl.DataFrame(rows, schema=dtypes_of("rejects"), orient="row").write_parquet(tmp_path / "rejects.parquet")
    ingest = StageSummary(
        name="ingest", made=1, reused=0, rows_in=3, rows_out=0, rejected=3, took_s=1.0, why="",
        outputs=["rejects.parquet"],
    )  # fmt: skip
    record = RunRecord(
        run="1", command="run", dataset="d", workspace=str(tmp_path), settings={}, shards={}, stages=[ingest],
        finished_at="",
    )  # fmt: skip
    left: list[dict[str, object]] = []
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda table, **_: left.extend(table))
    leave_rejects(record)
    assert [(row["reason"], row["notice"], row["rows"]) for row in left] == [
        ("leak", True, 2),
        ("truncated", False, 1),
    ]
