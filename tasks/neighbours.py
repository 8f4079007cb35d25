"""Which of the photographs that people wrote captions of may be like one that nobody has described.

Most captions that are learned from may be of photographs that are missing. Texts and photographs lie in one
space (tasks/matching.py), so these captions can be asked all the same: what they say, weighed by how near
they lie to a photograph (kernel regression: Nadaraya 1964, Watson 1964), is a second opinion of its gist,
beside the regression from the photographs that are there (tasks/gist.py).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from schemas.errors import StaleModel
from tasks.memory import by_reference
from tasks.tables import tensor

if TYPE_CHECKING:
    import tensorflow as tf

NEIGHBOURS = "neighbours.npz"
MOST = 8_192  # described photographs that are kept
SHARPNESS = 24.0  # a cosine that is higher by 1 / 24 makes a neighbour e times as likely
LEVELS = 127  # an int8 on either side of 0
CAPTIONS_A_PASS = 4_096  # their states take some 40 MB
ARRAYS = ("vectors", "gists")


@dataclass(frozen=True)
class Neighbours:
    """Photographs, there or missing, by what their captions say; float32."""

    vectors: np.ndarray  # (S, size), the mean of their captions' vectors, of length 1
    gists: np.ndarray  # (S, K), what the captions of each say

    def gists_of(self, photos: tf.Tensor) -> tf.Tensor:
        """What is said of photographs with these vectors, (N, size) of length 1 -> (N, K), within a graph."""
        import tensorflow as tf

        nearness = tf.matmul(photos, by_reference(self.vectors), transpose_b=True)
        return tf.matmul(tf.nn.softmax(SHARPNESS * nearness, -1), by_reference(self.gists))

    def save(self, path: Path) -> None:
        """Write them as whole numbers of 8 bits, with what 1 stands for in each column."""
        arrays: dict[str, np.ndarray] = {}
        for name in ARRAYS:
            values = getattr(self, name)
            step = np.maximum(np.abs(values).max(0, initial=0), np.finfo(np.float16).tiny) / LEVELS
            arrays |= {name: np.rint(values / step).astype(np.int8), f"{name} step": step.astype(np.float32)}
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @staticmethod
    def load(path: Path, size: int, gist_size: int) -> Neighbours:
        """What `save` wrote. Raises StaleModel where the file is damaged or for vectors or gists of another
        size; where there is no neighbour, it fits any."""
        try:
            with np.load(path, allow_pickle=False) as file:
                levels = [file[name] for name in ARRAYS]
                steps = [file[f"{name} step"].astype(np.float32) for name in ARRAYS]
            count = len(levels[0])
            expected = [(count, size), (count, gist_size)]
            if any(some.dtype != np.int8 for some in levels):
                raise ValueError("expected whole numbers of 8 bits")
            if count and [some.shape for some in levels] != expected:
                raise ValueError(
                    f"expected arrays of the shapes {expected}, found {[x.shape for x in levels]}"
                )
            values = [some * step for some, step in zip(levels, steps, strict=True)]
            if not all(np.isfinite(some).all() for some in values):
                raise ValueError("expected finite numbers")
        except (OSError, ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile, EOFError) as error:
            raise StaleModel(
                f"'{path}' does not hold what captions say of photographs: {error}; train again"
            ) from None
        return Neighbours(*values)


def find_neighbours(
    captions: pl.DataFrame, said: pl.DataFrame, vectors_of: Callable[[pl.DataFrame], np.ndarray]
) -> Neighbours:
    """From captions with their `subject`, and the `said` table of subjects and gists.

    `vectors_of` some of the captions, (n, size) of length 1. Of more than MOST subjects those are kept that
    a caption of low id belongs to: any, as ids are digests.
    """
    captions = captions.sort("caption_id")
    kept = captions.select("subject").unique(keep="first", maintain_order=True).head(MOST)
    kept = kept.join(said, on="subject", how="inner", maintain_order="left").with_row_index("number")
    rows = captions.join(kept.select("subject", "number"), on="subject", how="inner", maintain_order="left")
    sums: np.ndarray | None = None
    for some in rows.iter_slices(CAPTIONS_A_PASS):
        vectors = vectors_of(some)
        if sums is None:
            sums = np.zeros((kept.height, vectors.shape[1]))
        np.add.at(sums, some["number"].to_numpy(), vectors)
    if sums is None:
        return Neighbours(np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32))
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    vectors = (sums / np.maximum(lengths, 1e-12)).astype(np.float32)
    return Neighbours(vectors, tensor(kept["gist"]).astype(np.float32))
