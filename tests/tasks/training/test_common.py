"""What the trainings share: a checkpoint is there whole, or not at all, and nobody stumbles over it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from cutline.schemas.errors import CutlineError
from cutline.tasks.models.weights import save_weights
from cutline.tasks.training.common import Checkpoint


def test_a_checkpoint_is_that_of_the_training_that_it_was_made_from(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "partial/x.npz", "these captions").save({"a": np.arange(3)})
    again = Checkpoint(tmp_path / "partial/x.npz", "these captions").load()
    assert again is not None
    assert again["a"].tolist() == [0, 1, 2]
    assert Checkpoint(tmp_path / "partial/x.npz", "other captions").load() is None


def test_a_training_that_diverged_is_told_and_leaves_no_weights(tmp_path: Path) -> None:
    """Beyond 65,504 float16 knows infinity only, of which every later stage would calculate."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.layers[0].set_weights([np.array([[1.0], [1e6]]), np.zeros(1)])
    with pytest.raises(CutlineError, match="the training diverged; lower its learning_rate"):
        save_weights(model, tmp_path / "some.weights.h5")
    assert not (tmp_path / "some.weights.h5").exists()


def test_where_a_run_beside_has_ended_the_training_the_checkpoint_it_took_away_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_beside(_: int) -> None:
        shutil.rmtree(tmp_path / "partial")

    checkpoint = Checkpoint(tmp_path / "partial/x.npz", "these captions")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", end_beside)  # between writing and renaming
        checkpoint.save({"a": np.arange(3)})
    assert checkpoint.load() is None
    checkpoint.save({"a": np.arange(4)})
    assert checkpoint.load() is not None
