"""Which training captions are of the same photograph, whether it is present or missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from cutline.tasks.models.content_embedding import ContentEmbedding

MOST_CAPTIONS = 200_000  # that are analysed; of more, those of any photographs
MOST_OF_ONE = 1_000  # captions of a missing photograph; a name of more stands for whatever has none


class TrainedContent(NamedTuple):
    """A trained content embedding, and three tables of content vectors.

    `content_vectors`: of each training photograph, predicted by a regression without it. `content_from_text`:
    predicted from each caption, as that of its photograph; these scatter by `ContentEmbedding.noise`.
    `content_targets`: of the captions of each photograph, present or missing.
    """

    content_embedding: ContentEmbedding
    content_vectors: pl.DataFrame
    content_from_text: pl.DataFrame
    content_targets: pl.DataFrame


# ---- captions of the same photograph ----


def pairs_of(captions: pl.DataFrame) -> pl.DataFrame:
    """caption_id and photo_id of a `captions` table, as `learn_gist` takes them: that of a missing photograph
    is what the data set calls it, unless it calls more than one by that name."""
    of_one = pl.col("photo_id").is_not_null() | (pl.len().over("missing_photo") <= MOST_OF_ONE)
    photo_id = pl.when(of_one).then(photo_or_missing())
    return captions.select("caption_id", photo_id.alias("photo_id")).drop_nulls()


def photo_or_missing() -> pl.Expr:
    """The photograph of a row of a `captions` table: its id, or of a missing one what no id can be."""
    return pl.coalesce("photo_id", pl.concat_str(pl.lit("missing: "), "missing_photo"))


def of_whole_subjects(tokens: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """At most MOST_CAPTIONS of `tokens`, by caption_id, with their photo_id, null where it is not known, and
    their subject: their photograph, else themselves. All captions of a subject, but for one."""
    subject = pl.coalesce("photo_id", "caption_id").alias("subject")
    return (
        tokens.join(pairs, on="caption_id", how="left")
        .with_columns(subject)
        .sort("subject", "caption_id")
        .head(MOST_CAPTIONS)
        .sort("caption_id")
    )


@dataclass(frozen=True)
class Subjects:
    """Which captions are of one photograph, be it there or missing."""

    of: np.ndarray  # (captions,) the number of its subject
    captions: np.ndarray  # (S,) how many captions each has

    @staticmethod
    def of_names(names: pl.Series) -> Subjects:
        """From the name of each caption's subject."""
        return Subjects(*np.unique(names.to_numpy(), return_inverse=True, return_counts=True)[1:])

    @property
    def freedom(self) -> float:
        """What the squares of how captions differ from the mean of their subject are divided by: degrees of
        freedom. Where few captions share a subject, no fewer than if all did by twos: so few tell little."""
        return max(len(self.of) - len(self.captions), len(self.of) / 2)

    def sums(self, rows: Any, shares: np.ndarray) -> Any:
        """The sum of each subject's captions, times its share (S,): (captions, G), sparse or not -> (S, G)"""
        from scipy.sparse import csr_matrix

        where = self.of, np.arange(len(self.of))
        return csr_matrix((shares.astype(rows.dtype)[self.of], where), (len(shares), len(self.of))) @ rows

    def means(self, rows: Any) -> Any:
        """The mean over each subject's captions: (captions, G), sparse or not -> (S, G)."""
        return self.sums(rows, 1 / self.captions)
