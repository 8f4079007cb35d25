"""States and vectors of captions: one state more than tokens, the same whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cutline.schemas.settings import TextFeaturesSettings
from cutline.schemas.tables import check
from cutline.tasks.features.text_features import make_text_features
from cutline.tasks.models.language_model import build_language_model
from cutline.tasks.models.weights import save_weights
from cutline.tasks.text.vocabulary import UNK
from tests.support.toys import LM_SETTINGS, as_tokens, toy_captions, toy_vocabulary


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "language_model.weights.h5"
    save_weights(build_language_model(toy_vocabulary().height, LM_SETTINGS).model, path)
    return path


def features(weights: Path, tokens: pl.DataFrame, batch_size: int = 32) -> pl.DataFrame:
    settings = TextFeaturesSettings(batch_size=batch_size)
    return make_text_features(tokens, toy_vocabulary(), weights, LM_SETTINGS, settings, lambda _: None)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_states_are_those_of_the_lstm_equations(weights: Path) -> None:
    """Hochreiter and Schmidhuber's equations with Keras's order of gates, in NumPy."""
    import h5py

    caption = ["a", "red", "dog", "zyx"]
    found = np.array(features(weights, as_tokens([caption]))["states"][0].to_list())
    with h5py.File(weights) as file:
        arrays: dict[str, np.ndarray] = {}
        file.visititems(
            lambda n, d: arrays.update({n: np.asarray(d, np.float64)}) if hasattr(d, "shape") else None
        )
    by_shape = {array.shape: array for array in arrays.values()}
    embedding = by_shape[(toy_vocabulary().height, 16)]
    kernel, recurrent, bias = by_shape[(16, 96)], by_shape[(24, 96)], by_shape[(96,)]
    ids = dict(toy_vocabulary().select("token", "id").iter_rows())
    state, cell = np.zeros(24), np.zeros(24)
    for row, token in enumerate(["<start>", *caption]):
        gates = embedding[ids.get(token, UNK)] @ kernel + state @ recurrent + bias
        into, forget, new, out = np.split(gates, 4)
        cell = sigmoid(forget) * cell + sigmoid(into) * np.tanh(new)
        state = sigmoid(out) * np.tanh(cell)
        assert found[row] == pytest.approx(state, abs=1e-3)
    assert len(found) == len(caption) + 1


def test_the_vector_is_the_mean_of_the_states_after_content_tokens(weights: Path) -> None:
    tokens = as_tokens([["a", "red", "dog", "runs"]]).with_columns(
        content_tokens=pl.lit(["red", "dog"], pl.List(pl.String))
    )
    row = features(weights, tokens)
    states = np.array(row["states"][0].to_list())
    assert np.array(row["vector"][0].to_list()) == pytest.approx(states[[2, 3]].mean(0), abs=1e-3)


@pytest.mark.parametrize(("caption", "rows"), [(["the", "a"], [1, 2]), ([], [0])])
def test_without_content_tokens_the_vector_is_the_mean_of_all(
    weights: Path, caption: list[str], rows: list[int]
) -> None:
    row = features(weights, as_tokens([caption]))
    states = np.array(row["states"][0].to_list())
    assert np.array(row["vector"][0].to_list()) == pytest.approx(states[rows].mean(0), abs=1e-3)


def test_the_table_is_valid_and_in_the_order_of_the_captions(weights: Path) -> None:
    table = features(weights, toy_captions())
    check(table, "text_features", state_size=24)
    assert table["caption_id"].equals(toy_captions()["caption_id"])
    assert table["states"].list.len().to_list() == (toy_captions()["tokens"].list.len() + 1).to_list()


def test_a_row_is_the_same_alone_among_others_and_in_another_place(weights: Path) -> None:
    captions = toy_captions()
    together = features(weights, captions)
    backwards = features(weights, captions.reverse())
    assert together.equals(backwards.reverse())
    long_neighbour = pl.concat([as_tokens([["dog"] * 60]), captions[3:4]])
    assert features(weights, long_neighbour)[1].equals(together[3])
    assert features(weights, captions[3:4]).equals(together[3:4])


def test_no_captions_give_an_empty_table(weights: Path) -> None:
    table = features(weights, toy_captions()[:0])
    check(table, "text_features", state_size=24)
    assert table.height == 0
