"""Parquet files that may be hostile: what their pages state is checked before Arrow reads them.

A footer says nothing of what a dictionary expands to, and may state any size. The header of each page, in
Thrift's compact protocol (https://github.com/apache/parquet-format), has the size that Arrow allocates and
the number of values. Texts and bytes are read as dictionaries, so a value that comes often is in memory once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from cutline.tasks.runtime.npz import check_expansion

if TYPE_CHECKING:
    import pyarrow as pa


BATCH_BYTES = 32 * 2**20
FREE_VALUES = 100_000  # any column may have so many,
BYTES_PER_VALUE = 4  # and above it one for so many bytes of the file: a name and a caption take more
MAX_FOOTER_BYTES = 64 * 2**20
_HEADER_BYTES = 2**12, 2**20  # of a page header; first, and where that is too little
_I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(4, 13)


class _Page(NamedTuple):
    """What a page header states, and where the next page begins."""

    expanded: int  # bytes
    stored: int  # bytes
    values: int  # 0 for a dictionary
    end: int


class BoundedParquet:
    """A Parquet file whose pages are checked before they are read.

    Raises ValueError, OSError and Arrow's errors where the file is damaged, or states more than is plausible.
    """

    def __init__(self, file: BinaryIO) -> None:
        import pyarrow.parquet as pq

        self._file = file
        self._size = file.seek(0, 2)
        # Arrow ends the process where pyarrow asks for the metadata of a damaged column chunk.
        footer = _read_footer(file, self._size)
        self._groups = [_chunks(group) for group in _list(footer, 4)]
        self.rows = [_number(group, 3) for group in _list(footer, 4)]  # of each row group
        metadata = pq.read_metadata(file)
        if min(self.rows, default=0) < 0 or sum(self.rows) != metadata.num_rows:
            raise ValueError(
                f"expected {metadata.num_rows:,} rows in the row groups, found {sum(self.rows):,}"
            )
        self._check_values(metadata.num_rows, "rows")
        self.num_rows = metadata.num_rows
        self._paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
        if any(len(chunks) != len(self._paths) for chunks in self._groups):
            raise ValueError(f"expected {len(self._paths):,} columns in each row group, found others")
        # Arrow cannot read texts as dictionaries where a page holds them as differences.
        deltas = {
            path
            for chunks in self._groups
            for path, chunk in zip(self._paths, chunks, strict=True)
            if not _DELTAS.isdisjoint(_list(chunk, 2))
        }
        self._dictionaries = {
            path
            for number, path in enumerate(self._paths)
            if metadata.schema.column(number).physical_type == "BYTE_ARRAY" and path not in deltas
        }
        self._parquet = pq.ParquetFile(
            file, read_dictionary=sorted(self._dictionaries), pre_buffer=False, buffer_size=2**20
        )
        self.schema_arrow: pa.Schema = pq.read_schema(file)

    def batches(self, group: int, columns: Sequence[str], most_rows: int = 4096) -> Iterator[pa.RecordBatch]:
        """The rows of a row group, in batches of about BATCH_BYTES at most; no more than it states."""
        rows = min(most_rows, self._rows_at_once(group, columns))
        left = self.rows[group]
        for batch in self._parquet.iter_batches(rows, row_groups=[group], columns=list(columns)):
            left -= batch.num_rows
            if left < 0:
                raise ValueError("the row group has more rows than it states")
            yield batch

    def check_pages(self) -> None:
        """Raise ValueError where a page of any column states more than is plausible."""
        for group in range(len(self.rows)):
            self._rows_at_once(group, self._paths)

    def _rows_at_once(self, group: int, columns: Sequence[str]) -> int:
        """How many rows take BATCH_BYTES at most. Raises ValueError for an implausible page."""
        most = 1.0
        expanded = stored = 0
        for number, path in enumerate(self._paths):
            if not any(path == column or path.startswith(f"{column}.") for column in columns):
                continue
            values = 0
            for page in self._pages(self._groups[group][number]):
                check_expansion(page.expanded, page.stored)
                expanded, stored, values = (
                    expanded + page.expanded,
                    stored + page.stored,
                    values + page.values,
                )
                if path not in self._dictionaries:  # a value may be as long as its page
                    most = max(most, page.expanded)
                elif page.values:
                    most = max(most, page.expanded / page.values)
            self._check_values(values, f"values in column '{path[:80]}'")
        check_expansion(expanded // MOST_GROUP_EXPANSION, stored)
        return max(1, int(BATCH_BYTES / most))

    def _check_values(self, values: int, what: str) -> None:
        most = max(FREE_VALUES, self._size // BYTES_PER_VALUE)
        if not 0 <= values <= most:
            raise ValueError(
                f"expected at most {most:,} {what} in {self._size:,} bytes, found {values:,} stated"
            )

    def _pages(self, chunk: dict[int, Any]) -> Iterator[_Page]:
        """What the header of each page of a column chunk states."""
        dictionary, data = _number(chunk, 11), _number(chunk, 9)
        at, values = min(data, dictionary) if dictionary > 0 else data, 0
        end = at + _number(chunk, 7)
        if not 0 <= at <= end <= self._size:
            raise ValueError(f"expected pages within {self._size:,} bytes, found them from {at:,} to {end:,}")
        while at < end and values < _number(chunk, 5):
            page = _page(self._file, at)
            yield page
            at, values = page.end, values + page.values


def _chunks(group: Any) -> list[dict[int, Any]]:
    """The metadata of the column chunks of a row group, by the numbers of their fields."""
    chunks = [chunk.get(3) if isinstance(chunk, dict) else None for chunk in _list(group, 1)]
    if not all(isinstance(chunk, dict) for chunk in chunks):
        raise ValueError("expected the metadata of each column in the footer")
    return chunks  # type: ignore[return-value]


def _number(fields: Any, field: int) -> int:
    """A number of a Thrift struct, 0 where there is none. Raises ValueError for another value."""
    value = fields.get(field, 0) if isinstance(fields, dict) else None
    if not isinstance(value, int):
        raise ValueError("expected a number in the footer, found another value")
    return value


def _list(fields: Any, field: int) -> list[Any]:
    """A list of a Thrift struct, empty where there is none. Raises ValueError for another value."""
    value = fields.get(field, []) if isinstance(fields, dict) else None
    if not isinstance(value, list):
        raise ValueError("expected a list in the footer, found another value")
    return value


_DELTAS = {6, 7}  # encodings of texts: DELTA_LENGTH_BYTE_ARRAY and DELTA_BYTE_ARRAY
MOST_GROUP_EXPANSION = 8  # times that of a page: texts of a column are often alike


def _read_footer(file: BinaryIO, size: int) -> dict[int, Any]:
    """The footer's values by the numbers of their fields.

    Raises ValueError where it is damaged, too large, or its schema too deep for Arrow's recursion.
    """
    if size < 12:
        raise ValueError(f"expected a footer, found {size:,} bytes in all")
    file.seek(size - 8)
    length, magic = struct.unpack("<I4s", file.read(8))
    if magic != b"PAR1" or length > size - 12:
        raise ValueError("expected the file to end with a footer and PAR1; it may be cut off or encrypted")
    if length > MAX_FOOTER_BYTES:
        raise ValueError(f"expected a footer of at most {MAX_FOOTER_BYTES:,} bytes, found {length:,}")
    file.seek(size - 8 - length)
    try:
        footer = _Thrift(file.read(length)).struct(0)
    except IndexError:
        raise ValueError("expected a footer, found one that is cut off") from None
    hidden = [
        element for group in _list(footer, 4) for element in _list(group, 1) if isinstance(element, dict)
    ]
    if any(1 in element for element in hidden):
        raise ValueError("expected all columns in the file itself, found one in another file")
    schema = _list(footer, 2)
    left: list[int] = []  # children that are still to come, of each group that holds the next column
    for number, element in enumerate(schema):
        children = element.get(5) if isinstance(element, dict) else 0
        children = children if isinstance(children, int) else 0
        if len(left) > MAX_DEPTH or (number and not left):
            raise ValueError(f"expected a schema of at most {MAX_DEPTH} levels that ends with its columns")
        if left:
            left[-1] -= 1
        if children:
            left.append(children)
        while left and left[-1] <= 0:
            left.pop()
    return footer


MAX_DEPTH = 50


def _page(file: BinaryIO, at: int) -> _Page:
    """What the page header at `at` states. Raises ValueError where it is damaged."""
    for size in _HEADER_BYTES:
        file.seek(at)
        thrift = _Thrift(file.read(size))
        try:
            header = thrift.struct(0)
        except IndexError:
            continue
        data = header.get(5) or header.get(8) or {}
        dictionary = header.get(7)
        expanded, stored = header.get(2, -1), header.get(3, -1)
        of_data = data.get(1, 0) if isinstance(data, dict) else -1
        values = 0 if dictionary else of_data
        if not all(isinstance(number, int) for number in (expanded, stored, values)):
            values = -1
        if values < 0 or expanded < 0 or stored < 0:
            raise ValueError(f"the page at byte {at:,} has a damaged header")
        return _Page(expanded, stored, values, at + thrift.at + stored)
    raise ValueError(f"the page at byte {at:,} has no header")


class _Thrift:
    """Reads structs of Thrift's compact protocol; raises IndexError at the end, ValueError for what is
    none."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def struct(self, depth: int) -> dict[int, Any]:
        """Values by the number of their field."""
        if depth > 20:
            raise ValueError("expected at most 20 structs within each other")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_I16, _I32, _I64):
            return self._integer()
        if kind in (1, 2, 3):
            return self._byte()
        if kind == _DOUBLE:
            return self._skip(8)
        if kind == _BINARY:
            return self._skip(self._varint())
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            if count > len(self._data):
                raise ValueError("a list has more entries than bytes are left")
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        raise ValueError(f"expected a type of Thrift's, found {kind}")

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("expected a number of at most 64 bits")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, count: int) -> None:
        if count > len(self._data) - self.at:
            raise IndexError
        self.at += count


