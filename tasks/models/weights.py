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

from cutline.schemas.errors import CutlineError
from cutline.tasks.training.common import _NO_WEIGHTS, _stale, check_weights

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
