"""A temporary file of rows, read by number."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np


class ScratchRows:
    """Rows of one shape, float16, in a nameless file: read by number, never in memory as a whole."""

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.shape, self.rows = shape, 0
        self._row_bytes = 2 * int(np.prod(shape))
        # Nameless: the disk is given back however this process ends.
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115

    def append(self, values: np.ndarray) -> None:
        """Add (n, *shape) rows at the end."""
        rest = np.ascontiguousarray(values, np.float16).reshape(-1).view(np.uint8)
        while len(rest):
            rest = rest[self._file.write(rest.data) :]
        self.rows += len(values)

    def read(self, first: int, count: int) -> np.ndarray:
        """Rows first … first + count - 1 as (count, *shape)."""
        data = os.pread(self._file.fileno(), count * self._row_bytes, first * self._row_bytes)
        return np.frombuffer(data, np.float16).reshape(count, *self.shape)
