"""A photograph unlike all that a model has learned from is told from one like them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cutline.schemas.tables import check
from cutline.tasks.models.novelty import FEWEST, KEPT, Novelty, choose_reference_photos
from cutline.tasks.storage.tables import tensor_column, write_table
from tests.support.datasets import an_id

CHANNELS = 16


def features(pooled: np.ndarray, first: int = 0) -> pl.DataFrame:
    return pl.DataFrame(
        [
            pl.Series("photo_id", [an_id(f"{first + i}") for i in range(len(pooled))]),
            tensor_column("regions", np.zeros((len(pooled), 1, CHANNELS), np.float16)),
            tensor_column("pooled", pooled.astype(np.float16)),
        ]
    )


def around(direction: int, count: int, seed: int) -> np.ndarray:
    """Photographs of one kind: much of one channel, a little of all."""
    pooled = np.random.default_rng(seed).random((count, CHANNELS)) * 0.3
    pooled[:, direction] += 5
    return pooled


@pytest.fixture(scope="module")
def known() -> Novelty:
    return Novelty.of(features(around(0, 100, seed=1)))


def test_more_of_the_kind_learned_from_is_near_and_another_kind_is_far(known: Novelty) -> None:
    assert (known.distances(features(around(0, 50, seed=2), 1000)) <= 1).mean() > 0.9
    assert (known.distances(features(around(7, 50, seed=3), 2000)) > 10).all()


def test_one_in_a_hundred_of_the_photographs_learned_from_is_far(known: Novelty) -> None:
    own = known.distances(features(around(0, 100, seed=1)))
    assert (own > 1).sum() == 1  # each beside all but itself, else all would lie at nearly nothing


def test_a_brighter_photograph_is_as_near() -> None:
    dim = features(around(0, 30, seed=4))
    bright = features(np.asarray(dim["pooled"].to_numpy(), np.float32) * 3, 100)
    assert (Novelty.of(dim).distances(bright) < 1).all()  # each lies where its dim copy lies


def test_the_distance_is_the_mean_to_the_five_nearest_in_units_of_the_limit() -> None:
    angles = np.deg2rad(np.arange(40.0))
    pooled = np.zeros((40, CHANNELS))
    pooled[:, 0], pooled[:, 1] = np.cos(angles), np.sin(angles)
    known = Novelty.of(features(pooled))
    asked = np.zeros((1, CHANNELS))
    asked[0, :2] = np.cos(np.deg2rad(-10.0)), np.sin(np.deg2rad(-10.0))
    expected = np.mean([1 - np.cos(np.deg2rad(10.0 + i)) for i in range(5)]) / known.limit
    assert known.distances(features(asked, 1000))[0] == pytest.approx(expected, rel=0.01)


def test_a_row_does_not_depend_on_the_others(known: Novelty) -> None:
    some = features(around(3, 9, seed=5), 3000)
    assert known.distances(some)[4:5].equals(known.distances(some[4:5]))


def test_of_a_handful_of_photographs_nothing_is_told() -> None:
    few = Novelty.of(features(around(0, FEWEST - 1, seed=6)))
    assert few.distances(features(around(0, 3, seed=7))).null_count() == 3


def test_black_photographs_break_nothing() -> None:
    known = Novelty.of(features(np.zeros((30, CHANNELS))))
    assert known.distances(features(np.zeros((2, CHANNELS)), 500)).is_finite().all()


def test_only_training_photographs_are_kept_and_never_more_than_fit_in_a_bundle(tmp_path: Path) -> None:
    rows = features(np.random.default_rng(8).random((KEPT + 500, CHANNELS)))
    for part in range(2):
        half = rows[part * KEPT // 2 :][: KEPT // 2 if part == 0 else None]
        write_table(half, tmp_path / f"{part}.parquet", "image_features", regions=1, channels=CHANNELS)
    shards = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    train = rows["photo_id"][:30]
    assert set(choose_reference_photos(shards, train)["photo_id"]) == set(train)
    most = check(choose_reference_photos(shards, rows["photo_id"]), "reference_photos", channels=CHANNELS)
    assert most.height == KEPT
    assert most["photo_id"].to_list() == sorted(rows["photo_id"])[:KEPT]
