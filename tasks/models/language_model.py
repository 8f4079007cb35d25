"""The LSTM language model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cutline.schemas.settings import LanguageModelSettings
from cutline.tasks.models.weights import check_weights, initial_seeds, load_weights

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


WEIGHTS = "language_model.weights.h5"

Step = Callable[["tf.Tensor", "tf.Tensor", "tf.Tensor"], tuple["tf.Tensor", "tf.Tensor"]]


@dataclass(frozen=True)
class LanguageModel:
    """The layers of the language model, and the Keras model that owns their weights.

    Tokens are embedded, read by the LSTM, projected to the embedding's size and compared with
    every embedding: one matrix serves both ends (Press and Wolf 2017).
    """

    model: keras.Model  # (B, T) int32 -> logits (B, T, V)
    embedding: keras.layers.ReversibleEmbedding
    lstm: keras.layers.LSTM
    projection: keras.layers.Dense

    @property
    def vocabulary_size(self) -> int:
        return int(self.embedding.input_dim)

    def step(self, tokens: tf.Tensor, state: tf.Tensor, cell: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Read one token each: (B,) int32 and (B, state_size) twice -> the new state and cell."""
        _, (state, cell) = self.lstm.cell(self.embedding(tokens), [state, cell])
        return state, cell

    def stepper(self) -> Step:
        """As `step`, for many steps with the same weights: what each token does to the gates is worked
        out once."""
        import tensorflow as tf

        lstm = self.lstm.cell
        of_tokens = tf.matmul(self.embedding.embeddings, lstm.kernel) + lstm.bias  # (V, 4 * state_size)

        def step(tokens: tf.Tensor, state: tf.Tensor, cell: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            gates = tf.gather(of_tokens, tokens) + tf.matmul(state, lstm.recurrent_kernel)
            input_, forget, candidate, output = tf.split(gates, 4, -1)
            cell = tf.sigmoid(forget) * cell + tf.sigmoid(input_) * tf.tanh(candidate)
            return tf.sigmoid(output) * tf.tanh(cell), cell

        return step


def build_language_model(
    vocabulary_size: int, settings: LanguageModelSettings, seed: int = 0
) -> LanguageModel:
    """A language model with random weights, which follow from `seed`, for `vocabulary_size` tokens."""
    from keras import Input, Model, initializers, layers

    seeds = initial_seeds(seed)
    # Wider than Keras's ±.05: with one matrix at both ends the first logits are else all but alike, and
    # the first pass is spent on making them differ.
    spread = initializers.RandomNormal(stddev=0.2, seed=next(seeds))
    embedding = layers.ReversibleEmbedding(
        vocabulary_size, settings.embedding_size, embeddings_initializer=spread, name="embedding"
    )
    lstm = layers.LSTM(
        settings.state_size,
        return_sequences=True,
        use_cudnn=False,
        kernel_initializer=initializers.GlorotUniform(next(seeds)),
        recurrent_initializer=initializers.Orthogonal(seed=next(seeds)),
        seed=next(seeds),  # of its dropout, which is none
        name="lstm",
    )
    projection = layers.Dense(
        settings.embedding_size,
        kernel_initializer=initializers.GlorotUniform(next(seeds)),
        name="projection",
    )
    tokens = Input((None,), dtype="int32", name="tokens")
    logits = embedding(projection(lstm(embedding(tokens))), reverse=True)
    return LanguageModel(Model(tokens, logits, name="language_model"), embedding, lstm, projection)


def load_language_model(path: Path, vocabulary_size: int, settings: LanguageModelSettings) -> LanguageModel:
    """The trained language model in `path`. Raises StaleModel where the file does not fit."""
    size, states = settings.embedding_size, settings.state_size
    numbers = vocabulary_size * size + 4 * states * (size + states + 1) + (states + 1) * size
    check_weights(path, numbers, "language_model")  # before a model of any size is built
    language_model = build_language_model(vocabulary_size, settings)
    load_weights(language_model.model, path)
    return language_model
