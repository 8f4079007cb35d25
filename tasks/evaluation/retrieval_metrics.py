"""How well captions find their photographs and photographs their captions, by the field's protocol."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

RANKS = (1, 5, 10)
ROWS_PER_BLOCK = 256
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image to text", "text to image"

# Similarity of photographs first … last - 1 to all captions: (last - first, captions).
GaussianKernel = Callable[[int, int], np.ndarray]


def ranks(similarity: GaussianKernel, photo_of: np.ndarray, photos: int) -> tuple[np.ndarray, np.ndarray]:
    """The rank of the right answer to each query, 1 is best; `photo_of` (captions,) numbers photographs.

    Returns (photographs that have a caption,) and (captions,) int64, in the order of their numbers.

    Image to text takes the best of a photograph's captions; text to image asks with each caption.
    A wrong answer as near as the right one counts as nearer. Two passes over blocks of photographs,
    so that the matrix of all pairs is never in memory. A photograph without a caption asks nothing,
    but is a wrong answer.
    """
    captions = np.arange(len(photo_of))
    right = np.empty(len(photo_of), np.float64)
    for first, last in _blocks(photos):
        mine = captions[(photo_of >= first) & (photo_of < last)]
        right[mine] = similarity(first, last)[photo_of[mine] - first, mine]
    of_photos = np.zeros(photos, np.int64)
    of_captions = np.ones(len(photo_of), np.int64)
    for first, last in _blocks(photos):
        found = similarity(first, last).astype(np.float64)
        own = photo_of[None] == np.arange(first, last)[:, None]
        best = np.where(own, found, -np.inf).max(1, initial=-np.inf)
        of_photos[first:last] = 1 + ((found >= best[:, None]) & ~own).sum(1)
        of_captions += ((found >= right) & ~own).sum(0)
    return of_photos[np.unique(photo_of)], of_captions


def _blocks(rows: int) -> list[tuple[int, int]]:
    return [(first, min(first + ROWS_PER_BLOCK, rows)) for first in range(0, rows, ROWS_PER_BLOCK)]


def cosine_similarity(photos: np.ndarray, captions: np.ndarray) -> GaussianKernel:
    """Cosine of vectors that have length 1: (photos, size), (captions, size)."""
    return lambda first, last: photos[first:last] @ captions.T


def recalls(found: np.ndarray) -> dict[str, float]:
    """R@1, R@5, R@10 (shares of the queries) and the median rank of (queries,) ranks."""
    return {f"R@{k}": float((found <= k).mean()) for k in RANKS} | {"median rank": float(np.median(found))}


def mean_recall(found: tuple[np.ndarray, np.ndarray]) -> float:
    """The mean of R@1, R@5 and R@10 in both directions, 0 to 1: one number to choose by."""
    return float(np.mean([recalls(some)[f"R@{k}"] for some in found for k in RANKS]))


def retrieval_table(by_split: dict[str, tuple[np.ndarray, np.ndarray]]) -> pl.DataFrame:
    """The `retrieval` table from the ranks of each split."""
    rows = [
        (split, direction, metric, value)
        for split, found in by_split.items()
        for direction, some in zip((IMAGE_TO_TEXT, TEXT_TO_IMAGE), found, strict=True)
        for metric, value in ({"queries": float(len(some))} | recalls(some)).items()
    ]
    schema = {"split": pl.String, "direction": pl.String, "metric": pl.String, "value": pl.Float64}
    return pl.DataFrame(rows, schema, orient="row")
