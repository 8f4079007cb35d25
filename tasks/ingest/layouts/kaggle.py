"""A table of names and captions in one file, as Flickr8k and Flickr30k are published on Kaggle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from cutline.tasks.ingest.files import PHOTO_ENDINGS, Files, Problem, decode, ending_of
from cutline.tasks.ingest.layouts.base import (
    LINE_END,
    QUOTED,
    Item,
    Layout,
    Source,
    basename,
    begins_with_photo,
    ends_in_quotes,
    malformed,
    read_records,
    until_useless,
)
from cutline.tasks.ingest.layouts.flickr8k import Told, read_split_lists, told_entries
from cutline.tasks.ingest.layouts.table_rows import SEPARATORS, read_table, table_separator
from cutline.tasks.runtime.unicode import printable


def _matches(files: Files, path: str) -> bool:
    if not re.fullmatch(r".*captions?.*\.(txt|csv|tsv)|results\.csv", basename(path)):
        return False
    head = files.head(path, 4096)
    return kaggle_form(head) is not None or table_separator(head) is not None


class KaggleForm(NamedTuple):
    """How a file's lines stand: what is between their fields, and a third column, if there is one."""

    separator: str
    between: str | None  # the column between name and caption: a split, or the number of the caption
    has_header: bool


def kaggle_form(head: bytes) -> KaggleForm | None:
    """The form that a file's first line tells, None where it is not of this layout."""
    first = LINE_END.split(decode(head), 1)[0].strip()
    for separator in SEPARATORS:
        columns = [column.strip(' "').lower() for column in first.split(separator)]
        if columns[0] in ("image", "image_name", "filename", "file_name") and len(columns) in (2, 3):
            if re.fullmatch("(caption|comment|text)s?", columns[-1]):
                return KaggleForm(separator, columns[1] if len(columns) == 3 else None, has_header=True)
        elif len(columns) >= 2 and ending_of(columns[0]) in PHOTO_ENDINGS:
            return KaggleForm(separator, None, has_header=False)
    return None


def read_kaggle(source: Source) -> Iterator[Item]:
    """`name,caption` a line; the caption in CSV's quotes or, with commas and all, without.

    Of other columns, or in another order, a table in CSV.
    """
    splits = yield from read_split_lists(source)
    for path in source.markers:
        form = kaggle_form(source.files.head(path, 4096))
        if form is not None:
            entries = told_entries(source, kaggle_captions(source.files, path, form), splits)
        else:
            entries = read_table(source, path, "", splits)
        yield from until_useless(path, entries)


def kaggle_captions(files: Files, path: str, form: KaggleForm) -> Iterator[Told | Problem]:
    """The captions of one file, a line each, or several where a quoted one goes on."""

    def is_open(text: str) -> bool:
        fields = _fields(text, form)
        return fields is not None and ends_in_quotes(fields[-1], "\0")

    records = read_records(files, path, is_open, begins_with_photo(form.separator), "\0")
    for index, record in enumerate(records):
        if isinstance(record, Problem):
            yield record
            continue
        if index == 0 and form.has_header:
            continue
        place = f"{path}:{record[0]}"
        fields = _fields(record[1], form)
        if fields is not None:
            name, between, caption = fields
            yield Told(place, name, _unquoted(caption), between if form.between == "split" else "")
        else:
            expected = f"expected a name, `{form.separator}` and a caption"
            yield malformed(place, f"{expected}, found {printable(record[1], 80)!r}")


def _fields(text: str, form: KaggleForm) -> tuple[str, str, str] | None:
    """Name, what is between, and caption as they stand in a record; None where it does not have both."""
    quoted = QUOTED.match(text)
    at = text.find(form.separator, quoted.end() if quoted and quoted[1] else 0)
    name = _unquoted(text[: max(at, 0)])
    if not name:
        return None
    caption = text[at + 1 :]
    if form.between is None:
        return name, "", caption.strip()
    between, separator, rest = caption.partition(form.separator)
    # A line of Flickr30k's file lacks the separator after the caption's number.
    caption = rest if separator else re.sub(r"^\s*\d+\s+", "", between)
    return None if not separator and caption == between else (name, _unquoted(between), caption.strip())


def _unquoted(text: str) -> str:
    """A field as CSV means it; as it stands where it is not quoted as a whole."""
    text = text.strip()
    quoted = QUOTED.fullmatch(text)
    return text[1:-1].replace('""', '"') if quoted and quoted[1] and len(text) >= 2 else text


KAGGLE = Layout(
    "kaggle",
    "captions.txt, captions.csv, captions.tsv or results.csv whose first line names the columns, "
    "as `image,caption`",
    _matches,
    read_kaggle,
)
