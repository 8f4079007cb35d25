"""The stages that extract features of photographs (CNN) and captions (LSTM)."""

from __future__ import annotations

import polars as pl

from cutline.tasks.engine.executor import make_rows
from cutline.tasks.engine.stage import Made, Stage, Work
from cutline.tasks.storage.tables import read_checked_rows, read_table

IMAGE_FEATURES = Stage(
    "image_features", "cutline.tasks.features.stage:make_image_features_shard", tensorflow=True
)
TEXT_FEATURES = Stage(
    "text_features", "cutline.tasks.features.stage:make_text_features_shard", tensorflow=True
)


def make_image_features_shard(work: Work) -> Made:
    """Regions and pooled features of a shard's squares."""
    from cutline.tasks.features.image_features import make_image_features

    settings = work.settings
    ids = pl.read_parquet(work.path("images"), columns=["photo_id"])["photo_id"]

    def compute(missing: pl.Series) -> tuple[pl.DataFrame, None]:
        images = read_checked_rows(work.path("images"), "images", missing)
        return make_image_features(
            images, settings.image_features, settings.images.side_px, work.advance
        ), None

    return make_rows(work, "image_features", ids, compute)


def make_text_features_shard(work: Work) -> Made:
    """States and vector of a shard's captions."""
    from cutline.tasks.features.text_features import make_text_features

    settings = work.settings
    ids = pl.read_parquet(work.path("tokens"), columns=["caption_id"])["caption_id"]
    vocabulary = read_table(work.path("vocabulary"), "vocabulary")

    def compute(missing: pl.Series) -> tuple[pl.DataFrame, None]:
        tokens = read_checked_rows(work.path("tokens"), "tokens", missing)
        features = make_text_features(
            tokens,
            vocabulary,
            work.path("language_model"),
            settings.language_model,
            settings.text_features,
            work.advance,
        )
        return features, None

    return make_rows(work, "text_features", ids, compute)
