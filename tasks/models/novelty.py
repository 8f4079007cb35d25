"""How far a photograph lies from those that a model has learned from.

Sun et al. 2022, "Out-of-distribution detection with deep nearest neighbors". Measured on a model of 600
photographs of Flickr8k: far are 1 % of its dev and 1 % of its test photographs, 18 % of 80 photographs of
COCO, 90 % of 21 pictures of other kinds (textures, tissue, coins, a page of text, the moon) and 92 % of
304 drawings. Mahalanobis distance, reconstruction by principal components and the nearest neighbour alone
told these less well apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from cutline.tasks.storage.tables import read_table, tensor

NEIGHBOURS = 5
KEPT = 2_000  # training photographs that are compared with; their pooled features have 1 KB each
FEWEST = 20  # of fewer nothing can be told
WITHIN = 0.99  # share of the training photographs that are near, by definition
ROWS_PER_BLOCK = 256


def choose_reference_photos(shards: Sequence[Path], train: pl.Series) -> pl.DataFrame:
    """The `reference_photos` table: pooled features of the photographs `train` in `image_features` shards.

    At most KEPT of them, those of the smallest photo_id, which is to say any: ids are digests.
    """
    chosen = train.unique().sort().head(KEPT)
    frames = [
        read_table(shard, "image_features", ["photo_id", "pooled"]).filter(
            pl.col("photo_id").is_in(chosen.implode())
        )
        for shard in shards
    ]
    return pl.concat(frames).sort("photo_id")


@dataclass(frozen=True)
class Novelty:
    """What is near to a model's training photographs, and what is far."""

    photo_ids: np.ndarray  # (N,) str
    directions: np.ndarray  # (N, C) float64, pooled features of length 1
    limit: float  # mean cosine distance to the NEIGHBOURS nearest, which WITHIN of them keep to the rest

    @staticmethod
    def of(reference_photos: pl.DataFrame) -> Novelty:
        """From the `reference_photos` table."""
        ids, directions = reference_photos["photo_id"].to_numpy(), unit_pooled(reference_photos)
        whole = Novelty(ids, directions, 1.0)
        own = whole._to_neighbours(ids, directions) if len(ids) >= FEWEST else np.ones(1)
        return Novelty(ids, directions, max(float(np.quantile(own, WITHIN)), 1e-6))

    def distances(self, features: pl.DataFrame) -> pl.Series:
        """Of each row of an `image_features` table, float32: above 1 is far; null where too few are known.

        A photograph is not compared with itself.
        """
        if len(self.photo_ids) < FEWEST:
            return pl.Series("distance", [None] * features.height, pl.Float32)
        found = self._to_neighbours(features["photo_id"].to_numpy(), unit_pooled(features)) / self.limit
        return pl.Series("distance", np.round(found, 4), pl.Float32)

    def _to_neighbours(self, ids: np.ndarray, directions: np.ndarray) -> np.ndarray:
        found = np.empty(len(ids))
        for first in range(0, len(ids), ROWS_PER_BLOCK):
            rows = slice(first, first + ROWS_PER_BLOCK)
            distances = np.maximum(1 - directions[rows] @ self.directions.T, 0)
            distances[ids[rows, None] == self.photo_ids] = np.inf
            found[rows] = np.partition(distances, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS].mean(1)
        return found


def unit_pooled(features: pl.DataFrame) -> np.ndarray:
    """Pooled features of length 1, (n, C) float64, of a table that has them."""
    pooled = tensor(features["pooled"]).astype(np.float64)
    return pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-6)
