"""No cell of a CSV is a formula, and every text comes back as it was."""

from __future__ import annotations

import csv
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cutline.schemas.tables import dtypes_of
from cutline.tasks.evaluation.caption_files import read_captions
from cutline.tasks.report.caption_export import write_captions
from cutline.tasks.runtime.spreadsheets import neutralise, restore, write_csv

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "=cmd|' /C calc'!A0"]
STARTS = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_becomes_a_text_and_comes_back(text: str) -> None:
    assert neutralise(text)[0] == "'"
    assert restore(neutralise(text)) == text


@given(st.text() | st.text(alphabet="'=+-@\t\r\nab"))
@example("'=1")
@example("'''-1")
@example("'")
def test_every_text_comes_back_and_none_begins_as_a_formula(text: str) -> None:
    assert restore(neutralise(text)) == text
    assert neutralise(text)[:1] not in set(STARTS)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.text("'=+-@ab\t\n"), min_size=1))
def test_a_table_is_written_as_the_function_says_and_numbers_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    write_csv(pl.DataFrame({"text": texts, "score": [-1.5] * len(texts)}), path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert rows == [[neutralise(text), "-1.5"] for text in texts]


def test_captions_that_were_written_as_csv_are_read_back_as_they_were(tmp_path: Path) -> None:
    captions = ["=HYPERLINK(1)", "'-1", "a dog"]
    rows = [
        {"path": f"-{n}.jpg", "photo_id": f"{n:032}", "source_id": None, "split": "test", "caption": caption,
         "score": -1.0, "distance": None, "alternatives": []}
        for n, caption in enumerate(captions)
    ]  # fmt: skip
    frame = pl.DataFrame(rows, schema=dtypes_of("captioned"))
    write_captions(frame, tmp_path / "captions.csv")
    with (tmp_path / "captions.csv").open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert {cell for cell in cells if cell[:1] in set(STARTS) and cell} == {"-1.0"}
    found = read_captions(tmp_path / "captions.csv")
    assert [(row.path, row.caption) for row in found] == [
        (f"-{n}.jpg", text) for n, text in enumerate(captions)
    ]
