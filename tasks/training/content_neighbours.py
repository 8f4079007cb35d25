"""Finds the content neighbours of the training photographs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

from cutline.tasks.models.content_neighbours import MOST, Neighbours
from cutline.tasks.models.joint_embedding import unit
from cutline.tasks.storage.tables import tensor
from cutline.tasks.training.caption_groups import Subjects

CAPTIONS_A_PASS = 4_096  # their states take some 40 MB


def find_neighbours(
    captions: pl.DataFrame,
    imagined: pl.DataFrame,
    said: pl.DataFrame,
    vectors_of: Callable[[pl.DataFrame], np.ndarray],
) -> Neighbours:
    """From captions with their `subject`, and the tables `imagined` and `said`.

    `vectors_of` some of the captions, (n, size) of length 1. Of more than MOST subjects those are kept that
    a caption of low id belongs to: any, as ids are digests.
    """
    if said.is_empty():
        nothing = np.zeros((0, 1), np.float32)
        return Neighbours(nothing, nothing, nothing)
    captions = captions.sort("caption_id")
    first = captions.unique("subject", keep="first", maintain_order=True).head(MOST)
    rows = captions.join(first.select("subject"), on="subject", how="semi", maintain_order="left")
    vectors = np.concatenate([vectors_of(some) for some in rows.iter_slices(CAPTIONS_A_PASS)])
    # What is imagined for one caption of a photograph is imagined for all of them.
    told = first.select("caption_id", "subject").join(imagined, on="caption_id")
    told = told.join(said, on="subject", suffix=" said").sort("subject")
    return Neighbours(
        unit(Subjects.of_names(rows["subject"]).means(vectors)),
        unit(tensor(told["gist"]).astype(np.float32)),
        tensor(told["gist said"]).astype(np.float32),
    )
