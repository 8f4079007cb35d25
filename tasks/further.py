"""Further captions: those of another data set, or lines of text, that teach what few captions do not.

They are read as text: where they have photographs, nobody looks at these. They say in which ways captions
differ, and so make gists better (tasks/gist.py); of how the data set's own captions are worded they say
little, so vocabulary and language model do not read them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from schemas.errors import BadCaption, UnknownDataset, UsageError
from schemas.settings import FurtherSettings, expanded
from schemas.tables import dtypes_of
from tasks.entries import Entry, Item, read_lines
from tasks.ingest import caption_id, clean_caption, listing_digest, rejects_frame
from tasks.layouts import detect, read_layout
from tasks.listing import Files, Meant, Problem, ending_of, printable, scan

_TOLD_AT_ONCE = 1000  # captions


@dataclass(frozen=True)
class Further:
    """The tables `captions`, all of them without a photograph, and `rejects`, as schemas.tables has them.

    `listing` is the digest of the files that were there.
    """

    captions: pl.DataFrame
    rejects: pl.DataFrame
    listing: str


def files_of(settings: FurtherSettings) -> Files:
    """The files of the folder, or the one file, that the setting names. Raises UsageError."""
    path = expanded(settings.captions)
    if not path.exists():
        raise UsageError(
            f"setting further.captions: expected a folder or a file with captions, found nothing at '{path}'"
        )
    if path.is_dir():
        return scan(path)
    path = path.resolve()  # a link to a file elsewhere is no way out of a folder: the file is what is meant
    alone = scan(path.parent, [path.name])
    return replace(alone, meant=Meant())  # which would say that a file named by itself is a photograph


def read_further(
    settings: FurtherSettings, held_out: Collection[str], packs: Path, advance: Callable[[int], None]
) -> Further:
    """Read the captions of a data set of any layout, or of texts with a caption a line.

    Whatever split they are of there, all of them are to teach; so one that says what a caption of `held_out`
    (texts of the data set's dev and test splits) says is left out, and told of: whoever has learned from it
    knows the answer. `packs` is a folder for what reading Parquet leaves. `advance` is told of captions.
    Raises UnknownDataset.
    """
    files = files_of(settings)
    answers = {words_of(text) for text in held_out}
    texts: list[str] = []
    rejects: list[Problem] = []
    for item in _items(files, settings, packs):
        if isinstance(item, Problem):
            if item.kind != "photo":
                rejects.append(item)
            continue
        for place, text in item.captions if isinstance(item, Entry) else ():
            try:
                caption = clean_caption(text, settings.max_caption_words)
            except BadCaption as bad:
                rejects.append(Problem("caption", printable(place), bad.reason, bad.detail))
                continue
            if words_of(caption) in answers:
                detail = f"the words of a caption that is held out: {printable(caption, 80)!r}"
                rejects.append(Problem("caption", printable(place), "leak", detail))
                continue
            texts.append(caption)
            if len(texts) % _TOLD_AT_ONCE == 0:
                advance(_TOLD_AT_ONCE)
    if not (texts or rejects):
        raise UnknownDataset(f"setting further.captions: '{settings.captions}' holds no caption")
    return Further(_captions(texts), rejects_frame("further", rejects), listing_digest(files))


def _items(files: Files, settings: FurtherSettings, packs: Path) -> Iterator[Item]:
    """What the layout tells; where none fits, an entry for each line of the texts."""
    texts = [path for path in files.paths if ending_of(path) == ".txt"]
    try:
        detected = detect(files, settings.layout, "further.layout")
    except UnknownDataset:
        if not texts or settings.layout != "auto":
            raise
    else:
        yield from read_layout(files, detected, packs, max_file_bytes=0)  # no image's bytes are copied
        return
    for path in texts:
        for line in read_lines(files, path):
            yield line if isinstance(line, Problem) else Entry(None, [(f"{path}:{line[0]}", line[1])])


def words_of(text: str) -> str:
    """What makes two captions say the same: their words, whatever stands between them.

    >>> words_of("A dog, running .") == words_of("a dog running")
    True
    """
    return " ".join(re.findall(r"\w+", text.casefold()))


def _captions(texts: list[str]) -> pl.DataFrame:
    """The `captions` table, sorted by caption_id; texts that are equal are counted from 0."""
    seen: Counter[str] = Counter()
    ids = []
    for text in texts:
        # Not those of captions without a photograph in the data set, which may have the same text.
        ids.append(caption_id("further", text, seen[text]))
        seen[text] += 1
    columns = {"caption_id": ids, "photo_id": None, "text": texts, "split": "train"}
    return pl.DataFrame(columns, schema=dtypes_of("captions")).sort("caption_id")
