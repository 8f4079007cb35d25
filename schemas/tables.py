"""A pandera schema for every table, and the one function that holds a frame to it.

Tensors are fixed-size Arrow arrays: they are checked by dtype and shape, and never become
Python objects. Squares are bytes, checked by how many: Parquet knows no integer shorter than 32 bits, and
takes five times as long to write an array of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import polars as pl

from cutline.schemas.errors import SchemaMismatch

if TYPE_CHECKING:
    import pandera.polars as pa


SPLITS = ("train", "dev", "test")
UNLABELLED = "unlabelled"  # a photograph that has no caption: it is captioned, never learned from

ID_PATTERN = r"^[0-9a-f]{32}$"  # the first 128 bits of a BLAKE2b digest

# Reason codes of the rejects table: what each means, for people.
REASONS: dict[str, str] = {
    "empty_file": "the file holds no bytes",
    "not_an_image": "the bytes are of no image format that is read here",
    "truncated": "the image ends before its data is complete",
    "undecodable": "the header is that of an image, the data cannot be decoded",
    "too_many_pixels": "the header declares more pixels than ingest.max_pixels",
    "too_many_bytes": "the file is larger than ingest.max_file_bytes",
    "unreadable": "the file cannot be opened or read",
    "not_a_file": "the name is that of a folder, a pipe, a link or a device, not of a file",
    "vanished": "the file was listed and then gone",
    "changed": "the file's bytes changed between ingest and decoding",
    "outside_dataset": "the path leaves the data set's folder",
    "missing_photo": "the data set names a photograph that is not there",
    "ambiguous_name": "several files have the name that the data set names, and nothing tells which is meant",
    "bad_name": "the file's name is not UTF-8",
    "duplicate": "the same bytes as another file of the same split, which stands for both",
    "leak": "the same bytes in two splits; kept out of training",
    "empty_caption": "the caption holds no words",
    "caption_too_long": "the caption has more words than ingest.max_caption_words",
    "caption_not_utf8": "the caption is not UTF-8",
    "not_read": "a text or table that the data set's layout does not read",
    "malformed": "the entry does not have the form that its layout prescribes",
}
# These describe the data set rather than a loss, and do not count towards the reject rate.
NOTICES = frozenset({"duplicate", "leak", "missing_photo", "ambiguous_name", "not_read"})
# These may be gone the next time, so a shard that holds one is tried again by the next run.
TRANSIENT = frozenset({"vanished", "changed", "unreadable"})


# ---- what a column is ----


@dataclass(frozen=True)
class Rule:
    """A check of pandera's by its name and arguments: pandera is imported when a table is first checked."""

    name: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Tensor:
    """Arrays of one shape, its lengths by name; `many` is a list of them in each row."""

    dtype: type[pl.DataType]
    lengths: tuple[str, ...]
    many: bool = False

    def of(self, sizes: Mapping[str, int]) -> pl.DataType:
        """The dtype for lengths of these sizes."""
        array = pl.Array(self.dtype, tuple(sizes[name] for name in self.lengths))
        return pl.List(array) if self.many else array


@dataclass(frozen=True)
class Column:
    """The dtype of a column, and what holds for its values."""

    dtype: pl.DataType | type[pl.DataType] | Tensor
    rules: tuple[Rule, ...]
    nullable: bool
    unique: bool


def column(dtype: Any, *rules: Rule, nullable: bool = False, unique: bool = False) -> Column:
    """A column without nulls that may hold a value twice, unless told otherwise."""
    return Column(dtype, rules, nullable, unique)


def among(*values: str) -> Rule:
    """No other value than these."""
    return Rule("isin", (values,))


AN_ID = Rule("str_matches", (ID_PATTERN,))
A_SPLIT = among(*SPLITS)
A_SPLIT_OR_NONE = among(*SPLITS, UNLABELLED)
SOME_TEXT = Rule("str_length", (1, None))
POSITIVE, NOT_NEGATIVE, NOT_POSITIVE = Rule("gt", (0,)), Rule("ge", (0,)), Rule("le", (0,))
A_SQUARE = Rule("side_px² · 3 bytes")  # not pandera's: `_square` checks it
STRINGS = pl.List(pl.String)
ALTERNATIVES = pl.List(pl.Struct({"caption": pl.String, "score": pl.Float32}))


# ---- the tables ----

