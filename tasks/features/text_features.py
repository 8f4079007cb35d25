"""The language model's states for each caption: what the fusion learns from, and a vector for the whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from cutline.schemas.settings import LanguageModelSettings, TextFeaturesSettings
from cutline.tasks.models.language_model import load_language_model
from cutline.tasks.models.lstm import rows_alike
from cutline.tasks.storage.tables import list_column, tensor_column
from cutline.tasks.text.encoding import Ragged, encode
from cutline.tasks.text.vocabulary import PAD, START

if TYPE_CHECKING:
    import tensorflow as tf


def make_text_features(
    tokens: pl.DataFrame,
    vocabulary: pl.DataFrame,
    language_model: Path,
    lm_settings: LanguageModelSettings,
    settings: TextFeaturesSettings,
    advance: Callable[[int], None],
) -> pl.DataFrame:
    """The `text_features` of the captions in the `tokens` table, a row each, in its order.

    `states` holds T + 1 states of a caption of T tokens, float16 (T + 1, state_size): after
    <start>, which predicts the first token, and after each token. `vector` is the mean of the
    states after content tokens, or after all tokens where there is no content token. A row does
    not depend on the others. Raises StaleModel where the language model does not fit.
    """
    captions = encode(tokens["tokens"], vocabulary)
    is_content = _content_positions(tokens)
    stamp = language_model.stat()
    size = rows_alike(settings.batch_size)
    read = _reader(language_model, stamp.st_mtime_ns, vocabulary.height, lm_settings, size)
    ends = np.cumsum(captions.lengths + 1)
    states = np.zeros((int(ends[-1]) if len(ends) else 0, lm_settings.state_size), np.float16)
    vectors = np.zeros((len(captions), lm_settings.state_size), np.float16)
    by_length = np.argsort(captions.lengths, kind="stable")
    for place in range(0, len(by_length), size):
        rows = by_length[place : place + size]
        batch = read(_with_start(captions, rows, size)).numpy()
        for row, values in zip(rows, batch, strict=False):
            length = captions.lengths[row]
            states[ends[row] - length - 1 : ends[row]] = values[: length + 1]
            content = is_content[captions.starts[row] : captions.starts[row + 1]]
            after_tokens = values[1 : length + 1] if length else values[:1]
            vectors[row] = (after_tokens[content] if content.any() else after_tokens).mean(0)
        advance(len(rows))
    return pl.DataFrame(
        [tokens["caption_id"], list_column("states", states, ends), tensor_column("vector", vectors)]
    )


def _content_positions(tokens: pl.DataFrame) -> np.ndarray:
    """For all tokens end to end: is it one of its caption's content tokens?"""
    flat = (
        tokens.with_row_index("row")
        .filter(pl.col("tokens").list.len() > 0)
        .select("row", "tokens", content=pl.col("content_tokens"))
        .explode("tokens")
    )
    return flat.select(pl.col("content").list.contains(pl.col("tokens")))["content"].to_numpy()


def _with_start(captions: Ragged, rows: np.ndarray, batch_size: int) -> np.ndarray:
    """<start> and the tokens of `rows`, (batch_size, longest + 1) int32; missing rows are empty captions."""
    width = int(captions.lengths[rows].max())
    inputs = np.full((batch_size, width + 1), PAD, np.int32)
    inputs[:, 0] = START
    inputs[: len(rows), 1:] = captions.padded(rows, width)
    return inputs


@lru_cache(maxsize=1)
def _reader(
    weights: Path, _mtime_ns: int, vocabulary_size: int, lm_settings: LanguageModelSettings, batch_size: int
) -> Callable[[np.ndarray], tf.Tensor]:
    """Tokens (batch_size, T) -> states (batch_size, T, state_size); compiled once for all shards.

    One matrix product a step, always of the same shape, so that neither neighbours nor their
    lengths change a row.
    """
    import tensorflow as tf

    language_model = load_language_model(weights, vocabulary_size, lm_settings)

    @tf.function(input_signature=[tf.TensorSpec((batch_size, None), tf.int32)], autograph=False)
    def read(inputs: tf.Tensor) -> tf.Tensor:
        return language_model.lstm(language_model.embedding(inputs))

    return read
