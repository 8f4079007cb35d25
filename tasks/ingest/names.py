"""Which file of a data set a name means, by the parts of both paths from the last one up.

A name and a file agree when one of the two paths ends with the other, part by part, without regard to
case and to whether characters are composed:

| name             | file                 | agree                                            |
| ---------------- | -------------------- | ------------------------------------------------ |
| `a.jpg`          | `images/a.jpg`       | yes: the name tells no folder                    |
| `images/1/a.jpg` | `1/a.jpg`            | yes: the data set was moved out of `images`      |
| `dogs/001.jpg`   | `cats/001.jpg`       | no: the folders differ                           |
"""

from __future__ import annotations

import unicodedata
from array import array
from bisect import bisect_left
from collections.abc import Sequence

MOST_CANDIDATES = 100  # files of one name that are looked at; with more of them a name decides nothing


class Candidates:
    """The files that a name may mean, and how many parts of their paths it agrees with."""

    def __init__(self, rows: list[int], parts: int) -> None:
        self.rows = rows
        self.parts = parts


class PathIndex:
    """Finds paths by how they end, in the time of a binary search.

    `paths` are relative, with "/" between their parts. Each is held once, its parts in reverse, folded.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        keyed = sorted((_reversed(fold(path)), row) for row, path in enumerate(paths))
        self._paths = paths
        self._keys = [key for key, _ in keyed]
        self._rows = array("q", [row for _, row in keyed])

    def candidates(self, name: str, base: str = "") -> Candidates:
        """The files that `name`, relative to the folder `base`, agrees with; the closest ones only.

        First those that end with base and name, then those in `base` that end with the name, then those
        that base and name end with, of which the longest.
        """
        inside = fold(f"{base}/{name}" if base else name)
        parts = inside.count("/") + 1
        key = _reversed(inside)
        if rows := self._equal(key) or self._below(key):
            return Candidates(rows, parts)
        if base:
            folder = fold(base) + "/"
            below = self._below(_reversed(fold(name)))
            if rows := [row for row in below if fold(self._paths[row]).startswith(folder)]:
                return Candidates(rows, parts)
        while parts > 1:
            key, parts = key.rpartition("/")[0], parts - 1
            if rows := self._equal(key):
                return Candidates(rows, parts)
        return Candidates([], 0)

    def named(self, last: str) -> list[int]:
        """The files whose last part is `last`, whatever their folders."""
        key = fold(last)
        return self._equal(key) + self._below(key)

    def _equal(self, key: str) -> list[int]:
        start = bisect_left(self._keys, key)
        stop = start
        while stop < min(len(self._keys), start + MOST_CANDIDATES) and self._keys[stop] == key:
            stop += 1
        return list(self._rows[start:stop])

    def _below(self, key: str) -> list[int]:
        """The files whose path ends with this one and is longer; "0" is the character after "/"."""
        start = bisect_left(self._keys, key + "/")
        stop = bisect_left(self._keys, key + "0", lo=start)
        return list(self._rows[start : min(stop, start + MOST_CANDIDATES)])


def composed(name: str) -> str:
    """A name in composed characters (NFC)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def fold(text: str) -> str:
    """`text` composed (NFC) and without regard to case: a Mac decomposes names, other systems lose case."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()


def _reversed(path: str) -> str:
    """The parts of a path in reverse: "a/b.jpg" → "b.jpg/a"."""
    return "/".join(reversed(path.split("/")))
