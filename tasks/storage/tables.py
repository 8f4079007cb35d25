"""Parquet in and out, held to the schemas on both ways; tensors without Python objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from cutline.schemas.tables import NOTICES, check, dtypes_of


def count_lost(rejects: pl.DataFrame) -> int:
    """Rows that could not be used; a notice is no loss."""
    return rejects.filter(~pl.col("reason").is_in(list(NOTICES))).height


def tensor_sizes(frame: pl.DataFrame) -> dict[str, int]:
    """The tensor sizes that the schema of a frame needs, from its dtypes and its first square."""
    sizes: dict[str, int] = {}
    for name, dtype in frame.schema.items():
        if name == "square":
            sizes["side_px"] = squares(frame[name][:1]).shape[1]
        elif name == "regions":
            sizes["regions"] = dtype.shape[0]  # type: ignore[attr-defined]
        elif name == "pooled":
            sizes["channels"] = dtype.shape[0]  # type: ignore[attr-defined]
        elif name == "content_vector":
            sizes["size"] = dtype.shape[0]  # type: ignore[attr-defined]
        elif name == "vector":  # of a text the mean state, or a place in the common space
            sizes["state_size" if "states" in frame.columns else "size"] = dtype.shape[0]  # type: ignore[attr-defined]
    return sizes


def read_tensor_table(path: Path, table: str) -> pl.DataFrame:
    """A table with tensors, checked."""
    frame = pl.read_parquet(path)
    return check(frame, table, **tensor_sizes(frame))


def read_checked_rows(path: Path, table: str, ids: pl.Series) -> pl.DataFrame:
    """The rows of a shard that `ids` name, checked."""
    frame = read_rows(path, ids)
    return check(frame, table, **tensor_sizes(frame))


def read_id_column(paths: Sequence[Path], name: str) -> pl.DataFrame:
    """The column of that name, of the tables of several shards."""
    none = pl.DataFrame(schema={name: pl.String})
    return pl.concat([none, *(pl.read_parquet(path, columns=[name]) for path in paths)])


def read_tables(paths: Sequence[Path], table: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """The rows of several shards; of none, an empty table of the right columns."""
    return read_table(paths, table, columns) if paths else empty_table(table)


GROUP_BYTES = 4 << 20  # of a row group, before compression: one is read without the others
FEW_IN = 8  # rows are read by groups where no more than one in so many is wanted


def write_table(frame: pl.DataFrame, path: Path, table: str, **sizes: int) -> None:
    """Check `frame` against the schema of `table` and write it to `path` as Parquet (zstd).

    The same frame gives the same bytes. Raises SchemaMismatch.
    """
    check(frame, table, **sizes)
    group = max(1, GROUP_BYTES * frame.height // max(1, int(frame.estimated_size())))
    frame.write_parquet(path, compression="zstd", compression_level=1, statistics=False, row_group_size=group)


def read_table(
    paths: Path | Sequence[Path], table: str, columns: Sequence[str] | None = None, **sizes: int
) -> pl.DataFrame:
    """Read one or several files of `table`, in order, and check them. Raises SchemaMismatch.

    With `columns` only those are read, and nothing is checked; of no file an empty frame comes, without
    columns.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    frames = [pl.read_parquet(file, columns=list(columns) if columns else None) for file in files]
    frame = pl.concat(frames) if frames else pl.DataFrame()
    return frame if columns or not files else check(frame, table, **sizes)


def read_rows(path: Path, ids: pl.Series) -> pl.DataFrame:
    """The rows that `ids` name in its column of that name, in the file's order."""
    held = pl.read_parquet(path, columns=[ids.name])[ids.name]
    wanted = held.is_in(ids.implode())
    rows = wanted.arg_true()
    if not 0 < rows.len() <= held.len() // FEW_IN:
        frame = pl.read_parquet(path)
        return frame if rows.len() == frame.height else frame.filter(wanted)
    return pl.concat(pl.scan_parquet(path).slice(row, 1).collect() for row in rows)


def empty_table(table: str) -> pl.DataFrame:
    """A table without rows, of the columns that its schema has; for tables without tensors.

    Raises KeyError for a table that there is not.
    """
    return pl.DataFrame(schema=dtypes_of(table))


def tensor(column: pl.Series) -> np.ndarray:
    """The values of a fixed-size array column as (rows, *shape), without a copy where possible.

    Of a column of equally many bytes they are (rows, bytes) uint8.
    """
    if column.dtype != pl.Binary:
        return column.to_numpy()
    arrow = column.to_arrow()  # a large_binary: where each value starts, and all their bytes
    starts = np.frombuffer(arrow.buffers()[1], np.int64)[arrow.offset :][: len(arrow) + 1]
    flat = np.frombuffer(arrow.buffers()[2] or b"", np.uint8)[starts[0] : starts[-1]]
    return flat.reshape(len(arrow), len(flat) // max(1, len(arrow)))


def squares(column: pl.Series) -> np.ndarray:
    """The column `square` of an `images` table as RGB pictures, (rows, S, S, 3) uint8."""
    flat = tensor(column)
    side = round((flat.shape[1] / 3) ** 0.5)
    return flat.reshape(len(flat), side, side, 3)


def list_column(name: str, values: np.ndarray, ends: np.ndarray) -> pl.Series:
    """A column of lists of fixed-size arrays, the rows of `values` cut at `ends`, without Python objects.

    `values` (n, *shape), whose dtype is kept; `ends` (lists,), rising, the last of them n.
    """
    starts = np.concatenate([[0], ends]).astype(np.int64)
    flat = tensor_column(name, values).to_arrow()
    return pl.Series(name, pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(starts), flat)))


def bytes_column(name: str, values: np.ndarray) -> pl.Series:
    """A column of bytes from (rows, bytes) uint8, without Python objects."""
    rows, size = values.shape
    starts = np.arange(rows + 1, dtype=np.int64) * size
    buffers = [None, pa.py_buffer(starts), pa.py_buffer(np.ascontiguousarray(values))]
    return pl.Series(name, pl.from_arrow(pa.LargeBinaryArray.from_buffers(pa.large_binary(), rows, buffers)))


def tensor_column(name: str, values: np.ndarray) -> pl.Series:
    """A column of fixed-size arrays from (rows, *shape), in the dtype of `values`, without Python objects."""
    arrow: pa.Array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        arrow = pa.FixedSizeListArray.from_arrays(arrow, size)
    return pl.Series(name, pl.from_arrow(arrow))
