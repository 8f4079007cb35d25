"""What the trainings share: repeatable TensorFlow, checkpoints that survive `kill -9`, weight files."""

from __future__ import annotations

import hashlib
import json
import os
import random
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from schemas.errors import CutlineError, StaleModel
from schemas.tables import dtypes_of
from tasks.vocabulary import END, PAD, START, UNK

if TYPE_CHECKING:
    import h5py
    import keras
    import tensorflow as tf


def make_repeatable() -> None:
    """Make TensorFlow here give the same bits for the same work."""
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def initial_seeds(seed: int) -> Iterator[int]:
    """A seed for each initial weight of a network, without end: those that Keras draws after
    `keras.utils.set_random_seed`.

    Keras draws them from the one generator of Python's `random`. So do other threads of the process, such as
    Prefect's connections for their pings, and the same training then began with other weights.
    """
    rng = random.Random(seed)
    while True:
        yield rng.randint(1, 10**9)


def fingerprint(*parts: str | bytes | memoryview) -> str:
    """A digest of `parts`, in order: what a checkpoint must agree with to be resumed."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = memoryview(part.encode() if isinstance(part, str) else part)
        digest.update(data.nbytes.to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Ragged:
    """Captions as token ids end to end, `ids` (N,) int32; each begins at its `starts` (captions + 1,)."""

    ids: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, caption: int) -> np.ndarray:
        return self.ids[self.starts[caption] : self.starts[caption + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each caption, (captions,) int64."""
        return np.diff(self.starts)

    def padded(self, rows: np.ndarray, width: int) -> np.ndarray:
        """The sequences of `rows` as (len(rows), width) int32, cut at `width` and filled up with <pad>."""
        places = self.starts[rows][:, None] + np.arange(width)
        inside = np.arange(width) < self.lengths[rows][:, None]
        if not len(self.ids):
            return np.full(inside.shape, PAD, np.int32)
        return np.where(inside, self.ids[np.minimum(places, len(self.ids) - 1)], PAD).astype(np.int32)

    def inputs_and_targets(
        self, rows: np.ndarray, size: int, max_tokens: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is read of the sequences `rows` and what each token is to foretell, (size, T) int32 each.

        Each is cut at `max_tokens`; missing rows and positions are <pad>.
        """
        whole_lengths = self.starts[rows + 1] - self.starts[rows]
        lengths = np.minimum(whole_lengths, max_tokens)
        width = int(lengths.max())
        inputs, targets = np.full((2, size, width + 1), PAD, np.int32)
        inputs[: len(rows), 0] = START
        inputs[: len(rows), 1:] = targets[: len(rows), :-1] = self.padded(rows, width)
        whole = whole_lengths <= max_tokens  # a caption that was cut does not end there
        targets[np.arange(len(rows)), lengths] = np.where(whole, END, PAD)
        return inputs, targets


def alike_in_length(
    lengths: np.ndarray, size: int, window: int, rng: np.random.Generator | None
) -> Iterator[np.ndarray]:
    """The numbers of all captions once, `size` at a time: by length, or in random order with an `rng`.

    Random batches of all lengths teach better than batches of one length, but are half padding. So
    captions are drawn at random for `window` batches at a time, and those of about one length put together.
    """
    drawn = rng.permutation(len(lengths)) if rng else np.arange(len(lengths))
    many = window * size if rng else max(len(lengths), 1)
    for first in range(0, len(drawn), many):
        some = drawn[first : first + many]
        some = some[np.argsort(lengths[some], kind="stable")]
        places = np.arange(0, len(some), size)
        for place in rng.permutation(places) if rng else places:
            yield some[place : place + size]


def encode(tokens: pl.Series, vocabulary: pl.DataFrame) -> Ragged:
    """The ids of each list of `tokens`; what the vocabulary lacks, or reserves, becomes <unk>.

    `vocabulary` has token and id.
    """
    words = vocabulary.filter(pl.col("id") > UNK)
    lengths = tokens.list.len().to_numpy().astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flat = tokens.filter(tokens.list.len() > 0).explode()
    ids = flat.replace_strict(words["token"], words["id"], default=UNK, return_dtype=pl.Int32)
    return Ragged(ids.to_numpy(), starts)


@dataclass
class Checkpoint:
    """One file that holds all that a training needs to go on; whole or absent, whenever the process dies."""

    path: Path
    made_from: str

    def load(self) -> dict[str, np.ndarray] | None:
        """The arrays last saved, or None where there are none or they belong to another training."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (FileNotFoundError, zipfile.BadZipFile, ValueError, EOFError, OSError):
            return None
        return arrays if str(arrays.pop("made_from", "")) == self.made_from else None

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the file; when this returns the new one is on the disk.

        Where a run beside this one has ended the same training, it takes the folder away, and with it what
        nobody goes on from any more.
        """
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        with suppress(FileNotFoundError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                np.savez(file, allow_pickle=False, **{"made_from": np.array(self.made_from), **arrays})
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)


@dataclass
class Progress:
    """What is carried from epoch to epoch: variables, the best weights so far, the rows of the curve."""

    variables: Sequence[keras.Variable]
    best: list[np.ndarray]
    curve: list[dict[str, Any]]
    stopped: bool = False

    def save(self, checkpoint: Checkpoint) -> None:
        """Write all of it down, so that `load` takes it up to the bit."""
        arrays = {f"variable.{i}": np.asarray(v) for i, v in enumerate(self.variables)}
        arrays |= {f"best.{i}": value for i, value in enumerate(self.best)}
        checkpoint.save(
            arrays | {"curve": np.array(json.dumps(self.curve)), "stopped": np.array(self.stopped)}
        )

    def add(
        self,
        epoch: int,
        train_loss: float,
        criterion: float,
        model: keras.Model,
        **values: float | str | None,
    ) -> None:
        """Note the end of an epoch; the model's weights are kept if `criterion` is the lowest so far."""
        best = all(criterion < row["criterion"] for row in self.curve)
        if best:
            self.best = [np.array(v) for v in model.variables]
        self.curve.append(
            {"epoch": epoch, "train_loss": train_loss, "criterion": criterion, "best": best, **values}
        )

    def epochs_since_best(self) -> int:
        """How many epochs have ended since the best one; 0 where that is the last."""
        return len(self.curve) - max(row["epoch"] for row in self.curve if row["best"])

    def restore_best(self, model: keras.Model) -> None:
        """Give `model` the weights of its best epoch; one has to have ended."""
        for variable, value in zip(model.variables, self.best, strict=True):
            variable.assign(value)

    def load(self, checkpoint: Checkpoint) -> None:
        """Take up where `checkpoint` ends; leaves everything as it is where there is none."""
        arrays = checkpoint.load()
        if arrays is None:
            return
        for i, variable in enumerate(self.variables):
            variable.assign(arrays[f"variable.{i}"])
        self.best = [arrays[f"best.{i}"] for i in range(sum(name.startswith("best.") for name in arrays))]
        self.curve = json.loads(str(arrays["curve"]))
        self.stopped = bool(arrays["stopped"])


def curve_table(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """The `curve` table from the rows of a Progress; `best` marks the one epoch whose weights were kept."""
    kept = max((row["epoch"] for row in rows if row["best"]), default=0)
    return pl.DataFrame(
        [
            {
                "epoch": row["epoch"],
                "train_loss": row["train_loss"],
                "dev_loss": row.get("dev_loss"),
                "dev_cider": row.get("dev_cider"),
                "best": row["epoch"] == kept,
            }
            for row in rows
        ],
        schema=dtypes_of("curve"),
    )


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
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Keras only warns of layers that a file says nothing about
            model.load_weights(path)
    except (OSError, ValueError, KeyError, TypeError, UserWarning) as error:
        raise StaleModel(
            f"'{path}' does not hold the weights of a {model.name} of the expected size: "
            f"{str(error).splitlines()[0][:200]}; train it again or give the settings it was trained with"
        ) from None


def dropout(values: tf.Tensor, rate: float, seed: tf.Tensor, shape: Any) -> tf.Tensor:
    """Zero a share `rate` of `values` and scale up the rest.

    The mask has `shape` and follows from `seed` (2,) alone, so a resumed training repeats it. A mask
    of length 1 along time is the same at each step (Gal and Ghahramani 2016).
    """
    import tensorflow as tf

    if not rate:
        return values
    kept = tf.random.stateless_uniform(shape, seed) >= rate
    return values * tf.cast(kept, values.dtype) / (1 - rate)
