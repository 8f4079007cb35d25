"""Fusion of picture and text: predicts the next token from a photograph's features and the LSTM's state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from cutline.schemas.settings import FusionSettings, LanguageModelSettings
from cutline.tasks.models.content_embedding import SAME, ContentEmbedding
from cutline.tasks.models.language_model import LanguageModel
from cutline.tasks.models.weights import check_weights, initial_seeds, load_weights
from cutline.tasks.runtime.memory import by_reference
from cutline.tasks.storage.tables import tensor

if TYPE_CHECKING:
    import keras


WEIGHTS = "fusion.weights.h5"
SEEDS_BEFORE = 5  # of those that follow from a seed the first are a language model's
REGION_LENGTH = 8.0  # regions and pooled features are scaled to this length

Drop = Callable[[Any, str], Any]  # values and their place in the network -> values with some zeroed


def keep_all(values: Any, _: str) -> Any:
    """What drops nothing."""
    return values


class Memory(NamedTuple):
    """What a fusion keeps of photographs while their captions are written; None is nothing."""

    keys: Any = None  # (B, heads, size, R), of `attention`
    values: Any = None  # (B, heads, R, size), or (B, 1, hidden) of `concat`
    about: Any = None  # (B, 1, hidden), of their content vectors

    def kept(self) -> dict[str, Any]:
        """All that is not nothing, by name."""
        return {name: values for name, values in self._asdict().items() if values is not None}


@dataclass(frozen=True)
class Fusion:
    """The layers of the fusion, and the Keras model that owns their weights.

    The logits are those of the language model plus what the photograph changes, which is nothing
    at the start of the training: the English of all captions need not be learned again from the
    few that have a photograph.
    """

    model: keras.Model  # owns the weights of all but the output layer, which are the language model's
    layers: Mapping[str, keras.layers.Layer]
    settings: FusionSettings
    content_embedding: ContentEmbedding | None  # None where there was too little to learn from

    def encode(self, photos: Any, drop: Drop = keep_all, content_vectors: Any = None) -> Memory:
        """What is computed once a photograph, laid out as it is multiplied; its content embedding (B, K)
        where known.

        (B, R, C) -> keys (B, heads, size, R), values (B, heads, R, size), about (B, 1, hidden). `concat` has
        no use for keys and sees a photograph as one region, its pooled features; its values: (B, 1, hidden).
        """
        if content_vectors is None:
            content_vectors = self.content_vectors(photos)
        return _encode(self.layers, self.settings, photos, content_vectors, drop)

    def content_vectors(self, photos: Any) -> Any:
        """As `ContentEmbedding.of_photos`, within the graph: (B, R, C) -> (B, K), or None without a
        content embedding."""
        return _gists(self.content_embedding, photos) if self.content_embedding else None

    def imagine(self, content_vectors: Any) -> Memory:
        """As `encode`, of photographs that nobody took: of their content vectors alone, (B, K)."""
        return Memory(about=self.layers["content_embedding"](content_vectors)[:, None])

    def attend(self, keys: Any, states: Any) -> Any:
        """How much each state looks at each region: `encode`'s keys, (B, Q, S) -> (B, heads, Q, R)."""
        return _attend(self.layers, self.settings.heads, keys, states)

    def hidden(self, memory: Memory, states: Any, drop: Drop = keep_all) -> Any:
        """What the output layer compares with each token: `encode`'s result, (B, Q, S) -> (B, Q, width)."""
        return _hidden(self.layers, self.settings, memory, states, drop)

    def logits(self, memory: Memory, states: Any) -> Any:
        """Logits of the next token to write: `encode`'s result, (B, Q, S) -> (B, Q, V)."""
        return self.layers["output"](self.hidden(memory, states))


def build_fusion(
    vocabulary_size: int,
    channels: int,
    settings: FusionSettings,
    lm_settings: LanguageModelSettings,
    content_embedding: ContentEmbedding | None = None,
    seed: int = 0,
) -> Fusion:
    """A fusion with random weights, which follow from `seed`, for features of `channels` numbers a region."""
    import keras

    seeds = islice(initial_seeds(seed), SEEDS_BEFORE, None)

    def dense(size: int, kernel_initializer: Any = None, **more: Any) -> keras.layers.Dense:
        drawn = kernel_initializer or keras.initializers.GlorotUniform(next(seeds))
        return keras.layers.Dense(size, kernel_initializer=drawn, **more)

    size, content_embedding = (
        settings.hidden_size,
        content_embedding if content_embedding and content_embedding.size else None,
    )
    layers = {
        # Nothing is seen in regions at first where content vectors teach before them.
        "value": dense(size, kernel_initializer="zeros" if content_embedding else None, name="value"),
        "state": dense(size, name="state"),
        "change": dense(lm_settings.embedding_size, kernel_initializer="zeros", name="change"),
        "projection": dense(lm_settings.embedding_size, name="projection"),
        # Left as the language model has it: few captions teach a word's meaning, many taught it.
        "output": dense(vocabulary_size, use_bias=False, trainable=False, name="output"),
    }
    if settings.kind == "attention":
        layers |= {"key": dense(size, name="key"), "query": dense(size, name="query")}
    photos = keras.Input((None, channels), name="photos")
    states = keras.Input((None, lm_settings.state_size), name="states")
    inputs, content_vectors = [photos, states], None
    if content_embedding:
        layers["content_embedding"] = dense(size, name="content_embedding")
        content_vectors = keras.Input((content_embedding.size,), name="content_vectors")
        inputs.append(content_vectors)
    memory = _encode(layers, settings, photos, content_vectors, keep_all)
    hidden = _hidden(layers, settings, memory, states, keep_all)
    layers["output"].build((None, lm_settings.embedding_size))
    return Fusion(keras.Model(inputs, hidden, name="fusion"), layers, settings, content_embedding)


