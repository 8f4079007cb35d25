"""F_img: the regions and the pooled vector of every photo, by a convolutional network."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from schemas.settings import ImageFeaturesSettings
from tasks.networks import load_network
from tasks.tables import tensor, tensor_column


def make_image_features(
    images: pl.DataFrame, settings: ImageFeaturesSettings, side_px: int, advance: Callable[[int], None]
) -> pl.DataFrame:
    """The table image_features of the table images, row by row in the same order.

    `square` (S*S*3) uint8 → `regions` (R, C) and `pooled` (C), float16; R = 49 and C = 512 for VGG-16
    at side_px=224 (Simonyan & Zisserman 2015, block5). `advance` hears of each batch that is done.
    Raises UsageError and MissingWeights, as tasks.networks.load_network does.
    """
    network = load_network(settings, side_px)
    squares = tensor(images["square"]).reshape(-1, side_px, side_px, 3)
    regions, pooled = network.features(squares, advance)
    return pl.DataFrame(
        [images["photo_id"], tensor_column("regions", regions), tensor_column("pooled", pooled)]
    )
