"""What a layout says of a data set, collected in columns: photographs, captions, splits, rejects."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from cutline.schemas.errors import BadCaption
from cutline.schemas.settings import IngestSettings
from cutline.schemas.tables import SPLITS
from cutline.tasks.ingest.files import Photo, Problem
from cutline.tasks.ingest.layouts.base import Entry, Item
from cutline.tasks.runtime.unicode import printable

# Splits as numbers: the larger one is further from training.
SPLIT_CODES = {split: code for code, split in enumerate(SPLITS)}
NO_SPLIT = -1
# An unbroken text of this many characters per word is no sentence, in no script.
_MAX_CHARACTERS_PER_WORD = 50


@dataclass
class Collector:
    """What a layout says, in columns: one row per photograph, and one row per caption.

    Splits are those of the data set; `NO_SPLIT` where it has none for the row.
    """

    settings: IngestSettings
    paths: list[str] = field(default_factory=list)
    sources: list[str | None] = field(default_factory=list)
    containers: list[str | None] = field(default_factory=list)
    source_ids: list[str | None] = field(default_factory=list)
    numbers: tuple[array[int], ...] = field(default_factory=lambda: tuple(array("q") for _ in range(5)))
    given: array[int] = field(default_factory=lambda: array("b"))
    captioned: bytearray = field(default_factory=bytearray)
    texts: list[str] = field(default_factory=list)
    text_rows: array[int] = field(default_factory=lambda: array("q"))
    text_given: array[int] = field(default_factory=lambda: array("b"))
    text_missing: list[str | None] = field(default_factory=list)
    rejects: list[Problem] = field(default_factory=list)
    splits: set[int] = field(default_factory=set)
    conflicts: dict[int, set[int]] = field(default_factory=dict)  # row → the splits that it is named in
    _rows: dict[str, int] = field(default_factory=dict)

    def take(self, item: Item) -> None:
        """Put one item of a layout into the columns."""
        if isinstance(item, Entry):
            self._take_entry(item)
        elif isinstance(item, Photo):
            self._take_photo(item)
        else:
            self.rejects.append(item)

    def _take_photo(self, photo: Photo) -> None:
        if photo.path in self._rows:
            return
        self._rows[photo.path] = len(self.paths)
        self.paths.append(photo.path)
        self.sources.append(photo.source)
        self.containers.append(photo.container)
        self.source_ids.append(None)
        self.given.append(NO_SPLIT)
        self.captioned.append(False)
        values = photo.size, photo.file_size, photo.mtime_ns, photo.inode, photo.offset or 0
        for column, value in zip(self.numbers, values, strict=True):
            column.append(value)

    def _take_entry(self, entry: Entry) -> None:
        row = -1 if entry.photo is None else self._rows[entry.photo]
        given = SPLIT_CODES[entry.split if self.settings.held_out else "train"] if entry.split else NO_SPLIT
        if given != NO_SPLIT:
            self.splits.add(given)
        if row >= 0:
            self._note_split(row, given)
            self.source_ids[row] = self.source_ids[row] or entry.source_id
        missing = printable(entry.name) if entry.name and row < 0 else None
        for place, text in entry.captions:
            try:
                self.texts.append(clean_caption(text, self.settings.max_caption_words))
            except BadCaption as bad:
                self.rejects.append(Problem("caption", printable(place), bad.reason, bad.detail))
                continue
            self.text_rows.append(row)
            self.text_given.append(given)
            self.text_missing.append(missing)
            if row >= 0:
                self.captioned[row] = True

    def _note_split(self, row: int, given: int) -> None:
        """Note the split of a photograph; of two splits the one that is further from training."""
        before = self.given[row]
        if NO_SPLIT not in (before, given) and before != given:
            self.conflicts.setdefault(row, {before}).add(given)
        self.given[row] = max(before, given)

    def in_two_splits(self) -> Iterator[Problem]:
        """A notice for each photograph that the data set names in several splits."""
        for row, codes in self.conflicts.items():
            names = [SPLITS[code] for code in sorted(codes)]
            detail = f"named in {' and in '.join(names)}; kept in {names[-1]}"
            yield Problem("photo", printable(self.paths[row]), "leak", detail)

    def photos(self) -> pl.DataFrame:
        """One row per photograph, in the order of the layout."""
        names = ("size", "file_size", "mtime_ns", "inode", "offset")
        numbers = {name: _series(column) for name, column in zip(names, self.numbers, strict=True)}
        frame = pl.DataFrame(
            {
                "path": pl.Series(self.paths, dtype=pl.String),
                "source": pl.Series(self.sources, dtype=pl.String),
                "container": pl.Series(self.containers, dtype=pl.String),
                "source_id": pl.Series(self.source_ids, dtype=pl.String),
                "given": _series(self.given),
                "captioned": pl.Series(np.frombuffer(self.captioned, np.bool_)),
                **numbers,
            }
        )
        in_container = pl.col("container").is_not_null()
        return frame.with_row_index("row").with_columns(
            pl.col("row").cast(pl.Int64), pl.when(in_container).then("offset").alias("offset")
        )

    def captions(self) -> pl.DataFrame:
        """One row per caption: text, row of its photograph (-1: none), given split, name of a missing one."""
        text, missing = (pl.Series(column, dtype=pl.String) for column in (self.texts, self.text_missing))
        row, given = _series(self.text_rows), _series(self.text_given)
        return pl.DataFrame({"text": text, "row": row, "given": given, "missing_photo": missing})


def _series(values: array[int]) -> pl.Series:
    return pl.Series(np.frombuffer(values, np.int8 if values.typecode == "b" else np.int64))


# What pandas and others write into a text file where there is no value.
_MISSING = frozenset({"nan", "<na>", "n/a", "#n/a", "null"})
_SURROGATES = re.compile("[\ud800-\udfff]")


def clean_caption(text: str, max_words: int) -> str:
    """A caption as it is kept: composed characters (NFC), no white space around it, else unchanged.

    Composed, because two spellings of one word would be two words of the vocabulary. Raises
    BadCaption: caption_not_utf8, malformed (zero bytes), empty_caption (no letter and no digit),
    caption_too_long (more than `max_words` words, or 50 times as many characters).

    >>> clean_caption("  A dog . ", 100)
    'A dog .'
    """
    max_characters = max_words * _MAX_CHARACTERS_PER_WORD
    if len(text) > 20 * max_characters:  # do not count its words
        found = f"found {len(text):,} characters, {max_characters:,} at most, which is over max_caption_words"
        raise BadCaption("caption_too_long", f"{found}={max_words}: {text[:80]!r}")
    if not text.isascii() and _SURROGATES.search(text):
        raise BadCaption("caption_not_utf8", f"found {text[:80]!r}; save the file as UTF-8")
    if "\0" in text:
        raise BadCaption("malformed", f"the caption holds zero bytes: {text[:80]!r}")
    text = text.strip()
    words = len(text.split())
    if words > max_words or len(text) > max_characters:
        found = (
            f"{words:,} words"
            if words > max_words
            else f"{len(text):,} characters, {max_characters:,} at most,"
        )
        detail = f"{found} is over max_caption_words={max_words}: {text[:80]!r}"
        raise BadCaption("caption_too_long", detail)
    if text.lower() in _MISSING:
        raise BadCaption("empty_caption", f"{text!r} stands for a value that is missing")
    if not any(map(str.isalnum, text)):
        raise BadCaption("empty_caption", f"no letter and no digit in {text[:80]!r}")
    return unicodedata.normalize("NFC", text)
