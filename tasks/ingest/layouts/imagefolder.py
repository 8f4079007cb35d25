"""The layout of Hugging Face's ImageFolder: photographs, and a table of metadata in their folder."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from cutline.tasks.ingest.files import Files
from cutline.tasks.ingest.layouts.base import Item, Layout, Source, basename, until_useless
from cutline.tasks.ingest.layouts.table_rows import is_own_file, read_table


def _matches(files: Files, path: str) -> bool:
    pattern = r"(metadata|.*captions?.*)\.(jsonl|ndjson)|metadata\.[ct]sv"
    return re.fullmatch(pattern, basename(path)) is not None and not is_own_file(files, path)


def read_imagefolder(source: Source) -> Iterator[Item]:
    """A row a photograph: its name, relative to the metadata's folder, and its captions."""
    for path in source.markers:
        yield from until_useless(path, read_table(source, path, posixpath.dirname(path)))


IMAGEFOLDER = Layout(
    "imagefolder",
    "metadata.jsonl, metadata.csv, metadata.tsv or captions.jsonl",
    _matches,
    read_imagefolder,
)