TABLES: dict[str, dict[str, Column]] = {
    "photos": {
        "photo_id": column(pl.String, AN_ID, unique=True),
        "path": column(pl.String, SOME_TEXT),
        "other_paths": column(STRINGS),
        "source_id": column(pl.String, nullable=True),
        "other_source_ids": column(STRINGS),  # of the files of other_paths, null where they have none
        "container": column(pl.String, nullable=True),
        "offset": column(pl.Int64, NOT_NEGATIVE, nullable=True),
        "size": column(pl.Int64, POSITIVE),
        "width": column(pl.Int32, POSITIVE),
        "height": column(pl.Int32, POSITIVE),
        "format": column(pl.String, SOME_TEXT),
        "split": column(pl.String, A_SPLIT_OR_NONE),
    },
    "captions": {
        "caption_id": column(pl.String, AN_ID, unique=True),
        "photo_id": column(pl.String, AN_ID, nullable=True),
        # What the data set calls a photograph that is missing or unreadable: its captions belong together.
        "missing_photo": column(pl.String, SOME_TEXT, nullable=True),
        "text": column(pl.String, SOME_TEXT),
        "split": column(pl.String, A_SPLIT),
    },
    "files": {
        "path": column(pl.String, SOME_TEXT),
        "container": column(pl.String, nullable=True),
        "size": column(pl.Int64, NOT_NEGATIVE),
        "mtime_ns": column(pl.Int64),
        "inode": column(pl.Int64),
        "photo_id": column(pl.String, AN_ID, nullable=True),
        "width": column(pl.Int32, POSITIVE, nullable=True),
        "height": column(pl.Int32, POSITIVE, nullable=True),
        "format": column(pl.String, nullable=True),
        "reason": column(pl.String, among(*REASONS), nullable=True),
        "detail": column(pl.String, nullable=True),
    },
    "rejects": {
        "stage": column(pl.String, SOME_TEXT),
        "kind": column(pl.String, among("file", "photo", "caption")),
        "name": column(pl.String),
        "reason": column(pl.String, among(*REASONS)),
        "detail": column(pl.String, SOME_TEXT),
    },
    "images": {
        "photo_id": column(pl.String, AN_ID, unique=True),
        # (side_px, side_px, 3) uint8: RGB, row by row from the top left
        "square": column(pl.Binary, A_SQUARE),
    },
    "tokens": {
        "caption_id": column(pl.String, AN_ID, unique=True),
        "tokens": column(STRINGS),
        "content_tokens": column(STRINGS),
    },
    "vocabulary": {
        "token": column(pl.String, SOME_TEXT, unique=True),
        "id": column(pl.Int32, NOT_NEGATIVE, unique=True),
        "count": column(pl.Int64, NOT_NEGATIVE),
    },
    "image_features": {
        "photo_id": column(pl.String, AN_ID, unique=True),
        "regions": column(Tensor(pl.Float16, ("regions", "channels"))),
        "pooled": column(Tensor(pl.Float16, ("channels",))),
    },
    "text_features": {
        "caption_id": column(pl.String, AN_ID, unique=True),
        "states": column(Tensor(pl.Float16, ("state_size",), many=True)),
        "vector": column(Tensor(pl.Float16, ("state_size",))),
    },
    "curve": {
        "epoch": column(pl.Int32, POSITIVE, unique=True),
        "train_loss": column(pl.Float64, NOT_NEGATIVE),
        "dev_loss": column(pl.Float64, NOT_NEGATIVE, nullable=True),
        "dev_cider": column(pl.Float64, NOT_NEGATIVE, nullable=True),
        "best": column(pl.Boolean),
    },
    "joint_embedding_curve": {
        "epoch": column(pl.Int32, NOT_NEGATIVE, unique=True),
        "train_loss": column(pl.Float64, NOT_NEGATIVE, nullable=True),
        "dev_recall": column(pl.Float64, Rule("in_range", (0, 1)), nullable=True),
        "best": column(pl.Boolean),
    },
    "reference_photos": {
        "photo_id": column(pl.String, AN_ID, unique=True),
        "pooled": column(Tensor(pl.Float16, ("channels",))),
    },
    "content_vectors": {
        "photo_id": column(pl.String, AN_ID, unique=True),
        "content_vector": column(Tensor(pl.Float16, ("size",))),
    },
    "content_from_text": {
        "caption_id": column(pl.String, AN_ID, unique=True),
        "content_vector": column(Tensor(pl.Float16, ("size",))),
    },
    "content_targets": {
        "subject": column(pl.String, SOME_TEXT, unique=True),
        "content_vector": column(Tensor(pl.Float16, ("size",))),
    },
    "predictions": {
        "photo_id": column(pl.String, AN_ID, unique=True),
        "caption": column(pl.String, SOME_TEXT),
        "score": column(pl.Float32, NOT_POSITIVE),
        "distance": column(pl.Float32, NOT_NEGATIVE, nullable=True),
        "alternatives": column(ALTERNATIVES),
    },
    "captioned": {
        "path": column(pl.String, SOME_TEXT, unique=True),
        "photo_id": column(pl.String, AN_ID),
        "source_id": column(pl.String, nullable=True),
        "split": column(pl.String, A_SPLIT_OR_NONE),
        "caption": column(pl.String, SOME_TEXT),
        "score": column(pl.Float32, NOT_POSITIVE),
        "distance": column(pl.Float32, NOT_NEGATIVE, nullable=True),
        "alternatives": column(ALTERNATIVES),
    },
    "attention": {
        "photo_id": column(pl.String, AN_ID, unique=True),
        "words": column(STRINGS),
        "weights": column(Tensor(pl.Float32, ("regions",), many=True)),
    },
    "scores": {
        "split": column(pl.String, A_SPLIT),
        "metric": column(pl.String, SOME_TEXT),
        "value": column(pl.Float64),
    },
    "vectors": {
        "photo_id": column(pl.String, AN_ID, unique=True),
        "vector": column(Tensor(pl.Float32, ("size",))),
    },
    "caption_vectors": {
        "caption_id": column(pl.String, AN_ID, unique=True),
        "vector": column(Tensor(pl.Float32, ("size",))),
    },
    "retrieval": {
        "split": column(pl.String, A_SPLIT),
        "direction": column(pl.String, among("image to text", "text to image")),
        "metric": column(pl.String, SOME_TEXT),
        "value": column(pl.Float64, NOT_NEGATIVE),
    },
    "leaks": {
        "kind": column(pl.String, among("photo", "caption")),
        "split": column(pl.String, A_SPLIT),
        "name": column(pl.String, SOME_TEXT),
        "other_split": column(pl.String, A_SPLIT),
        "other_name": column(pl.String, SOME_TEXT),
        "similarity": column(pl.Float32, Rule("le", (1.001,))),
    },
}


