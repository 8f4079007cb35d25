"""A data set into tables: photographs, captions, the files they came from, and what was rejected.

A photograph is named by the digest of its bytes, a caption by its photograph and its text, and
neither by a file's name: a renamed or copied file changes no identity. Nothing is dropped silently.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from cutline.schemas.errors import BadCaption, BadPhoto, UnknownDataset
from cutline.schemas.settings import IngestSettings
from cutline.schemas.tables import SPLITS, TRANSIENT, UNLABELLED, dtypes_of
from cutline.tasks.images.files import photo_id, read_bytes
from cutline.tasks.images.headers import read_header
from cutline.tasks.ingest.files import Files, Photo, Problem, scan
from cutline.tasks.ingest.finder import Finder
from cutline.tasks.ingest.layouts.base import Entry, Item
from cutline.tasks.ingest.layouts.registry import Detected, detect, read_layout
from cutline.tasks.runtime.unicode import printable
from cutline.tasks.storage.packs import located

# Splits as numbers: the larger one is further from training.
_CODES = {split: code for code, split in enumerate(SPLITS)}
_NOT_TOLD = -1

_READERS = 4  # threads; they wait for the disk, and each may hold a file of ingest.max_file_bytes
_PHOTOS_PER_BATCH = 512
# An unbroken text of this many characters a word is no sentence, in no script.
_MAX_CHARACTERS_A_WORD = 50

# A known reject for one of these reasons is looked at again: the settings may have changed since.
_BY_SETTINGS = frozenset({"too_many_pixels", "too_many_bytes"})

_STAT = ["path", "source", "file_size", "mtime_ns", "inode"]
_PLACE = ["path", "container", "offset", "size"]
_SEEN: dict[str, Any] = {
    "photo_id": pl.String,
    "width": pl.Int32,
    "height": pl.Int32,
    "format": pl.String,
    "reason": pl.String,
    "detail": pl.String,
}


@dataclass(frozen=True)
class Ingested:
    """The tables `photos`, `captions`, `files` and `rejects` of a data set, as schemas.tables has them.

    `layout` is the one that was read, `listing` the digest of the files that were there.
    """

    photos: pl.DataFrame
    captions: pl.DataFrame
    files: pl.DataFrame
    rejects: pl.DataFrame
    layout: str
    listing: str


def listing_digest(files: Files) -> str:
    """Digest of path, size, time and inode of every file of a data set, 32 hexadecimal digits.

    The same for the same files in whatever order the file system lists them. Hidden files, which are
    never read, are left out.
    """
    digest = hashlib.blake2b(digest_size=16)
    for row in zip(files.paths, files.sizes, files.mtimes_ns, files.inodes, strict=True):
        digest.update("{}\0{} {} {}\n".format(*row).encode())
    for problem in files.problems:
        digest.update("\0".join(problem).encode() + b"\n")
    return digest.hexdigest()


def ingest(
    dataset: Path,
    settings: IngestSettings,
    packs: Path,
    known: pl.DataFrame | None,
    advance: Callable[[int], None],
    only: Sequence[str] = (),
) -> Ingested:
    """Read a data set of any layout; with `only`, just these files and folders of it.

    `known` is the `files` table of an earlier ingest of the same folder: a file with the same path,
    size, time and inode is not read again. `packs` is a folder for copies of image bytes (Parquet
    only). `advance` is told of photographs. Raises UnknownDataset.
    """
    files = scan(dataset, only)
    detected = detect(files, settings.layout)
    heard = _hear(files, detected, packs, settings)
    if not (heard.paths or heard.texts or heard.rejects):
        raise UnknownDataset(
            f"'{dataset}' has the files of the layout '{detected.layout.name}' "
            f"({', '.join(map(printable, detected.markers[:3]))}), but they hold no photograph and no caption"
        )
    photos = _look_at(heard.photos(), files.root, packs, known, settings, advance)
    told = _told_splits(heard)
    copies = _with_splits(photos, told, settings)
    rejects = [*heard.rejects, *heard.in_two_splits(), *_rejected(photos), *_repeated(copies)]
    return Ingested(
        photos=_photos(copies),
        captions=_captions(heard.captions(), photos, copies, told),
        files=photos.select(*_STAT, *_SEEN).rename({"source": "container", "file_size": "size"}).sort("path"),
        rejects=_rejects_frame(rejects),
        layout=detected.layout.name,
        listing=listing_digest(files),
    )


# ---- what the layout tells ----


def _hear(files: Files, detected: Detected, packs: Path, settings: IngestSettings) -> _Heard:
    """What the layout tells; read twice where a name was believed that a later one proved wrong."""
    finder = Finder(files)
    heard = _heard_by(finder, detected, packs, settings)
    if finder.claims.revised:
        heard = _heard_by(Finder(files, finder.claims), detected, packs, settings)
    return heard


def _heard_by(finder: Finder, detected: Detected, packs: Path, settings: IngestSettings) -> _Heard:
    heard = _Heard(settings)
    for item in read_layout(finder.files, detected, packs, settings.max_file_bytes, finder):
        heard.take(item)
    return heard


@dataclass
class _Heard:
    """What a layout told, in columns: a row a photograph, and a row a caption.

    Splits are told as they are in the data set; `_NOT_TOLD` where it has none for the row.
    """

    settings: IngestSettings
    paths: list[str] = field(default_factory=list)
    sources: list[str | None] = field(default_factory=list)
    containers: list[str | None] = field(default_factory=list)
    source_ids: list[str | None] = field(default_factory=list)
    numbers: tuple[array[int], ...] = field(default_factory=lambda: tuple(array("q") for _ in range(5)))
    told: array[int] = field(default_factory=lambda: array("b"))
    captioned: bytearray = field(default_factory=bytearray)
    texts: list[str] = field(default_factory=list)
    text_rows: array[int] = field(default_factory=lambda: array("q"))
    text_told: array[int] = field(default_factory=lambda: array("b"))
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
        self.told.append(_NOT_TOLD)
        self.captioned.append(False)
        values = photo.size, photo.file_size, photo.mtime_ns, photo.inode, photo.offset or 0
        for column, value in zip(self.numbers, values, strict=True):
            column.append(value)

    def _take_entry(self, entry: Entry) -> None:
        row = -1 if entry.photo is None else self._rows[entry.photo]
        told = _CODES[entry.split if self.settings.held_out else "train"] if entry.split else _NOT_TOLD
        if told != _NOT_TOLD:
            self.splits.add(told)
        if row >= 0:
            self._tell(row, told)
            self.source_ids[row] = self.source_ids[row] or entry.source_id
        missing = printable(entry.name) if entry.name and row < 0 else None
        for place, text in entry.captions:
            try:
                self.texts.append(clean_caption(text, self.settings.max_caption_words))
            except BadCaption as bad:
                self.rejects.append(Problem("caption", printable(place), bad.reason, bad.detail))
                continue
            self.text_rows.append(row)
            self.text_told.append(told)
            self.text_missing.append(missing)
            if row >= 0:
                self.captioned[row] = True

    def _tell(self, row: int, told: int) -> None:
        """Note the split of a photograph; of two the one that is further from training."""
        before = self.told[row]
        if _NOT_TOLD not in (before, told) and before != told:
            self.conflicts.setdefault(row, {before}).add(told)
        self.told[row] = max(before, told)

    def in_two_splits(self) -> Iterator[Problem]:
        """A notice for each photograph that the data set names in several splits."""
        for row, codes in self.conflicts.items():
            names = [SPLITS[code] for code in sorted(codes)]
            detail = f"named in {' and in '.join(names)}; kept in {names[-1]}"
            yield Problem("photo", printable(self.paths[row]), "leak", detail)

    def photos(self) -> pl.DataFrame:
        """A row a photograph, in the order they were told of."""
        names = ("size", "file_size", "mtime_ns", "inode", "offset")
        numbers = {name: _series(column) for name, column in zip(names, self.numbers, strict=True)}
        frame = pl.DataFrame(
            {
                "path": pl.Series(self.paths, dtype=pl.String),
                "source": pl.Series(self.sources, dtype=pl.String),
                "container": pl.Series(self.containers, dtype=pl.String),
                "source_id": pl.Series(self.source_ids, dtype=pl.String),
                "told": _series(self.told),
                "captioned": pl.Series(np.frombuffer(self.captioned, np.bool_)),
                **numbers,
            }
        )
        in_container = pl.col("container").is_not_null()
        return frame.with_row_index("row").with_columns(
            pl.col("row").cast(pl.Int64), pl.when(in_container).then("offset").alias("offset")
        )

    def captions(self) -> pl.DataFrame:
        """A row a caption: text, the row of its photograph (-1: none), the split told, what it calls one that
        is missing."""
        text, missing = (pl.Series(column, dtype=pl.String) for column in (self.texts, self.text_missing))
        row, told = _series(self.text_rows), _series(self.text_told)
        return pl.DataFrame({"text": text, "row": row, "told": told, "missing_photo": missing})


def _series(values: array[int]) -> pl.Series:
    return pl.Series(np.frombuffer(values, np.int8 if values.typecode == "b" else np.int64))


# What pandas and others write into a text file where there is no value.
_MISSING = frozenset({"nan", "<na>", "n/a", "#n/a", "null"})
_SURROGATES = re.compile("[\ud800-\udfff]")


def clean_caption(text: str, max_words: int) -> str:
    """A caption as it is kept: composed characters (NFC), no white space around it, else unchanged.

    Composed, since the same word in two spellings would be two words of the vocabulary. Raises
    BadCaption: caption_not_utf8, malformed (zero bytes), empty_caption (no letter and no digit),
    caption_too_long (more than `max_words` words, or 50 times as many characters).

    >>> clean_caption("  A dog . ", 100)
    'A dog .'
    """
    max_characters = max_words * _MAX_CHARACTERS_A_WORD
    if len(text) > 20 * max_characters:  # its words are not counted
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


# ---- the photographs themselves ----


class _Look(NamedTuple):
    """What reading one photograph gave: its identity and header, or a reason and a detail."""

    photo_id: str | None
    width: int | None
    height: int | None
    format: str | None
    reason: str | None = None
    detail: str | None = None


def _look_at(
    photos: pl.DataFrame,
    root: Path,
    packs: Path,
    known: pl.DataFrame | None,
    settings: IngestSettings,
    advance: Callable[[int], None],
) -> pl.DataFrame:
    """Add photo_id, width, height, format, reason and detail; what is known is not read again."""
    photos = _with_known(photos, known, settings)
    seen = pl.col("photo_id").is_not_null() | pl.col("reason").is_not_null()
    old, new = photos.filter(seen), photos.filter(~seen).drop(*_SEEN)
    advance(old.height)
    looks: list[_Look] = []

    def look(row: tuple[str, str | None, int | None, int]) -> _Look:
        return _look(root, *row, settings)

    with ThreadPoolExecutor(_READERS) as pool:
        for part in located(new, packs).select(*_PLACE).iter_slices(_PHOTOS_PER_BATCH):
            looks.extend(pool.map(look, part.iter_rows()))
            advance(part.height)
    return pl.concat([old, new.hstack(pl.DataFrame(looks, schema=_SEEN, orient="row"))]).sort("row")


def _with_known(photos: pl.DataFrame, known: pl.DataFrame | None, settings: IngestSettings) -> pl.DataFrame:
    """Add what an earlier ingest found of the same files, where it still holds; else nulls."""
    if known is None:
        return photos.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in _SEEN.items())
    known = known.rename({"container": "source", "size": "file_size"}).select(*_STAT, *_SEEN)
    again = pl.col("reason").is_in([*TRANSIENT, *_BY_SETTINGS]).fill_null(value=False)
    too_large = (pl.col("width").cast(pl.Int64) * pl.col("height") > settings.max_pixels).fill_null(
        value=False
    )
    known = known.filter(~again, ~too_large).unique(_STAT, keep="first", maintain_order=True)
    joined = photos.join(known, on=_STAT, how="left", nulls_equal=True, maintain_order="left")
    fits = pl.col("size") <= settings.max_file_bytes
    return joined.with_columns(pl.when(fits).then(name).alias(name) for name in _SEEN)


def _look(
    root: Path, path: str, container: str | None, offset: int | None, size: int, settings: IngestSettings
) -> _Look:
    try:
        if size > settings.max_file_bytes:
            limit = (
                f"max_file_bytes={settings.max_file_bytes:,}; raise ingest.max_file_bytes or drop the file"
            )
            raise BadPhoto("too_many_bytes", f"{size:,} bytes is over {limit}")
        data = read_bytes(root, path, container, offset, size)
        header = read_header(data, settings.max_pixels)
    except BadPhoto as bad:
        return _Look(None, None, None, None, bad.reason, printable(bad.detail))
    return _Look(photo_id(data), header.width, header.height, header.format)


# ---- splits ----


def _told_splits(heard: _Heard) -> set[int]:
    """The splits that the data set has; none where one and the same is told of all that has captions.

    For that says nothing: a data set of the one folder "train2017" is not all for training.
    """
    if len(heard.splits) > 1:
        return heard.splits
    rows, told = np.frombuffer(heard.text_rows, np.int64), np.frombuffer(heard.text_told, np.int8)
    of_photo = np.append(np.frombuffer(heard.told, np.int8), np.int8(_NOT_TOLD))  # row -1: no photograph
    return set() if (np.maximum(told, of_photo[rows]) != _NOT_TOLD).all() else heard.splits


def _with_splits(photos: pl.DataFrame, told: set[int], settings: IngestSettings) -> pl.DataFrame:
    """The usable photographs, a row a file, sorted by path, with the split of each.

    `code` is the file's own split, null where it has no captions and no split is told; `kept` is the
    photograph's: of the splits of all its files the one that is furthest from training, null where
    none of them has captions.
    """
    copies = photos.filter(pl.col("photo_id").is_not_null()).sort("path")
    # A split that the data set tells is not added to: its test split stays the published one.
    dev_share = settings.dev_share if settings.held_out and _CODES["dev"] not in told else 0.0
    test_share = settings.test_share if settings.held_out and _CODES["test"] not in told else 0.0
    drawn = [_CODES[draw_split(id_, dev_share, test_share)] for id_ in copies["photo_id"]]
    is_told = pl.col("told").is_in(sorted(told))
    code = pl.when(is_told).then("told").when("captioned").then(pl.Series("drawn", drawn, pl.Int8))
    held_out = pl.col("code").max().over("photo_id")
    return copies.with_columns(code.alias("code")).with_columns(
        pl.when(pl.col("captioned").any().over("photo_id")).then(held_out).alias("kept"),
        pl.col("path").first().over("photo_id").alias("first_path"),
        (pl.col("code").min().over("photo_id") != held_out).fill_null(value=False).alias("is_leak"),
    )


def draw_split(id_: str, dev_share: float, test_share: float) -> str:
    """The split of a photograph in a data set that has none: by its digest, whatever else there is.

    >>> draw_split("0" * 32, 0.1, 0.1), draw_split("f" * 32, 0.1, 0.1)
    ('test', 'train')
    """
    fraction = int(id_[:16], 16) / 2**64
    return "test" if fraction < test_share else "dev" if fraction < test_share + dev_share else "train"


def _split_name(column: str) -> pl.Expr:
    return pl.col(column).replace_strict(dict(enumerate(SPLITS)), default=UNLABELLED, return_dtype=pl.String)


# ---- tables ----


def _photos(copies: pl.DataFrame) -> pl.DataFrame:
    """One row a photograph, whatever the number of its files; by split, then photo_id."""
    of_the_first = ("path", "source_id", "container", "offset", "size", "width", "height", "format", "kept")
    of_the_others = [pl.col(name).slice(1).alias(f"other_{name}s") for name in ("path", "source_id")]
    photos = copies.group_by("photo_id", maintain_order=True).agg(
        *(pl.col(name).first() for name in of_the_first), *of_the_others
    )
    return (
        photos.sort(pl.col("kept").fill_null(len(SPLITS)), "photo_id")
        .with_columns(_split_name("kept").alias("split"))
        .select(*dtypes_of("photos"))
    )


def _captions(
    captions: pl.DataFrame, photos: pl.DataFrame, copies: pl.DataFrame, told: set[int]
) -> pl.DataFrame:
    """Captions with the splits of their photographs; without a photograph as told, else for training."""
    rejected = photos.filter(pl.col("photo_id").is_null()).select("row", "path")
    captions = (
        captions.join(copies.select("row", "photo_id", "kept"), on="row", how="left")
        .join(rejected, on="row", how="left")
        .with_columns(pl.coalesce("missing_photo", "path"))
    )
    own = pl.when(pl.col("told").is_in(sorted(told))).then("told").otherwise(pl.lit(0, pl.Int8))
    captions = captions.with_columns(pl.coalesce("kept", own).alias("kept")).sort(
        "photo_id", "text", "kept", "missing_photo"
    )
    captions = captions.with_columns(pl.int_range(pl.len()).over("photo_id", "text").alias("number"))
    ids = [caption_id(*row) for row in captions.select("photo_id", "text", "number").iter_rows()]
    has_photo = pl.col("photo_id").is_not_null()
    return (
        captions.with_columns(pl.Series("caption_id", ids, pl.String), _split_name("kept").alias("split"))
        .sort(~has_photo, "kept", "caption_id")
        .select(*dtypes_of("captions"))
    )


def caption_id(photo: str | None, text: str, number: int) -> str:
    """Name a caption by its photograph and text, 32 hexadecimal digits.

    `number` counts the captions that are equal in both, from 0.
    """
    return hashlib.blake2b(f"{photo or ''}\0{text}\0{number}".encode(), digest_size=16).hexdigest()


def _repeated(copies: pl.DataFrame) -> list[Problem]:
    """A notice for each further file of a photograph: a duplicate, or a leak between splits."""
    further = copies.filter(pl.col("path") != pl.col("first_path"))
    columns = further.select(
        "path", "first_path", "is_leak", _split_name("code"), _split_name("kept").alias("kept")
    )
    notices = []
    for path, first, is_leak, split, kept in columns.iter_rows():
        detail = f"the same bytes as '{printable(first)}'"
        if is_leak:
            detail += f"; listed here as {split}, kept in {kept} only"
        notices.append(Problem("photo", printable(path), "leak" if is_leak else "duplicate", detail))
    return notices


def _rejected(photos: pl.DataFrame) -> list[Problem]:
    bad = photos.filter(pl.col("reason").is_not_null()).select("path", "reason", "detail")
    return [Problem("photo", printable(path), reason, detail) for path, reason, detail in bad.iter_rows()]


def _rejects_frame(rejects: list[Problem]) -> pl.DataFrame:
    rows = [("ingest", *reject) for reject in sorted(rejects)]
    return pl.DataFrame(rows, schema=dtypes_of("rejects"), orient="row")
