"""Parquet that expands to gigabytes costs one reject; the rest of the data set is read."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.datasets import photo, put
from tests.support.limits import Cost, within_limits


def ingested(root: Path) -> Cost:
    return within_limits("tests.support.hostile", "ingested", str(root))


def repeated(value: bytes, rows: int, kind: pa.DataType) -> pa.Array:
    indices = pa.array(np.zeros(rows, np.int32))
    return pa.DictionaryArray.from_arrays(indices, pa.array([value]).cast(kind))


def captions_of_megabytes(path: Path) -> None:
    names, texts = repeated(b"a.jpg", 4096, pa.string()), repeated(b"x" * 2**23, 4096, pa.string())
    pq.write_table(pa.table({"file_name": names, "text": texts}), path, compression="zstd")


def names_of_megabytes(path: Path) -> None:
    names, texts = repeated(b"x" * 2**23, 4096, pa.string()), repeated(b"One", 4096, pa.string())
    pq.write_table(pa.table({"file_name": names, "text": texts}), path, compression="zstd")


BINARY = {"store_schema": False, "dictionary_pagesize_limit": 2**30}  # read as bytes, not as a dictionary


def image_of_200_megabytes(path: Path) -> None:
    images = repeated(bytes(200 * 2**20), 400, pa.binary())
    pq.write_table(pa.table({"image": images}), path, compression="zstd", **BINARY)


def image_of_50_megabytes(path: Path) -> None:
    images = repeated(bytes(50 * 2**20), 20_000, pa.binary())
    pq.write_table(pa.table({"image": images}), path, compression="zstd", **BINARY)


def thirty_million_rows(path: Path) -> None:
    names = repeated(b"a.jpg", 30_000_000, pa.string())
    pq.write_table(pa.table({"file_name": names}), path, row_group_size=30_000_000)


def lists_without_end(path: Path) -> None:
    texts = pa.ListArray.from_arrays(pa.array([0, 20_000_000], pa.int32()), pa.array(["One"] * 20_000_000))
    pq.write_table(pa.table({"file_name": ["a.jpg"], "text": texts}), path)


def delta_strings(path: Path) -> None:
    texts = [("x" * 2**20) + str(i) for i in range(500)]
    table = pa.table({"file_name": ["a.jpg"] * 500, "text": texts})
    pq.write_table(
        table, path, use_dictionary=False, column_encoding={"file_name": "PLAIN", "text": "DELTA_BYTE_ARRAY"}
    )


def many_columns(path: Path) -> None:
    pq.write_table(pa.table([["a"]] * 20_000, ["text"] * 20_000), path)


HOSTILE: dict[str, Callable[[Path], None]] = {
    make.__name__: make
    for make in (
        *(captions_of_megabytes, names_of_megabytes, image_of_200_megabytes, image_of_50_megabytes),
        *(thirty_million_rows, lists_without_end, delta_strings, many_columns),
    )
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_expands_is_given_up_within_the_limits(root: Path, kind: str) -> None:
    HOSTILE[kind](root / "a.parquet")
    pq.write_table(pa.table({"file_name": ["b.jpg"], "text": ["Good"]}), root / "b.parquet")
    put(root, **{"a.jpg": photo(), "b.jpg": photo(1)})
    cost = ingested(root)
    assert cost.result["captions"] == ["Good"], cost
    assert 0 < cost.result["count"] <= 5_000


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", None])
def test_texts_and_images_of_every_encoding_are_read(root: Path, encoding: str | None) -> None:
    columns = {
        "image": [photo(1), photo(2), None],
        "text": ["One", "Two", None],
        "file_name": ["a", "b", None],
    }
    names = {} if encoding is None else dict.fromkeys(columns, encoding)
    more = {"use_dictionary": False, "column_encoding": names} if names else {}
    pq.write_table(pa.table(columns), root / "a.parquet", **more)
    assert ingested(root).result["captions"] == ["One", "Two"]


def footer(schema: bytes) -> bytes:
    content = b"\x15\x04\x19" + schema
    return b"PAR1" + content + struct.pack("<I", len(content)) + b"PAR1"


def test_a_schema_of_many_levels_is_refused(root: Path) -> None:
    element = b"\x48\x01a\x15\x02\x00"  # name "a", one child
    for depth in (100, 100_000):
        size = bytes([0xFC]) + _varint(depth)
        put(root, **{f"{depth}.parquet": footer(size + element * depth)})
    put(root, **{"a.jpg": photo(), "a.txt": "Good"})
    cost = ingested(root)
    assert cost.result["captions"] == ["Good"]


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def mutants(path: str, folder: str, count: int) -> dict[str, int]:
    """Outcomes of `count` mutants of a Parquet file; run in a child."""
    from tests.support.hostile import ingested as ingest_

    data, rng = Path(path).read_bytes(), np.random.default_rng(3)
    told = {"error": 0, "rejects": 0, "none": 0}
    for _ in range(count):
        mutant = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            mutant[at] = rng.integers(0, 256)
        Path(folder, "m.parquet").write_bytes(mutant)
        found = ingest_(folder)
        told["error" if found["error"] else "rejects" if found["count"] else "none"] += 1
    return told


def test_mutants_are_read_or_rejected(root: Path, tmp_path: Path) -> None:
    columns = {
        "image": [{"bytes": photo(i), "path": f"{i}.jpg"} for i in range(6)],
        "captions": [["One", "Two"], [], None, ["Three"], ["Four"], ["Five"]],
        "split": ["train"] * 6,
    }
    pq.write_table(pa.table(columns), tmp_path / "good.parquet", row_group_size=3, compression="zstd")
    put(root, **{"a.jpg": photo(9)})
    cost = within_limits(
        "tests.tasks.ingest.test_parquet_pages", "mutants", str(tmp_path / "good.parquet"), str(root), 300
    )
    assert sum(cost.result.values()) == 300
    assert cost.result["rejects"] > 20
