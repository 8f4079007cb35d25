"""Photographs and captions of one split that are in another too are found, each once a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cutline.schemas.settings import LeaksSettings
from cutline.tasks.retrieval import near_duplicates
from cutline.tasks.retrieval.near_duplicates import find_near_duplicates
from cutline.tasks.storage.tables import tensor_column

CHANNELS = 8
NOTHING: dict[str, list[Path]] = {}


def shard(path: Path, photos: dict[str, list[float]]) -> Path:
    """A shard of features: of a photograph's id and the first numbers of its pooled features."""
    pooled = np.zeros((len(photos), CHANNELS), np.float16)
    for row, values in enumerate(photos.values()):
        pooled[row, : len(values)] = np.square(values)  # they are rooted before they are compared
    pl.DataFrame({"photo_id": pl.Series(list(photos), dtype=pl.String)}).with_columns(
        tensor_column("pooled", pooled)
    ).write_parquet(path)
    return path


def found(features: dict[str, list[Path]], texts: dict[str, list[Path]] = NOTHING) -> pl.DataFrame:
    """The leaks of some shards, whose photographs and captions are named as their ids."""
    ids = [
        pl.concat([pl.read_parquet(path, columns=[column]) for paths in of.values() for path in paths])
        if of
        else pl.DataFrame(schema={column: pl.String})
        for of, column in ((features, "photo_id"), (texts, "caption_id"))
    ]
    photos = ids[0].with_columns(path="photo_id")
    captions = ids[1].with_columns(text="caption_id")
    return find_near_duplicates(features, texts, photos, captions, LeaksSettings(similarity=0.9))


@pytest.mark.parametrize("block", [1, 4_096])
def test_frames_of_a_film_are_as_many_leaks_as_held_out_frames_not_as_pairs(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_duplicates, "HELD_OUT_A_BLOCK", block)
    first, second = (
        {f"train{number}": [1.0, number / 50] for number in part} for part in (range(5), range(5, 10))
    )
    features = {
        "train": [shard(tmp_path / "a", first), shard(tmp_path / "none", {}), shard(tmp_path / "b", second)],
        "test": [
            shard(tmp_path / "c", {"test2": [1.0, 2 / 50], "other": [0.0, 0.0, 1.0]}),
            shard(tmp_path / "d", {"test7": [1.0, 7 / 50]}),
        ],
    }
    rows = found(features)
    assert rows.sort("name").select("split", "name", "other_split", "other_name").rows() == [
        ("test", "test2", "train", "train2"),
        ("test", "test7", "train", "train7"),
    ]
    assert rows["similarity"].to_list() == pytest.approx([1, 1], abs=1e-3)


def test_a_photograph_of_three_splits_is_told_with_each_of_the_splits_before_its_own(tmp_path: Path) -> None:
    features = {split: [shard(tmp_path / split, {split: [1.0]})] for split in ("train", "dev", "test")}
    rows = found(features).select("name", "other_name").sort("name", "other_name").rows()
    assert rows == [("dev", "train"), ("test", "dev"), ("test", "train")]


def test_a_caption_is_told_with_the_first_of_each_other_split(tmp_path: Path) -> None:
    def texts(name: str, vectors: dict[str, float]) -> Path:
        values = np.array(list(vectors.values()), np.float16)[:, None]
        frame = pl.DataFrame({"caption_id": list(vectors)}).with_columns(tensor_column("vector", values))
        frame.write_parquet(tmp_path / name)
        return tmp_path / name

    of_split = {
        "train": [texts("train", {"first": 1.0, "again": 1.0, "other": 2.0})],
        "test": [texts("test", {"copy": 1.0, "new": 3.0})],
    }
    rows = found({"train": [shard(tmp_path / "photos", {})]}, of_split)
    assert rows.select("kind", "name", "other_name").rows() == [("caption", "copy", "first")]
