"""All benchmarks by name."""

from __future__ import annotations

from collections.abc import Callable

from tests.benchmarks import pages, photos, runs, vectors, words
from tests.benchmarks.harness import Contest, Figures
from tests.benchmarks.places import Place

CONTESTS: dict[str, Callable[[Place], Contest | Figures]] = {
    # First what needs no TensorFlow: the memory that it leaves lying about spares OpenCV page faults.
    "decoding": photos.decoding,
    "tokens": words.tokens,
    "features": photos.features,
    "limit": photos.limit,
    "captioning": words.captioning,
    "fusion": words.fusion,
    "language_model": words.language_model,
    "dashboard": pages.dashboard,
    "vectors": vectors.vectors,
    "unchanged": runs.unchanged,
    "new_photos": runs.new_photos,
    "cost": runs.cost,
    "memory": runs.memory,
    "whole": runs.whole,
}
# Hours: run when named only.
LONG = ("whole",)
