"""The stage that captions photographs."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import polars as pl

from cutline.schemas.errors import StaleModel
from cutline.schemas.settings import FusionSettings, LanguageModelSettings
from cutline.tasks.engine.executor import make_rows
from cutline.tasks.engine.stage import Stage, StageContext, StageResult
from cutline.tasks.storage.tables import read_checked_rows, tensor_sizes
from cutline.tasks.storage.workspace import digest_of_file

if TYPE_CHECKING:
    from cutline.tasks.decoding.captioner import Captioner, ModelFiles


PREDICTIONS = Stage("predictions", "cutline.tasks.decoding.stage:make_predictions_shard", tensorflow=True)


def make_predictions_shard(context: StageContext) -> StageResult:
    """Captions of a shard's photographs."""
    settings = context.settings
    ids = pl.read_parquet(context.path("image_features"), columns=["photo_id"])["photo_id"]

    def compute(missing: pl.Series) -> tuple[pl.DataFrame, None]:
        features = read_checked_rows(context.path("image_features"), "image_features", missing)
        captioner = load_captioner(context, features)
        return captioner.caption_photos(features, settings.predictions, context.advance), None

    return make_rows(context, "predictions", ids, compute)


def model_files(context: StageContext) -> ModelFiles:
    from cutline.tasks.decoding.captioner import MODEL_FILES, ModelFiles

    return ModelFiles(**{name: context.path(name) for name in MODEL_FILES})


def load_captioner(context: StageContext, features: pl.DataFrame) -> Captioner:
    files, settings = model_files(context), context.settings
    digests = tuple(context.shard.inputs[name] for name in files._fields)
    channels = tensor_sizes(features)["channels"]
    return _load_captioner_once(files, digests, settings.language_model, settings.fusion, channels)


@lru_cache(maxsize=1)
def _load_captioner_once(
    files: ModelFiles,
    digests: tuple[str, ...],  # of these files: a bundle may have been replaced since, in the same place
    lm_settings: LanguageModelSettings,
    fusion_settings: FusionSettings,
    channels: int,
) -> Captioner:
    """Loaded once, so that the search is compiled once for all shards. Raises StaleModel."""
    from cutline.tasks.decoding.captioner import Captioner

    captioner = Captioner.load(files, lm_settings, fusion_settings, channels)
    if tuple(map(digest_of_file, files)) != digests:
        raise StaleModel("the model's files were replaced while it was used; run this again")
    return captioner
