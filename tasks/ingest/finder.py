"""Finds the file that a data set's annotation names."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from cutline.tasks.ingest.claims import Claim, Claims
from cutline.tasks.ingest.files import PHOTO_ENDINGS, Files, Photo, Problem, ending_of
from cutline.tasks.ingest.names import PathIndex, composed
from cutline.tasks.runtime.unicode import is_valid, printable


class _Wanted(NamedTuple):
    """A name in its normal form: `own` relative to `base`, or the end of a path of another machine."""

    own: str
    base: str
    is_foreign: bool = False

    @property
    def inside(self) -> str:
        return f"{self.base}/{self.own}" if self.base else self.own


@dataclass
class Finder:
    """Finds the photograph that an annotation names, and complains of each name only once.

    `settled` are the claims of an earlier reading of the same annotations, where there was one: a name
    that is read early may turn out only later to mean another file.
    """

    files: Files
    settled: Claims | None = None
    _known: set[str] = field(default_factory=set)
    _last: tuple[tuple[str, str, str], str | None] | None = None

    def find(
        self, name: str, base: str = "", hint: str = "", claims: bool = True
    ) -> tuple[str | None, Photo | Problem | None]:
        """The path of the photograph `name`, and what else there is to say, if anything.

        `base` is the folder that the name is relative to. Where the name agrees with several files
        (tasks/ingest/names.py), `hint`, a word in the path, decides, or that they are copies of each other.
        A name that decides nothing is a notice: a wrong photograph would be worse than none. Without
        `claims` other names may mean the same file, as those of captions and of a list of a split do.
        """
        wanted = name, base, hint
        if self._last is not None and self._last[0] == wanted:  # the next caption of the same one
            return self._last[1], None
        path, event = self._find(*wanted, claims)
        self._last = wanted, path
        return path, event

    @cached_property
    def claims(self) -> Claims:
        """Which names mean which files, by the names that were looked for."""
        return self.settled or Claims(len(self.files.paths))

    def _find(
        self, name: str, base: str, hint: str, claims: bool
    ) -> tuple[str | None, Photo | Problem | None]:
        shown = printable(name)
        if not is_valid(name) or "\0" in name:
            detail = "the data set names a photograph in bytes that are not UTF-8"
            return None, self._once(shown, "bad_name", detail)
        wanted = self._wanted(name, base)
        if wanted is None:
            return None, self._once(shown, "outside_dataset", "the path leads out of the data set's folder")
        row = self._match(wanted, hint, claims)
        if isinstance(row, int):
            path = self.files.paths[row]
            if path in self._known or self.files.is_photo(path):
                return path, None
            self._known.add(path)
            return path, self.files.photo(path)
        refused = self._refused(wanted)
        if refused is not None:  # its file is in the rejects already, unless only what is named is read
            return None, self._once(*refused[1:]) if self.files.selection.has_manifest else None
        if wanted.is_foreign and row is None:
            detail = "an absolute path of another place; no file of the data set has its last parts"
            return None, self._once(shown, "outside_dataset", detail + self._others(wanted))
        if row is None:
            detail = "named by the data set, not found in its folder" + self._others(wanted)
            return None, self._once(shown, "missing_photo", detail)
        return None, self._once(shown, *row)

    def _once(self, name: str, reason: str, detail: str) -> Problem | None:
        if name in self._known:
            return None
        self._known.add(name)
        return Problem("photo", name, reason, detail)

    def _wanted(self, name: str, base: str) -> _Wanted | None:
        """What a name asks for; None where it leads out of the data set."""
        root = os.fspath(self.files.root).rstrip("/") + "/"
        is_listed = posixpath.join(base, name) in self.files.rows
        if "\\" in name and not is_listed:  # written on Windows
            name = name.replace("\\", "/")
        if name.startswith(root):
            name, base = name[len(root) :], ""
        drive = re.match(r"[A-Za-z]:/|/", name)
        if drive and not is_listed:
            path = posixpath.normpath("/" + name[drive.end() :]).lstrip("/")
            return _Wanted(path, "", is_foreign=True)
        inside = posixpath.normpath(posixpath.join(base, name))
        if inside == ".." or inside.startswith(("../", "/")):
            return None
        base = posixpath.normpath(base) if base else ""
        if base and inside.startswith(base + "/"):
            return _Wanted(inside[len(base) + 1 :], base)
        return _Wanted(inside, "")

    def _match(self, wanted: _Wanted, hint: str, claims: bool) -> int | tuple[str, str] | None:
        """The row of the one file that is meant; None, or reason and detail, where there is not one."""
        exact = None if wanted.is_foreign else self.files.rows.get(wanted.inside)
        if exact is not None:
            if claims:
                self.claims.take(exact, wanted.inside, Claim(wanted.inside, 0))
            return exact
        found = self._index.candidates(wanted.own, wanted.base)
        if not found.rows:
            return None
        row = self._one_of(found.rows, wanted, hint)
        if row is None:
            places = ", ".join(f"'{printable(self.files.paths[row], 80)}'" for row in found.rows[:3])
            return "ambiguous_name", f"{len(found.rows):,} files have this name ({places}); tell the folder"
        if not claims:
            return row
        path, claim = self.files.paths[row], Claim(composed(wanted.inside), found.parts)
        means = self.claims.holds if self.settled else self.claims.take
        return row if means(row, path, claim) else None

    def _one_of(self, rows: list[int], wanted: _Wanted, hint: str) -> int | None:
        """The one of several files that is meant: by its spelling, by the hint, or since all are copies."""
        path_of = self.files.paths.__getitem__
        last = posixpath.basename(wanted.own)
        for fits in (
            lambda row: posixpath.basename(path_of(row)) == last,
            lambda row: bool(hint) and hint in path_of(row).split("/"),
            lambda row: bool(hint) and hint in path_of(row),
        ):
            rows = [row for row in rows if fits(row)] or rows
        return rows[0] if len(rows) == 1 or self._are_copies(rows) else None

    def _are_copies(self, rows: list[int]) -> bool:
        """Whether all of these files hold the same bytes."""
        if len({self.files.sizes[row] for row in rows}) > 1:
            return False
        try:
            digests = set()
            for row in rows:
                with self.files.look_into(self.files.paths[row]) as file:
                    digests.add(hashlib.blake2b(file.read()).digest())
        except OSError:
            return False
        return len(digests) == 1

    def _others(self, wanted: _Wanted) -> str:
        """The end of a sentence that tells of files with the same last part in other folders."""
        paths = [self.files.paths[row] for row in self._index.named(posixpath.basename(wanted.own))]
        return f"; '{printable(paths[0], 80)}' has the same last part in another place" if paths else ""

    @cached_property
    def _index(self) -> PathIndex:
        return PathIndex(self.files.paths)

    @cached_property
    def by_stem(self) -> dict[str, str]:
        """Path of a photograph by its path without the ending."""
        photos = (path for path in reversed(self.files.paths) if ending_of(path) in PHOTO_ENDINGS)
        return {path[: path.rfind(".")]: path for path in photos}  # of "a.jpg" and "a.png" the first stays

    def _refused(self, wanted: _Wanted) -> Problem | None:
        """What is wrong with the file that is meant, where it cannot be used."""
        rows = self._refused_index.candidates(wanted.own, wanted.base).rows
        return self.files.problems[rows[0]] if len(rows) == 1 else None

    @cached_property
    def _refused_index(self) -> PathIndex:
        return PathIndex([problem.name for problem in self.files.problems])
