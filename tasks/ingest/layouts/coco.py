"""The layout of COCO: `captions_*.json` with `images` and `annotations`."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Any

from cutline.tasks.ingest.files import Files, Problem
from cutline.tasks.ingest.layouts.base import (
    Entry,
    Item,
    Layout,
    Source,
    basename,
    malformed,
    split_in,
    until_useless,
)
from cutline.tasks.ingest.layouts.json_entries import read_entries
from cutline.tasks.ingest.layouts.table_rows import is_own_file
from cutline.tasks.runtime.unicode import is_valid, printable


def _matches(files: Files, path: str) -> bool:
    is_named = re.fullmatch(r"captions_.*\.json", basename(path)) is not None
    return is_named and not is_own_file(files, path)


def read_coco(source: Source) -> Iterator[Item]:
    """`images` with `id` and `file_name`, `annotations` with `image_id` and `caption`."""
    for path in source.markers:
        yield from until_useless(path, _read_coco(source, path))


def _read_coco(source: Source, path: str) -> Iterator[Item]:
    stem = posixpath.splitext(posixpath.basename(path))[0]
    split = split_in(stem)
    photos: dict[str, str | None] = {}
    names: dict[str, str] = {}
    problem: Problem | None = None
    for entry in read_entries(source.files, path, "images"):
        if isinstance(entry, Problem):
            problem = entry
            yield problem
            continue
        index, image = entry
        id_, name = (image.get("id"), image.get("file_name")) if isinstance(image, dict) else (None, None)
        key = image_key(id_)
        if key is None or not isinstance(name, str) or not name or key in photos:
            detail = f"expected a `file_name` and an `id` of its own, found {printable(repr(image), 80)}"
            yield malformed(f"{path}: images[{index}]", detail, "photo")
            continue
        photos[key], event = source.finder.find(name, hint=stem.partition("_")[2])
        if event is not None:
            yield event
        names[key] = name
        if photos[key] is not None:
            yield Entry(photos[key], (), split, key if is_valid(key) else None)
    if problem is None:
        annotations = read_entries(source.files, path, "annotations")
        yield from _read_annotations(path, annotations, photos, names, split)


def image_key(value: Any) -> str | None:
    """The id of an image as a text; None where it is none. 1, 1.0, "1" and "1.0" are the same image.

    >>> image_key(1), image_key("1"), image_key(1.0), image_key("001"), image_key(True)
    ('1', '1', '1', '001', None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):  # True would be image 1
        return None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    text = str(value).strip()
    return re.sub(r"^(-?[0-9]+)\.0+$", r"\1", text) or None


def _read_annotations(
    path: str,
    annotations: Iterator[tuple[int, Any] | Problem],
    photos: dict[str, str | None],
    names: dict[str, str],
    split: str | None,
) -> Iterator[Item]:
    for entry in annotations:
        if isinstance(entry, Problem):
            yield entry
            continue
        index, annotation = entry
        place = f"{path}: annotations[{index}]"
        id_, text = (
            (annotation.get("image_id"), annotation.get("caption"))
            if isinstance(annotation, dict)
            else (None, None)
        )
        key = image_key(id_)
        if key is None or not isinstance(text, str):
            yield malformed(
                place, f"expected `image_id` and `caption`, found {printable(repr(annotation), 80)}"
            )
            continue
        if key not in photos:
            photos[key], names[key] = None, f"{path}: image {key}"
            yield Problem("photo", printable(names[key]), "missing_photo", "`images` has no such `id`")
        yield Entry(photos[key], [(place, text)], split, name=names[key])


COCO = Layout("coco", "captions_*.json", _matches, read_coco)
