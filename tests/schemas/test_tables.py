"""Every table is held to its schema, and a broken one says how."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import polars as pl
import pytest

from cutline.schemas.errors import SchemaMismatch
from cutline.schemas.tables import TABLES as DECLARED
from cutline.schemas.tables import check, dtypes_of
from cutline.tasks.storage.tables import tensor_column

A, B = "a" * 32, "b" * 32
SIZES = {
    "images": {"side_px": 2},
    "image_features": {"regions": 3, "channels": 4},
    "text_features": {"state_size": 4},
}


def tensors(name: str, dtype: type, *shape: int) -> pl.Series:
    return tensor_column(name, np.zeros((2, *shape), dtype))


def states(*lengths: int) -> pl.Series:
    dtype = pl.List(pl.Array(pl.Float16, 4))
    return pl.Series("states", [[[0.0] * 4] * length for length in lengths], dtype=dtype)


def valid(table: str) -> pl.DataFrame:
    """Two rows that are as they should be."""
    match table:
        case "files":
            return pl.DataFrame(
                {
                    "path": ["a.jpg", "b.jpg"], "container": [None, "x.tar"], "size": [1, 2],
                    "mtime_ns": [1, 2], "inode": [1, 2], "photo_id": [A, None], "width": [1, None],
                    "height": [1, None], "format": ["jpeg", None], "reason": [None, "truncated"],
                    "detail": [None, "ends early"],
                },
                schema_overrides={"width": pl.Int32, "height": pl.Int32},
            )  # fmt: skip
        case "photos":
            return pl.DataFrame(
                {
                    "photo_id": [A, B], "path": ["a.jpg", "b.jpg"], "other_paths": [[], ["c.jpg"]],
                    "source_id": [None, "7"], "other_source_ids": [[], [None]],
                    "container": [None, "x.tar"], "offset": [None, 512],
                    "size": [1, 2], "width": [1, 2], "height": [1, 2], "format": ["jpeg", "png"],
                    "split": ["train", "unlabelled"],
                },
                schema_overrides={
                    "width": pl.Int32, "height": pl.Int32, "other_paths": pl.List(pl.String),
                    "other_source_ids": pl.List(pl.String),
                },
            )  # fmt: skip
        case "captions":
            return pl.DataFrame(
                {
                    "caption_id": [A, B], "photo_id": [A, None], "missing_photo": [None, "b.jpg"],
                    "text": ["a", "b"], "split": ["train", "dev"],
                }
            )  # fmt: skip
        case "rejects":
            return pl.DataFrame(
                {
                    "stage": ["ingest"] * 2, "kind": ["photo", "caption"], "name": ["a", ""],
                    "reason": ["truncated", "empty_caption"], "detail": ["x", "y"],
                }
            )  # fmt: skip
        case "images":
            return pl.DataFrame({"photo_id": [A, B], "square": [bytes(12)] * 2})
        case "tokens":
            return pl.DataFrame(
                {"caption_id": [A, B], "tokens": [["a"], ["dog"]], "content_tokens": [[], ["dog"]]},
                schema_overrides={"content_tokens": pl.List(pl.String)},
            )
        case "vocabulary":
            return pl.DataFrame(
                {"token": ["a", "b"], "id": [0, 1], "count": [2, 1]}, schema_overrides={"id": pl.Int32}
            )
        case "image_features":
            regions, pooled = tensors("regions", np.float16, 3, 4), tensors("pooled", np.float16, 4)
            return pl.DataFrame([pl.Series("photo_id", [A, B]), regions, pooled])
        case "text_features":
            vector = tensors("vector", np.float16, 4)
            return pl.DataFrame([pl.Series("caption_id", [A, B]), states(1, 3), vector])
        case "predictions":
            alternatives = pl.List(pl.Struct({"caption": pl.String, "score": pl.Float32}))
            return pl.DataFrame(
                {
                    "photo_id": [A, B], "caption": ["a dog", "a cat"], "score": [-1.0, -0.5],
                    "distance": [0.7, None], "alternatives": [[], [{"caption": "a cat", "score": -0.5}]],
                },
                schema_overrides={"score": pl.Float32, "distance": pl.Float32, "alternatives": alternatives},
            )  # fmt: skip
        case "scores":
            return pl.DataFrame({"split": ["test", "dev"], "metric": ["CIDEr"] * 2, "value": [0.3, 0.4]})
    raise KeyError(table)


TABLES = [
    "files", "photos", "captions", "rejects", "images", "tokens", "vocabulary", "image_features",
    "text_features", "predictions", "scores",
]  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_a_valid_table_passes_unchanged(table: str) -> None:
    frame = valid(table)
    assert check(frame, table, **SIZES.get(table, {})).equals(frame)


@pytest.mark.parametrize("table", TABLES)
def test_a_column_less_or_more_is_refused(table: str) -> None:
    frame = valid(table)
    with pytest.raises(SchemaMismatch, match=frame.columns[-1]):
        check(frame.drop(frame.columns[-1]), table, **SIZES.get(table, {}))
    with pytest.raises(SchemaMismatch, match="surprise"):
        check(frame.with_columns(surprise=1), table, **SIZES.get(table, {}))


LENGTHS = {"side_px": 2, "regions": 3, "channels": 4, "state_size": 4, "size": 4}


@pytest.mark.parametrize("table", DECLARED)
def test_a_column_of_another_type_is_refused_in_every_table(table: str) -> None:
    empty = pl.DataFrame(schema=dtypes_of(table, **LENGTHS))
    assert check(empty, table, **LENGTHS).equals(empty)
    for name in empty.columns:
        with pytest.raises(SchemaMismatch, match=name):
            check(empty.with_columns(pl.lit(None, pl.Date).alias(name)), table, **LENGTHS)


BROKEN: list[tuple[str, str, Any, pl.DataType | None]] = [
    ("files", "path", ["a", ""], None),
    ("files", "size", [1, -1], None),
    ("files", "photo_id", [A, "A" * 32], None),
    ("files", "width", [1, 0], pl.Int32()),
    ("files", "height", [1, -1], pl.Int32()),
    ("files", "reason", [None, "because"], None),
    ("photos", "photo_id", [A, A], None),
    ("photos", "photo_id", [A, B[:-1]], None),
    ("photos", "photo_id", [A, None], None),
    ("photos", "path", ["a", ""], None),
    ("photos", "offset", [None, -1], None),
    ("photos", "size", [1, 0], None),
    ("photos", "width", [1, 0], pl.Int32()),
    ("photos", "width", [1, 1], pl.Int64()),
    ("photos", "height", [0, 1], pl.Int32()),
    ("photos", "format", ["jpeg", ""], None),
    ("photos", "split", ["train", "validation"], None),
    ("captions", "caption_id", [A, A], None),
    ("captions", "photo_id", [A, "7"], None),
    ("captions", "missing_photo", ["a", ""], None),
    ("captions", "text", ["a", ""], None),
    ("captions", "split", ["train", "unlabelled"], None),
    ("rejects", "kind", ["photo", "picture"], None),
    ("rejects", "reason", ["truncated", "bad"], None),
    ("rejects", "detail", ["x", ""], None),
    ("images", "photo_id", [A, A], None),
    ("images", "square", [bytes(12), bytes(11)], None),
    ("images", "square", [bytes(12), None], None),
    ("images", "square", [[0] * 12] * 2, pl.Array(pl.UInt8, 12)),
    ("tokens", "caption_id", [A, A], None),
    ("tokens", "tokens", ["a dog", "b"], None),
    ("vocabulary", "token", ["a", "a"], None),
    ("vocabulary", "id", [1, 1], pl.Int32()),
    ("vocabulary", "id", [0, -1], pl.Int32()),
    ("vocabulary", "count", [0, -1], None),
    ("image_features", "photo_id", [A, A], None),
    ("image_features", "pooled", [[0.0] * 5] * 2, pl.Array(pl.Float16, 5)),
    ("image_features", "pooled", [[0.0] * 4] * 2, pl.Array(pl.Float32, 4)),
    ("image_features", "regions", tensors("regions", np.float16, 2, 4), None),
    ("text_features", "caption_id", [A, A], None),
    ("text_features", "vector", [[0.0] * 3] * 2, pl.Array(pl.Float16, 3)),
    ("text_features", "states", [[0.0]] * 2, pl.List(pl.Float16)),
    ("predictions", "photo_id", [A, A], None),
    ("predictions", "caption", ["a", ""], None),
    ("predictions", "score", [-1.0, 0.5], pl.Float32()),
    ("predictions", "distance", [-1.0, None], pl.Float32()),
    ("scores", "split", ["test", "train set"], None),
    ("scores", "metric", ["CIDEr", ""], None),
]


@pytest.mark.parametrize(("table", "column", "values", "dtype"), BROKEN)
def test_a_table_that_breaks_a_rule_is_refused(table: str, column: str, values: Any, dtype: Any) -> None:
    frame = valid(table).with_columns(pl.Series(column, values, dtype=dtype))
    with pytest.raises(SchemaMismatch, match=column):
        check(frame, table, **SIZES.get(table, {}))


def test_the_message_counts_by_check_and_shows_at_most_ten_rows() -> None:
    frame = pl.DataFrame(
        {"token": [f"t{i}" for i in range(50)], "id": range(50), "count": [-1] * 50},
        schema_overrides={"id": pl.Int32},
    )
    with pytest.raises(SchemaMismatch) as raised:
        check(frame, "vocabulary")
    text = str(raised.value)
    assert "count: greater_than_or_equal_to(0) fails in 50 rows" in text
    assert text.count("\n    row ") == 10


def test_checks_cannot_be_switched_off_from_outside() -> None:
    program = (
        "import polars as pl\nfrom cutline.schemas.tables import check\n"
        "from cutline.schemas.errors import SchemaMismatch\n"
        "try:\n    check(pl.DataFrame({'split': ['x'], 'metric': ['m'], 'value': [1.0]}), 'scores')\n"
        "except SchemaMismatch:\n    print('refused')"
    )
    environment = {
        **os.environ,
        "PANDERA_VALIDATION_ENABLED": "False",
        "PANDERA_VALIDATION_DEPTH": "SCHEMA_ONLY",
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "refused\n", done.stderr
