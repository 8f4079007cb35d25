"""Parquet as a data set: rows with a photograph's bytes or its name, and captions."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cutline.tasks.ingest.columns import caption_columns, is_own, may_hold_captions, name_column
from cutline.tasks.ingest.files import Files, Photo, Problem, cause, ending_of
from cutline.tasks.ingest.layouts.base import (
    CAPTION_NAME,
    Entry,
    Item,
    Layout,
    Source,
    captions_at,
    malformed,
    split_of_file,
    told_split,
    until_useless,
)
from cutline.tasks.ingest.packing import Pack, packed
from cutline.tasks.ingest.parquet_pages import BoundedParquet, plain
from cutline.tasks.runtime.unicode import is_valid, printable

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class _Columns:
    """Which columns of a Parquet file hold what."""

    image: str | None  # bytes, or a struct with bytes
    bytes: str | None  # the column with the bytes: `image`, or `image.bytes`
    name: str | None
    captions: tuple[str, ...]
    split: str | None
    unread: tuple[str, ...]  # of texts, from which nothing is read

    @property
    def slim(self) -> list[str]:
        """All columns that are read but the bytes."""
        return [name for name in (self.name, *self.captions, self.split) if name]


IMAGE_NAMES = (
    *("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes", "photo"),
    *("images", "photos", "picture", "pixels"),
)


def _is_bytes(type_: pa.DataType) -> bool:
    import pyarrow.types as pt

    return pt.is_binary(type_) or pt.is_large_binary(type_) or pt.is_binary_view(type_)


def _is_text(type_: pa.DataType) -> bool:
    import pyarrow.types as pt

    type_ = type_.value_type if pt.is_dictionary(type_) else type_
    return pt.is_string(type_) or pt.is_large_string(type_) or pt.is_string_view(type_)


def _columns_of(schema: pa.Schema) -> _Columns:
    import pyarrow.types as pt

    image = bytes_ = path = None
    once = {name.lower(): name for name, count in Counter(schema.names).items() if count == 1}
    for name in (once[name] for name in IMAGE_NAMES if name in once):
        type_ = schema.field(name).type
        fields = (
            {type_.field(i).name: type_.field(i).type for i in range(type_.num_fields)}
            if pt.is_struct(type_)
            else {}
        )
        if _is_bytes(type_):
            image, bytes_ = name, name
        elif "bytes" in fields and _is_bytes(fields["bytes"]):
            image, bytes_ = name, f"{name}.bytes"
            path = f"{name}.path" if "path" in fields and _is_text(fields["path"]) else None
        if image:
            break
    types = {name: schema.field(name).type for name in once.values()}
    texts = [name for name, type_ in types.items() if _is_text(type_)]
    captions = caption_columns(name for name, type_ in types.items() if name != image and _may_hold(type_))
    if is_own(schema.names):
        captions = []
    split = once.get("split") if once.get("split") in texts else None
    unread = [
        name
        for name, type_ in types.items()
        if name not in (image, split, *captions) and may_hold_captions(name) and _holds_texts(type_)
    ]
    return _Columns(image, bytes_, path or name_column(texts), tuple(captions), split, tuple(unread))


def _may_hold(type_: pa.DataType) -> bool:
    """Whether a column of that type may hold captions: texts, bytes, numbers, and lists of them."""
    import pyarrow.types as pt

    is_number = pt.is_integer(type_) or pt.is_floating(type_)
    return _is_text(type_) or _is_bytes(type_) or pt.is_nested(type_) or is_number


def _holds_texts(type_: pa.DataType) -> bool:
    import pyarrow.types as pt

    if pt.is_list(type_) or pt.is_large_list(type_):
        return _holds_texts(type_.value_type)
    if pt.is_struct(type_):
        return any(_is_text(type_.field(i).type) for i in range(type_.num_fields))
    return _is_text(type_)


def columns_found(files: Files, path: str) -> tuple[list[str], bool] | None:
    """Name and type of each column, and whether Cutline wrote them; None where the file is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with files.look_into(path) as file:
            schema = pq.read_schema(file)
    except (pa.ArrowException, OSError, ValueError):
        return None
    return [f"{field_.name} {field_.type}" for field_ in schema], is_own(schema.names)


def has_photos(files: Files, path: str) -> bool | None:
    """Whether a Parquet file has photographs or captions with their names; None where it is damaged."""
    if ending_of(path) != ".parquet":
        return False
    import pyarrow as pa

    try:
        with files.look_into(path) as file:
            columns = _columns_of(BoundedParquet(file).schema_arrow)
    except (pa.ArrowException, OSError, ValueError, LookupError):
        return None
    # Many a table has names and is no data set; one that is meant by itself is.
    return bool(columns.bytes or (columns.name and (columns.captions or path in files.selection.paths)))


def read_parquet(source: Source) -> Iterator[Item]:
    """Rows with a photograph's bytes or its name, and captions; a text column or a list of texts."""
    for path in source.markers:
        yield from until_useless(path, _read_file(source, path))


def _read_file(source: Source, path: str) -> Iterator[Item]:
    import pyarrow as pa

    try:
        with source.files.open(path) as file:
            parquet = BoundedParquet(file)
            columns = _columns_of(parquet.schema_arrow)
            yield from _repeated_columns(path, parquet.schema_arrow)
            for name in columns.unread:
                source.note_unread(name, path)
            pack = _pack(source, path, parquet, columns.bytes) if columns.bytes else None
            yield from _read_groups(source, path, parquet, columns, pack)
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        yield malformed(path, f"not readable as Parquet: {cause(error)}", "file")


