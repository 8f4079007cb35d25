"""The stage that writes a trained model into a folder."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from cutline.tasks.decoding.stage import model_files
from cutline.tasks.engine.stage import Stage, StageContext, StageResult
from cutline.tasks.storage.tables import read_id_column, read_table, tensor_sizes
from cutline.tasks.storage.workspace import library_versions

BUNDLE = Stage("bundle", "cutline.tasks.bundles.stage:make_bundle", folder="bundles", settings="predictions")


def make_bundle(context: StageContext) -> StageResult:
    """The trained model with all that captioning needs, in a folder that can be carried away."""
    from cutline.tasks.bundles.bundle import FeatureOrigin, write_bundle
    from cutline.tasks.features.cnn import weights_digest

    settings = context.settings
    captions = read_table(context.path("captions"), "captions", ["caption_id", "photo_id"])
    photos = read_id_column(context.paths("image_features"), "photo_id")
    learned = captions.join(
        read_id_column(context.paths("tokens"), "caption_id"), on="caption_id", how="semi"
    )
    paired = learned.join(photos, on="photo_id", how="semi")
    features = pl.scan_parquet(context.paths("any_features")).head(0).collect()
    channels = tensor_sizes(features)["channels"]
    scores = read_table(context.path("scores"), "scores")
    by_split: dict[str, dict[str, float]] = {}
    for split, metric, value in scores.iter_rows():
        by_split.setdefault(split, {})[metric] = value
    write_bundle(
        context.out,
        model_files(context),
        features=FeatureOrigin.of(
            settings.images, settings.image_features, weights_digest(settings.image_features), channels
        ),
        lm_settings=settings.language_model,
        fusion_settings=settings.fusion,
        caption_settings=settings.predictions,
        scores=by_split,
        sizes={
            "training photographs": paired["photo_id"].n_unique(),
            "training captions": paired.height,
            "text-only captions": learned.height - paired.height,
        },
        versions=library_versions(),
        about=f"Trained on the data set `{Path(context.shard.sources['dataset']).name}`.",
    )
    return StageResult(scores.height, 1)
