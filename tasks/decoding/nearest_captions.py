"""The real captions that are nearest to a generated one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from cutline.schemas.errors import UsageError
from cutline.tasks.text.tokenizer import tokenize

# ---- the nearest real captions ----


class Near(NamedTuple):
    """A real caption and how many words must be added, dropped or changed to come to it."""

    caption: str
    distance: int

    @property
    def is_copy(self) -> bool:
        """Whether it says the same, but for case and punctuation."""
        return self.distance == 0


class RealCaptions:
    """Captions that people wrote, to be asked for those nearest to a line.

    Near is what few words have to be added, dropped or changed in (Levenshtein 1966, in tokens); of
    equally near captions the earlier ones come first, and the same words count once.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._numbers: dict[str, int] = {}  # of the tokens
        by_length: dict[int, dict[tuple[int, ...], tuple[int, str]]] = {}
        for place, text in enumerate(texts):
            ids = tuple(self._numbers.setdefault(token, len(self._numbers)) for token in tokenize(text))
            by_length.setdefault(len(ids), {}).setdefault(ids, (place, text))
        by_length.pop(0, None)
        # Of each length the tokens (captions, length), places and texts.
        self._by_length = {
            length: (np.array(list(held), np.int32), [*held.values()]) for length, held in by_length.items()
        }
        if not self._by_length:
            raise UsageError("nearest captions: expected captions, found none with a word in it")

    def nearest(self, tokens: Sequence[str], count: int) -> list[Near]:
        """The `count` nearest captions, nearest first."""
        line = np.array([self._numbers.get(token, -1) for token in tokens], np.int32)
        found: list[tuple[int, int, str]] = []
        # A caption that is longer or shorter by n words is at least n away.
        for length in sorted(self._by_length, key=lambda length: abs(length - len(line))):
            if len(found) == count and abs(length - len(line)) > found[-1][0]:
                break
            ids, captions = self._by_length[length]
            distances = edit_distances(line, ids)
            first = np.argsort(distances, kind="stable")[:count]
            found = sorted([*found, *((int(distances[i]), *captions[i]) for i in first)])[:count]
        return [Near(text, distance) for distance, _, text in found]


def edit_distances(line: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """Levenshtein's distance of tokens (L,) to each of (n, M), all at once: (n,) int32."""
    places = np.arange(captions.shape[1] + 1, dtype=np.int32)
    row = np.broadcast_to(places, (len(captions), len(places)))
    for number, token in enumerate(line, start=1):
        best = np.empty(row.shape, np.int32)
        best[:, 0] = number
        np.minimum(row[:, 1:] + 1, row[:, :-1] + (captions != token), out=best[:, 1:])
        # An added word costs 1 a place, so the best so far is a running minimum less the places.
        row = np.minimum.accumulate(best - places, axis=1) + places
    return row[:, -1]
