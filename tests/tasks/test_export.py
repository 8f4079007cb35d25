"""Captions in files for people, read back as other programs read them."""

from __future__ import annotations

import csv
from pathlib import Path

import polars as pl
import pytest

from tasks.caption_files import read_pair
from tasks.export import write_captions
from tasks.tables import empty_table
from tests.tasks.histories import an_id


def captions_of(*texts: list[str]) -> pl.DataFrame:
    """The `captioned` table: a photograph for each list of alternatives, its caption the first of them."""
    rows = [
        {
            "path": f"{number}.jpg", "photo_id": an_id(number), "source_id": None, "split": "test",
            "caption": alternatives[0], "score": -1.0, "distance": 0.5,
            "alternatives": [{"caption": text, "score": -1.0} for text in alternatives],
        }
        for number, alternatives in enumerate(texts)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=empty_table("captioned").schema)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "captions.csv"
    write_captions(captions_of(["a cat", "a dog"], ["a man", "one, two", 'a "red" ball'], ["a bird"]), path)
    return path


def test_a_csv_has_the_alternatives_in_columns_best_first_without_the_caption_itself(written: Path) -> None:
    with written.open(newline="") as file:
        rows = list(csv.DictReader(file))
    others = [(row["caption"], row["alternative_2"], row["alternative_3"]) for row in rows]
    assert others == [("a cat", "a dog", ""), ("a man", "one, two", 'a "red" ball'), ("a bird", "", "")]
    assert list(rows[0])[-2:] == ["alternative_2", "alternative_3"]


def test_a_csv_without_any_alternative_has_no_column_for_one(tmp_path: Path) -> None:
    for name, frame in {"one.csv": captions_of(["a cat"]), "none.csv": captions_of()}.items():
        write_captions(frame, tmp_path / name)
        header = (tmp_path / name).read_text().splitlines()[0]
        assert header == "path,photo_id,source_id,split,caption,score,distance"


def test_of_a_csv_with_alternatives_the_caption_is_what_is_scored(written: Path, tmp_path: Path) -> None:
    references = tmp_path / "references.csv"
    references.write_text("path,caption\n0.jpg,One cat\n1.jpg,One man\n2.jpg,One bird\n")
    said, known, _ = read_pair(written, references)
    assert set(said.values()) == {"a cat", "a man", "a bird"}
    assert said.keys() == known.keys()
