"""Photographs and texts as vectors of one space: two small projections, trained by contrast.

A photograph goes in as its pooled features; a text as the language model's states at its content
words and as the bag of these words. The states know what a word means beside the others, the bag
which word it was: a state tells that well for frequent words only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from cutline.schemas.errors import UsageError
from cutline.schemas.settings import JointEmbeddingSettings
from cutline.schemas.tables import dtypes_of
from cutline.tasks.evaluation.retrieval_metrics import cosine_similarity, mean_recall, ranks
from cutline.tasks.models.joint_embedding import (
    ARRAYS,
    JOINT_EMBEDDING,
    Bags,
    JointEmbedding,
    bags_of,
    photo_input,
    unit,
)
from cutline.tasks.storage.tables import tensor
from cutline.tasks.training.common import make_repeatable
from cutline.tasks.training.scratch import ScratchRows

CAPTIONS_PER_BLOCK = 1_024  # whatever the number of captions, their inputs in float64 stay below 40 MB
MOST_DEV_PHOTOS = 1_000  # that the dev split's recall is measured on, as the field's "1K" does
# How much a direction of the start is held back, against the variance of its input; chosen on
# Flickr8k's dev split, as are the strengths that all three are multiplied by.
HOLD_PHOTO, HOLD_STATE, HOLD_WORD = 3.0, 1.3, 1.4e-3
STRENGTHS = (1.0, 0.3, 3.0, 0.1)  # the first where there is no dev split
MOST_GAIN = 1e4  # of a projection; where photographs or texts do not vary it would be without bounds
HOLD_TO_START = 1e-4  # of squared distance to the start, in the loss of the epochs after it
AVERAGING = 0.98  # the weights kept are a running mean over the last 50 steps or so


class Texts(NamedTuple):
    """What is projected of texts: states (n, S) float32, bags of words (n, W) float32 of length 1 or 0."""

    states: np.ndarray
    bags: np.ndarray


def inverse_document_frequencies(content_tokens: pl.Series, most: int) -> tuple[tuple[str, ...], np.ndarray]:
    """The most frequent words that two captions have, `most` of them, and how telling each is, (W,) float32.

    That is ln((1 + n) / (1 + df)) + 1, where df of n captions have the word; of equally frequent words the
    first in order of spelling is taken.
    """
    counts: Counter[str] = Counter()
    for tokens in content_tokens:
        counts.update(set(tokens))
    kept = [word for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count > 1]
    kept = kept[:most]
    held = np.array([counts[word] for word in kept], np.float32)
    return tuple(kept), np.log((1 + len(content_tokens)) / (1 + held)) + 1


# ---- what is learned from ----


@dataclass(frozen=True)
class Examples:
    """Captions of the train and dev splits with their photographs; tensors lie in scratch files."""

    photos: ScratchRows  # (C,)
    states: ScratchRows  # (S,)
    bags: Bags
    photo_of: np.ndarray  # (captions,) int64
    is_dev: np.ndarray  # (captions,) bool

    @staticmethod
    def read(
        pairs: pl.DataFrame,
        image_features: Sequence[Path],
        text_features: Sequence[Path],
        max_words: int,
        scratch: Path,
    ) -> tuple[Examples, tuple[str, ...], np.ndarray]:
        """Copy what `pairs` needs, shard by shard; with the words that have vectors, and their weights.

        Raises UsageError where no training caption has its features and its photograph's.
        """
        pairs = pairs.filter(pl.col("split").is_in(["train", "dev"]))
        photos, photo_ids = _copy(image_features, pairs["photo_id"].unique(), "pooled", scratch)
        states, caption_ids = _copy(text_features, pairs["caption_id"], "vector", scratch)
        numbers = pl.DataFrame({"photo_id": photo_ids}, {"photo_id": pl.String}).with_row_index("photo")
        rows = pl.DataFrame({"caption_id": caption_ids}, {"caption_id": pl.String}).with_row_index("row")
        pairs = rows.join(pairs, on="caption_id").join(numbers, on="photo_id").sort("row")
        train = pairs.filter(pl.col("split") == "train")
        if photos is None or states is None or train.is_empty():
            raise UsageError(
                "no caption of the train split has both its photograph's features and its own: "
                "nothing to match photographs and texts by"
            )
        words, weights = inverse_document_frequencies(train["content_tokens"], max_words)
        kept = ScratchRows(scratch, states.shape)
        for first in range(0, pairs.height, CAPTIONS_PER_BLOCK):
            some = pairs["row"].slice(first, CAPTIONS_PER_BLOCK).to_numpy()
            start = int(some[0])
            kept.append(states.read(start, int(some[-1]) - start + 1)[some - start])
        return (
            Examples(
                photos,
                kept,
                bags_of(pairs["content_tokens"], words, weights),
                pairs["photo"].to_numpy().astype(np.int64),
                (pairs["split"] == "dev").to_numpy(),
            ),
            words,
            weights,
        )

    def photo_rows(self, numbers: np.ndarray) -> np.ndarray:
        """The inputs of some photographs, (n, C) float32."""
        return photo_input(np.concatenate([self.photos.read(int(number), 1) for number in numbers]))

    def texts(self, captions: np.ndarray) -> Texts:
        """The inputs of some captions, by their numbers (n,)."""
        states = np.concatenate([self.states.read(int(caption), 1) for caption in captions])
        return Texts(states.astype(np.float32), self.bags.dense(captions))

    def blocks(self, captions: np.ndarray) -> Iterator[np.ndarray]:
        """Numbers of captions, CAPTIONS_A_BLOCK at a time: their inputs are never in memory as a whole."""
        for first in range(0, len(captions), CAPTIONS_PER_BLOCK):
            yield captions[first : first + CAPTIONS_PER_BLOCK]


def _copy(
    shards: Sequence[Path], ids: pl.Series, column: str, scratch: Path
) -> tuple[ScratchRows | None, list[str]]:
    """A column of the rows that `ids` name, from several shards, and the ids in the order of the rows."""
    rows, found = None, []
    for shard in shards:
        frame = pl.read_parquet(shard, columns=[ids.name, column]).join(
            ids.to_frame(), on=ids.name, how="semi", maintain_order="left"
        )
        if frame.is_empty():
            continue
        values = tensor(frame[column])
        rows = rows or ScratchRows(scratch, values.shape[1:])
        rows.append(values)
        found += frame[ids.name].to_list()
    return rows, found


# ---- the start: what photographs and captions have in common, in closed form ----


@dataclass
class Moments:
    """Means and covariances of both sides over the training captions, each with its own photograph.

    float64; means are (C,) of photographs and (S + W,) of texts.
    """

    photo_mean: np.ndarray
    text_mean: np.ndarray  # of states and bags side by side
    photos: np.ndarray  # (C, C)
    texts: np.ndarray  # (S + W, S + W)
    both: np.ndarray  # (S + W, C)

    @staticmethod
    def of(examples: Examples, advance: Callable[[int], None]) -> Moments:
        """Summed over blocks of training captions, of which `advance` is told."""
        captions = np.flatnonzero(~examples.is_dev)
        sums: list[Any] = [0.0] * 5
        for some in examples.blocks(captions):
            x = examples.photo_rows(examples.photo_of[some]).astype(np.float64)
            y = np.concatenate(examples.texts(some), axis=1).astype(np.float64)
            for place, value in enumerate((x.sum(0), y.sum(0), x.T @ x, y.T @ y, y.T @ x)):
                sums[place] += value
            advance(len(some))
        x_mean, y_mean, xx, yy, yx = (value / len(captions) for value in sums)
        return Moments(
            x_mean,
            y_mean,
            xx - np.outer(x_mean, x_mean),
            yy - np.outer(y_mean, y_mean),
            yx - np.outer(y_mean, x_mean),
        )

    def start(self, states: int, size: int, strength: float) -> dict[str, np.ndarray]:
        """The projections that regularised canonical correlation gives, scaled by the correlations.

        Whitened photographs are regressed on texts; the directions that texts tell most of are kept
        (Hotelling 1936; scaled by the correlations as Gong et al. 2014 do). States are held back in
        proportion to their variance, as if they were whitened first.
        """
        held = self.texts.copy()
        state, word = held[:states, :states], held[states:, states:]
        ridge = np.zeros_like(held)
        ridge[:states, :states] = HOLD_STATE * (state + 0.1 * _mean_variance(state) * np.eye(states))
        ridge[states:, states:] = HOLD_WORD * np.trace(word) * np.eye(len(word))
        held += strength * ridge + 1e-9 * np.eye(len(held))
        regression = np.linalg.solve(held, self.both)  # (S + W, C)
        values, axes = np.linalg.eigh(self.photos)
        variance = np.maximum(values, 0) + strength * HOLD_PHOTO * _mean_variance(self.photos) + 1e-12
        whitener = (axes / np.sqrt(variance)) @ axes.T
        explained, directions = np.linalg.eigh(whitener @ self.both.T @ regression @ whitener)
        size = min(size, len(explained))
        kept = np.argsort(-explained, kind="stable")[:size]
        correlations = np.sqrt(np.maximum(explained[kept], 0))
        base = whitener @ directions[:, kept]
        photo = _varying_by_one(base * correlations, self.photos)
        text = _varying_by_one(regression @ base, self.texts)
        found = {
            "photo": photo,
            "photo_bias": -self.photo_mean @ photo,
            "state": text[:states],
            "word": text[states:],
            "text_bias": -self.text_mean @ text,
        }
        return {name: value.astype(np.float32) for name, value in found.items()}


def _varying_by_one(projection: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """A projection scaled so that what it gives varies by 1 in all; zeros where that is rounding errors."""
    variance = np.einsum("ij,jk,ki->", projection.T, covariance, projection)
    scaled = projection / (np.sqrt(max(variance, 0.0)) + 1e-12)
    return scaled if np.abs(scaled).max(initial=0) < MOST_GAIN else np.zeros_like(projection)


def _mean_variance(covariance: np.ndarray) -> float:
    return float(np.trace(covariance)) / len(covariance)


# ---- training ----


def train_joint_embedding(
    pairs: pl.DataFrame,
    image_features: Sequence[Path],
    text_features: Sequence[Path],
    stopwords: Sequence[str],
    settings: JointEmbeddingSettings,
    out: Path,
    scratch: Path,
    advance: Callable[[int], None],
) -> pl.DataFrame:
    """Train on the features in Parquet alone; write `matching.npz` to `out`, return the `matching_curve`.

    `pairs` has a row a caption: caption_id, photo_id, split, content_tokens. The start (epoch 0) is
    canonical correlation; from there on a caption is to be nearer to its photograph than the hardest
    of the batch is, and the photograph to its caption (VSE++, Faghri et al. 2018). What recalls the
    dev split best is kept; without a dev split, what is there at the end. The same seed gives the
    same bytes. Raises UsageError where no training caption has features.
    """
    make_repeatable()
    examples, words, weights = Examples.read(
        pairs, image_features, text_features, settings.max_words, scratch
    )
    moments = Moments.of(examples, advance)
    dev = _Dev(examples)
    texts = {"words": words, "weights": weights, "stopwords": tuple(sorted(stopwords))}
    starts = [
        JointEmbedding(**moments.start(examples.states.shape[0], settings.size, strength), **texts)  # type: ignore[arg-type]
        for strength in (STRENGTHS if dev.captions.size else STRENGTHS[:1])
    ]
    best = max(starts, key=dev.recall)  # of equal ones the first
    highest = dev.recall(best)
    curve: list[dict[str, Any]] = [{"epoch": 0, "train_loss": None, "dev_recall": highest}]
    learner = _Learner(examples, best, settings)
    best_epoch = 0
    for epoch in range(1, settings.epochs + 1):
        loss = learner.epoch(epoch, advance)
        now = learner.averaged()
        recall = dev.recall(now)
        if not dev.captions.size or recall > highest:
            best, best_epoch, highest = now, epoch, recall
        curve.append({"epoch": epoch, "train_loss": loss, "dev_recall": recall})
        if epoch - best_epoch >= settings.patience:
            break
    best.save(out / JOINT_EMBEDDING)
    rows = [
        row | {"dev_recall": row["dev_recall"] if dev.captions.size else None, "best": i == best_epoch}
        for i, row in enumerate(curve)
    ]
    return pl.DataFrame(rows, schema=dtypes_of("joint_embedding_curve"))


class _Dev:
    """The dev split as queries; at most MOST_DEV_PHOTOS photographs."""

    def __init__(self, examples: Examples) -> None:
        photos = np.unique(examples.photo_of[examples.is_dev])[:MOST_DEV_PHOTOS]
        self.captions = np.flatnonzero(examples.is_dev & np.isin(examples.photo_of, photos))
        self.photo_of = np.searchsorted(photos, examples.photo_of[self.captions])
        self.photos = photos
        self.examples = examples

    def recall(self, joint_embedding: JointEmbedding) -> float:
        """The mean recall of the dev split, 0 to 1; 0 where there is none."""
        if not self.captions.size:
            return 0.0
        photos = unit(
            self.examples.photo_rows(self.photos) @ joint_embedding.photo + joint_embedding.photo_bias
        )
        vectors = []
        for some in self.examples.blocks(self.captions):
            states, bags = self.examples.texts(some)
            vectors.append(
                unit(states @ joint_embedding.state + bags @ joint_embedding.word + joint_embedding.text_bias)
            )
        similarity = cosine_similarity(photos, np.concatenate(vectors))
        return mean_recall(ranks(similarity, self.photo_of, len(self.photos)))


class _Learner:
    """The projections in training, their running mean and the compiled step."""

    def __init__(self, examples: Examples, start: JointEmbedding, settings: JointEmbeddingSettings) -> None:
        import keras
        import tensorflow as tf

        self.examples, self.start, self.settings = examples, start, settings
        self.variables = [tf.Variable(getattr(start, name)) for name in ARRAYS]
        self.fixed = [tf.constant(getattr(start, name)) for name in ARRAYS]
        self.averages = [np.array(getattr(start, name)) for name in ARRAYS]
        self.optimizer = keras.optimizers.Adam(settings.learning_rate, beta_2=0.99)
        self.optimizer.build(self.variables)
        train = np.flatnonzero(~examples.is_dev)
        train = train[np.argsort(examples.photo_of[train], kind="stable")]
        borders = np.flatnonzero(np.diff(examples.photo_of[train])) + 1
        self.captions_of = np.split(train, borders)  # by photograph
        self._step = tf.function(self._learn, reduce_retracing=True, autograph=False)

    def epoch(self, epoch: int, advance: Callable[[int], None]) -> float:
        """Each caption once or nearly so, a batch's photographs all different; returns the mean loss."""
        rng = np.random.default_rng((self.settings.seed, epoch))
        turns = max(map(len, self.captions_of))
        order = [rng.permutation(captions) for captions in self.captions_of]
        losses = []
        for turn in range(turns):
            some = rng.permutation([captions[turn] for captions in order if turn < len(captions)])
            for first in range(0, len(some), self.settings.batch_size):
                batch = some[first : first + self.settings.batch_size]
                if len(batch) > 1:
                    losses.append(self._batch(batch, rng))
                advance(len(batch))
        return float(np.mean(losses)) if losses else 0.0

    def _batch(self, captions: np.ndarray, rng: np.random.Generator) -> float:
        photos = self.examples.photo_rows(self.examples.photo_of[captions])
        seed = rng.integers(2**31 - 10, size=2, dtype=np.int32)
        loss = float(self._step(photos, *self.examples.texts(captions), seed))
        for average, variable in zip(self.averages, self.variables, strict=True):
            average += (1 - AVERAGING) * (variable.numpy() - average)
        return loss

    def _learn(self, photos: Any, states: Any, bags: Any, seed: Any) -> Any:
        """One step: (B, C), (B, S), (B, W) -> the loss before it."""
        import tensorflow as tf

        from cutline.tasks.training.common import dropout

        inputs = [
            dropout(values, self.settings.dropout, seed + place, tf.shape(values))
            for place, values in enumerate((photos, states, bags))
        ]
        with tf.GradientTape() as tape:
            photo, photo_bias, state, word, text_bias = self.variables
            a = tf.nn.l2_normalize(inputs[0] @ photo + photo_bias, -1)
            b = tf.nn.l2_normalize(inputs[1] @ state + inputs[2] @ word + text_bias, -1)
            similarity = a @ tf.transpose(b)  # (B, B), the right ones on the diagonal
            right = tf.linalg.diag_part(similarity)
            wrong = similarity - 4.0 * tf.eye(tf.shape(similarity)[0])
            hardest = tf.stack([tf.reduce_max(wrong, 0), tf.reduce_max(wrong, 1)])
            loss = tf.reduce_sum(tf.reduce_mean(tf.nn.relu(self.settings.margin + hardest - right), -1))
            away = tf.add_n(
                [tf.reduce_sum((v - f) ** 2) for v, f in zip(self.variables, self.fixed, strict=True)]
            )
            goal = loss + HOLD_TO_START * away
        gradients = tape.gradient(goal, self.variables)
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))
        return loss

    def averaged(self) -> JointEmbedding:
        """The projections as the running mean has them."""
        named = {name: average.copy() for name, average in zip(ARRAYS, self.averages, strict=True)}
        return replace(self.start, **named)  # type: ignore[arg-type]