def dtypes_of(table: str, **sizes: int) -> pl.Schema:
    """The dtypes of a table's columns, shapes included; `sizes` are the lengths that its tensors name."""
    return pl.Schema(
        {
            name: column.dtype.of(sizes) if isinstance(column.dtype, Tensor) else column.dtype
            for name, column in TABLES[table].items()
        }
    )


@cache
def schema(table: str, **sizes: int) -> pa.DataFrameSchema:
    """The schema of `table`; `sizes` are the lengths that its tensors name, and `side_px` of images.

    Raises KeyError for a table that there is not, and where a size is wanting.
    """
    import pandera.polars as pa

    def check_of(rule: Rule) -> pa.Check:
        if rule is A_SQUARE:
            return pa.Check(partial(_square, side_px=sizes["side_px"]), name=rule.name)
        return getattr(pa.Check, rule.name)(*rule.arguments)

    dtypes = dtypes_of(table, **sizes)
    columns = {
        name: pa.Column(
            dtypes[name],
            [check_of(rule) for rule in column.rules],
            nullable=column.nullable,
            unique=column.unique,
        )
        for name, column in TABLES[table].items()
    }
    return pa.DataFrameSchema(columns, strict=True, name=table)


def _square(data: pa.PolarsData, side_px: int) -> pl.LazyFrame:
    return data.lazyframe.select(pl.col(data.key).bin.size() == side_px**2 * 3)


def check(frame: pl.DataFrame, table: str, **sizes: int) -> pl.DataFrame:
    """Return `frame` if it is a valid `table`, else raise SchemaMismatch with counts and ten rows.

    Checked whatever pandera's environment variables say.
    """
    import pandera.errors
    from pandera.config import ValidationDepth, config_context

    # Of nested arrays pandera 0.35 compares the innermost size only.
    for name, dtype in dtypes_of(table, **sizes).items():
        if isinstance(dtype, pl.Array | pl.List) and frame.schema.get(name, dtype) != dtype:
            raise SchemaMismatch(
                f"table '{table}' breaks its schema:\n  {name}: expected {dtype}, found {frame.schema[name]}"
            )
    with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_AND_DATA):
        try:
            schema(table, **sizes).validate(frame, lazy=True)
        except pandera.errors.SchemaErrors as error:
            raise SchemaMismatch(_explain(table, error.failure_cases)) from None
    return frame


def _explain(table: str, cases: pl.DataFrame) -> str:
    counts = cases.group_by("column", "check", maintain_order=True).len()
    lines = [f"table '{table}' breaks its schema:"]
    lines += [
        f"  {column or 'table'}: {check_} fails in {n} rows" for column, check_, n in counts.iter_rows()
    ]
    lines.append("  first rows:")
    for case in cases.head(10).iter_rows(named=True):
        lines.append(f"    row {case['index']}: {case['column']} = {str(case['failure_case'])[:80]}")
    return "\n".join(lines)
