"""The stages that extract features of photographs (CNN) and captions (LSTM)."""

from __future__ import annotations

import polars as pl

from cutline.tasks.engine.executor import make_rows
from cutline.tasks.engine.stage import Stage, StageContext, StageResult
from cutline.tasks.storage.tables import read_checked_rows, read_table

IMAGE_FEATURES = Stage(
    "image_features", "cutline.tasks.features.stage:make_image_features_shard", tensorflow=True
)
TEXT_FEATURES = Stage(
    "text_features", "cutline.tasks.features.stage:make_text_features_shard", tensorflow=True
)


def make_image_features_shard(context: StageContext) -> StageResult:
    """Regions and pooled features of a shard's squares."""
    from cutline.tasks.features.image_features import make_image_features

    settings = context.settings
    ids = pl.read_parquet(context.path("images"), columns=["photo_id"])["photo_id"]

    def compute(missing: pl.Series) -> tuple[pl.DataFrame, None]:
        images = read_checked_rows(context.path("images"), "images", missing)
        return make_image_features(
            images, settings.image_features, settings.images.side_px, context.advance
        ), None

    return make_rows(context, "image_features", ids, compute)


def make_text_features_shard(context: StageContext) -> StageResult:
    """States and vector of a shard's captions."""
    from cutline.tasks.features.text_features import make_text_features

    settings = context.settings
    ids = pl.read_parquet(context.path("tokens"), columns=["caption_id"])["caption_id"]
    vocabulary = read_table(context.path("vocabulary"), "vocabulary")

    def compute(missing: pl.Series) -> tuple[pl.DataFrame, None]:
        tokens = read_checked_rows(context.path("tokens"), "tokens", missing)
        features = make_text_features(
            tokens,
            vocabulary,
            context.path("language_model"),
            settings.language_model,
            settings.text_features,
            context.advance,
        )
        return features, None

    return make_rows(context, "text_features", ids, compute)
