"""Fusion of picture and text: foretells each next token from the photograph's features and the LSTM's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from schemas.errors import StaleModel, UsageError
from schemas.settings import FusionSettings, LanguageModelSettings
from tasks.beam_search import BeamSearch, Words
from tasks.language_model import LanguageModel, load_language_model
from tasks.tables import tensor
from tasks.training import (
    Checkpoint,
    Progress,
    Ragged,
    ScratchRows,
    curve_table,
    dropout,
    encode,
    fingerprint,
    flat_states,
    load_weights,
    make_repeatable,
    save_weights,
)
from tasks.vocabulary import END, PAD

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

WEIGHTS = "fusion.weights.h5"
KEEP_ALL: Callable[[Any, str], Any] = lambda values, _: values  # noqa: E731

Score = Callable[[Mapping[str, str], Mapping[str, Sequence[str]]], Mapping[str, float]]


@dataclass(frozen=True)
class Fusion:
    """The layers of the fusion, and the Keras model that owns their weights.

    The logits are those of the language model plus what the photograph changes: at the start of
    the training that is nothing, so 35,000 captions' worth of English need not be learned again.
    """

    model: keras.Model
    layers: Mapping[str, keras.layers.Layer]
    settings: FusionSettings

    def encode(self, photos: Any, drop: Callable[[Any, str], Any] = KEEP_ALL) -> tuple[Any, Any]:
        """Keys and values of the regions, once a photograph: (B, R, C) -> (B, R, hidden) twice.

        `concat` sees a photograph as one region, its pooled features.
        """
        return _encode(self.layers, photos, drop)

    def attend(self, keys: Any, states: Any, drop: Callable[[Any, str], Any] = KEEP_ALL) -> Any:
        """How much each state looks at each region: (B, R, hidden), (B, Q, S) -> (B, heads, Q, R), sums of 1."""
        return _attend(self.layers, self.settings, keys, drop(states, "states"))

    def logits(self, memory: tuple[Any, Any], states: Any, drop: Callable[[Any, str], Any] = KEEP_ALL) -> Any:
        """Logits of the next token: `encode`'s result, (B, Q, S) -> (B, Q, V)."""
        return _logits(self.layers, self.settings, memory, states, drop)


def build_fusion(
    vocabulary_size: int, channels: int, settings: FusionSettings, lm_settings: LanguageModelSettings
) -> Fusion:
    """A fusion with random weights, for features of `channels` numbers a region."""
    import keras

    dense, size = keras.layers.Dense, settings.hidden_size
    layers = {
        "value": dense(size, name="value"),
        "state": dense(size, name="state"),
        "change": dense(lm_settings.embedding_size, kernel_initializer="zeros", name="change"),
        "projection": dense(lm_settings.embedding_size, name="projection"),
        "output": dense(vocabulary_size, name="output"),
    }
    if settings.kind == "attention":
        layers |= {"key": dense(size, name="key"), "query": dense(size, name="query")}
    photos = keras.Input((None, channels), name="photos")
    states = keras.Input((None, lm_settings.state_size), name="states")
    logits = _logits(layers, settings, _encode(layers, photos, KEEP_ALL), states, KEEP_ALL)
    return Fusion(keras.Model([photos, states], logits, name="fusion"), layers, settings)


def load_fusion(
    path: Path,
    vocabulary_size: int,
    channels: int,
    settings: FusionSettings,
    lm_settings: LanguageModelSettings,
) -> Fusion:
    """The trained fusion in `path`. Raises StaleModel where the file does not fit."""
    fusion = build_fusion(vocabulary_size, channels, settings, lm_settings)
    load_weights(fusion.model, path)
    return fusion


NORM = "l2"


def _encode(
    layers: Mapping[str, keras.layers.Layer], photos: Any, drop: Callable[[Any, str], Any]
) -> tuple[Any, Any]:
    from keras import ops

    x = photos
    if NORM == "sqrt":
        x = ops.sqrt(ops.relu(x))
    # Their length varies tenfold with contrast and says little about what is seen.
    x = x * (8.0 / ops.sqrt(ops.sum(ops.square(x), -1, keepdims=True) + 1e-6))
    regions = drop(x, "regions")
    key = layers.get("key")
    return (key(regions) if key else regions), layers["value"](regions)


