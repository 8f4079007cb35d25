"""Finds the file that a data set's annotation names."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from cutline.tasks.ingest.files import PHOTO_ENDINGS, Files, Photo, Problem, ending_of
from cutline.tasks.runtime.unicode import is_valid, printable

# ---- names to photographs ----


@dataclass
class Finder:
    """Finds the photograph that an annotation names, and complains of each name only once."""

    files: Files
    _known: set[str] = field(default_factory=set)
    _last: tuple[tuple[str, str, str], str | None] | None = None

    def find(self, name: str, base: str = "", hint: str = "") -> tuple[str | None, Photo | Problem | None]:
        """The path of the photograph `name`, and what else there is to say, if anything.

        `base` is the folder that the name is relative to. `hint` is a word in the path that decides
        between several files of the same name; without it the first in order is taken. A name with
        folders that none of the several files is in is missing: a wrong photograph would be worse.
        """
        wanted = name, base, hint
        if self._last is not None and self._last[0] == wanted:  # the next caption of the same one
            return self._last[1], None
        path, event = self._find(*wanted)
        self._last = wanted, path
        return path, event

    def _find(self, name: str, base: str, hint: str) -> tuple[str | None, Photo | Problem | None]:
        shown = printable(name)
        inside = self._relative(name, base)
        if not is_valid(name) or "\0" in name:
            return None, self._once(
                shown, "bad_name", "the data set names a photograph in bytes that are not UTF-8"
            )
        if inside is None:
            return None, self._once(shown, "outside_dataset", "the path leads out of the data set's folder")
        path = self._match(inside, posixpath.normpath(name), hint)
        if path is None:
            refused = self._refused.get(inside) or self._refused.get(posixpath.basename(inside))
            if refused is not None and self.files.selection.has_manifest:
                return None, self._once(*refused[1:])
            if refused is not None:
                return None, None  # its file is in the rejects already
            return None, self._once(shown, "missing_photo", "named by the data set, not found in its folder")
        if path in self._known or self.files.is_photo(path):
            return path, None
        self._known.add(path)
        return path, self.files.photo(path)

    def _once(self, name: str, reason: str, detail: str) -> Problem | None:
        if name in self._known:
            return None
        self._known.add(name)
        return Problem("photo", name, reason, detail)

    def _relative(self, name: str, base: str) -> str | None:
        """The normal form of `name` from the root; None where it leads out of it."""
        root = os.fspath(self.files.root).rstrip("/") + "/"
        if name.startswith(root):
            name, base = name[len(root) :], ""
        path = posixpath.normpath(posixpath.join(base, name))
        leads_out = path.startswith(("/", "../")) or path == ".." or re.match(r"[A-Za-z]:[\\/]", name)
        return None if leads_out else path

    def _match(self, inside: str, name: str, hint: str) -> str | None:
        rows = self.files.rows
        for path in (inside, name):
            if path in rows:
                return path
        if "\\" in name:  # written on Windows
            return self._match(inside.replace("\\", "/"), name.replace("\\", "/"), hint)
        last = posixpath.basename(name)
        alike = self._by_name.get(last)
        if alike is None:
            alike = self._by_folded_name.get(_fold(last))
        if isinstance(alike, list) and "/" in name:
            alike = self._by_folded_tail.get(_fold(_tail(name)))
        if alike is None:
            return None
        numbers = [alike] if isinstance(alike, int) else alike[:1000]
        paths = [self.files.paths[row] for row in numbers]
        return min(paths, key=lambda path: (not path.endswith("/" + name), bool(hint) and hint not in path))

    @cached_property
    def _by_name(self) -> dict[str, int | list[int]]:
        return _index(posixpath.basename(path) for path in self.files.paths)

    @cached_property
    def _by_folded_name(self) -> dict[str, int | list[int]]:
        return _index(_fold(posixpath.basename(path)) for path in self.files.paths)

    @cached_property
    def _by_folded_tail(self) -> dict[str, int | list[int]]:
        return _index(_fold(_tail(path)) for path in self.files.paths)

    @cached_property
    def by_stem(self) -> dict[str, str]:
        """Path of a photograph by its path without the ending."""
        photos = (path for path in reversed(self.files.paths) if ending_of(path) in PHOTO_ENDINGS)
        return {path[: path.rfind(".")]: path for path in photos}  # of "a.jpg" and "a.png" the first stays

    @cached_property
    def _refused(self) -> dict[str, Problem]:
        problems = self.files.problems
        by_name = {posixpath.basename(problem.name): problem for problem in problems}
        return by_name | {problem.name: problem for problem in problems}


def _tail(path: str) -> str:
    """The last two parts of a path."""
    return "/".join(path.split("/")[-2:])


def _fold(name: str) -> str:
    # A Mac stores names decomposed, and case is lost on the way through other systems.
    return unicodedata.normalize("NFC", name).casefold()


def _index(names: Iterator[str]) -> dict[str, int | list[int]]:
    """Row, or rows where there are several, by name."""
    index: dict[str, int | list[int]] = {}
    for row, name in enumerate(names):
        held = index.get(name)
        if isinstance(held, list):
            held.append(row)
        else:
            index[name] = row if held is None else [held, row]
    return index