def _repeated_columns(path: str, schema: pa.Schema) -> Iterator[Problem]:
    for name, count in sorted(Counter(schema.names).items()):
        if count > 1 and CAPTION_NAME.fullmatch(name):
            many = f"{count} columns are called '{printable(name)}'"
            yield malformed(path, f"{many}, so none of them is read; rename them", "file")


def _pack(source: Source, path: str, parquet: Any, column: str) -> Pack:
    return packed(source.files, path, parquet, column, source.max_file_bytes, source.packs)


def _read_groups(
    source: Source, path: str, parquet: Any, columns: _Columns, pack: Pack | None
) -> Iterator[Item]:
    import pyarrow as pa

    first = 0
    reader = _RowReader(source, path, columns, pack)
    for group, rows in enumerate(parquet.rows):
        done = 0
        try:
            for batch in parquet.batches(group, columns.slim):
                values = {name: _values(batch, name) for name in columns.slim}
                for i in range(batch.num_rows):
                    row = {name: column[i] for name, column in values.items()}
                    yield from reader.items(first + done + i, row)
                done += batch.num_rows
            for i in range(done, rows if not columns.slim else done):
                yield from reader.items(first + i, {})
        except (pa.ArrowException, OSError, ValueError, LookupError) as error:
            detail = f"rows {first + done:,} to {first + rows - 1:,} cannot be read: {cause(error)}"
            yield malformed(f"{path}/row-{first + done}", detail, "file")
        first += rows


def _values(batch: pa.RecordBatch, name: str) -> list[Any]:
    """A column, or a field of a struct, as texts, lists of texts or None."""
    import pyarrow.types as pt

    outer, _, inner = name.partition(".")
    column = batch.column(batch.schema.names.index(outer if outer in batch.schema.names else name))
    if inner and pt.is_struct(column.type):
        column = column.field(inner)
    values = plain(column)
    if pt.is_integer(column.type) or pt.is_floating(column.type):
        return [None if value is None or value != value else str(value) for value in values]
    return values


@dataclass
class _RowReader:
    """Turns the rows of one Parquet file into items."""

    source: Source
    path: str
    columns: _Columns
    pack: Pack | None
    _photos: dict[tuple[str, int, str | None], str] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)

    def items(self, number: int, row: dict[str, Any]) -> Iterator[Item]:
        """The items of row `number`, counted from 0."""
        place = f"{self.path}/row-{number}"
        name = row.get(self.columns.name or "")
        captions: list[tuple[str, str]] = []
        for column in self.columns.captions:
            more, problems = captions_at(place, row[column])
            captions += more
            yield from problems
        told, problem = told_split(row.get(self.columns.split or ""), place)
        if problem:
            yield problem
            captions = []
        split = told or split_of_file(self.path)
        photo: str | None = None
        if self.pack is not None and self.pack.sizes[number] >= 0:
            for item in self._packed_photo(number, name, split):
                photo = item.path if isinstance(item, Photo) else photo
                if not isinstance(item, Photo) or item.path not in self._names:
                    yield item
                if isinstance(item, Photo):
                    self._names.add(item.path)
        elif isinstance(name, str) and name:
            photo, event = self._find(name)
            if event is not None:
                yield event
        else:
            yield malformed(place, "the row has neither the bytes nor the name of a photograph", "photo")
        yield Entry(photo, captions, split, name=name if isinstance(name, str) and name else place)

    def _packed_photo(self, number: int, name: str | None, split: str | None) -> Iterator[Photo | Problem]:
        """The photograph of a row with bytes; rows of the same name, bytes and split are the same."""
        assert self.pack is not None
        offset, size = int(self.pack.offsets[number]), int(self.pack.sizes[number])
        if offset < 0:
            reason = "too_many_bytes" if size > self.source.max_file_bytes else "malformed"
            detail = (
                f"{size:,} bytes is over max_file_bytes={self.source.max_file_bytes:,}"
                if size
                else "cannot be read"
            )
            yield Problem("photo", f"{self.path}/row-{number}", reason, detail)
            return
        shown = _shown(name)
        key = (shown, offset, split)
        if key not in self._photos:
            label = shown or f"row-{number}"
            taken = f"{self.path}/{label}" in self._names
            self._photos[key] = f"{label}#row-{number}" if taken else label
        yield self.source.files.part(self.path, self._photos[key], self.pack.container, offset, size)

    def _find(self, name: str) -> tuple[str | None, Item | None]:
        """The photograph that a row names by its path or, as img2dataset does, by its key alone."""
        base = posixpath.dirname(self.path)
        if self.columns.name == "key" and not ending_of(name):
            shard = posixpath.splitext(self.path)[0]  # 00000.parquet stands beside the folder 00000
            for stem in (f"{shard}/{name}", posixpath.join(base, name)):
                if stem in self.source.finder.by_stem:
                    return self.source.finder.find(self.source.finder.by_stem[stem])
        return self.source.finder.find(name, base)


def _shown(name: str | None) -> str:
    """A name that can be shown as part of a path, or nothing."""
    if not isinstance(name, str) or not is_valid(name) or "\0" in name or len(name) > 500:
        return ""
    path = posixpath.normpath(name).lstrip("/") if name else ""
    return "" if path in ("", ".", "..") or path.startswith("../") else path


PARQUET = Layout(
    "parquet", "*.parquet with a column of photographs or of their names", has_photos, read_parquet
)
