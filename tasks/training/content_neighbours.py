"""Finds the content neighbours of the training photographs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

from cutline.tasks.models.content_neighbours import ContentNeighbours
from cutline.tasks.models.joint_embedding import unit
from cutline.tasks.storage.tables import tensor
from cutline.tasks.training.caption_groups import Subjects

MOST = 8_192  # described photographs that are kept

CAPTIONS_PER_BATCH = 4_096  # their states take some 40 MB


def find_content_neighbours(
    captions: pl.DataFrame,
    content_from_text: pl.DataFrame,
    content_targets: pl.DataFrame,
    vectors_of: Callable[[pl.DataFrame], np.ndarray],
) -> ContentNeighbours:
    """From captions with their `subject`, and the tables `content_from_text` and `content_targets`.

    `vectors_of` some of the captions, (n, size) of length 1. Of more than MOST subjects those are kept that
    a caption of low id belongs to: any, as ids are digests.
    """
    if content_targets.is_empty():
        nothing = np.zeros((0, 1), np.float32)
        return ContentNeighbours(nothing, nothing, nothing)
    captions = captions.sort("caption_id")
    first = captions.unique("subject", keep="first", maintain_order=True).head(MOST)
    rows = captions.join(first.select("subject"), on="subject", how="semi", maintain_order="left")
    vectors = np.concatenate([vectors_of(some) for some in rows.iter_slices(CAPTIONS_PER_BATCH)])
    # What is predicted from text for one caption of a photograph is predicted from text for all of them.
    told = first.select("caption_id", "subject").join(content_from_text, on="caption_id")
    told = told.join(content_targets, on="subject", suffix="_target").sort("subject")
    return ContentNeighbours(
        unit(Subjects.of_names(rows["subject"]).means(vectors)),
        unit(tensor(told["content_vector"]).astype(np.float32)),
        tensor(told["content_vector_target"]).astype(np.float32),
    )
