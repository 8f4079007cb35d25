"""Captions beside the distance of their photographs: those of far ones are guesses."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from tasks.gallery import Page
from tasks.history import Captions, reading
from tasks.pages import A_GUESS


def without_guesses(captions: Captions) -> Captions:
    """The captions of photographs that are like what the model learned from, or of which that is not known.

    Raises DamagedFile.
    """
    is_near = pl.col("distance").is_null() | (pl.col("distance") <= A_GUESS)
    return replace(captions, rows=captions.rows.filter(is_near)) if _tells_distances(captions) else captions


def with_distances(captions: Captions, page: Page) -> Page:
    """A page of these captions with the column `distance`, null where it is not known. Raises DamagedFile."""
    if not _tells_distances(captions):
        return replace(page, frame=page.frame.with_columns(distance=pl.lit(None, pl.Float32)))
    shown = pl.col("photo_id").is_in(page.frame["photo_id"].implode())
    with reading():
        distances = captions.rows.filter(shown).select("photo_id", "distance").unique("photo_id").collect()
    return replace(page, frame=page.frame.join(distances, on="photo_id", how="left", maintain_order="left"))


def _tells_distances(captions: Captions) -> bool:
    """Older runs did not."""
    with reading():
        return "distance" in captions.rows.collect_schema()
