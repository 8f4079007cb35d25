"""What a data set holds, and what of it could not be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutline.schemas.records import RunRecord
from cutline.schemas.tables import REASONS
from cutline.tasks.report.rejects import formats, reasons, rejects_page, split_counts
from cutline.tasks.storage.runs import History
from cutline.tasks.storage.workspace import ReadOnlyWorkspace
from tests.support.histories import RUN, small_history


@pytest.fixture
def history(tmp_path: Path) -> History:
    written = small_history(tmp_path / "workspace", tmp_path / "dataset")
    return History(ReadOnlyWorkspace(written.workspace.root))


@pytest.fixture
def run(history: History) -> RunRecord:
    return history.run(RUN)


def test_photographs_and_captions_are_counted_by_split_those_without_a_photograph_apart(
    history: History, run: RunRecord
) -> None:
    photos, captions = (history.table(run, "ingest", name) for name in ("photos", "captions"))
    rows = [(row.name, row.photos, row.captions, row.text_only) for row in split_counts(photos, captions)]
    assert rows == [("train", 4, 1, 1), ("dev", 1, 0, 0), ("test", 1, 1, 0)]
    assert formats(photos) == [("jpeg", 6)]


def test_losses_come_before_notices_and_each_reason_says_what_it_means(
    history: History, run: RunRecord
) -> None:
    found = reasons(history.rejects(run))
    assert [row.reason for row in found] == ["empty_caption", "outside_dataset", "truncated", "leak"]
    assert [row.notice for row in found] == [False, False, False, True]
    assert all(row.rows == 1 and row.meaning == REASONS[row.reason] for row in found)


def test_rejects_of_a_reason_keep_the_row_that_names_them(history: History, run: RunRecord) -> None:
    table = history.rejects(run).collect()
    for row in reasons(history.rejects(run)):
        (found,) = rejects_page(history.rejects(run), row.reason, 1, 10).rows
        assert table.row(found["row"], named=True) == found
    assert rejects_page(history.rejects(run), "no such reason", 1, 10).total == 0
