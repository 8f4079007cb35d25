"""What a command prints for people: tables that say what they count, and nothing that steers a terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from cutline.flows.cli.printing import show_comparison, show_leaks, show_rejects
from cutline.flows.orchestration.artifacts import comparison_page
from cutline.schemas.records import RunRecord
from cutline.schemas.tables import dtypes_of
from cutline.tasks.evaluation.compare_runs import Comparison
from cutline.tasks.retrieval.near_duplicates import DTYPES as LEAKS_DTYPES
from tests import REPOSITORY

# A colour, a window's title, a line that hides what stands before it, and markup that rich would read.
HOSTILE = "a\x1b[31m\x1b]0;owned\x07\r\n[bold]:dog:\u202e.jpg"
WRITTEN_OUT = r"a\x1b[31m\x1b]0;owned\x07\r\n[bold]:dog:\u202e.jpg"


def rejects(*rows: tuple[str, str, str]) -> pl.DataFrame:
    """A rejects table from (reason, name, detail)."""
    full = [("ingest", "file", name, reason, detail) for reason, name, detail in rows]
    return pl.DataFrame(full, schema=dtypes_of("rejects"), orient="row")


def a_comparison(caption: str = "a dog") -> Comparison:
    """One caption that changed, of a photograph of the same name, and some scores."""
    moved = [("CIDEr", 0.25, 0.5), ("vocabulary_used", 51.0, 1049.0), ("distinct", 0.5, 0.75)]
    scores = [("test", metric, before, after, after - before) for metric, before, after in moved]
    columns = ["split", "metric", "before", "after", "change"]
    row = {"path": caption, "before": caption, "after": caption, "cider_before": None, "cider_after": None}
    return Comparison(
        before="one", after="two", settings=[("tokens.stopwords", caption, "english")],
        same=0, gone=0, new=0,
        scores=pl.DataFrame(scores, schema=columns, orient="row"), captions=pl.DataFrame([row]),
    )  # fmt: skip


def a_run(workspace: Path, *leaks: tuple[str, str, str]) -> RunRecord:
    """A run that found these leaks: kind, name and the other name."""
    rows = [(kind, "test", name, "train", other, 1.0) for kind, name, other in leaks]
    pl.DataFrame(rows, schema=LEAKS_DTYPES, orient="row").write_parquet(workspace / "leaks.parquet")
    return RunRecord(
        run="1", command="run", dataset="d", workspace=str(workspace), settings={}, shards={}, stages=[],
        leaks="leaks.parquet", finished_at="",
    )  # fmt: skip


def test_rejects_are_counted_apart_from_notices_which_are_no_loss(capsys: pytest.CaptureFixture[str]) -> None:
    show_rejects(
        rejects(
            ("duplicate", "twice.jpg", "as once.jpg"),
            ("truncated", "short.jpg", "ends early"),
            ("leak", "both.jpg", "also in test"),
            ("empty_caption", "tokens.txt:3", "no words"),
        )
    )
    losses, told, notices = capsys.readouterr().out.partition(
        "2 notices, which describe the data set and are no loss"
    )
    assert told
    assert losses.startswith("2 rows could not be used")
    assert [name in losses for name in ("short.jpg", "tokens.txt:3", "twice.jpg", "both.jpg")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert "twice.jpg" in notices
    assert "both.jpg" in notices


@pytest.mark.parametrize(
    ("reason", "there", "absent"),
    [("leak", "1 notice, which describes", "could not"), ("truncated", "1 row could not", "notice")],
)
def test_where_there_are_only_losses_or_only_notices_the_others_are_not_named(
    capsys: pytest.CaptureFixture[str], reason: str, there: str, absent: str
) -> None:
    show_rejects(rejects((reason, "a.jpg", "b")))
    out = capsys.readouterr().out
    assert there in out
    assert absent not in out


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, without the breaks of folded lines; fails where it holds anything but text."""
    found = capsys.readouterr()
    text = found.out + found.err
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    return "".join(text.split())


def test_a_reject_whose_name_would_steer_the_terminal_is_written_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_rejects(rejects(("truncated", HOSTILE, "cut")))
    assert WRITTEN_OUT in printed(capsys)


def test_captions_and_settings_side_by_side_do_not_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_comparison(a_comparison(HOSTILE), most=10, stderr=False)
    assert printed(capsys).count(WRITTEN_OUT) == 1 + 3  # a setting; name, caption before and after


def test_near_duplicates_do_not_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    show_leaks(a_run(tmp_path, ("photo", HOSTILE, HOSTILE), ("caption", HOSTILE, HOSTILE)))
    assert printed(capsys).count(WRITTEN_OUT) == 4


def test_what_two_splits_share_by_likeness_is_called_near_duplicates_and_counted_in_words(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pairs = [("photo", "a.jpg", "b.jpg"), ("photo", "c.jpg", "d.jpg"), ("caption", "A dog", "a dog")]
    show_leaks(a_run(tmp_path, *pairs))
    err = capsys.readouterr().err
    assert "near-duplicates between splits: 2 pairs of photographs, for example" in err
    assert "the same words in two splits: 1 pair of captions, for example" in err


def test_scores_side_by_side_have_the_labels_of_the_report_and_counts_are_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_comparison(a_comparison(), most=0, stderr=False)
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    expected = [
        "CIDEr 0.250 0.500 +0.250",
        "vocabulary used 51 1,049 +998",
        "distinct captions 50.0 % 75.0 % +25.0 points",
    ]
    assert rows[-3:] == [f"test {row}" for row in expected]
    page = comparison_page(a_comparison(), {})
    assert "| test | vocabulary used | 51 | 1,049 | +998 |" in page
    assert "| test | CIDEr | 0.250 | 0.500 | +0.250 |" in page


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    many = "; ".join(
        [
            "import cutline.flows.cli.main as cli, cutline.flows.cli.printing as tables",
            "show = lambda: [tables._console(stderr=False).print('a row' * 999) for _ in range(99)] and None",
            "cli.main.command('many')(show)",
            "cli.main(['many'])",
        ]
    )
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$0" -c "$1" | head -1', sys.executable, many],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
