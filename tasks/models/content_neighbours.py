"""Which of the photographs that people wrote captions of may be like one that nobody has described.

Most captions that are learned from may be of photographs that are missing. Texts and photographs lie in one
space (joint_embedding), so these captions can be asked all the same: what they say, weighed by how near
they lie to a photograph (kernel regression: Nadaraya 1964, Watson 1964), is a second opinion of its content
embedding, beside the regression from the photographs that are there (tasks/training/content_embedding.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cutline.tasks.runtime.memory import by_reference
from cutline.tasks.runtime.npz import Expected, read_npz, stale

if TYPE_CHECKING:
    import tensorflow as tf


CONTENT_NEIGHBOURS = "content_neighbours.npz"
HALF_TRUSTED = 2_000  # described photographs, whose word counts half as much as that of very many
# What a cosine of vectors, and one of content vectors, adds to the logarithm of how likely a neighbour is.
SHARPNESS = 16.0, 8.0
LEVELS = 31  # steps on either side of 0: two thirds of int8's room, and the cosines hardly change
ARRAYS = ("vectors", "content_vectors", "content_targets")
EXPECTED = {name: Expected("i", 2) for name in ARRAYS} | {f"{name} step": Expected("f", 1) for name in ARRAYS}


@dataclass(frozen=True)
class ContentNeighbours:
    """Photographs, there or missing, by what their captions say; float32."""

    vectors: np.ndarray  # (S, size), the mean of their captions' vectors, of length 1
    content_vectors: np.ndarray  # (S, K), those predicted from text for their captions, of length 1
    content_targets: np.ndarray  # (S, K), what their captions say, as a content embedding

    def __len__(self) -> int:
        return len(self.content_targets)

    @property
    def trust(self) -> float:
        """From 0 to 1: the more photographs are described, the likelier is one like any other among them."""
        return len(self) / (len(self) + HALF_TRUSTED)

    def told(self, vectors: tf.Tensor, content_vectors: tf.Tensor) -> tf.Tensor:
        """What is said of photographs like these, as content vectors, within a graph.

        (N, size) vectors of length 1, (N, K) content vectors -> (N, K).
        """
        import tensorflow as tf

        by_vector = tf.matmul(vectors, by_reference(self.vectors), transpose_b=True)
        by_gist = tf.matmul(
            tf.math.l2_normalize(content_vectors, -1), by_reference(self.content_vectors), transpose_b=True
        )
        share = tf.nn.softmax(SHARPNESS[0] * by_vector + SHARPNESS[1] * by_gist, -1)
        return tf.matmul(share, by_reference(self.content_targets))

    def save(self, path: Path) -> None:
        """Write them as whole numbers from -LEVELS to LEVELS, with what 1 stands for in each column."""
        arrays: dict[str, np.ndarray] = {}
        for name in ARRAYS:
            values = getattr(self, name)
            step = np.maximum(np.abs(values).max(0, initial=0), np.finfo(np.float16).tiny) / LEVELS
            arrays |= {name: np.rint(values / step).astype(np.int8), f"{name} step": step.astype(np.float32)}
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @staticmethod
    def load(path: Path, size: int, gist_size: int) -> ContentNeighbours:
        """What `save` wrote. Raises StaleModel where the file is damaged or for vectors or content vectors
        of another size; where there is no neighbour, it fits any."""
        try:
            found = read_npz(path, EXPECTED)
            levels = [found[name] for name in ARRAYS]
            steps = [found[f"{name} step"].astype(np.float32) for name in ARRAYS]
            count = len(levels[0])
            shapes = [some.shape for some in levels]
            expected = [(count, size), (count, gist_size), (count, gist_size)]
            if count and shapes != expected:
                raise ValueError(f"expected arrays of the shapes {expected}, found {shapes}")
            if any(step.shape != some.shape[1:] for some, step in zip(levels, steps, strict=True)):
                raise ValueError("expected a step for each column")
            if any(some.dtype != np.int8 for some in levels):
                raise ValueError("expected whole numbers of 8 bits")
            values = [some * step for some, step in zip(levels, steps, strict=True)]
            if not all(np.isfinite(some).all() for some in values):
                raise ValueError("expected finite numbers")
        except ValueError as error:
            raise stale(path, "what captions say of photographs", error) from None
        return ContentNeighbours(*values)
