"""Small pictures come from the photograph itself, else from its square, else not at all."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from cutline.schemas.errors import BadPhoto
from cutline.tasks.report.photo_files import Kept, Pictures, is_photo_id
from cutline.tasks.storage.runs import History
from cutline.tasks.storage.workspace import ReadOnlyWorkspace
from tests.support.histories import RUN, SIDE_PX, Written, picture, small_history


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return small_history(tmp_path / "workspace", tmp_path / "dataset")


@pytest.fixture
def pictures(written: Written) -> Pictures:
    return Pictures(History(ReadOnlyWorkspace(written.workspace.root)))


def id_of(pictures: Pictures, path: str) -> str:
    photos = pictures.history.table(pictures.history.run(RUN), "ingest", "photos").collect()
    return dict(photos.select("path", "photo_id").iter_rows())[path]


def pixels(jpeg: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)


def test_a_photograph_is_shown_small_and_in_its_colours(pictures: Pictures) -> None:
    shown = pixels(pictures.photo(pictures.history.run(RUN), id_of(pictures, "photo3.jpg"), 32))
    assert shown.shape == (24, 32, 3)
    expected = pixels(picture(3)).mean(axis=(0, 1))
    assert np.abs(shown.mean(axis=(0, 1)) - expected).max() < 3


def test_a_photograph_whose_file_is_gone_is_shown_as_the_square_that_the_network_saw(
    pictures: Pictures, written: Written
) -> None:
    run, photo = pictures.history.run(RUN), id_of(pictures, "photo4.jpg")
    (written.dataset / "photo4.jpg").unlink()
    assert "vanished" in pictures.why_not_the_file(run, pictures.row_of(run, photo))
    shown = pixels(pictures.photo(run, photo, 320))
    assert shown.shape == (SIDE_PX, SIDE_PX, 3)
    assert np.abs(shown.astype(int) - 100).max() < 3  # the only one of its split: level 100


def test_another_photograph_under_the_same_name_is_not_shown_in_its_place(
    pictures: Pictures, written: Written
) -> None:
    run, photo = pictures.history.run(RUN), id_of(pictures, "photo5.jpg")
    path = written.dataset / "photo5.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])  # as many bytes, others
    assert "changed" in pictures.why_not_the_file(run, pictures.row_of(run, photo))
    assert pixels(pictures.photo(run, photo, 320)).shape == (SIDE_PX, SIDE_PX, 3)


def test_without_file_and_square_the_reason_is_told(pictures: Pictures, written: Written) -> None:
    run, photo = pictures.history.run(RUN), id_of(pictures, "photo1.jpg")
    (written.dataset / "photo1.jpg").unlink()
    for path in (written.workspace.root / "shards" / "images").glob("*.parquet"):
        path.unlink()
    with pytest.raises(BadPhoto, match="vanished: the file was listed and is gone"):
        pictures.photo(run, photo, 320)


def test_rejects_are_shown_by_their_row_and_never_from_outside_the_data_set(
    pictures: Pictures, written: Written
) -> None:
    run = pictures.history.run(RUN)
    (written.dataset.parent / "secret.jpg").write_bytes(picture(9))
    assert pixels(pictures.reject(run, 0, 64)).shape == (48, 64, 3)  # the leak is a good photograph
    with pytest.raises(BadPhoto, match="outside_dataset"):
        pictures.reject(run, 1, 64)
    with pytest.raises(BadPhoto, match="vanished"):
        pictures.reject(run, 2, 64)
    for row in (3, 4, -1):  # a caption, and rows that there are not
        with pytest.raises(KeyError):
            pictures.reject(run, row, 64)


def test_what_is_kept_in_memory_stays_below_its_bound_and_the_oldest_goes_first() -> None:
    kept = Kept(most_bytes=100)
    for number in range(20):
        kept.put(number, bytes(30))
        assert kept.bytes <= 100
        kept.get(17)
    assert [number for number in range(20) if kept.get(number)] == [17, 18, 19]
    kept.put("large", bytes(101))
    assert kept.bytes == 0


def test_a_second_look_does_not_read_the_file_again(pictures: Pictures, written: Written) -> None:
    run, photo = pictures.history.run(RUN), id_of(pictures, "photo2.jpg")
    first = pictures.photo(run, photo, 32)
    (written.dataset / "photo2.jpg").unlink()
    assert pictures.photo(run, photo, 32) == first


@pytest.mark.parametrize("text", ["", "../x", "0" * 31, "0" * 33, "G" * 32, "0" * 32 + "\n"])
def test_only_the_digest_of_a_photograph_is_its_id(text: str) -> None:
    assert not is_photo_id(text)
    assert is_photo_id("0123456789abcdef" * 2)
