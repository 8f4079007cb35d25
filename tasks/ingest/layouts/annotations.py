"""Layouts whose captions lie in text files beside the photographs: lines, JSON, CSV."""

from __future__ import annotations

import csv
import json
import posixpath
import re
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from cutline.tasks.ingest.columns import caption_columns, is_own, is_text, may_hold_captions, name_column
from cutline.tasks.ingest.files import (
    PHOTO_ENDINGS,
    SIDECAR_ENDINGS,
    Files,
    Problem,
    cause,
    decode,
    ending_of,
    reason_of,
)
from cutline.tasks.ingest.json_stream import read_lists
from cutline.tasks.ingest.layouts.base import (
    FILE_NAMES,
    LINE_END,
    MAX_TEXT_BYTES,
    QUOTED,
    SPLIT_WORDS,
    Entry,
    Item,
    Source,
    begins_with_photo,
    caption_lines,
    captions_at,
    ends_in_quotes,
    entries_of,
    held_out,
    malformed,
    read_lines,
    read_records,
    split_in,
    told_split,
    until_useless,
)
from cutline.tasks.ingest.sidecars import Sidecars
from cutline.tasks.runtime.spreadsheets import restore
from cutline.tasks.runtime.unicode import is_valid, printable

MAX_COLUMNS = 4_096  # of a table in CSV


class Told(NamedTuple):
    """A caption as a line tells it, with the name of its photograph and its place ("captions.txt:17").

    `split` is its word for one, where the file has a column of them.
    """

    place: str
    name: str
    caption: str
    split: str = ""


# ---- flickr8k ----


def read_flickr8k(source: Source) -> Iterator[Item]:
    """`name#0<tab>caption` a line; one split list a split, a name a line."""
    splits = yield from _read_split_lists(source)
    for path in source.markers:
        entries = _entries(source, flickr8k_captions(source.files, path), splits)
        yield from until_useless(path, entries)


def _entries(source: Source, told: Iterator[Told | Problem], splits: dict[str, str]) -> Iterator[Item]:
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


def _read_split_lists(source: Source) -> Generator[Item, None, dict[str, str]]:
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


# ---- kaggle ----


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
    splits = yield from _read_split_lists(source)
    for path in source.markers:
        form = kaggle_form(source.files.head(path, 4096))
        if form is not None:
            entries = _entries(source, kaggle_captions(source.files, path, form), splits)
        else:
            entries = _read_table(source, path, "", splits)
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


# ---- json: karpathy and coco ----


def _entries_of_json(files: Files, path: str, key: str) -> Iterator[tuple[int, Any] | Problem]:
    """Index and value of each entry of the list `key`; a problem in place of what is not JSON."""
    found = False
    try:
        with files.open(path) as file:
            for name, index, value in read_lists(file):
                if found and name != key:
                    return
                found |= name == key
                if found and index >= 0:
                    yield index, value
    except OSError as error:
        yield Problem("file", path, reason_of(error), cause(error))
    except (ValueError, RecursionError) as error:
        yield malformed(path, f"not JSON: {cause(error)}", "file")
    else:
        if not found:
            yield malformed(path, f"expected an object with a list `{key}`", "file")


def read_karpathy(source: Source) -> Iterator[Item]:
    """An object an image: `filename`, `filepath`, `split`, `sentences` with `raw`."""
    for path in source.markers:
        yield from until_useless(path, _read_karpathy(source, path))


def _read_karpathy(source: Source, path: str) -> Iterator[Item]:
    for entry in _entries_of_json(source.files, path, "images"):
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
    for entry in _entries_of_json(source.files, path, "images"):
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
        annotations = _entries_of_json(source.files, path, "annotations")
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


# ---- imagefolder ----


def read_imagefolder(source: Source) -> Iterator[Item]:
    """A row a photograph: its name, relative to the metadata's folder, and its captions."""
    for path in source.markers:
        yield from until_useless(path, _read_table(source, path, posixpath.dirname(path)))


def _read_table(
    source: Source, path: str, base: str, splits: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Item]:
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


# ---- folder ----

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
