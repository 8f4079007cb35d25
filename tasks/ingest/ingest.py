"""A data set into tables: photographs, captions, the files they came from, and what was rejected.

A photograph is named by the digest of its bytes, a caption by its photograph and its text, and
neither by a file's name: a renamed or copied file changes no identity. Nothing is dropped silently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from cutline.schemas.errors import UnknownDataset
from cutline.schemas.settings import IngestSettings
from cutline.schemas.tables import SPLITS, dtypes_of
from cutline.tasks.ingest.collector import Collector
from cutline.tasks.ingest.files import Files, Problem, scan
from cutline.tasks.ingest.finder import Finder
from cutline.tasks.ingest.inspection import FILE_COLUMNS, INSPECTED, inspect_photos
from cutline.tasks.ingest.layouts.registry import Detected, detect, read_layout
from cutline.tasks.ingest.splits import assign_splits, given_splits, split_name
from cutline.tasks.runtime.unicode import printable


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
    only). `advance` receives the number of photographs read. Raises UnknownDataset.
    """
    files = scan(dataset, only)
    detected = detect(files, settings.layout)
    collected = _collect(files, detected, packs, settings)
    if not (collected.paths or collected.texts or collected.rejects):
        raise UnknownDataset(
            f"'{dataset}' has the files of the layout '{detected.layout.name}' "
            f"({', '.join(map(printable, detected.markers[:3]))}), but they hold no photograph and no caption"
        )
    photos = inspect_photos(collected.photos(), files.root, packs, known, settings, advance)
    given = given_splits(collected)
    copies = assign_splits(photos, given, settings)
    rejects = [*collected.rejects, *collected.in_two_splits(), *_rejected(photos), *_repeated(copies)]
    return Ingested(
        photos=_photos(copies),
        captions=_captions(collected.captions(), photos, copies, given),
        files=photos.select(*FILE_COLUMNS, *INSPECTED)
        .rename({"source": "container", "file_size": "size"})
        .sort("path"),
        rejects=_rejects_frame(rejects),
        layout=detected.layout.name,
        listing=listing_digest(files),
    )


def _collect(files: Files, detected: Detected, packs: Path, settings: IngestSettings) -> Collector:
    """What the layout says; read twice if a later name showed that an earlier one was resolved wrongly."""
    finder = Finder(files)
    collected = _collected_by(finder, detected, packs, settings)
    if finder.claims.revised:
        collected = _collected_by(Finder(files, finder.claims), detected, packs, settings)
    return collected


def _collected_by(finder: Finder, detected: Detected, packs: Path, settings: IngestSettings) -> Collector:
    collected = Collector(settings)
    for item in read_layout(finder.files, detected, packs, settings.max_file_bytes, finder):
        collected.take(item)
    return collected


# ---- tables ----


def _photos(copies: pl.DataFrame) -> pl.DataFrame:
    """One row per photograph, whatever the number of its files; by split, then photo_id."""
    of_the_first = ("path", "source_id", "container", "offset", "size", "width", "height", "format", "kept")
    of_the_others = [pl.col(name).slice(1).alias(f"other_{name}s") for name in ("path", "source_id")]
    photos = copies.group_by("photo_id", maintain_order=True).agg(
        *(pl.col(name).first() for name in of_the_first), *of_the_others
    )
    return (
        photos.sort(pl.col("kept").fill_null(len(SPLITS)), "photo_id")
        .with_columns(split_name("kept").alias("split"))
        .select(*dtypes_of("photos"))
    )


def _captions(
    captions: pl.DataFrame, photos: pl.DataFrame, copies: pl.DataFrame, given: set[int]
) -> pl.DataFrame:
    """Captions with the splits of their photographs; without a photograph the given one, else train."""
    rejected = photos.filter(pl.col("photo_id").is_null()).select("row", "path")
    captions = (
        captions.join(copies.select("row", "photo_id", "kept"), on="row", how="left")
        .join(rejected, on="row", how="left")
        .with_columns(pl.coalesce("missing_photo", "path"))
    )
    own = pl.when(pl.col("given").is_in(sorted(given))).then("given").otherwise(pl.lit(0, pl.Int8))
    captions = captions.with_columns(pl.coalesce("kept", own).alias("kept")).sort(
        "photo_id", "text", "kept", "missing_photo"
    )
    captions = captions.with_columns(pl.int_range(pl.len()).over("photo_id", "text").alias("number"))
    ids = [caption_id(*row) for row in captions.select("photo_id", "text", "number").iter_rows()]
    has_photo = pl.col("photo_id").is_not_null()
    return (
        captions.with_columns(pl.Series("caption_id", ids, pl.String), split_name("kept").alias("split"))
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
        "path", "first_path", "is_leak", split_name("code"), split_name("kept").alias("kept")
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
