"""What the trainings share: repeatable TensorFlow, checkpoints that survive `kill -9`, weight files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from cutline.schemas.tables import dtypes_of
from cutline.tasks.runtime.npz import read_all_npz

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


def make_repeatable() -> None:
    """Make TensorFlow here give the same bits for the same work."""
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def fingerprint(*parts: str | bytes | memoryview) -> str:
    """A digest of `parts`, in order: what a checkpoint must agree with to be resumed."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = memoryview(part.encode() if isinstance(part, str) else part)
        digest.update(data.nbytes.to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


@dataclass
class Checkpoint:
    """One file that holds all that a training needs to go on; whole or absent, whenever the process dies."""

    path: Path
    made_from: str

    def load(self) -> dict[str, np.ndarray] | None:
        """The arrays last saved, or None where there are none or they belong to another training."""
        try:
            arrays = read_all_npz(self.path)
        except ValueError:
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
