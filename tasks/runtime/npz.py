"""Arrays from NPZ and NPY files that may be hostile: what a file states is checked before memory is taken.

NumPy's own loader allocates what an array's header states and raises whatever its parsers raise. Here the
sizes in the zip directory, and the type and shape in each header, are compared with each other and with
the size of the file first. Nothing is unpickled.
"""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from cutline.schemas.errors import StaleModel

FREE_BYTES = 64 * 2**20  # any file may expand to this much,
MOST_EXPANSION = 4  # and by this factor above it: trained weights hardly compress
MOST_ARRAYS = 10_000
MAX_HEADER_BYTES = 10_000  # NumPy's own limit; the header is parsed as a Python literal
PLAIN_KINDS = "biufU"  # truth values, integers, real numbers, texts

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile, zlib and NumPy's header parser raise for damaged files.
_DAMAGED = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, NotImplementedError),
    *(OverflowError, MemoryError, RecursionError, SyntaxError, struct.error),
    *(tokenize.TokenError, zlib.error, zipfile.BadZipFile),
)


class Expected(NamedTuple):
    """What an array has to be: `kinds` are NumPy's letters, such as "f" or "iu"."""

    kinds: str
    dimensions: int


def read_npz(path: Path, expected: Mapping[str, Expected]) -> dict[str, np.ndarray]:
    """The arrays that `expected` names, read-only.

    Raises ValueError where the file is missing, damaged, encrypted, compressed by an unknown method, larger
    than its size on the disk allows, or where an array is missing or not as expected.
    """
    return dict(_arrays(path, expected))


def read_all_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file. Raises ValueError as `read_npz`."""
    return dict(_arrays(path, None))


def read_npy(path: Path, expected: Expected) -> np.ndarray:
    """The one array of an NPY file. Raises ValueError as `read_npz`."""
    try:
        with path.open("rb") as file:
            return _array(file, path.name, path.stat().st_size, expected)
    except _DAMAGED as error:
        raise ValueError(_message(error)) from None


def stale(path: Path, content: str, error: Exception, remedy: str = "train again") -> StaleModel:
    """The error for a file of a model that does not hold `content`."""
    return StaleModel(f"'{path}' does not hold {content}: {error}; {remedy}")


def check_expansion(expanded: int, stored: int) -> None:
    """Raise ValueError where `stored` bytes of a file state that they expand to more than is plausible."""
    most = FREE_BYTES + MOST_EXPANSION * stored
    if not 0 <= expanded <= most:
        raise ValueError(
            f"expected at most {most:,} bytes from {stored:,} in the file, found {expanded:,} stated"
        )


def _arrays(path: Path, expected: Mapping[str, Expected] | None) -> Iterator[tuple[str, np.ndarray]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, expected)
            check_expansion(sum(member.file_size for member in members.values()), path.stat().st_size)
            for name, member in members.items():
                with archive.open(member) as file:
                    yield name, _array(file, name, member.file_size, expected[name] if expected else None)
    except _DAMAGED as error:
        raise ValueError(_message(error)) from None


def _members(archive: zipfile.ZipFile, expected: Mapping[str, Expected] | None) -> dict[str, zipfile.ZipInfo]:
    """The wanted members of an archive by the names of their arrays."""
    found = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    if len(found) != len(archive.infolist()) or len(found) > MOST_ARRAYS:
        raise ValueError(
            f"expected at most {MOST_ARRAYS:,} arrays with names of their own, found "
            f"{len(archive.infolist()):,} members with {len(found):,} names"
        )
    missing = [name for name in expected or () if name not in found]
    if missing:
        raise ValueError(f"expected an array '{missing[0]}', found {_listed(list(found))}")
    members = {name: found[name] for name in expected} if expected is not None else found
    for name, member in members.items():
        if member.flag_bits & 0x1:
            raise ValueError(f"expected no password, found '{name}' encrypted")
        if member.compress_type not in _METHODS:
            raise ValueError(
                f"expected '{name}' stored or deflated, found compression method {member.compress_type}"
            )
    return members


def _array(file: IO[bytes], name: str, size: int, expected: Expected | None) -> np.ndarray:
    """The array in `file`, which has `size` bytes; its header has to state just as many."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"expected version 1 or 2 of the NPY format in '{name}', found {version}")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file, max_header_size=MAX_HEADER_BYTES)
    kinds, dimensions = expected or Expected(PLAIN_KINDS, len(shape))
    if dtype.kind not in kinds or len(shape) != dimensions:
        raise ValueError(
            f"expected '{name}' with {dimensions} dimensions and a type of the kinds '{kinds}', "
            f"found the shape {_listed(shape)} and the type {str(dtype)[:40]}"
        )
    if any(not isinstance(length, int) or isinstance(length, bool) or length < 0 for length in shape):
        raise ValueError(f"expected lengths of 0 or more in the shape of '{name}', found {_listed(shape)}")
    stated, found = math.prod(shape) * dtype.itemsize, size - file.tell()
    if stated != found:
        raise ValueError(f"expected {stated:,} bytes of numbers in '{name}', found {found:,}")
    data = file.read(stated)
    if len(data) != stated or file.read(1):  # at the end the checksum is verified
        raise ValueError(f"expected {stated:,} bytes of numbers in '{name}', found {len(data):,} or more")
    values = np.frombuffer(data, dtype) if stated else np.zeros(math.prod(shape), dtype)
    return values.reshape(shape, order="F" if is_fortran else "C")


def _listed(values: Sequence[object]) -> str:
    shown = ", ".join(str(value)[:40] for value in values[:8])
    return shown + (", …" if len(values) > 8 else "") if values else "none"


def _message(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"