def _attend(
    layers: Mapping[str, keras.layers.Layer], settings: FusionSettings, keys: Any, states: Any
) -> Any:
    from keras import ops

    size = settings.hidden_size // settings.heads
    keys = ops.reshape(keys, (-1, keys.shape[1] or ops.shape(keys)[1], settings.heads, size))
    queries = layers["query"](states)
    queries = ops.reshape(queries, (-1, ops.shape(queries)[1], settings.heads, size))
    return ops.softmax(ops.einsum("bqhs,brhs->bhqr", queries, keys) * size**-0.5)


def _logits(
    layers: Mapping[str, keras.layers.Layer],
    settings: FusionSettings,
    memory: tuple[Any, Any],
    states: Any,
    drop: Callable[[Any, str], Any],
) -> Any:
    from keras import ops

    keys, values = memory
    states = drop(states, "states")
    if settings.kind == "attention":
        weights = _attend(layers, settings, keys, states)  # (B, heads, Q, R)
        size = settings.hidden_size // settings.heads
        values = ops.reshape(values, (-1, values.shape[1] or ops.shape(values)[1], settings.heads, size))
        seen = ops.einsum("bhqr,brhs->bqhs", weights, values)
        seen = ops.reshape(seen, (-1, ops.shape(seen)[1], settings.hidden_size))
    else:
        seen = values  # (B, 1, hidden): the same for each state
    hidden = drop(ops.relu(layers["state"](states) + seen), "hidden")
    return layers["output"](layers["projection"](states) + layers["change"](hidden))


def train_fusion(
    pairs: pl.DataFrame,
    image_features: Sequence[Path],
    text_features: Sequence[Path],
    vocabulary: pl.DataFrame,
    language_model: Path,
    lm_settings: LanguageModelSettings,
    settings: FusionSettings,
    references: Mapping[str, Sequence[str]],
    score: Score,
    out: Path,
    scratch: Path,
    advance: Callable[[int], None],
) -> pl.DataFrame:
    """Train on the features in Parquet alone; write `fusion.weights.h5` to `out`, return the `curve` table.

    `pairs` has a row a caption: caption_id, photo_id, split, tokens. After each epoch the dev
    split's photographs are captioned and `score`d against `references` (by photo_id); the weights
    of the highest CIDEr are kept. Without a dev photograph all `settings.epochs` are trained and
    the last is kept (the curve's dev columns are then empty). An interrupted training goes on
    from its last whole epoch, kept in `scratch`, to the same bytes. `advance` is told the captions
    done. Raises UsageError where no training caption has features, StaleModel where the language
    model does not fit.
    """
    make_repeatable(settings.seed)
    words = load_language_model(language_model, vocabulary.height, lm_settings)
    data = _Data.read(pairs, image_features, text_features, vocabulary, settings, lm_settings, scratch)
    trainer = _Trainer(data, words, vocabulary, settings, lm_settings)
    made_from = fingerprint(
        settings.model_dump_json(), lm_settings.model_dump_json(), language_model.read_bytes(), data.made_from
    )
    checkpoint = Checkpoint(scratch / "fusion.npz", made_from)
    progress = Progress(trainer.variables, [], [])
    progress.load(checkpoint)
    advance(int((~data.is_dev).sum()) * len(progress.curve))
    for epoch in range(len(progress.curve) + 1, settings.epochs + 1):
        if progress.stopped:
            break
        train_loss = trainer.epoch(epoch, advance)
        with trainer.averaged():
            dev_loss, cider = trainer.dev_loss(), trainer.dev_cider(references, score)
            badness = -epoch if cider is None else -cider
            progress.add(epoch, train_loss, badness, trainer.model, dev_loss=dev_loss, dev_cider=cider)
        progress.stopped = progress.epochs_since_best() >= settings.patience
        progress.save(checkpoint)
    data.close()
    progress.restore_best(trainer.model)
    save_weights(trainer.model, out / WEIGHTS)
    return curve_table(progress.curve)


CAPTIONS_A_ROW = 5


