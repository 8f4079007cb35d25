"""The layout of Karpathy's splits: `dataset_*.json` with `images` and their `sentences`."""

from __future__ import annotations

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
    captions_at,
    malformed,
    told_split,
    until_useless,
)
from cutline.tasks.ingest.layouts.json_entries import read_entries
from cutline.tasks.runtime.unicode import is_valid


def _matches(files: Files, path: str) -> bool:
    is_named = re.fullmatch(r"dataset_.*\.json", basename(path)) is not None
    return is_named and b'"sentences"' in files.head(path, 2**20)


def read_karpathy(source: Source) -> Iterator[Item]:
    """An object an image: `filename`, `filepath`, `split`, `sentences` with `raw`."""
    for path in source.markers:
        yield from until_useless(path, _read_karpathy(source, path))


def _read_karpathy(source: Source, path: str) -> Iterator[Item]:
    for entry in read_entries(source.files, path, "images"):
        if isinstance(entry, Problem):
            yield entry
            continue
        index, image = entry
        place = f"{path}: images[{index}]"
        name = image.get("filename") if isinstance(image, dict) else None
        split = told_split(image.get("split"), place)[0] if name else None
        if not isinstance(name, str) or not name or split is None:
            yield malformed(
                place, "expected `filename` and a `split` of train, restval, val or test", "photo"
            )
            continue
        captions, problems = captions_at(place, image.get("sentences"))
        yield from problems
        folder = image.get("filepath")
        name = f"{folder}/{name}" if isinstance(folder, str) and folder else name
        photo, event = source.finder.find(name)
        if event is not None:
            yield event
        yield Entry(photo, captions, split, _identifier(image, "cocoid", "imgid"), name)


def _identifier(image: dict[str, Any], *keys: str) -> str | None:
    for key in keys:
        value = image.get(key)
        if isinstance(value, int | str) and is_valid(str(value)):
            return str(value)
    return None


KARPATHY = Layout("karpathy", "dataset_*.json with `images` and their `sentences`", _matches, read_karpathy)
