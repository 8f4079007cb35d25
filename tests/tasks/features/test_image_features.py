"""Every photograph gets the features of its own square, whatever lies beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from cutline.schemas.settings import ImageFeaturesSettings
from cutline.schemas.tables import check
from cutline.tasks.features.cnn import load_network
from cutline.tasks.features.image_features import make_image_features
from cutline.tasks.storage.tables import bytes_column, read_table, tensor, write_table

SETTINGS = ImageFeaturesSettings(batch_size=4)
SIDE_PX = 64


def some_images(n: int) -> pl.DataFrame:
    squares = np.random.default_rng(5).integers(0, 256, (n, SIDE_PX * SIDE_PX * 3), np.uint8)
    ids = pl.Series("photo_id", [f"{7 * i % 10:032x}" for i in range(n)], pl.String)
    return check(pl.DataFrame([ids, bytes_column("square", squares)]), "images", side_px=SIDE_PX)


def test_each_photo_gets_its_features_in_the_order_of_the_input(tmp_path: Path) -> None:
    images = some_images(10)
    done: list[int] = []
    features = make_image_features(images, SETTINGS, SIDE_PX, done.append)

    assert sum(done) == 10
    assert features["photo_id"].to_list() == images["photo_id"].to_list()
    network = load_network(SETTINGS, SIDE_PX)
    for row in (0, 9):
        square = tensor(images["square"])[row].reshape(1, SIDE_PX, SIDE_PX, 3)
        regions, pooled = network.features(square)
        assert np.array_equal(tensor(features["regions"])[row], regions[0])
        assert np.array_equal(tensor(features["pooled"])[row], pooled[0])

    write_table(features, tmp_path / "f.parquet", "image_features", regions=4, channels=512)
    assert read_table(tmp_path / "f.parquet", "image_features", regions=4, channels=512).equals(features)


def test_pooled_is_the_mean_of_the_regions() -> None:
    features = make_image_features(some_images(3), SETTINGS, SIDE_PX, lambda rows: None)
    mean = tensor(features["regions"]).astype(np.float32).mean(axis=1)
    np.testing.assert_allclose(tensor(features["pooled"]), mean, rtol=2e-3, atol=1e-3)


def test_no_photos_make_an_empty_table() -> None:
    features = make_image_features(some_images(0), SETTINGS, SIDE_PX, lambda rows: None)
    check(features, "image_features", regions=4, channels=512)
    assert features.height == 0
