"""The content embedding: TF-IDF n-grams of captions in few dimensions, predicted from photographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from cutline.tasks.models.novelty import FEWEST, unit_pooled
from cutline.tasks.runtime.npz import Expected, read_npz, stale

CONTENT_EMBEDDING = "content_embedding.npz"
LONGEST = 4  # n-grams of one to four tokens count, as in CIDEr
SAME = 1 - 1e-4  # kernel value from which two photographs are the same one
LONGEST_CAPTION = 60  # tokens; a longer one counts as one of so many where lengths are compared
HALVED = ("idf", "mean", "directions", "weights", "corrections", "offset", "noise")  # float16 in the file
ARRAYS = ("grams", *HALVED, "length_weight", "bandwidth", "unknown_idf")


@dataclass(frozen=True)
class GaussianKernel:
    """How alike photographs are to some landmarks, from 0 to 1."""

    landmarks: np.ndarray  # (M, C) float64, pooled features of length 1
    bandwidth: float  # the squared distance at which similarity has fallen to 1 / e

    def of(self, photos: np.ndarray) -> np.ndarray:
        """(n, C) pooled features of length 1 -> (n, M)."""
        return np.exp((photos @ self.landmarks.T - 1) * (2 / self.bandwidth))


@dataclass(frozen=True)
class ContentEmbedding:
    """What predicts a photograph's captions; float32 where nothing else is said."""

    grams: np.ndarray  # (G, LONGEST) int32, filled up with <pad>
    idf: np.ndarray  # (G,) how telling each n-gram is: -ln of the share of captions that hold it
    unknown_idf: float  # of an n-gram that is too rare to be among them
    length_weight: np.ndarray  # (LONGEST_CAPTION + 1,) what CIDEr-D leaves of a caption of so many tokens
    mean: np.ndarray  # (G,) the mean caption
    directions: np.ndarray  # (G, K) in which captions differ
    kernel: GaussianKernel  # to photographs that it has learned from
    weights: np.ndarray  # (M, K) what being like each says of the content embedding
    corrections: np.ndarray  # (M, K) added for a landmark itself: it is predicted as if it were unknown
    offset: np.ndarray  # (K,) the content embedding of a photograph that is like none
    noise: (
        np.ndarray
    )  # (K, K) times standard normal numbers: how content vectors scatter about what a caption says

    @property
    def size(self) -> int:
        """Numbers a content embedding; 0 where too little was there to learn from."""
        return len(self.offset) if len(self.kernel.landmarks) else 0

    def of_photos(self, features: pl.DataFrame) -> np.ndarray:
        """The content vectors of the photographs in an `image_features` or `reference_photos` table, (n, K)
        float32. A photograph that is a landmark is predicted without itself, as in training: predicted with
        itself, its content vector would be far longer than any that the fusion has learned from."""
        similarity = self.kernel.of(unit_pooled(features))
        same = similarity >= SAME
        same = same / np.maximum(same.sum(1, keepdims=True), 1)
        found = similarity @ self.weights + same @ self.corrections + self.offset
        return found.astype(np.float32)

    def save(self, path: Path) -> None:
        """Write all but the landmarks, which are the `reference_photos` table's; real numbers as float16."""
        told = {name: getattr(self, name) for name in ARRAYS if name != "bandwidth"}
        arrays = {name: np.asarray(values) for name, values in told.items()}
        arrays["bandwidth"] = np.asarray(self.kernel.bandwidth)
        half = {name: arrays[name].astype(np.float16) for name in HALVED}
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays | half)

    @staticmethod
    def load(path: Path, reference_photos: pl.DataFrame) -> ContentEmbedding:
        """What `save` wrote. Raises StaleModel where the file is damaged or does not fit the photographs."""
        try:
            found = read_npz(path, EXPECTED)
            grams = found.pop("grams").astype(np.int32)
            numbers = {name: values.astype(np.float32) for name, values in found.items()}
            size = numbers["offset"].shape[0]
            shapes = {name: values.shape for name, values in numbers.items()}
            landmarks = landmarks_of(reference_photos)
            expected = {
                "idf": (len(grams),),
                "length_weight": (LONGEST_CAPTION + 1,),
                "mean": (len(grams),),
                "directions": (len(grams), size),
                "weights": (len(landmarks), size),
                "corrections": (len(landmarks), size),
                "offset": (size,),
                "noise": (size, size),
                "bandwidth": (),
                "unknown_idf": (),
            }
            if shapes != expected or grams.shape[1:] != (LONGEST,):
                raise ValueError(f"expected arrays of the shapes {expected}, found {shapes}")
            if not all(np.isfinite(values).all() for values in numbers.values()):
                raise ValueError("expected finite numbers")
            if numbers["bandwidth"] <= 0:
                raise ValueError(f"expected a reach above 0, found {numbers['bandwidth']}")
        except ValueError as error:
            raise stale(path, "what predicts content vectors", error) from None
        kernel = GaussianKernel(landmarks, float(numbers.pop("bandwidth")))
        unknown = float(numbers.pop("unknown_idf"))
        return ContentEmbedding(grams=grams, kernel=kernel, unknown_idf=unknown, **numbers)


def landmarks_of(reference_photos: pl.DataFrame) -> np.ndarray:
    """Pooled features of length 1, (M, C) float64, of the photographs in the `reference_photos` table.

    None where they are fewer than FEWEST: nothing can be told from so few.
    """
    found = unit_pooled(reference_photos)
    return found if len(found) >= FEWEST else found[:0]


EXPECTED = {
    "grams": Expected("iu", 2),
    **{name: Expected("f", 1) for name in ("idf", "mean", "offset", "length_weight")},
    **{name: Expected("f", 2) for name in ("directions", "weights", "corrections", "noise")},
    **{name: Expected("f", 0) for name in ("bandwidth", "unknown_idf")},
}
