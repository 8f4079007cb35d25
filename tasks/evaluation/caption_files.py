"""Files of predictions and references, and which photograph of one is which of the other.

Lines and records are read as ingest reads them, so that a caption is scored as it
is learned from. Where ingest rejects a row the whole file is refused: a score is of all that it holds.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product, takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import polars as pl

from cutline.schemas.errors import UsageError
from cutline.tasks.ingest.files import Files, Problem, decode
from cutline.tasks.ingest.layouts.base import CAPTION_NAME, FILE_NAMES, LINE_END, captions_at
from cutline.tasks.ingest.layouts.flickr8k import flickr8k_captions
from cutline.tasks.ingest.layouts.kaggle import kaggle_captions, kaggle_form
from cutline.tasks.ingest.layouts.table_rows import csv_rows, jsonl_rows
from cutline.tasks.runtime.unicode import is_valid, printable


class Row(NamedTuple):
    """A caption, and what its file calls the photograph."""

    photo_id: str | None
    image_id: str | None
    path: str | None
    caption: str
    split: str | None = None


class Pair(NamedTuple):
    """Predictions and references as `score` takes them, and the splits of the photographs predicted.

    `splits` is empty where the file of predictions tells none.
    """

    said: dict[str, str]
    known: dict[str, list[str]]
    splits: dict[str, str]

    def of(self, split: str) -> Pair:
        """The same of the photographs of one split. Raises UsageError where none is known to be of it."""
        if split not in self.splits.values():
            found = ", ".join(sorted(set(self.splits.values()))) or "no column 'split'"
            raise UsageError(f"--split {split}: expected predictions of that split, found {found}")
        others = {photo for photo, its in self.splits.items() if its != split}
        return Pair(
            {photo: text for photo, text in self.said.items() if self.splits.get(photo) == split},
            {photo: texts for photo, texts in self.known.items() if photo not in others},
            {photo: split for photo, its in self.splits.items() if its == split},
        )

    @property
    def learned(self) -> int:
        """How many of the photographs to score are of the train split."""
        return sum(its == "train" for photo, its in self.splits.items() if photo in self.known)


_KINDS = ("photo_id", "image_id", "path")  # of names
_NAME_KEYS = {"photo_id": ("photo_id",), "image_id": ("image_id", "cocoid"), "path": FILE_NAMES}
_NAMES = tuple(name for keys in _NAME_KEYS.values() for name in keys)
_FORMS = (
    ".parquet, .jsonl, .csv, COCO's .json, Karpathy's dataset_*.json, Flickr8k.token.txt, "
    "Flickr30k's results.csv or Kaggle's captions.txt"
)
_COCO_NUMBER = re.compile(r"(?:COCO_\w+_)?([0-9]{1,18})")

Reading = Callable[[str], "str | None"]
Match = Callable[[set[str], set[str]], dict[str, str]]  # names of predictions -> those of references
Namer = Callable[[Row], "str | None"]


def read_pair(predictions: Path, references: Path) -> Pair:
    """Two files of captions as `score` takes them, by a name of the photographs that both use.

    The files may be .parquet, .jsonl and .csv (columns photo_id, image_id, or path, file_name, image,
    and caption, captions or text), COCO results and COCO annotations (.json), Karpathy's
    dataset_*.json, Flickr8k.token.txt, Flickr30k's results.csv and Kaggle's captions.txt. Photographs
    are matched by names as they are. Only where no name matches so are they matched by the last part of a
    path, that without its ending, or its number (000000000139.jpg is COCO's image 139), where the folders
    agree: dogs/3.jpg is images/dogs/3.jpg, and is not birds/3.jpg.

    Raises UsageError if a file is of no such form, if nothing matches, or if one photograph has two
    different predictions.
    """
    said, known = read_captions(predictions), read_captions(references)
    name_said, name_known = _common_names(said, known, predictions, references)
    chosen: dict[str, str] = {}
    splits: dict[str, str] = {}
    for row in said:
        name = name_said(row)
        if name is not None and row.split:
            splits[name] = row.split
        if name is not None and chosen.setdefault(name, row.caption) != row.caption:
            raise UsageError(
                f"{predictions}: expected one caption a photograph, found two of '{name}': "
                f"'{chosen[name][:80]}' and '{row.caption[:80]}'"
            )
    by_photo: dict[str, list[str]] = {}
    for row in known:
        name = name_known(row)
        if name is not None:
            by_photo.setdefault(name, []).append(row.caption)
    return Pair(chosen, by_photo, splits)


def _number(name: str) -> str | None:
    digits = _COCO_NUMBER.fullmatch(name.partition(".")[0])
    return str(int(digits[1])) if digits else None


# The last part of a path as it is read: whole, without its ending, and as a number of COCO's.
_READINGS: tuple[Reading, ...] = (lambda name: name, lambda name: PurePosixPath(name).stem, _number)


def _common_names(
    said: list[Row], known: list[Row], predictions: Path, references: Path
) -> tuple[Namer, Namer]:
    """How to name the photographs of both files, by the strictest reading of names that matches any.

    A looser reading is tried only where no name matches under the stricter ones: names as they are; then the
    last parts of paths whose folders agree; then the paths below the folder that all names of a file share.
    """
    plain_said, plain_known = _plain_names(said), _plain_names(known)
    pairs = list(product(plain_said, plain_known))
    for match in _matches():
        # A kind of name is compared with itself before it is with others.
        for kinds in ([pair for pair in pairs if pair[0] == pair[1]], pairs):
            found = {kind: match(plain_said[kind[0]], plain_known[kind[1]]) for kind in kinds}
            kind = max(found, key=lambda kind: len(found[kind]), default=None)
            if kind is not None and found[kind]:
                return _namer(kind[0], found[kind]), _namer(kind[1], {})
    raise UsageError(
        "no prediction is of a photograph that has a reference: expected names in common, found "
        f"{_examples(said)} in {predictions} and {_examples(known)} in {references}"
    )


def _matches() -> Iterator[Match]:
    """The ways to match names, the strictest first."""
    yield lambda said, known: {name: name for name in said & known}
    for reading in _READINGS:
        yield partial(_by_last_part, reading)
        yield partial(_below_shared_folder, reading)


def _by_last_part(reading: Reading, said: set[str], known: set[str]) -> dict[str, str]:
    """Names that have one last part, where the folders of the one end with all folders of the other.

    Empty where a name would match two.
    """
    by_last: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for name in known:
        folders, last = _parts(name)
        if (read := reading(last)) is not None:
            by_last.setdefault(read, []).append((folders, name))
    found: dict[str, str] = {}
    for name in said:
        folders, last = _parts(name)
        candidates = by_last.get(reading(last) or "", [])
        agreeing = [other for its, other in candidates if _agree(folders, its)]
        if len(agreeing) > 1:
            return {}
        if agreeing:
            found[name] = agreeing[0]
    return found if len(set(found.values())) == len(found) else {}


def _below_shared_folder(reading: Reading, said: set[str], known: set[str]) -> dict[str, str]:
    """Names that are equal below the folder that all names of their file share.

    Empty where two names of one file would be equal.
    """
    ours, theirs = (_without_shared_folder(reading, names) for names in (said, known))
    if not (len(set(ours.values())) == len(ours) and len(set(theirs.values())) == len(theirs)):
        return {}
    by_path = {path: name for name, path in theirs.items()}
    return {name: by_path[path] for name, path in ours.items() if path in by_path}


def _without_shared_folder(reading: Reading, names: set[str]) -> dict[str, tuple[str, ...]]:
    parts = {name: _parts(name) for name in names}
    first, last = min(parts.values()), max(parts.values())  # they differ wherever any two do
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first[0], last[0], strict=False))
    shared = sum(1 for _ in same)
    read = {name: (folders[shared:], reading(last)) for name, (folders, last) in parts.items()}
    return {name: (*folders, last) for name, (folders, last) in read.items() if last is not None}


def _parts(name: str) -> tuple[tuple[str, ...], str]:
    """The folders of a path, and its last part."""
    *folders, last = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")] or [""]
    return tuple(folders), last


def _agree(folders: tuple[str, ...], others: tuple[str, ...]) -> bool:
    shorter, longer = sorted((folders, others), key=len)
    return longer[len(longer) - len(shorter) :] == shorter


def _plain_names(rows: list[Row]) -> dict[str, set[str]]:
    """The names of each kind that a file has."""
    names = {kind: {getattr(row, kind) for row in rows} - {None} for kind in _KINDS}
    return {kind: of_kind for kind, of_kind in names.items() if of_kind}


def _namer(kind: str, matched: dict[str, str]) -> Namer:
    def name(row: Row) -> str | None:
        plain: str | None = getattr(row, kind)
        return plain if plain is None else matched.get(plain, plain)

    return name


def _examples(rows: list[Row]) -> str:
    """A name of each kind that the file has, for a message."""
    found = {kind: next((name for row in rows if (name := getattr(row, kind))), None) for kind in _KINDS}
    return ", ".join(f"{kind} '{name[:80]}'" for kind, name in found.items() if name)


def read_captions(path: Path) -> list[Row]:
    """The captions of a file with the names of their photographs; its form is told by its ending.

    A caption that is missing is an empty one. Raises UsageError if the file is of no known form, or if
    anything in it is not as that form has it.
    """
    try:
        rows = [_checked(row) for row in _rows(path)]
    except (OSError, ValueError, RecursionError, pl.exceptions.PolarsError) as error:
        raise UsageError(f"{path}: expected captions as {_FORMS}; {error}") from None
    if not rows:
        raise UsageError(f"{path}: expected captions as {_FORMS}; found none")
    return rows


def _checked(row: Row) -> Row:
    for text in row:
        if text is not None and not is_valid(text):
            raise ValueError(f"expected UTF-8, found '{printable(text, 80)}'")
    return row


def _rows(path: Path) -> Iterator[Row]:
    if path.is_dir():
        raise ValueError("this is a folder; name the file in it that holds the captions")
    files, name = _alone(path), path.resolve().name
    match path.suffix.lower():
        case ".parquet":
            yield from _rows_of_parquet(path)
        case ".jsonl" | ".ndjson":
            yield from _rows_of_table(jsonl_rows(files, name))
        case ".json":
            yield from _rows_of_json(json.loads(files.read_text(name)))
        case ".csv" | ".txt" | ".token":
            yield from _rows_of_lines(files, name)
        case other:
            raise ValueError(f"found the ending '{other}'")


def _alone(path: Path) -> Files:
    """A file as the only one of a data set, which is what ingest's readers take."""
    place = path.resolve()
    return Files(place.parent, [place.name], array("q", [0]), array("q", [0]), array("q", [0]), [])


def _rows_of_lines(files: Files, name: str) -> Iterator[Row]:
    """Lines as Flickr8k has them, with a tab; as Kaggle and Flickr30k have them; else a table in CSV."""
    head = files.head(name, 4096)
    form = kaggle_form(head)
    if "\t" in LINE_END.split(decode(head), 1)[0]:
        told = flickr8k_captions(files, name)
    elif form is not None and form.between not in _NAMES:  # else a column would go unread
        told = kaggle_captions(files, name, form)
    else:
        yield from _rows_of_table(csv_rows(files, name))
        return
    for one in told:
        if isinstance(one, Problem):
            raise _refused(one)
        yield Row(None, None, one.name, one.caption, one.split or None)


def _rows_of_table(rows: Iterator[tuple[str, dict[str, Any]] | Problem]) -> Iterator[Row]:
    for row in rows:
        if isinstance(row, Problem):
            raise _refused(row)
        yield from _rows_of_record(row[1], row[0])


def _refused(problem: Problem) -> ValueError:
    return ValueError(f"{problem.name}: {problem.detail}")


def _rows_of_parquet(path: Path) -> Iterator[Row]:
    columns = pl.read_parquet_schema(path)
    named = [
        column
        for column, dtype in columns.items()
        if column in ("split", *_NAMES)
        and (isinstance(dtype, pl.String | pl.Categorical | pl.Enum) or dtype.is_integer())
    ]
    captions = [column for column in columns if CAPTION_NAME.fullmatch(column)]
    table = pl.read_parquet(path, columns=[*named, *captions])
    texts = table.with_columns(pl.col(pl.Binary).cast(pl.String))
    for number, record in enumerate(texts.iter_rows(named=True)):
        yield from _rows_of_record(record, f"row {number}")


def _rows_of_record(record: Any, place: str, path: str | None = None) -> Iterator[Row]:
    """The captions of one entry of a table or list; `path` is the photograph's where known from elsewhere."""
    if not isinstance(record, dict):
        raise ValueError(f"{place}: expected an object an entry, found {printable(repr(record), 80)}")
    photo_id, image_id, own_path = (_name(record, keys) for keys in _NAME_KEYS.values())
    columns = [column for column in record if CAPTION_NAME.fullmatch(column)]
    if not columns or not (photo_id or image_id or own_path):
        raise ValueError(
            f"{place}: expected a name ({', '.join(_NAMES)}) and a caption (caption, captions, text, "
            f"sentences), found {printable(', '.join(record))}"
        )
    texts: list[str] = []
    for column in columns:
        captions, problems = captions_at(place, record[column])
        if problems:
            raise _refused(problems[0])
        texts += [text for _, text in captions if text.strip()]
    for text in texts or [""]:
        yield Row(photo_id, image_id, path or own_path, text, _name(record, ["split"]))


def _name(record: dict[str, Any], keys: Sequence[str]) -> str | None:
    values = (record.get(key) for key in keys)
    names = (value for value in values if isinstance(value, str | int) and not isinstance(value, bool))
    return next((str(name) for name in names if name != ""), None)


def _rows_of_json(data: Any) -> Iterator[Row]:
    """COCO results (a list), COCO annotations, or Karpathy's data set."""
    paths: dict[str | None, str | None] = {}
    if isinstance(data, list):
        label, records = "", data
    elif isinstance(data, dict) and isinstance(data.get("annotations"), list):
        images = data.get("images")
        known = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
        label, records = "annotations", data["annotations"]
        paths = {_name(image, ["id"]): _name(image, _NAME_KEYS["path"]) for image in known if "id" in image}
    elif isinstance(data, dict) and isinstance(data.get("images"), list):
        label, records = "images", data["images"]
    else:
        raise ValueError("found neither a list nor 'annotations' nor 'images'")
    for number, record in enumerate(records):
        image_id = _name(record, _NAME_KEYS["image_id"]) if isinstance(record, dict) else None
        yield from _rows_of_record(record, f"{label}[{number}]", paths.get(image_id))
