"""A pandera schema for every table, and the one function that holds a frame to it.

Tensors are fixed-size Arrow arrays: they are checked by dtype and shape, and never become
Python objects. Squares are bytes, checked by how many: Parquet knows no integer shorter than 32 bits, and
takes five times as long to write an array of them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import polars as pl

from schemas.errors import SchemaMismatch

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
NOTICES = frozenset({"duplicate", "leak", "missing_photo", "not_read"})
# These may be gone the next time, so a shard that holds one is tried again by the next run.
PASSING = frozenset({"vanished", "changed", "unreadable"})

REJECTS_DTYPES: dict[str, Any] = {
    "stage": pl.String,
    "kind": pl.String,  # file, photo or caption
    "name": pl.String,  # path of the file, or the caption's text or place
    "reason": pl.String,  # a code of REASONS
    "detail": pl.String,
}


@cache
def schema(table: str, **sizes: int) -> pa.DataFrameSchema:
    """The schema of `table`; `sizes` are the lengths of its tensors.

    images needs `side_px`; image_features `regions` and `channels`; familiar `channels`; attention `regions`;
    text_features `state_size`; vectors, caption_vectors, gists and imagined `size`.
    """
    import pandera.polars as pa

    def column(dtype: Any, *checks: pa.Check, nullable: bool = False, unique: bool = False) -> pa.Column:
        return pa.Column(dtype, list(checks), nullable=nullable, unique=unique)

    a_photo_id = pa.Check.str_matches(ID_PATTERN)
    a_split = pa.Check.isin([*SPLITS, UNLABELLED])
    some_text = pa.Check.str_length(min_value=1)
    positive, not_negative = pa.Check.gt(0), pa.Check.ge(0)

    def a_square(data: pa.PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select(pl.col(data.key).bin.size() == sizes["side_px"] ** 2 * 3)

    tensors = tensor_dtypes(table, **sizes)
    columns: dict[str, pa.Column]
    match table:
        case "files":
            columns = {
                "path": column(pl.String, some_text),
                "container": column(pl.String, nullable=True),
                "size": column(pl.Int64, not_negative),
                "mtime_ns": column(pl.Int64),
                "inode": column(pl.Int64),
                "photo_id": column(pl.String, a_photo_id, nullable=True),
                "width": column(pl.Int32, positive, nullable=True),
                "height": column(pl.Int32, positive, nullable=True),
                "format": column(pl.String, nullable=True),
                "reason": column(pl.String, pa.Check.isin(list(REASONS)), nullable=True),
                "detail": column(pl.String, nullable=True),
            }
        case "photos":
            columns = {
                "photo_id": column(pl.String, a_photo_id, unique=True),
                "path": column(pl.String, some_text),
                "other_paths": column(pl.List(pl.String)),
                "source_id": column(pl.String, nullable=True),
                "container": column(pl.String, nullable=True),
                "offset": column(pl.Int64, not_negative, nullable=True),
                "size": column(pl.Int64, positive),
                "width": column(pl.Int32, positive),
                "height": column(pl.Int32, positive),
                "format": column(pl.String, some_text),
                "split": column(pl.String, a_split),
            }
        case "captions":
            columns = {
                "caption_id": column(pl.String, a_photo_id, unique=True),
                "photo_id": column(pl.String, a_photo_id, nullable=True),
                "text": column(pl.String, some_text),
                "split": column(pl.String, pa.Check.isin(list(SPLITS))),
            }
        case "rejects":
            columns = {
                "stage": column(pl.String, some_text),
                "kind": column(pl.String, pa.Check.isin(["file", "photo", "caption"])),
                "name": column(pl.String),
                "reason": column(pl.String, pa.Check.isin(list(REASONS))),
                "detail": column(pl.String, some_text),
            }
        case "images":
            columns = {
                "photo_id": column(pl.String, a_photo_id, unique=True),
                # (side_px, side_px, 3) uint8: RGB, row by row from the top left
                "square": column(pl.Binary, pa.Check(a_square, name="side_px² · 3 bytes")),
            }
        case "tokens":
            columns = {
                "caption_id": column(pl.String, a_photo_id, unique=True),
                "tokens": column(pl.List(pl.String)),
                "content_tokens": column(pl.List(pl.String)),
            }
        case "vocabulary":
            columns = {
                "token": column(pl.String, some_text, unique=True),
                "id": column(pl.Int32, not_negative, unique=True),
                "count": column(pl.Int64, not_negative),
            }
        case "image_features":
            columns = {
                "photo_id": column(pl.String, a_photo_id, unique=True),
                "regions": column(tensors["regions"]),
                "pooled": column(tensors["pooled"]),
            }
        case "text_features":
            columns = {
                "caption_id": column(pl.String, a_photo_id, unique=True),
                "states": column(tensors["states"]),
                "vector": column(tensors["vector"]),
            }
        case "curve":
            columns = {
                "epoch": column(pl.Int32, positive, unique=True),
                "train_loss": column(pl.Float64, not_negative),
                "dev_loss": column(pl.Float64, not_negative, nullable=True),
                "dev_cider": column(pl.Float64, not_negative, nullable=True),
                "best": column(pl.Boolean),
            }
        case "predictions":
            columns = {
                "photo_id": column(pl.String, a_photo_id, unique=True),
                "caption": column(pl.String, some_text),
                "score": column(pl.Float32, pa.Check.le(0)),
                "distance": column(pl.Float32, not_negative, nullable=True),
                "alternatives": column(pl.List(pl.Struct({"caption": pl.String, "score": pl.Float32}))),
            }
        case "captioned":
            columns = {
                "path": column(pl.String, some_text, unique=True),
                "photo_id": column(pl.String, a_photo_id),
                "source_id": column(pl.String, nullable=True),
                "split": column(pl.String, a_split),
                "caption": column(pl.String, some_text),
                "score": column(pl.Float32, pa.Check.le(0)),
                "distance": column(pl.Float32, not_negative, nullable=True),
                "alternatives": column(pl.List(pl.Struct({"caption": pl.String, "score": pl.Float32}))),
            }
        case "matching_curve":
            columns = {
                "epoch": column(pl.Int32, not_negative, unique=True),
                "train_loss": column(pl.Float64, not_negative, nullable=True),
                "dev_recall": column(pl.Float64, pa.Check.in_range(0, 1), nullable=True),
                "best": column(pl.Boolean),
            }
        case "vectors":
            columns = {
                "photo_id": column(pl.String, a_photo_id, unique=True),
                "vector": column(tensors["vector"]),
            }
        case "caption_vectors":
            columns = {
                "caption_id": column(pl.String, a_photo_id, unique=True),
                "vector": column(tensors["vector"]),
            }
        case "retrieval":
            columns = {
                "split": column(pl.String, pa.Check.isin(list(SPLITS))),
                "direction": column(pl.String, pa.Check.isin(["image to text", "text to image"])),
                "metric": column(pl.String, some_text),
                "value": column(pl.Float64, not_negative),
            }
        case "leaks":
            columns = {
                "kind": column(pl.String, pa.Check.isin(["photo", "caption"])),
                "split": column(pl.String, pa.Check.isin(list(SPLITS))),
                "name": column(pl.String, some_text),
                "other_split": column(pl.String, pa.Check.isin(list(SPLITS))),
                "other_name": column(pl.String, some_text),
                "likeness": column(pl.Float32, pa.Check.le(1.001)),
            }
        case "familiar":
            columns = {
                "photo_id": column(pl.String, a_photo_id, unique=True),
                "pooled": column(tensors["pooled"]),
            }
        case "gists":
            columns = {
                "photo_id": column(pl.String, a_photo_id, unique=True),
                "gist": column(tensors["gist"]),
            }
        case "imagined":
            columns = {
                "caption_id": column(pl.String, a_photo_id, unique=True),
                "gist": column(tensors["gist"]),
            }
        case "attention":
            columns = {
                "photo_id": column(pl.String, a_photo_id, unique=True),
                "words": column(pl.List(pl.String)),
                "weights": column(tensors["weights"]),
            }
        case "scores":
            columns = {
                "split": column(pl.String, pa.Check.isin(list(SPLITS))),
                "metric": column(pl.String, some_text),
                "value": column(pl.Float64),
            }
        case _:
            raise KeyError(f"no schema for table '{table}'")
    return pa.DataFrameSchema(columns, strict=True, name=table)


def tensor_dtypes(table: str, **sizes: int) -> dict[str, pl.DataType]:
    """The dtypes of a table's tensors, shapes included."""
    match table:
        case "image_features":
            regions, channels = sizes["regions"], sizes["channels"]
            return {
                "regions": pl.Array(pl.Float16, (regions, channels)),
                "pooled": pl.Array(pl.Float16, channels),
            }
        case "familiar":
            return {"pooled": pl.Array(pl.Float16, sizes["channels"])}
        case "gists" | "imagined":
            return {"gist": pl.Array(pl.Float16, sizes["size"])}
        case "attention":
            return {"weights": pl.List(pl.Array(pl.Float32, sizes["regions"]))}
        case "text_features":
            vector = pl.Array(pl.Float16, sizes["state_size"])
            return {"states": pl.List(vector), "vector": vector}
        case "vectors" | "caption_vectors":
            return {"vector": pl.Array(pl.Float32, sizes["size"])}
    return {}


def check(frame: pl.DataFrame, table: str, **sizes: int) -> pl.DataFrame:
    """Return `frame` if it is a valid `table`, else raise SchemaMismatch with counts and ten rows.

    Checked whatever pandera's environment variables say.
    """
    import pandera.errors
    from pandera.config import ValidationDepth, config_context

    # Of nested arrays pandera 0.35 compares the innermost size only.
    for name, dtype in tensor_dtypes(table, **sizes).items():
        if name in frame.columns and frame.schema[name] != dtype:
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
