"""The layout without annotations: photographs, with or without a text of the same name beside each."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from cutline.tasks.ingest.files import SIDECAR_ENDINGS, Files, Problem, cause, ending_of, reason_of
from cutline.tasks.ingest.layouts.base import (
    MAX_TEXT_BYTES,
    Entry,
    Item,
    Layout,
    Source,
    caption_lines,
    split_in,
)
from cutline.tasks.ingest.sidecars import Sidecars
from cutline.tasks.runtime.unicode import printable

# Texts that lie beside photographs and say nothing of one.
_DOCUMENTS = re.compile(r"(readme|licen[cs]e|copying|notice|authors|changelog|requirements).*", re.IGNORECASE)


def read_folder(source: Source) -> Iterator[Item]:
    """Photographs, with the captions of `name.txt` beside `name.jpg`, one a line.

    A text without its photograph counts as captions only where its folder also has pairs.
    """
    files = source.files
    photos = [path for path in files.paths if files.is_photo(path)]
    pairs = Sidecars(photos)
    texts = [path for path in files.paths if ending_of(path) in SIDECAR_ENDINGS and not files.is_photo(path)]
    paired = {posixpath.dirname(path) for path in texts if pairs.photos_of(path)}
    refused = Sidecars([problem.name for problem in files.problems if problem.kind == "photo"])
    captioned: set[str] = set()
    for path in texts:
        found, is_refused = pairs.photos_of(path), bool(refused.photos_of(path))
        folder, file = posixpath.split(path)
        if not found and not is_refused and (folder not in paired or _DOCUMENTS.fullmatch(file)):
            continue
        try:
            captions = caption_lines(path, files.read_text(path, MAX_TEXT_BYTES))
        except OSError as error:
            yield Problem("file", path, reason_of(error), cause(error))
            continue
        name = posixpath.splitext(path)[0]
        if not found and not is_refused:
            yield Problem("photo", name, "missing_photo", f"'{path}' has no photograph beside it")
        captioned.update(found[:1])
        yield Entry(found[0] if found else None, captions, split_in(folder), name=name)
    yield from _without_their_text(pairs, texts, captioned)
    for path in photos:
        yield Entry(path, (), split_in(posixpath.dirname(path)))


def _without_their_text(pairs: Sidecars, texts: list[str], captioned: set[str]) -> Iterator[Problem]:
    """A notice for each photograph whose text was taken as that of another one with the same stem."""
    for path in texts:
        first, *others = pairs.photos_of(path) or [""]
        for other in others:
            if other not in captioned:
                detail = f"'{path}' was read as the caption of '{first}'; give this one '{other}.txt'"
                yield Problem("photo", printable(other), "ambiguous_name", printable(detail))


FOLDER = Layout(
    "folder",
    "photographs: *.jpg, *.png, *.webp, …, their captions in *.txt or *.caption beside them",
    Files.is_photo,
    read_folder,
)
