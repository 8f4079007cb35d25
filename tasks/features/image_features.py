"""F_img: the regions and the pooled vector of every photo, by a convolutional network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from cutline.schemas.errors import BadPhoto, CutlineError
from cutline.schemas.settings import ImageFeaturesSettings, Settings
from cutline.tasks.features.cnn import load_network
from cutline.tasks.images.decode import square_of
from cutline.tasks.images.files import read_file
from cutline.tasks.runtime.tensorflow import load_tensorflow
from cutline.tasks.storage.tables import squares, tensor_column


def make_image_features(
    images: pl.DataFrame, settings: ImageFeaturesSettings, side_px: int, advance: Callable[[int], None]
) -> pl.DataFrame:
    """The table image_features of the table images, row by row in the same order.

    `square` (S*S*3 bytes) → `regions` (R, C) and `pooled` (C), float16; R = 49 and C = 512 for VGG-16
    at side_px=224 (Simonyan & Zisserman 2015, block5). `advance` hears of each batch that is done.
    Raises UsageError and MissingWeights, as cutline.tasks.features.cnn.load_network does.
    """
    network = load_network(settings, side_px)
    regions, pooled = network.features(squares(images["square"]), advance)
    return pl.DataFrame(
        [images["photo_id"], tensor_column("regions", regions), tensor_column("pooled", pooled)]
    )


def features_of_file(photo: Path, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Regions (1, R, C) and pooled features (1, C) float16 of one file, made as the stages make them.

    Raises CutlineError where the file is no photograph that can be used.
    """
    try:
        data = read_file(photo.parent, photo.name, settings.ingest.max_file_bytes)
        square = square_of(data, settings.images, settings.ingest.max_pixels)
    except BadPhoto as bad:
        raise CutlineError(f"photograph '{photo}': {bad.detail} ({bad.reason}); give another") from None
    load_tensorflow()
    one = settings.image_features.model_copy(update={"batch_size": 1})
    return load_network(one, settings.images.side_px).features(square[None])