def load_fusion(
    path: Path,
    language_model: LanguageModel,
    channels: int,
    settings: FusionSettings,
    lm_settings: LanguageModelSettings,
    content_embedding: ContentEmbedding | None = None,
) -> Fusion:
    """The trained fusion in `path`, of this language model. Raises StaleModel where the file does not fit."""
    hidden, states, size = settings.hidden_size, lm_settings.state_size, lm_settings.embedding_size
    seen = channels + 1 + states + 1  # of photograph and text, each with its bias
    numbers = seen * hidden * (2 if settings.kind == "attention" else 1)
    numbers += (hidden + 1 + states + 1) * size  # the output is the language model's
    numbers += (content_embedding.size + 1) * hidden if content_embedding and content_embedding.size else 0
    check_weights(path, numbers, "fusion")  # before a model of any size is built
    fusion = build_fusion(language_model.vocabulary_size, channels, settings, lm_settings, content_embedding)
    load_weights(fusion.model, path)
    _share_output(fusion, language_model)
    return fusion


def _gists(content_embedding: ContentEmbedding, photos: Any) -> Any:
    from keras import ops

    pooled = ops.mean(photos, 1)
    pooled = pooled / ops.sqrt(ops.sum(ops.square(pooled), -1, keepdims=True) + 1e-12)
    kernel = content_embedding.kernel
    landmarks = by_reference(kernel.landmarks.T.astype(np.float32))
    alike = ops.exp((pooled @ landmarks - 1) * (2 / kernel.bandwidth))
    same = ops.cast(alike >= SAME, "float32")
    same = same / ops.maximum(ops.sum(same, -1, keepdims=True), 1)
    found = alike @ by_reference(content_embedding.weights) + content_embedding.offset
    return found + same @ by_reference(content_embedding.corrections)


def _encode(
    layers: Mapping[str, keras.layers.Layer],
    settings: FusionSettings,
    photos: Any,
    content_vectors: Any,
    drop: Drop,
) -> Memory:
    from keras import ops

    # A region's length varies tenfold with contrast and says little about what is there.
    length = ops.sqrt(ops.sum(ops.square(photos), -1, keepdims=True) + 1e-6)
    regions = drop(photos * (REGION_LENGTH / length), "regions")
    about = None if content_vectors is None else layers["content_embedding"](content_vectors)[:, None]
    if settings.kind == "concat":
        return Memory(None, layers["value"](regions), about)
    keys, values = (_in_heads(layers[name](regions), settings.heads) for name in ("key", "value"))
    return Memory(ops.transpose(keys, (0, 1, 3, 2)), values, about)


def _attend(layers: Mapping[str, keras.layers.Layer], heads: int, keys: Any, states: Any) -> Any:
    from keras import ops

    queries = _in_heads(layers["query"](states), heads)
    return ops.softmax(ops.matmul(queries, keys) * queries.shape[-1] ** -0.5)


def _in_heads(values: Any, heads: int) -> Any:
    """(B, N, hidden) -> (B, heads, N, size)."""
    from keras import ops

    return ops.stack(ops.split(values, heads, -1), 1)  # a transposition takes twice as long


def _hidden(
    layers: Mapping[str, keras.layers.Layer],
    settings: FusionSettings,
    memory: Memory,
    states: Any,
    drop: Drop,
) -> Any:
    from keras import ops

    states = drop(states, "states")
    met = layers["state"](states)
    if memory.keys is not None:
        weights = _attend(layers, settings.heads, memory.keys, states)
        met += ops.concatenate(ops.unstack(ops.matmul(weights, memory.values), axis=1), -1)
    elif memory.values is not None:
        met += memory.values  # of `concat`: the same for each state
    if memory.about is not None:
        met += memory.about
    return layers["projection"](states) + layers["change"](drop(ops.relu(met), "hidden"))


def start_from(fusion: Fusion, language_model: LanguageModel) -> None:
    """Give `fusion` the language model's way from state to logits; its photographs change nothing yet."""
    fusion.layers["projection"].set_weights(language_model.projection.get_weights())
    _share_output(fusion, language_model)


def _share_output(fusion: Fusion, language_model: LanguageModel) -> None:
    fusion.layers["output"].set_weights([language_model.embedding.embeddings.numpy().T])


def photo_tensor(frame: pl.DataFrame, kind: str) -> np.ndarray:
    """What a fusion of this kind sees of the photographs in `frame`: (rows, R, C) float16.

    `attention` sees the regions; `concat` the pooled features, as one region.
    """
    return tensor(frame["regions"]) if kind == "attention" else tensor(frame["pooled"])[:, None]
