"""The language model learns from captions, gives the same bytes twice, and survives being killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cutline.schemas.errors import StaleModel, UsageError
from cutline.schemas.settings import LanguageModelSettings
from cutline.schemas.tables import check
from cutline.tasks.models import lstm
from cutline.tasks.models.language_model import WEIGHTS, build_language_model, load_language_model
from cutline.tasks.text.encoding import Ragged, encode
from cutline.tasks.text.vocabulary import END, PAD, START
from cutline.tasks.training.language_model import (
    CLIP,
    _batches,
    _Trainer,
    learning_rates,
    perplexity,
    train_language_model,
)
from tests import REPOSITORY
from tests.support.toys import LM_SETTINGS, as_tokens, toy_captions, toy_vocabulary


def train(
    out: Path, scratch: Path, settings: LanguageModelSettings = LM_SETTINGS, dev: int = 40
) -> pl.DataFrame:
    captions, vocabulary = toy_captions(), toy_vocabulary()
    return train_language_model(
        captions[dev:], captions[:dev], vocabulary, settings, out, scratch, lambda _: None
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pl.DataFrame]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(folder, folder / "scratch")


def test_the_curve_falls_and_is_a_valid_table(trained: tuple[Path, pl.DataFrame]) -> None:
    _, curve = trained
    check(curve, "curve")
    assert curve["epoch"].to_list() == [1, 2, 3]
    assert curve["dev_loss"].is_sorted(descending=True)
    assert curve["best"].sum() == 1


def test_perplexity_is_that_of_the_probabilities_one_token_at_a_time(
    trained: tuple[Path, pl.DataFrame],
) -> None:
    folder, curve = trained
    vocabulary, dev = toy_vocabulary(), toy_captions()[:40]
    model = load_language_model(folder / WEIGHTS, vocabulary.height, LM_SETTINGS)
    ids = dict(vocabulary.select("token", "id").iter_rows())
    losses = []
    for tokens in dev["tokens"]:
        read = [1, *(ids.get(token, 3) for token in tokens)]
        state, cell = np.zeros((1, 24), np.float32), np.zeros((1, 24), np.float32)
        for token, following in zip(read, [*read[1:], 2], strict=True):
            state, cell = model.step(np.array([token]), state, cell)
            projected = np.asarray(model.projection(state))
            logits = (projected @ np.asarray(model.embedding.embeddings).T)[0].astype(np.float64)
            losses.append(np.log(np.exp(logits).sum()) - logits[following])
    expected = np.exp(np.mean(losses))
    assert perplexity(model, dev["tokens"], vocabulary, batch_size=16) == pytest.approx(expected, rel=1e-4)
    # The curve's loss is that of the same weights before they were rounded to float16.
    assert np.exp(curve.filter("best")["dev_loss"][0]) == pytest.approx(expected, rel=1e-2)


def test_a_pass_reads_every_caption_once_in_another_order_each_time_with_little_padding() -> None:
    rng = np.random.default_rng(3)
    lengths = rng.integers(0, 30, 1000)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    captions = Ragged(np.arange(starts[-1], dtype=np.int32) + 10, starts)

    def read(seed: int) -> tuple[list[list[int]], float]:
        batches = list(_batches(captions, 8, 20, np.random.default_rng(seed)))
        rows = [row for batch in batches for row in np.hstack([batch.inputs[:, :1], batch.targets]).tolist()]
        slots = sum(batch.targets.size for batch in batches)
        return [[token for token in row if token != PAD] for row in rows if row[0] == START], slots

    first, slots = read(1)
    whole = [[START, *captions[i], END][: 1 + 20 + (len(captions[i]) <= 20)] for i in range(1000)]
    assert sorted(first) == sorted(whole)
    assert sum(len(row) - 1 for row in first) / slots > 0.85
    second, _ = read(2)
    assert second != first
    assert sorted(second) == sorted(first)
    # Neighbours are of about one length, far places of any: the first tenth is no sample of the short.
    assert np.mean([len(row) for row in first[:128]]) == pytest.approx(np.mean([*map(len, first)]), rel=0.15)


def test_a_step_is_that_of_plain_keras_on_padded_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras
    import tensorflow as tf

    monkeypatch.setattr(lstm, "has_bfloat16", lambda: False)

    vocabulary = toy_vocabulary()
    settings = LM_SETTINGS.model_copy(update={"dropout": 0.0})
    captions = encode(toy_captions()["tokens"].head(settings.batch_size), vocabulary)
    trainer = _Trainer(captions, build_language_model(vocabulary.height, settings), settings)
    theirs, begun = build_language_model(vocabulary.height, settings).model, trainer.model.get_weights()
    theirs.set_weights(begun)
    adam = keras.optimizers.Adam(learning_rates(settings.learning_rate, 3, 1), global_clipnorm=CLIP)
    (batch,) = _batches(captions, settings.batch_size, settings.max_tokens, None)
    for epoch in (1, 2):
        trainer.epoch(epoch, lambda _: None)
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(
                batch.targets, theirs(batch.inputs), from_logits=True
            )
            loss = tf.reduce_sum(losses * (batch.targets != PAD)) / np.sum(batch.targets != PAD)
        variables = theirs.trainable_variables
        dense = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)]
        adam.apply(dense, variables)
    for mine, other, before in zip(trainer.model.get_weights(), theirs.get_weights(), begun, strict=True):
        assert np.abs(mine - before).max() > 0.01
        np.testing.assert_allclose(mine, other, atol=2e-4)


def test_the_learning_rate_rises_and_then_falls_to_nothing() -> None:
    rates = learning_rates(0.1, 20, 5)
    assert [float(rates(step)) for step in (0, 4, 5, 20)] == pytest.approx([0.02, 0.1, 0.1, 0])
    assert float(learning_rates(0.1, 1, 1)(0)) == pytest.approx(0.1)


def test_the_first_weights_are_those_that_keras_draws_after_the_same_seed() -> None:
    import keras

    keras.utils.set_random_seed(7)
    normal = keras.initializers.RandomNormal(stddev=0.2)
    size, states = LM_SETTINGS.embedding_size, LM_SETTINGS.state_size
    theirs = [
        keras.layers.Embedding(9, size, embeddings_initializer=normal),
        keras.layers.LSTM(states),
        keras.layers.Dense(size),
    ]
    for layer, width in zip(theirs, (9, size, states), strict=True):
        layer.build((None, None, width))
    ours = build_language_model(9, LM_SETTINGS, seed=7)
    for layer, other in zip((ours.embedding, ours.lstm, ours.projection), theirs, strict=True):
        for mine, another in zip(layer.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(mine, another)


@pytest.mark.usefixtures("draws_beside")
def test_two_trainings_give_the_same_bytes(trained: tuple[Path, pl.DataFrame], tmp_path: Path) -> None:
    curve = train(tmp_path, tmp_path / "scratch")
    assert (tmp_path / WEIGHTS).read_bytes() == (trained[0] / WEIGHTS).read_bytes()
    assert curve.equals(trained[1])


def test_another_seed_gives_another_model(trained: tuple[Path, pl.DataFrame], tmp_path: Path) -> None:
    train(tmp_path, tmp_path / "scratch", LM_SETTINGS.model_copy(update={"seed": 2}))
    assert (tmp_path / WEIGHTS).read_bytes() != (trained[0] / WEIGHTS).read_bytes()


def test_a_training_killed_half_way_ends_with_the_same_bytes(
    trained: tuple[Path, pl.DataFrame], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.support.toys", "language_model", str(tmp_path)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:  # the toy prints the captions done; there are 360 an epoch
        if int(line) > 360 * 1.5:
            os.kill(process.pid, signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / WEIGHTS).exists()
    assert (tmp_path / "scratch" / "language_model.npz").exists()
    done: list[int] = []
    captions = toy_captions()
    curve = train_language_model(
        captions[40:],
        captions[:40],
        toy_vocabulary(),
        LM_SETTINGS,
        tmp_path,
        tmp_path / "scratch",
        done.append,
    )
    assert done[0] == 360, "the first epoch was not trained again"
    assert sum(done) == 360 * 3
    assert (tmp_path / WEIGHTS).read_bytes() == (trained[0] / WEIGHTS).read_bytes()
    assert curve.equals(trained[1])


def test_a_checkpoint_of_other_settings_or_a_torn_one_is_not_taken_up(
    trained: tuple[Path, pl.DataFrame], tmp_path: Path
) -> None:
    other = LM_SETTINGS.model_copy(update={"seed": 2, "epochs": 1})
    train(tmp_path, tmp_path / "scratch", other)
    train(tmp_path, tmp_path / "scratch")
    assert (tmp_path / WEIGHTS).read_bytes() == (trained[0] / WEIGHTS).read_bytes()
    checkpoint = tmp_path / "scratch" / "language_model.npz"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    train(tmp_path, tmp_path / "scratch")
    assert (tmp_path / WEIGHTS).read_bytes() == (trained[0] / WEIGHTS).read_bytes()


def test_without_dev_captions_the_last_epoch_is_kept(tmp_path: Path) -> None:
    curve = train(tmp_path, tmp_path / "scratch", LM_SETTINGS.model_copy(update={"epochs": 2}), dev=0)
    assert curve["dev_loss"].null_count() == 2
    assert curve["best"].to_list() == [False, True]


def test_nothing_to_learn_from_is_said(tmp_path: Path) -> None:
    nothing = toy_captions()[:0]
    with pytest.raises(UsageError, match="no training caption"):
        train_language_model(
            nothing, nothing, toy_vocabulary(), LM_SETTINGS, tmp_path, tmp_path, lambda _: None
        )


def test_captions_that_are_empty_long_or_unknown_do_not_stop_the_training(tmp_path: Path) -> None:
    odd = as_tokens([[], ["zyx"] * 100, ["<end>", "a"], ["a"]])
    captions = pl.concat([odd, toy_captions()[:60]])
    settings = LM_SETTINGS.model_copy(update={"epochs": 1})
    curve = train_language_model(
        captions, odd, toy_vocabulary(), settings, tmp_path, tmp_path / "scratch", lambda _: None
    )
    assert np.isfinite(curve["train_loss"][0])
    assert np.isfinite(curve["dev_loss"][0])


def test_weights_of_another_size_are_refused(trained: tuple[Path, pl.DataFrame], tmp_path: Path) -> None:
    with pytest.raises(StaleModel, match="expected size"):
        load_language_model(trained[0] / WEIGHTS, 9, LM_SETTINGS)
    (tmp_path / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(StaleModel):
        load_language_model(tmp_path / WEIGHTS, toy_vocabulary().height, LM_SETTINGS)


def test_weights_are_stored_in_half_precision(trained: tuple[Path, pl.DataFrame]) -> None:
    parameters = build_language_model(toy_vocabulary().height, LM_SETTINGS).model.count_params()
    assert (trained[0] / WEIGHTS).stat().st_size < 2 * parameters + 30_000


def test_steps_that_know_what_each_token_does_are_those_of_the_lstm(
    trained: tuple[Path, pl.DataFrame],
) -> None:
    language_model = load_language_model(trained[0] / WEIGHTS, toy_vocabulary().height, LM_SETTINGS)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, toy_vocabulary().height, 7).astype(np.int32)
    state, cell = rng.normal(size=(2, 7, LM_SETTINGS.state_size)).astype(np.float32)
    for found, expected in zip(
        language_model.stepper()(tokens, state, cell), language_model.step(tokens, state, cell), strict=True
    ):
        assert np.asarray(found) == pytest.approx(np.asarray(expected), abs=1e-5)
