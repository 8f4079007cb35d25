"""The stage that crops and resizes photographs."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from cutline.tasks.engine.executor import make_rows, read_slice
from cutline.tasks.engine.stage import Stage, StageContext, StageResult

IMAGES = Stage("images", "cutline.tasks.images.stage:make_images_shard", reads_photos=True)


def make_images_shard(work: StageContext) -> StageResult:
    """Cropped squares of a shard's photographs."""
    from cutline.tasks.images.decode import make_images

    photos = work.located(read_slice(work, "photos"))

    def compute(ids: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
        rows = photos.filter(pl.col("photo_id").is_in(ids.implode()))
        return make_images(rows, Path(work.shard.sources["dataset"]), work.settings.images, work.advance)

    return make_rows(work, "images", photos["photo_id"], compute)