def plain(column: pa.Array) -> list[Any]:
    """A column as texts, lists, objects or None; texts that are not UTF-8 hold lone surrogates.

    A text that comes often is one object. Raises ValueError for a type that holds no texts, such as a map.
    """
    import pyarrow as pa
    import pyarrow.types as pt

    from cutline.tasks.ingest.files import decode

    kind = column.type
    if pt.is_dictionary(kind):
        texts: dict[int, Any] = {}
        for number in set(column.indices.drop_null().to_pylist()):
            value = column.dictionary[number]
            texts[number] = decode(value.as_buffer().to_pybytes()) if value.is_valid else None
        return [None if number is None else texts[number] for number in column.indices.to_pylist()]
    if pt.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        rows = zip(*map(plain, column.flatten()), strict=True) if names else ((),) * len(column)
        found = [dict(zip(names, row, strict=True)) for row in rows]
        return [row if held else None for row, held in zip(found, column.is_valid().to_pylist(), strict=True)]
    if pt.is_list(kind) or pt.is_large_list(kind):
        values = iter(plain(column.flatten()))
        lengths = column.value_lengths().to_pylist()
        return [None if length is None else [next(values) for _ in range(length)] for length in lengths]
    if pt.is_nested(kind):
        raise ValueError(f"expected texts or lists of texts, found a column of the type {str(kind)[:80]}")
    # Arrow does not check that a text is UTF-8, and fails on the whole column when it is not.
    if pt.is_string(kind) or pt.is_large_string(kind) or pt.is_binary(kind) or pt.is_large_binary(kind):
        held = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else decode(value) for value in held]
    values_: list[Any] = column.to_pylist()
    return values_
