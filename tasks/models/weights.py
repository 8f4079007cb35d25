"""Weights in HDF5 files, and the seeds that they start from."""

from __future__ import annotations

import math
import os
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cutline.schemas.errors import CutlineError, StaleModel

if TYPE_CHECKING:
    import h5py
    import keras


def initial_seeds(seed: int) -> Iterator[int]:
    """A seed for each initial weight of a network, without end: those that Keras draws after
    `keras.utils.set_random_seed`.

    Keras draws them from the one generator of Python's `random`. So do other threads of the process, such as
    Prefect's connections for their pings, and the same training then began with other weights.
    """
    rng = random.Random(seed)
    while True:
        yield rng.randint(1, 10**9)


def save_weights(model: keras.Model, path: Path) -> None:
    """Write the weights of `model` to `path` (Keras's HDF5 layout, float16), whole or not at all.

    Half the size; every later stage reads this file, so all of them see the same rounded weights.
    """
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    full, half = (path.with_name(f".{os.getpid()}.{part}.weights.h5") for part in ("full", "half"))
    model.save_weights(full)
    with h5py.File(full, "r") as source, h5py.File(half, "w") as target:
        _copy_attributes(source, target)

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                target.create_dataset(name, data=_halved(item))
            else:
                target.require_group(name)
            _copy_attributes(item, target[name])

        source.visititems(copy)
    with half.open("rb+") as file:
        os.fsync(file.fileno())
    half.replace(path)
    full.unlink()


def _halved(values: h5py.Dataset) -> np.ndarray:
    """As float16, by HDF5. Raises CutlineError where a number is too large for it, or is none."""
    half = np.asarray(values, np.float16)
    if not np.isfinite(half).all():
        raise CutlineError(
            "expected weights below 65,504, found larger ones: the training diverged; lower its learning_rate"
        )
    return half


def _copy_attributes(source: h5py.Group | h5py.Dataset, target: h5py.Group | h5py.Dataset) -> None:
    for name, value in source.attrs.items():
        target.attrs[name] = value


def load_weights(model: keras.Model, path: Path) -> None:
    """Fill `model` with the weights in `path`. Raises StaleModel where the file does not fit it."""
    try:
        check_weights(path, sum(math.prod(variable.shape) for variable in model.weights), model.name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Keras only warns of layers that a file says nothing about
            model.load_weights(path)
    except _NO_WEIGHTS as error:
        raise _stale(path, model.name, error) from None


# What h5py and Keras raise for a damaged file.
_NO_WEIGHTS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,
    AttributeError,
    MemoryError,
    SystemError,
    UserWarning,
)


def _stale(path: Path, name: str, error: BaseException) -> StaleModel:
    detail = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return StaleModel(
        f"'{path}' does not hold the weights of a {name} of the expected size: {detail}; train it again or "
        "give the settings it was trained with"
    )


def check_weights(path: Path, numbers: int, name: str) -> None:
    """Raise StaleModel unless the arrays in an HDF5 file are stored as they are and `numbers` in all.

    Keras would allocate what a dataset states, expand what is compressed and follow links to other files.
    """
    import h5py

    try:
        least = 2 * numbers  # bytes, as float16
        if path.stat().st_size < least:
            raise ValueError(f"expected at least {least:,} bytes, found {path.stat().st_size:,}")
        with h5py.File(path) as file:
            found = sum(_sizes(file))
    except _NO_WEIGHTS as error:
        raise _stale(path, name, error) from None
    if found != numbers:
        raise _stale(path, name, ValueError(f"expected {numbers:,} numbers, found {found:,}"))


def _sizes(group: h5py.Group, depth: int = 0) -> Iterator[int]:
    """How many numbers each array below `group` has. Raises ValueError for what is no plain array.

    h5py's own walk answers an error in its visitor with SystemError.
    """
    import h5py

    if depth > MAX_GROUPS or len(group) > MAX_LAYERS:
        raise ValueError(f"expected at most {MAX_GROUPS} groups within each other, {MAX_LAYERS:,} in each")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"expected arrays in the file itself, found a link '{name[:80]}'")
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _sizes(item, depth + 1)
            continue
        if (
            item.compression
            or item.chunks
            or item.external
            or item.is_virtual
            or item.dtype.kind not in "fiu"
        ):
            raise ValueError(f"expected plain arrays of numbers, found another, '{name[:80]}'")
        yield int(item.size or 0)


MAX_GROUPS, MAX_LAYERS = 10, 200
