"""The fusion learns from features in Parquet, gives the same bytes twice, and survives being killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cutline.schemas.errors import UsageError
from cutline.schemas.settings import FusionSettings
from cutline.schemas.tables import check
from cutline.tasks.models.fusion import WEIGHTS, load_fusion, start_from
from cutline.tasks.models.language_model import load_language_model
from cutline.tasks.training.batches import Pairs
from tests import REPOSITORY
from tests.support.toys import (
    CHANNELS,
    DEV_PHOTOS,
    FUSION_SETTINGS,
    LM_SETTINGS,
    toy_pairs,
    toy_vocabulary,
    train_toy_fusion,
)


def load(folder: Path, features: Path, settings: FusionSettings = FUSION_SETTINGS):
    words = load_language_model(features / "language_model.weights.h5", toy_vocabulary().height, LM_SETTINGS)
    return load_fusion(folder / WEIGHTS, words, CHANNELS, settings, LM_SETTINGS)


def test_it_learns_what_the_photographs_show(toy_fusion: tuple[Path, pl.DataFrame]) -> None:
    _, curve = toy_fusion
    check(curve, "curve")
    assert curve["dev_loss"].min() < 0.8 * curve["dev_loss"][0]
    assert curve.filter("best")["dev_cider"][0] == curve["dev_cider"].max() > 0.95


@pytest.mark.usefixtures("draws_beside")
def test_two_trainings_give_the_same_bytes(
    toy_features: Path, toy_fusion: tuple[Path, pl.DataFrame], tmp_path: Path
) -> None:
    curve = train_toy_fusion(toy_features, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == (toy_fusion[0] / WEIGHTS).read_bytes()
    assert curve.equals(toy_fusion[1])


@pytest.mark.parametrize("whole_epochs", [2, 5])
def test_a_training_killed_half_way_ends_with_the_same_bytes(
    toy_features: Path, toy_fusion: tuple[Path, pl.DataFrame], tmp_path: Path, whole_epochs: int
) -> None:
    (tmp_path / "features").symlink_to(toy_features)
    command = [sys.executable, "-m", "tests.support.toys", "fusion", str(tmp_path)]
    (temporary := tmp_path / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(temporary)}
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:  # the toy prints the captions done; there are 360 an epoch
        if int(line) > 360 * (whole_epochs + 0.5):
            os.kill(process.pid, signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / WEIGHTS).exists()
    done: list[int] = []
    curve = train_toy_fusion(toy_features, tmp_path, advance=done.append)
    assert done[0] == 360 * whole_epochs, "whole epochs were not trained again"
    assert (tmp_path / WEIGHTS).read_bytes() == (toy_fusion[0] / WEIGHTS).read_bytes()
    assert curve.equals(toy_fusion[1])
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["fusion.npz"], (
        "scratch files are given back"
    )
    assert not list(temporary.iterdir()), "nothing is left outside the workspace"


def test_concat_learns_from_pooled_features(toy_features: Path, tmp_path: Path) -> None:
    settings = FUSION_SETTINGS.model_copy(update={"kind": "concat"})
    curve = train_toy_fusion(toy_features, tmp_path, settings)
    assert curve["dev_cider"].max() > 0.8
    assert "key" not in load(tmp_path, toy_features, settings).layers


def test_without_a_dev_photograph_all_epochs_are_made_and_their_dev_columns_are_empty(
    toy_features: Path, tmp_path: Path
) -> None:
    pairs = toy_pairs().filter(split="train")
    settings = FUSION_SETTINGS.model_copy(update={"epochs": 3})
    curve = train_toy_fusion(toy_features, tmp_path, settings, pairs)
    assert curve["best"].to_list() == [False, False, True]
    assert curve["dev_cider"].null_count() == curve["dev_loss"].null_count() == 3


def test_captions_without_features_are_left_out_and_none_left_is_said(
    toy_features: Path, tmp_path: Path
) -> None:
    nowhere = toy_pairs().with_columns(photo_id=pl.lit("0" * 32))
    with pytest.raises(UsageError, match="nothing to learn captions from"):
        train_toy_fusion(toy_features, tmp_path, pairs=nowhere)
    test_only = toy_pairs().with_columns(split=pl.lit("test"))
    with pytest.raises(UsageError, match="nothing to learn captions from"):
        train_toy_fusion(toy_features, tmp_path, pairs=test_only)


def test_before_it_has_learned_it_says_what_the_language_model_says(toy_features: Path) -> None:
    from cutline.tasks.models.fusion import build_fusion

    words = load_language_model(
        toy_features / "language_model.weights.h5", toy_vocabulary().height, LM_SETTINGS
    )
    fusion = build_fusion(toy_vocabulary().height, CHANNELS, FUSION_SETTINGS, LM_SETTINGS)
    start_from(fusion, words)
    rng = np.random.default_rng(0)
    read = np.array([[1, 4, 5, 6]], np.int32)
    states = words.lstm(words.embedding(read))
    logits = fusion.logits(fusion.encode(rng.random((1, 4, CHANNELS), np.float32)), states)
    assert np.asarray(logits) == pytest.approx(np.asarray(words.model(read)), abs=1e-5)


def test_the_logits_are_those_of_a_plain_numpy_model(
    toy_features: Path, toy_fusion: tuple[Path, pl.DataFrame]
) -> None:
    fusion, rng = load(toy_fusion[0], toy_features), np.random.default_rng(1)
    photo, states = rng.random((1, 4, CHANNELS)), rng.normal(size=(1, 3, 24))
    weights = {
        name: [w.astype(np.float64) for w in layer.get_weights()] for name, layer in fusion.layers.items()
    }

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        kernel, *bias = weights[name]
        return x @ kernel + sum(bias)

    regions = photo[0] / np.linalg.norm(photo[0], axis=1, keepdims=True) * 8
    expected = []
    for state in states[0]:
        seen = []
        for head in range(2):
            part = slice(16 * head, 16 * head + 16)
            looks = dense("key", regions)[:, part] @ dense("query", state)[part] / 4
            shares = np.exp(looks) / np.exp(looks).sum()
            seen.append(shares @ dense("value", regions)[:, part])
        hidden = np.maximum(dense("state", state) + np.concatenate(seen), 0)
        expected.append(dense("output", dense("projection", state) + dense("change", hidden)))
    found = fusion.logits(fusion.encode(photo.astype(np.float32)), states.astype(np.float32))
    assert np.asarray(found)[0] == pytest.approx(np.array(expected), abs=1e-3)


def test_pairs_give_each_caption_once_with_its_own_states_and_targets(
    toy_features: Path, tmp_path: Path
) -> None:
    images, texts = sorted(toy_features.glob("images.*")), sorted(toy_features.glob("texts.*"))
    pairs = toy_pairs().sample(fraction=1, shuffle=True, seed=3)
    data = Pairs.read(pairs, images, texts, toy_vocabulary(), "attention", tmp_path)
    by_caption = {
        tuple(row["tokens"]): row["states"]
        for row in pl.concat([pl.read_parquet(path) for path in texts])
        .join(toy_pairs(), on="caption_id")
        .iter_rows(named=True)
    }
    tokens = toy_vocabulary()["token"].to_list()
    seen = 0
    for batch, count in data.batches(data.rows(dev=False), 7):
        seen += count
        for targets, states in zip(batch.targets, batch.states, strict=True):
            ends = np.flatnonzero(targets == 2)
            for begin, end in zip([0, *ends + 1], ends, strict=False):
                caption = tuple(tokens[i] for i in targets[begin:end])
                assert np.array_equal(states[begin : end + 1], np.array(by_caption[caption], np.float16))
    assert seen == 5 * (80 - DEV_PHOTOS)
    assert len(data.dev_photos) == DEV_PHOTOS