@dataclass(frozen=True)
class _Data:
    """What the training reads: tensors in scratch files, and slim tables of where they are.

    A caption is its number here; its states lie in rows starts[i] … starts[i] + length.
    """

    photos: ScratchRows  # (R, C)
    states: ScratchRows  # (state_size,), those of all captions end to end
    photo_ids: list[str]
    captions: Ragged  # ids of their tokens
    first_state: np.ndarray  # (captions,) int64
    photo_of: np.ndarray  # (captions,) int64
    is_dev: np.ndarray  # (captions,) bool
    dev_photos: np.ndarray  # numbers of the photographs to be captioned after each epoch
    made_from: str

    @staticmethod
    def read(
        pairs: pl.DataFrame,
        image_features: Sequence[Path],
        text_features: Sequence[Path],
        vocabulary: pl.DataFrame,
        settings: FusionSettings,
        lm_settings: LanguageModelSettings,
        scratch: Path,
    ) -> _Data:
        """Copy the features that `pairs` needs, shard by shard. Raises UsageError where nothing is left to learn."""
        pairs = pairs.filter(pl.col("split").is_in(["train", "dev"]))
        photos, photo_ids = _copy_photos(pairs, image_features, settings, scratch)
        states, first_states = _copy_states(pairs, text_features, lm_settings, scratch)
        numbers = pl.DataFrame({"photo_id": photo_ids}).with_row_index("photo")
        pairs = pairs.join(numbers, on="photo_id", maintain_order="left").join(
            first_states, on="caption_id", maintain_order="left"
        )
        if not (pairs["split"] == "train").any():
            raise UsageError(
                "no training caption has both its photograph's features and its own: nothing to learn from"
            )
        dev = pairs.filter(pl.col("split") == "dev")["photo"].unique(maintain_order=True)
        return _Data(
            photos,
            states,
            photo_ids,
            encode(pairs["tokens"], vocabulary),
            pairs["first_state"].to_numpy(),
            pairs["photo"].to_numpy().astype(np.int64),
            (pairs["split"] == "dev").to_numpy(),
            dev.to_numpy().astype(np.int64),
            fingerprint(
                *pairs["caption_id"],
                *photo_ids,
                *(f"{p.name} {p.stat().st_size}" for p in [*image_features, *text_features]),
            ),
        )

    def rows(self, dev: bool) -> list[np.ndarray]:
        """The captions' numbers, those of one photograph together, at most CAPTIONS_A_ROW a row."""
        captions = np.flatnonzero(self.is_dev == dev)
        captions = captions[np.argsort(self.photo_of[captions], kind="stable")]
        new_photo = np.flatnonzero(np.diff(self.photo_of[captions])) + 1
        of_photo = np.split(captions, new_photo) if len(captions) else []
        return [
            part[i : i + CAPTIONS_A_ROW] for part in of_photo for i in range(0, len(part), CAPTIONS_A_ROW)
        ]

    def batch(self, rows: Sequence[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`rows` of `rows()` as photos (size, R, C), states (size, Q, S), targets (size, Q) int32.

        Filled up with zeros, and with the target <pad>, which weighs nothing.
        """
        lengths = self.captions.lengths + 1  # the <end> is foretold too
        width = max(int(lengths[row].sum()) for row in rows)
        width = -(-width // 8) * 8
        photos = np.zeros((size, *self.photos.shape), np.float16)
        states = np.zeros((size, width, *self.states.shape), np.float16)
        targets = np.full((size, width), PAD, np.int32)
        for i, row in enumerate(rows):
            photos[i] = self.photos.read(int(self.photo_of[row[0]]), 1)[0]
            place = 0
            for caption in row:
                end = place + int(lengths[caption])
                states[i, place:end] = self.states.read(int(self.first_state[caption]), end - place)
                first, last = self.captions.starts[caption : caption + 2]
                targets[i, place : end - 1] = self.captions.ids[first:last]
                targets[i, end - 1] = END
                place = end
        return photos, states, targets

    def close(self) -> None:
        self.photos.close()
        self.states.close()


def photo_column(kind: str) -> str:
    """The column of image_features that a fusion of this kind looks at."""
    return "regions" if kind == "attention" else "pooled"


def photo_tensor(frame: pl.DataFrame, kind: str) -> np.ndarray:
    """What a fusion of this kind sees of the photographs of `frame`: (rows, R, C) float16; R is 1 for `concat`."""
    values = tensor(frame[photo_column(kind)])
    return values if kind == "attention" else values[:, None]


def _copy_photos(
    pairs: pl.DataFrame, shards: Sequence[Path], settings: FusionSettings, scratch: Path
) -> tuple[ScratchRows, list[str]]:
    wanted, photo_ids, rows = pairs.select("photo_id").unique(), [], None
    for shard in shards:
        frame = pl.read_parquet(shard, columns=["photo_id", photo_column(settings.kind)])
        frame = frame.join(wanted, on="photo_id", how="semi", maintain_order="left")
        values = photo_tensor(frame, settings.kind)
        rows = rows or ScratchRows(scratch / "photos.rows", values.shape[1:])
        rows.append(values)
        photo_ids += frame["photo_id"].to_list()
    if rows is None:
        raise UsageError("there are no image features to learn from")
    return rows, photo_ids


def _copy_states(
    pairs: pl.DataFrame, shards: Sequence[Path], lm_settings: LanguageModelSettings, scratch: Path
) -> tuple[ScratchRows, pl.DataFrame]:
    wanted, rows = pairs.select("caption_id"), ScratchRows(scratch / "states.rows", (lm_settings.state_size,))
    places = [pl.DataFrame(schema={"caption_id": pl.String, "first_state": pl.Int64})]
    for shard in shards:
        frame = pl.read_parquet(shard, columns=["caption_id", "states"])
        frame = frame.join(wanted, on="caption_id", how="semi", maintain_order="left")
        states, starts = flat_states(frame["states"])
        places.append(frame.select("caption_id", first_state=pl.Series(starts[:-1] + rows.rows)))
        rows.append(states)
    return rows, pl.concat(places)


class _Trainer:
    """One fusion in training: its optimizer, its averaged weights and the compiled steps."""

    def __init__(
        self,
        data: _Data,
        language_model: LanguageModel,
        vocabulary: pl.DataFrame,
        settings: FusionSettings,
        lm_settings: LanguageModelSettings,
    ) -> None:
        import keras
        import tensorflow as tf

        self.data, self.settings = data, settings
        self.train_rows, self.dev_rows = data.rows(dev=False), data.rows(dev=True)
        self.fusion = build_fusion(vocabulary.height, data.photos.shape[-1], settings, lm_settings)
        self.model = self.fusion.model
        self.fusion.layers["projection"].set_weights(language_model.projection.get_weights())
        self.fusion.layers["output"].set_weights(
            [language_model.embedding.embeddings.numpy().T, np.zeros(vocabulary.height, np.float32)]
        )
        for name in FROZEN:
            self.fusion.layers[name].trainable = False
        captions = sum(map(len, self.train_rows))
        self.rows_a_step = max(1, round(settings.batch_size * len(self.train_rows) / captions))
        steps = -(-len(self.train_rows) // self.rows_a_step)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, steps * settings.epochs, warmup_target=settings.learning_rate, warmup_steps=steps, alpha=0.05
        )
        self.optimizer = keras.optimizers.AdamW(rate, weight_decay=WD, global_clipnorm=1.0)
        self.optimizer.build(self.model.trainable_variables)
        self.averages = [tf.Variable(v.value) for v in self.model.trainable_variables]
        self.steps_done = tf.Variable(0.0)
        self._step, self._dev_step = self._compiled()
        self.vocabulary = vocabulary.sort("id")["token"].to_list()
        self.search = BeamSearch(
            language_model, self.fusion, Words.of(self.vocabulary), settings.dev_beam, 20, 50
        )
        self._search = self.search.compiled()

    @property
    def variables(self) -> list[Any]:
        return [*self.model.variables, *self.optimizer.variables, *self.averages, self.steps_done]

    def epoch(self, epoch: int, advance: Callable[[int], None]) -> float:
        """One pass over the training captions; returns the mean -ln p a token, smoothing left out."""
        rng = np.random.default_rng((self.settings.seed, epoch))
        total = count = 0.0
        order = rng.permutation(len(self.train_rows))
        for place in range(0, len(order), self.rows_a_step):
            rows = [rng.permutation(self.train_rows[i]) for i in order[place : place + self.rows_a_step]]
            loss, tokens = self._step(
                *self.data.batch(rows, self.rows_a_step), rng.integers(2**31, size=2, dtype=np.int32)
            )
            total, count = total + float(loss), count + float(tokens)
            advance(sum(map(len, rows)))
        return total / count

    def dev_loss(self) -> float | None:
        total = count = 0.0
        for place in range(0, len(self.dev_rows), self.rows_a_step):
            loss, tokens = self._dev_step(
                *self.data.batch(self.dev_rows[place : place + self.rows_a_step], self.rows_a_step)
            )
            total, count = total + float(loss), count + float(tokens)
        return total / count if count else None

    def dev_cider(self, references, score) -> float | None:
        if not len(self.data.dev_photos):
            return None
        said = {}
        for place in range(0, len(self.data.dev_photos), 50):
            numbers = self.data.dev_photos[place : place + 50]
            photos = np.zeros((50, *self.data.photos.shape), np.float32)
            for i, n in enumerate(numbers):
                photos[i] = self.data.photos.read(int(n), 1)[0]
            tokens = self._search(photos)[0].numpy()
            for i, n in enumerate(numbers):
                said[self.data.photo_ids[n]] = " ".join(self.vocabulary[t] for t in tokens[i, 0] if t > 3)
        self.said = said
        return score(said, {k: references[k] for k in said})["CIDEr"]

    def averaged(self):
        import contextlib

        @contextlib.contextmanager
        def swap():
            vs = self.model.trainable_variables
            raw = [np.array(v) for v in vs]
            for v, a in zip(vs, self.averages):
                v.assign(a)
            yield
            for v, r in zip(vs, raw):
                v.assign(r)

        return swap()

    def _compiled(self):
        import tensorflow as tf

        S = self.settings
        n = self.rows_a_step
        sig = [
            tf.TensorSpec((n, *self.data.photos.shape), tf.float16),
            tf.TensorSpec((n, None, *self.data.states.shape), tf.float16),
            tf.TensorSpec((n, None), tf.int32),
        ]

        def losses(photos, states, targets, drop, smoothing):
            photos, states = tf.cast(photos, tf.float32), tf.cast(states, tf.float32)
            real = tf.where(targets != PAD)
            logits = self.fusion.logits(self.fusion.encode(photos, drop), states, drop)
            logits = tf.gather_nd(logits, real)
            right = tf.gather_nd(targets, real)
            nll = tf.nn.sparse_softmax_cross_entropy_with_logits(right, logits)
            loss = tf.reduce_sum(nll)
            if smoothing:
                even = tf.reduce_sum(tf.reduce_logsumexp(logits, -1) - tf.reduce_mean(logits, -1))
                smooth = (1 - smoothing) * loss + smoothing * even
            else:
                smooth = loss
            return loss, smooth, tf.cast(tf.shape(right)[0], tf.float32)

        @tf.function(input_signature=[*sig, tf.TensorSpec((2,), tf.int32)])
        def step(photos, states, targets, seed):
            vs = self.model.trainable_variables
            names = list(RATES)

            def drop(x, name):
                s = tf.shape(x)
                shape = (s[0], 1, s[2]) if name in SHARED else s
                return dropout(x, RATES[name], seed + names.index(name), shape)

            with tf.GradientTape() as tape:
                loss, smooth, count = losses(photos, states, targets, drop, SMOOTH)
                mean = smooth / count
            self.optimizer.apply_gradients(zip(tape.gradient(mean, vs), vs))
            self.steps_done.assign_add(1.0)
            keep = tf.minimum(EMA, self.steps_done / (self.steps_done + 10.0))
            for a, v in zip(self.averages, vs):
                a.assign(keep * a + (1 - keep) * v)
            return loss, count

        @tf.function(input_signature=sig)
        def dev(photos, states, targets):
            loss, _, count = losses(photos, states, targets, KEEP_ALL, 0.0)
            return loss, count

        return step, dev


FROZEN = ("output",)
WD = 0.0
RATES = {"regions": 0.3, "states": 0.3, "hidden": 0.5}
SHARED = ("regions", "states")
SMOOTH = 0.1
EMA = 0.98
