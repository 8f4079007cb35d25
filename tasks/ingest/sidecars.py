"""Which photograph a text beside it belongs to: `a.txt` or `a.jpg.txt` to `a.jpg`."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from cutline.tasks.ingest.names import fold


class Sidecars:
    """Photographs by their paths, with and without the ending, as they are spelled and folded."""

    def __init__(self, photos: Sequence[str]) -> None:
        self._by_path: dict[str, list[str]] = {}
        for photo in photos:
            for key in (photo, posixpath.splitext(photo)[0]):
                self._by_path.setdefault(key, []).append(photo)
        self._folded: dict[str, list[str]] = {}
        for key, alike in self._by_path.items():
            self._folded.setdefault(fold(key), []).extend(alike)

    def photos_of(self, text: str) -> list[str]:
        """The photographs that a text may belong to, the one that it does belong to first.

        Spelled alike goes before alike but for case and composed characters (NFC).
        """
        name = posixpath.splitext(text)[0]
        return self._by_path.get(name) or self._folded.get(fold(name)) or []
