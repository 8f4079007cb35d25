"""What a path tells of splits."""

from __future__ import annotations

import pytest

from tasks.entries import split_in, split_of_file


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
