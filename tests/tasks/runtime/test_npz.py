"""Arrays of a hostile file are refused in words, before memory is taken for what they state."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cutline.schemas.errors import StaleModel
from cutline.tasks.models.content_embedding import ContentEmbedding
from cutline.tasks.models.content_neighbours import ContentNeighbours
from cutline.tasks.models.joint_embedding import JointEmbedding
from cutline.tasks.runtime.npz import Expected, read_all_npz, read_npy, read_npz
from tests.support.limits import within_limits
from tests.support.toys import toy_familiar_photos

FLOATS = Expected("f", 2)


def npy(shape: tuple[int, ...], descr: str, data: bytes = b"") -> bytes:
    """An NPY file whose header states `shape` and `descr`, whatever its data are."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + data


def zipped(content: bytes, method: int = zipfile.ZIP_DEFLATED, name: str = "a.npy") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def changed(data: bytes, local: int, central: int, value: int) -> bytes:
    """`data` with a 16-bit number of the first member's local header and of its directory entry replaced."""
    found = bytearray(data)
    for at in (local, data.index(b"PK\x01\x02") + central):
        found[at : at + 2] = struct.pack("<H", value)
    return bytes(found)


def broken_deflate() -> bytes:
    data = bytearray(zipped(npy((100, 100), "'<f4'", bytes(40_000))))
    data[40:60] = b"\xff" * 20
    return bytes(data)


GOOD = npy((2, 3), "'<f4'", np.arange(6, dtype="<f4").tobytes())

HOSTILE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "no zip": lambda: b"PK\x03\x04 nonsense",
    "a broken deflate stream": broken_deflate,
    "an unknown compression method": lambda: changed(zipped(GOOD), 8, 10, 99),
    "bzip2, which nobody writes": lambda: zipped(GOOD, zipfile.ZIP_BZIP2),
    "LZMA, which nobody writes": lambda: zipped(GOOD, zipfile.ZIP_LZMA),
    "a password": lambda: changed(zipped(GOOD), 6, 8, 1),
    "10^13 numbers": lambda: zipped(npy((10**7, 10**6), "'<f4'")),
    "more numbers than 64 bits count": lambda: zipped(npy((2**40, 2**40), "'<f4'")),
    "a negative length": lambda: zipped(npy((-1, -1), "'<f4'", bytes(4))),
    "one number too few": lambda: zipped(npy((2, 3), "'<f4'", bytes(20))),
    "one number too many": lambda: zipped(npy((2, 3), "'<f4'", bytes(28))),
    "a zip bomb": lambda: zipped(npy((2**13, 2**13), "'<f4'", bytes(2**28))),
    "a pickled object": lambda: zipped(npy((1, 1), "'|O'", b"\x80\x04N.")),
    "fields": lambda: zipped(npy((1, 1), "[('a', '<f4')]", bytes(4))),
    "texts": lambda: zipped(npy((1, 1), "'<U1'", bytes(4))),
    "three dimensions": lambda: zipped(npy((1, 1, 1), "'<f4'", bytes(4))),
    "brackets without end": lambda: zipped(npy((1, 1), "(" * 5000, bytes(4))),
    "a header that is a call": lambda: zipped(npy((1, 1), "__import__('os')", bytes(4))),
    "another name": lambda: zipped(GOOD, name="b.npy"),
    "a name that comes twice": lambda: _twice(),
}


def _twice() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", GOOD)
        archive.writestr("a.npy", GOOD)
    return buffer.getvalue()


def outcomes(folder: str) -> list[str | None]:
    """For each file: what is wrong with it, None where nothing is; run in a child."""
    told: list[str | None] = []
    for path in sorted(Path(folder).iterdir()):
        try:
            read_npz(path, {"a": FLOATS})
        except ValueError as error:
            told.append(str(error))
        else:
            told.append(None)
    return told


def test_every_hostile_file_is_refused_within_the_limits(tmp_path: Path) -> None:
    for number, make in enumerate(HOSTILE.values()):
        (tmp_path / f"{number:02}.npz").write_bytes(make())
    cost = within_limits("tests.tasks.runtime.test_npz", "outcomes", str(tmp_path))
    assert len(cost.result) == len(HOSTILE)
    accepted = [name for name, message in zip(HOSTILE, cost.result, strict=True) if message is None]
    assert accepted == []
    assert all(len(message) < 600 for message in cost.result)
    assert cost.memory_bytes < 300 * 2**20


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_model_of_hostile_arrays_is_stale(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(HOSTILE[kind]() if kind != "a zip bomb" else b"")
    for load in (
        lambda: ContentEmbedding.load(path, toy_familiar_photos()),
        lambda: JointEmbedding.load(path),
        lambda: ContentNeighbours.load(path, 2, 2),
    ):
        with pytest.raises(StaleModel, match=r"x\.npz.*train"):
            load()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read_as_it_was(tmp_path: Path, save: Callable[..., None]) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float16).reshape(2, 3),
        "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 5), np.float32),
        "one": np.array(7, np.int8),
        "texts": np.array(["dog", "caf\u00e9"]),
    }
    save(tmp_path / "x.npz", **arrays)
    found = read_all_npz(tmp_path / "x.npz")
    assert found.keys() == arrays.keys()
    for name, values in arrays.items():
        assert found[name].dtype == values.dtype
        assert found[name].shape == values.shape
        assert np.array_equal(found[name], values)
    assert list(read_npz(tmp_path / "x.npz", {"a": FLOATS})) == ["a"]


def test_every_mutation_of_a_file_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.arange(600, dtype=np.float32).reshape(20, 30), b=np.arange(5))
    data, rng = path.read_bytes(), np.random.default_rng(1)
    refused = 0
    for _ in range(3000):
        mutant = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            mutant[at] = rng.integers(0, 256)
        path.write_bytes(mutant[: rng.integers(1, len(data) + 1)] if rng.random() < 0.1 else mutant)
        try:
            read_all_npz(path)
        except ValueError:
            refused += 1
    assert refused > 1000


def test_an_array_alone_in_a_file_is_held_to_its_header(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(6).reshape(2, 3))
    assert read_npy(path, Expected("i", 2)).tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(npy((10**7, 10**6), "'<i8'"))
    with pytest.raises(ValueError, match="expected 80,000,000,000,000 bytes of numbers"):
        read_npy(path, Expected("i", 2))
    with pytest.raises(ValueError, match="No such file"):
        read_npy(tmp_path / "none.npy", Expected("i", 2))
