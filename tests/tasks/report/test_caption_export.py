"""Captions in files for people, read back as other programs read them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from cutline.schemas.errors import SchemaMismatch
from cutline.schemas.tables import dtypes_of
from cutline.tasks.evaluation.caption_files import read_pair
from cutline.tasks.report.caption_export import write_attention, write_captions
from cutline.tasks.storage.tables import empty_table
from tests.support.datasets import an_id


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


# ---- coco results ----

LONG = "9" * 5000


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # Path, the data set's own number, photograph.
        ([("0001.jpg", None, 1), ("COCO/139.png", None, 2), ("a.jpg", None, 3)], [1, 139, "a.jpg"]),
        ([("cam1/0001.jpg", None, 1), ("cam2/0001.jpg", None, 2), ("3.jpg", None, 3)],
         ["cam1/0001.jpg", "cam2/0001.jpg", 3]),
        ([("7.jpg", None, 1), ("007.jpg", None, 2)], ["7.jpg", "007.jpg"]),
        ([("a.jpg", "12", 1), ("12.jpg", None, 2)], ["a.jpg", "12.jpg"]),
        ([("a.jpg", "x1", 1), ("b.jpg", "x1", 2)], ["a.jpg", "b.jpg"]),
        ([("a.jpg", "12", 1), ("copy/a.jpg", "12", 1)], [12, 12]),  # one photograph in two files
        ([(f"{LONG}.jpg", None, 1), ("b.jpg", LONG, 2)], [f"{LONG}.jpg", LONG]),
        ([(f"{10**18 - 1}.jpg", None, 1), (f"{10**18}.jpg", None, 2)], [10**18 - 1, f"{10**18}.jpg"]),
        ([("١٢.jpg", None, 1), ("1²2.jpg", None, 2)], ["١٢.jpg", "1²2.jpg"]),
    ],
)  # fmt: skip
def test_an_image_id_of_coco_results_is_of_one_photograph_alone(
    files: list[tuple[str, str | None, int]], expected: list[int | str], tmp_path: Path
) -> None:
    rows = [
        {"path": path, "source_id": source_id, "photo_id": an_id(photo), "caption": f"photograph {photo}"}
        for path, source_id, photo in files
    ]
    frame = pl.concat([captions_of(*[["a"]] * len(rows)).drop(rows[0]), pl.DataFrame(rows)], how="horizontal")
    write_captions(frame, tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == [
        {"image_id": image_id, "caption": row["caption"]}
        for image_id, row in zip(expected, rows, strict=True)
    ]


# ---- where the model looked ----


def looks(*numbers: int) -> pl.DataFrame:
    """The `attention` table: two words a photograph, over two regions."""
    rows = [(an_id(number), ["a", "dog"], [[0.25, 0.75], [1.0, 0.0]]) for number in numbers]
    return pl.DataFrame(rows, schema=dtypes_of("attention", regions=2), orient="row")


def test_where_the_model_looked_is_one_file_of_all_tables(tmp_path: Path) -> None:
    path = tmp_path / "attention.parquet"
    write_attention([looks(1, 2), looks(), looks(3)], path)
    assert pl.read_parquet(path).equals(looks(1, 2, 3))
    write_attention([looks()], path)
    assert pl.read_parquet(path).equals(looks())


OPEN_FILES = Path("/proc/self/fd")


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="there is no /proc to tell which files are open")
def test_tables_that_break_off_leave_the_file_of_before_and_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "attention.parquet"
    write_attention([looks(1)], path)

    def broken() -> Iterator[pl.DataFrame]:
        yield looks(2)
        yield looks(3).with_columns(photo_id=pl.lit("no id"))

    with pytest.raises(SchemaMismatch) as caught:
        write_attention(broken(), path)
    held = [link.readlink() for link in OPEN_FILES.iterdir() if link.is_symlink()]
    assert [file for file in held if tmp_path in file.parents] == []
    assert "photo_id" in str(caught.value)
    assert pl.read_parquet(path).equals(looks(1))
    assert list(tmp_path.iterdir()) == [path]
