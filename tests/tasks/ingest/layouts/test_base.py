"""What a path tells of splits, and how long a line may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutline.tasks.ingest.files import Problem, scan
from cutline.tasks.ingest.layouts.base import MAX_LINE_CHARACTERS, read_lines, split_in, split_of_file
from tests.support.datasets import put


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("val2017", "dev"),
        ("images/train2014", "train"),
        ("validation/test.jpg", "dev"),
        ("my_test_images", "test"),
        ("contest/trainer", None),
    ],
)
def test_split_words_in_a_path(path: str, split: str | None) -> None:
    assert split_in(path) == split


def test_a_files_own_name_tells_its_split_before_its_folder_does() -> None:
    assert split_of_file("test/train-00000-of-00002.parquet") == "train"
    assert split_of_file("test/00000.parquet") == "test"


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_longest_line_is_read_also_at_the_end_and_one_longer_costs_itself(
    end: str, tmp_path: Path
) -> None:
    longest = "é" * MAX_LINE_CHARACTERS
    put(tmp_path, **{"lines.txt": f"one\n{longest}\n{longest}x\n{longest * 2}\nfive\n{longest}{end}"})
    found = list(read_lines(scan(tmp_path), "lines.txt"))
    lines = [line for line in found if not isinstance(line, Problem)]
    assert lines == [(1, "one"), (2, longest), (5, "five"), (6, longest)]
    told = [(line.name, line.detail) for line in found if isinstance(line, Problem)]
    over = "the line has over 1,048,576 characters"
    assert told == [("lines.txt:3", over), ("lines.txt:4", over)]
