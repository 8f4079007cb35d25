"""Hostile annotations cost one reject or few, little time and memory; the rest of the data set is read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.datasets import photo, put
from tests.support.limits import Cost, within_limits
from tests.tasks.ingest.layouts.test_webdataset import tar_of

GOOD = json.dumps(
    {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "One"}]}
)


def ingested(root: Path) -> Cost:
    return within_limits("tests.support.hostile", "ingested", str(root))


def fill(path: Path, start: str, unit: str, end: str, size: int) -> None:
    """A file of `size` bytes or so: `unit` again and again between `start` and `end`."""
    many = unit * (2**20 // len(unit))
    with path.open("w") as file:
        file.write(start)
        for _ in range(size // len(many)):
            file.write(many)
        file.write(end)


@pytest.mark.parametrize(
    ("start", "unit", "end"),
    [
        ('{"images": [], "annotations": [', "[],", "[]]}"),
        ('{"annotations": [', "[],", '[]], "images": []}'),
        ('{"images": [', "[],", '[]], "annotations": []}'),
        ('{"images": [', "{},", '{}], "annotations": []}'),
        ('{"images": [', "0,", '0], "annotations": []}'),
        ('{"info": [', "[],", '[]], "images": [], "annotations": []}'),
        ('{"info": {"a": [', "[],", '[]]}, "images": [], "annotations": []}'),
        ('{"images": [], "annotations": [[', "[],", "[]]]}"),
        ('{"images": [], "annotations": [', "[", "]}"),
        ('{"images": [], "annotations": ["', "x", '"]}'),
        ('{"images": [], "annotations": [', " ", "]}"),
        ("[", "[],", "[]]"),
    ],
)
def test_large_json_of_nothing_is_given_up(root: Path, start: str, unit: str, end: str) -> None:
    fill(root / "captions_a.json", start, unit, end, 210 * 10**6)
    put(root, **{"a.jpg": photo(), "captions_b.json": GOOD})
    cost = ingested(root)
    assert cost.result["captions"] == ["One"]
    assert cost.result["count"] <= 1_100
    assert cost.memory_bytes < 10**9


@pytest.mark.parametrize("unit", ["x\n", "\n", ",\n", '"\n', 'a,"b","c\n', "a.jpg\t\n", '{"a":', "\0", "\r"])
@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("metadata.csv", "file_name,text\na.jpg,One\n"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "One"}\n'),
        ("captions.txt", "image,caption\na.jpg,One\n"),
        ("Flickr8k.token.txt", "a.jpg#0\tOne\n"),
    ],
)
def test_large_tables_of_nothing_are_given_up(root: Path, name: str, head: str, unit: str) -> None:
    put(root, **{"a.jpg": photo()})
    fill(root / name, head, unit, "", 8 * 2**20)
    cost = ingested(root)
    assert "One" in cost.result["captions"]
    assert cost.result["count"] <= 1_100
    assert cost.memory_bytes < 10**9


def test_many_columns_of_one_name_cost_one_reject(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "b.jpg": photo(1), "x/metadata.csv": "text," * 100_000 + "\n"})
    put(root, **{"metadata.csv": "file_name,text\na.jpg,One\n"})
    cost = ingested(root)
    assert cost.result["captions"] == ["One"]
    assert [name for name, *_ in cost.result["rejects"]] == ["x/metadata.csv"]


def test_columns_of_one_name_are_counted_up(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "metadata.csv": "file_name,text,text,text\na.jpg,One,Two,Three\n"})
    assert ingested(root).result["captions"] == ["One", "Three", "Two"]


def test_a_text_of_millions_of_lines_is_no_caption(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "a.txt": "a\n" * 8_000_000, "b.jpg": photo(1), "b.txt": "Two"})
    cost = ingested(root)
    assert cost.result["captions"] == ["Two"]
    assert [reason for _, reason, _ in cost.result["rejects"]] == ["caption_too_long"]
    assert cost.memory_bytes < 500 * 2**20


# ---- tars ----


def header(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    data[124:136] = b"\x80" + size.to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def extended(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    padded = records + bytes(-len(records) % 512)
    return header("x", len(records), kind) + padded


PAX: dict[str, Callable[[], bytes]] = {
    "a length of 300,000 digits": lambda: extended(b"9" * 300_000 + b" a=b\n"),
    "digits in a value": lambda: extended(_record(b"a=" + b"1" * 300_000)),
    "records that overlap": lambda: extended(b"2 " * 200_000 + b"="),
    "no end of a name": lambda: extended(b"5 aaaa" * 100_000),
    "a global header of digits": lambda: extended(b"1" * 500_000, tarfile.XGLTYPE),
    "a Solaris header of digits": lambda: extended(b"1" * 500_000, b"X"),
    "a length of zero": lambda: extended(b"0 a=b\n" * 50_000),
    "a sparse map": lambda: extended(
        _record(b"GNU.sparse.map=" + b"1," * 300_000) + _record(b"GNU.sparse.size=9")
    ),
    "a size of many digits": lambda: extended(_record(b"size=" + b"9" * 90)),
    "many headers in a row": lambda: extended(_record(b"a=b")) * 5_000,
}


def _record(pair: bytes) -> bytes:
    length = len(pair) + 3
    while len(b"%d %s\n" % (length, pair)) != length:
        length = len(b"%d %s\n" % (length, pair))
    return b"%d %s\n" % (length, pair)


@pytest.mark.parametrize("kind", PAX)
def test_a_hostile_pax_header_costs_one_reject(root: Path, kind: str) -> None:
    good = tar_of(("1.jpg", photo()), ("1.txt", "One"))
    put(root, **{"a.tar": PAX[kind]() + good, "b.tar": good})
    cost = ingested(root)
    assert "One" in cost.result["captions"]
    assert cost.result["count"] <= 3
    assert cost.cpu_s < 10


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, b"X", b"L", b"K", b"S"])
def test_a_hole_of_gigabytes_is_not_read(root: Path, kind: bytes) -> None:
    put(
        root, **{"a.tar": header("x", 5 * 2**30, kind), "b.tar": tar_of(("1.jpg", photo()), ("1.txt", "One"))}
    )
    with (root / "a.tar").open("rb+") as file:
        file.truncate(5 * 2**30 + 2**20)
    cost = ingested(root)
    assert cost.result["captions"] == ["One"]
    assert cost.memory_bytes < 500 * 2**20


def test_pax_headers_that_are_sound_are_read(root: Path) -> None:
    name = "a/" + "é" * 150
    with tarfile.open(root / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for ending, content in ((".jpg", photo()), (".txt", b"One")):
            info = tarfile.TarInfo(name + ending)
            info.size, info.mtime = len(content), 1234567890.123456
            info.pax_headers = {"comment": "x" * 60_000, "uid": "12345678901234567890"}

            tar.addfile(info, io.BytesIO(content))
    cost = ingested(root)
    assert cost.result["captions"] == ["One"]
    assert cost.result["count"] == 0


def test_texts_of_a_tar_are_held_up_to_a_limit(root: Path) -> None:
    with (root / "a.tar").open("wb") as file:
        members = tar_of(("0.jpg", photo()), ("0.txt", "One")).rstrip(b"\0")
        file.write(members + bytes(-len(members) % 512))
        for number in range(1, 40):
            file.write(header(f"{number}.txt", 16 * 2**20, tarfile.REGTYPE))
            file.seek(16 * 2**20, 1)
        file.write(bytes(1024))
    cost = ingested(root)
    assert cost.memory_bytes < 10**9
    assert "too_many_bytes" in [reason for _, reason, _ in cost.result["rejects"]]
