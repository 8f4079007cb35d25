"""Parquet files of which a few rows are read without the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from cutline.tasks.storage.tables import GROUP_BYTES, bytes_column, read_rows, tensor, write_table

SIDE_PX, ROWS = 224, 90
IDS = [f"{number:032x}" for number in range(ROWS)]


SQUARES = np.random.default_rng(0).integers(0, 256, (ROWS, SIDE_PX**2 * 3), np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "images.parquet"
    frame = pl.DataFrame([pl.Series("photo_id", IDS), bytes_column("square", SQUARES)])
    write_table(frame, path, "images", side_px=SIDE_PX)
    return path


def test_squares_lie_in_parquet_as_their_bytes_and_come_back_as_numbers(images: Path) -> None:
    stored = pq.read_table(images)["square"].to_pylist()
    assert stored == [square.tobytes() for square in SQUARES]
    assert (tensor(pl.read_parquet(images)["square"]) == SQUARES).all()
    assert images.stat().st_size < 1.01 * SQUARES.nbytes, "noise does not shrink, and does not grow either"


@pytest.mark.parametrize("rows", [[0], [7, 3], list(range(ROWS))])
def test_numbers_of_some_squares_are_those_of_the_same_rows(rows: list[int]) -> None:
    column = bytes_column("square", SQUARES)
    assert (tensor(column.gather(rows)) == SQUARES[rows]).all()
    assert (tensor(column[rows[0] : rows[0] + 2]) == SQUARES[rows[0] : rows[0] + 2]).all()
    assert (tensor(pl.concat([column[:5], column[5:]], rechunk=False)) == SQUARES).all()
    assert tensor(column.clear()).shape[0] == 0


def test_rows_taken_over_from_other_files_make_the_same_file(images: Path, tmp_path: Path) -> None:
    halves = [tmp_path / "even.parquet", tmp_path / "odd.parquet"]
    whole = pl.read_parquet(images)
    for start, half in enumerate(halves):
        write_table(whole.gather_every(2, start), half, "images", side_px=SIDE_PX)
    taken = [pl.read_parquet(half).filter(pl.col("photo_id") != IDS[1]) for half in halves]
    new = pl.DataFrame([pl.Series("photo_id", IDS[1:2]), bytes_column("square", SQUARES[1:2])])
    rows = pl.DataFrame({"photo_id": IDS}).join(
        pl.concat([*taken, new]), on="photo_id", maintain_order="left"
    )
    write_table(rows, tmp_path / "again.parquet", "images", side_px=SIDE_PX)
    assert (tmp_path / "again.parquet").read_bytes() == images.read_bytes()


@pytest.mark.parametrize("rows", [[], [89], [0, 28, 60], list(range(0, ROWS, 2)), list(range(ROWS))])
def test_the_rows_asked_for_are_read_in_the_order_of_the_file(images: Path, rows: list[int]) -> None:
    ids = pl.Series("photo_id", [*(IDS[row] for row in reversed(rows)), "f" * 32], pl.String)
    found = read_rows(images, ids)
    assert found["photo_id"].to_list() == [IDS[row] for row in rows]
    assert found["square"].to_list() == [SQUARES[row].tobytes() for row in rows]


def test_rows_of_photographs_lie_in_groups_of_a_few_megabytes(images: Path) -> None:
    metadata = pq.ParquetFile(images).metadata
    sizes = [metadata.row_group(group).num_rows * SIDE_PX**2 * 3 for group in range(metadata.num_row_groups)]
    assert len(sizes) > 1
    assert max(sizes) <= GROUP_BYTES
