"""Small data sets for tests: files are put in a folder, and read as a layout tells them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cutline.tasks.ingest.files import Photo, Problem, scan
from cutline.tasks.ingest.finder import Finder
from cutline.tasks.ingest.layouts.base import Entry
from cutline.tasks.ingest.layouts.registry import detect, read_layout
from cutline.tasks.storage.packs import files_of

MAX_BYTES = 2**20


def an_id(name: int | str) -> str:
    """An id as photographs and captions have it; another for each name."""
    return hashlib.blake2b(str(name).encode(), digest_size=16).hexdigest()


def photo(seed: int = 0, form: str = "JPEG", side: int = 8) -> bytes:
    """The bytes of a photograph `side` pixels wide; another for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side - 2, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def put(root: Path, **files: Any) -> Path:
    """Write files of bytes or text under `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


@dataclass
class Read:
    """What a layout told: captions, splits and source ids by photograph, captions by the name of one that is
    missing, the rest in lists."""

    layout: str = ""
    captions: dict[str | None, list[str]] = field(default_factory=dict)
    missing: dict[str | None, list[str]] = field(default_factory=dict)
    splits: dict[str | None, set[str | None]] = field(default_factory=dict)
    source_ids: dict[str, str] = field(default_factory=dict)
    photos: dict[str, Photo] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def reasons(self) -> list[tuple[str, str]]:
        return sorted((problem.name, problem.reason) for problem in self.problems)


def read(root: Path, layout: str = "auto", only: Sequence[str] = ()) -> Read:
    files = scan(root, only)
    detected = detect(files, layout)
    finder = Finder(files)
    items = list(read_layout(files, detected, root.parent / "packs", MAX_BYTES, finder))
    if finder.claims.revised:
        again = Finder(files, finder.claims)
        items = list(read_layout(files, detected, root.parent / "packs", MAX_BYTES, again))
    found = Read(detected.layout.name)
    for item in items:
        if isinstance(item, Photo):
            found.photos[item.path] = item
        elif isinstance(item, Problem):
            found.problems.append(item)
        elif isinstance(item, Entry):
            found.captions.setdefault(item.photo, []).extend(text for _, text in item.captions)
            if item.photo is None and item.captions:
                found.missing.setdefault(item.name, []).extend(text for _, text in item.captions)
            found.splits.setdefault(item.photo, set()).add(item.split)
            if item.photo and item.source_id:
                found.source_ids[item.photo] = item.source_id
    return found


def bytes_of(root: Path, told: Photo) -> bytes:
    """A photograph's bytes as its address says: the file, or a part of the container."""
    if told.container is None:
        return (root / told.path).read_bytes()
    place, *_ = files_of(told.container, root.parent / "packs") or [root / told.container]
    return place.read_bytes()[told.offset or 0 :][: told.size]
