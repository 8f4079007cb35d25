"""Rows of a table in CSV or JSON lines whose columns name photographs and hold captions."""

from __future__ import annotations

import csv
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from cutline.tasks.ingest.columns import caption_columns, is_own, is_text, may_hold_captions, name_column
from cutline.tasks.ingest.files import Files, Problem, cause, decode, ending_of
from cutline.tasks.ingest.layouts.base import (
    FILE_NAMES,
    LINE_END,
    Entry,
    Item,
    Source,
    begins_with_photo,
    captions_at,
    ends_in_quotes,
    malformed,
    read_lines,
    read_records,
    split_in,
    told_split,
)
from cutline.tasks.runtime.spreadsheets import restore

MAX_COLUMNS = 4_096  # of a table in CSV


SEPARATORS = ",|\t;"


def table_separator(head: bytes) -> str | None:
    """What separates the columns of a table whose first line names a photograph's and a caption's.

    None where it names none, and for captions that Cutline wrote.
    """
    for separator, columns in _headers(head):
        if name_column(columns) is not None and caption_columns(columns):
            return separator
    return None


def _headers(head: bytes) -> Iterator[tuple[str, list[str]]]:
    """The names of columns in the first line of a file, by each separator that there may be."""
    first = LINE_END.split(decode(head), 1)[0]
    for separator in SEPARATORS:
        yield separator, [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]


def is_own_file(files: Files, path: str) -> bool:
    """Whether a text file or Parquet's names hold captions that Cutline wrote, in any form of `--out`."""
    head = files.head(path, 2**16)
    match ending_of(path):
        case ".csv" | ".tsv" | ".txt":
            return any(is_own(columns) for _, columns in _headers(head))
        case ".jsonl" | ".ndjson":
            try:
                row = json.loads(LINE_END.split(decode(head), 1)[0])
            except (ValueError, RecursionError):
                return False
            return isinstance(row, dict) and is_own(row)
        case ".json":  # COCO results, a list, are what a model said, whoever wrote them
            return re.match(rb'\s*\[\s*\{[^{}]*"image_id"\s*:[^{}]*"caption"\s*:', head) is not None
        case _:
            return False


def read_table(
    source: Source, path: str, base: str, splits: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Item]:
    """The items of a table; names are relative to the folder `base`, `splits` are by name."""
    for row in table_rows(source.files, path):
        yield from [row] if isinstance(row, Problem) else _read_row(source, path, base, *row, splits)


def table_rows(files: Files, path: str) -> Iterator[tuple[str, dict[str, Any]] | Problem]:
    """Place and columns of each row of a table, in JSON lines or in CSV with any of the separators."""
    if ending_of(path) in (".jsonl", ".ndjson"):
        return jsonl_rows(files, path)
    default = "\t" if ending_of(path) == ".tsv" else ","
    return csv_rows(files, path, table_separator(files.head(path, 4096)) or default)


def _read_row(
    source: Source,
    path: str,
    base: str,
    place: str,
    row: dict[str, Any],
    splits: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Item]:
    """The items of one row whose columns name a photograph and hold captions; `splits` by name."""
    texts = [column for column, value in row.items() if isinstance(value, str) and value]
    name = row[column] if (column := name_column(texts)) else ""
    if not name:
        yield malformed(
            place, f"expected a photograph's name in {', '.join(f'`{n}`' for n in FILE_NAMES[:3])}", "photo"
        )
        return
    captions: list[tuple[str, str]] = []
    columns = caption_columns(column for column, value in row.items() if value is not None)
    for column in columns:
        more, problems = captions_at(place, row[column])
        captions += more
        yield from problems
    for column, value in row.items():
        if column not in columns and may_hold_captions(column) and is_text(value):
            source.note_unread(column, path)
    photo, event = source.finder.find(name, base)
    if event is not None:
        yield event
    told, problem = told_split(row.get("split") or splits.get(name), place)
    if problem:
        yield problem
        return
    place = photo or posixpath.join(base, name)
    yield Entry(photo, captions, told or split_in(posixpath.dirname(place)), name=place)


def jsonl_rows(files: Files, path: str) -> Iterator[tuple[str, dict[str, Any]] | Problem]:
    """Place and columns of each row."""
    for line in read_lines(files, path):
        if isinstance(line, Problem):
            yield line
            continue
        place = f"{path}:{line[0]}"
        try:
            row = json.loads(line[1])
        except (ValueError, RecursionError) as error:
            yield malformed(place, f"not JSON: {cause(error)}")
            continue
        yield (place, row) if isinstance(row, dict) else malformed(place, "expected an object")


def csv_rows(files: Files, path: str, separator: str = ",") -> Iterator[tuple[str, dict[str, Any]] | Problem]:
    """Place and columns of each row below the heading."""
    header: list[str] | None = None
    is_neutralised = False  # as Cutline writes its own captions
    records = read_records(
        files, path, lambda text: ends_in_quotes(text, separator), begins_with_photo(separator), separator
    )
    for record in records:
        if isinstance(record, Problem):
            yield record
            continue
        place = f"{path}:{record[0]}"
        try:
            fields = next(csv.reader(_csv_lines(record[1]), delimiter=separator), [])
        except csv.Error as error:
            yield malformed(place, cause(error))
            continue
        if header is None:
            if len(fields) > MAX_COLUMNS:
                expected = f"expected at most {MAX_COLUMNS:,} columns, found {len(fields):,}"
                yield malformed(path, expected, "file")
                return
            header = _distinct([name.strip() for name in fields])
            is_neutralised = is_own(header)
        elif len(fields) != len(header):
            expected = f"expected {len(header)} fields, found {len(fields)}"
            yield malformed(place, f"{expected}; a field that holds a `{separator}` stands in quotes")
        else:
            texts = map(restore, fields) if is_neutralised else fields
            yield place, {name: _json_list(value) for name, value in zip(header, texts, strict=True)}


def _distinct(names: list[str]) -> list[str]:
    """Names of columns; one that comes again gets a number, so that no column hides another."""
    counts: Counter[str] = Counter()
    distinct: list[str] = []
    for name in names:
        counts[name] += 1
        distinct.append(f"{name}_{counts[name]}" if counts[name] > 1 else name)
    return distinct


def _csv_lines(text: str) -> list[str]:
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + lines[-1:]


def _json_list(value: str) -> Any:
    """A list where a field holds one in JSON, else the field."""
    if value.startswith("[") and value.endswith("]"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
