"""The layout of Flickr8k: `Flickr8k.token.txt`, and lists of the names of each split."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import NamedTuple

from cutline.tasks.ingest.files import Files, Problem
from cutline.tasks.ingest.layouts.base import (
    SPLIT_WORDS,
    Item,
    Layout,
    Source,
    basename,
    entries_of,
    held_out,
    malformed,
    read_lines,
    told_split,
    until_useless,
)
from cutline.tasks.runtime.unicode import printable


class Told(NamedTuple):
    """A caption as a line tells it, with the name of its photograph and its place ("captions.txt:17").

    `split` is its word for one, where the file has a column of them.
    """

    place: str
    name: str
    caption: str
    split: str = ""


def _matches(files: Files, path: str) -> bool:
    return re.fullmatch(r"flickr8k\.token\.txt|results_\d+\.token", basename(path)) is not None


def read_flickr8k(source: Source) -> Iterator[Item]:
    """`name#0<tab>caption` a line; one split list a split, a name a line."""
    splits = yield from read_split_lists(source)
    for path in source.markers:
        entries = told_entries(source, flickr8k_captions(source.files, path), splits)
        yield from until_useless(path, entries)


def told_entries(source: Source, told: Iterator[Told | Problem], splits: dict[str, str]) -> Iterator[Item]:
    for one in told:
        if isinstance(one, Problem):
            yield one
            continue
        split, problem = told_split(one.split, one.place)
        if problem:
            yield problem
            continue
        yield from entries_of(source, one.name, [(one.place, one.caption)], split or splits.get(one.name))


def flickr8k_captions(files: Files, path: str) -> Iterator[Told | Problem]:
    """The captions of one file, a line each."""
    for line in read_lines(files, path):
        if isinstance(line, Problem):
            yield line
            continue
        place = f"{path}:{line[0]}"
        label, tab, text = line[1].partition("\t")
        name, hash_, number = label.rpartition("#")
        if tab and hash_ and name and number.strip().isdigit():
            yield Told(place, name, text)
        else:
            yield malformed(place, f"expected `name#0<tab>caption`, found {printable(line[1], 80)!r}")


def read_split_lists(source: Source) -> Generator[Item, None, dict[str, str]]:
    """Yield an entry for each name in a split list; return the split by name."""
    splits: dict[str, str] = {}
    for path in source.files.paths:
        name = path[path.rfind("/") + 1 :].lower()
        found = re.fullmatch(r"flickr_?\d+k[._](train|dev|val|test)_?images\.txt", name)
        if not found:
            continue
        split = SPLIT_WORDS[found[1]]
        for line in read_lines(source.files, path):
            if isinstance(line, Problem):
                yield line
                continue
            photo_name = line[1].strip()
            yield from entries_of(source, photo_name, (), split, claims=False)
            splits[photo_name] = held_out(splits.get(photo_name), split)
    return splits


FLICKR8K = Layout("flickr8k", "Flickr8k.token.txt", _matches, read_flickr8k)
