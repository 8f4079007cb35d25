"""Earlier runs are read as they are; what is damaged is told, and costs nothing else."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from cutline.schemas.errors import DamagedFile
from cutline.tasks.report.gallery import Wish, captions_page
from cutline.tasks.storage.runs import History, settings_of
from cutline.tasks.storage.workspace import ReadOnlyWorkspace, Workspace
from tests.support.datasets import an_id
from tests.support.histories import LATER, RUN, Written, small_history


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return small_history(tmp_path / "workspace", tmp_path / "dataset")


@pytest.fixture
def history(written: Written) -> History:
    return History(ReadOnlyWorkspace(written.workspace.root))


def test_runs_are_listed_newest_first_without_what_grows_with_the_photographs(history: History) -> None:
    assert [run.run for run in history.runs()] == [LATER, RUN]
    assert all(not run.shards and not stage.outputs for run in history.runs() for stage in run.stages)
    assert history.run(RUN).shards["report"] == [an_id(60)]
    assert [run.run for run in history.newest_by_dataset()] == [LATER]


def test_a_run_that_ends_while_one_looks_is_there_and_a_pruned_one_is_gone(history: History) -> None:
    runs = history.workspace.root / "runs"
    (first,) = (run for run in history.workspace.runs() if run.run == RUN)
    assert len(history.runs()) == 2
    history.workspace.write_run(first.model_copy(update={"run": "20260103-000000-000003"}))
    (runs / f"{RUN}.json").unlink()
    assert [run.run for run in history.runs()] == ["20260103-000000-000003", LATER]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"run": "2026', "EOF"),
        ("", "EOF"),
        ("[]", "should be an object"),
        ('{"run": "x"}', "Field required"),
        ("\x00\xff", "invalid"),
    ],
)
def test_a_half_written_run_record_is_told_and_the_others_are_read(
    history: History, content: str, reason: str
) -> None:
    (history.workspace.root / "runs" / "20260105-000000-000005.json").write_text(content)
    assert [run.run for run in history.runs()] == [LATER, RUN]
    (damage,) = history.damaged()
    assert damage.name == "runs/20260105-000000-000005.json"
    assert reason.lower() in damage.reason.lower()
    with pytest.raises(DamagedFile):
        history.run("20260105-000000-000005")


def test_a_record_under_another_name_is_not_taken_for_a_run(history: History) -> None:
    runs = history.workspace.root / "runs"
    (runs / "20260107-000000-000007.json").write_bytes((runs / f"{RUN}.json").read_bytes())
    assert [damage.name for damage in history.damaged()] == ["runs/20260107-000000-000007.json"]


@pytest.mark.parametrize("name", ["", "../runs/" + RUN, "20260101-000000-00000g", RUN + "/..", "*", "\0"])
def test_only_the_id_of_a_run_names_one(history: History, name: str) -> None:
    with pytest.raises(KeyError):
        history.run(name)


def test_captions_are_the_same_from_the_report_and_from_the_shards(history: History) -> None:
    run = history.run(RUN)
    bare = run.model_copy(update={"shards": {**run.shards, "report": []}})
    columns = ["photo_id", "path", "split", "caption", "score", "alternatives"]
    from_report, from_shards = (
        history.captions(one).named().select(columns).sort("path").collect() for one in (run, bare)
    )
    assert from_report.height == 6
    assert from_report.equals(from_shards)
    for wish in (Wish(), Wish(sort="path"), Wish(split="test"), Wish("dog", "worst")):
        pages = [captions_page(history.captions(one), wish, 4) for one in (run, bare)]
        assert pages[0].frame.select(columns[:5]).equals(pages[1].frame.select(columns[:5])), wish


def test_a_table_cut_short_is_told_with_its_name_and_both_sizes(history: History) -> None:
    run = history.run(RUN)
    path = history.file(history.workspace.records_of(run, "report")[0], "captions.parquet")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    with pytest.raises(DamagedFile, match=rf"captions.parquet: expected {size:,} bytes, found {size // 2:,}"):
        history.captions(run)
    path.unlink()
    with pytest.raises(DamagedFile, match="expected a file, found none"):
        history.captions(run)


def test_a_table_of_the_right_size_and_wrong_bytes_is_told_as_damaged(history: History) -> None:
    run = history.run(RUN)
    path = history.file(history.workspace.records_of(run, "report")[0], "captions.parquet")
    whole = path.read_bytes()
    told = 0
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:place] + bytes(64) + whole[place + 64 :][: max(0, len(whole) - place - 64)])
        try:
            captions_page(history.captions(run), Wish("dog"), 10)
        except DamagedFile:
            told += 1
    assert told > 10  # where the bytes that are gone were not needed, the page is shown
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(DamagedFile, match="cannot be read"):
        history.captions(run)


def test_a_table_of_other_columns_is_told_as_damaged(history: History) -> None:
    run = history.run(RUN)
    record = history.workspace.records_of(run, "report")[0]
    path = history.file(record, "captions.parquet")
    pl.DataFrame({"caption": [1, 2]}).write_parquet(path)
    output = record.output("captions.parquet").model_copy(update={"size": path.stat().st_size})
    Workspace.write_record(history.workspace, record.model_copy(update={"outputs": [output]}))
    with pytest.raises(DamagedFile, match="expected a column 'photo_id' of String, found none"):
        history.captions(run)


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "shards/../../x"])
def test_a_record_that_names_a_file_outside_the_workspace_is_not_followed(
    history: History, path: str
) -> None:
    record = history.workspace.records_of(history.run(RUN), "report")[0]
    output = record.output("captions.parquet").model_copy(update={"path": path})
    with pytest.raises(DamagedFile, match="outside the workspace"):
        history.file(record.model_copy(update={"outputs": [output]}), "captions.parquet")


def test_settings_side_by_side_put_those_first_that_differ(history: History) -> None:
    rows = settings_of([history.run(RUN), history.run(LATER)])
    assert [(row.name, row.values) for row in rows if row.differs] == [("predictions.beam", ["3", "4"])]
    assert rows[0].differs
    assert len(rows) == len({row.name for row in rows}) > 40
