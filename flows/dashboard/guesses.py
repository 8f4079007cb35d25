"""Captions without those that are guesses, by the distance of their photographs."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from cutline.tasks.runtime.formatting import A_GUESS
from cutline.tasks.storage.runs import Captions, reading


def without_guesses(captions: Captions) -> Captions:
    """The captions of photographs that are like what the model learned from, or of which that is not known.

    Raises DamagedFile.
    """
    with reading():
        told = "distance" in captions.rows.collect_schema()  # not by older versions
    is_near = pl.col("distance").is_null() | (pl.col("distance") <= A_GUESS)
    return replace(captions, rows=captions.rows.filter(is_near)) if told else captions
