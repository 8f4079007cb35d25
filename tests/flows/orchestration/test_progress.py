"""The lines of progress say what is done, at which rate, and how long is left."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console
from rich.progress import Progress

from cutline.flows.orchestration.progress import lines_on, told


@pytest.mark.parametrize(
    ("done", "rows", "after_s", "line"),
    [
        (0, 100, 3, "0/100  0:00:03"),
        (80, 100, 4, "80/100  20.0 a second  0:00:04, 0:00:01 left"),
        (1500, 3000, 60, "1,500/3,000  25.0 a second  0:01:00, 0:01:00 left"),
        (80, None, 4, "80  20.0 a second  0:00:04"),  # nobody knows yet how many there are
        (0, None, 4, "0:00:04"),
        (100, 100, 4, "100/100  25.0 a second  0:00:04"),
    ],
)
def test_a_line_counts_all_rows_since_its_start(done: int, rows: int | None, after_s: int, line: str) -> None:
    now = [0.0]
    progress = Progress(get_time=lambda: now[0])
    task = progress.add_task("images", total=rows)
    now[0] = after_s
    progress.advance(task, done)
    assert told(progress.tasks[0]) == line


@pytest.mark.parametrize("width", [40, 80])
def test_a_line_stays_a_line_in_a_narrow_terminal(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    with lines_on(console) as start:
        start("language_model", 90_000)(1_234)
        time.sleep(0.3)
    last = console.file.getvalue().rpartition("\r")[2]  # type: ignore[attr-defined]
    assert last.count("\n") == 1
    assert (" left" in last) == (width == 80)


def test_the_clock_of_a_stage_stands_still_once_the_next_begins() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=110)
    with lines_on(console) as start:
        start("ingest", 0)(80)
        start("images", 80)
        time.sleep(1.1)
    last = console.file.getvalue().rpartition("ingest")[2]  # type: ignore[attr-defined]
    ingest, images, *_ = last.splitlines()
    assert "80/80" in ingest
    assert "0:00:00" in ingest
    assert "0:00:01" in images
