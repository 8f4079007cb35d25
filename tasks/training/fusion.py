"""Training the fusion: on captions alone, then on the features of photographs and of their captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from cutline.schemas.settings import FusionSettings, LanguageModelSettings
from cutline.tasks.decoding.beam_search import MOST, BeamSearch, Words
from cutline.tasks.models.content_embedding import ContentEmbedding
from cutline.tasks.models.fusion import WEIGHTS, Drop, Memory, build_fusion, keep_all, start_from
from cutline.tasks.models.language_model import LanguageModel, load_language_model
from cutline.tasks.models.lstm import by_product, read
from cutline.tasks.models.weights import save_weights
from cutline.tasks.storage.tables import tensor
from cutline.tasks.text.encoding import encode
from cutline.tasks.text.vocabulary import PAD, UNK
from cutline.tasks.training.batches import Batch, Pairs, TextBatch, Texts
from cutline.tasks.training.caption_groups import TrainedContent
from cutline.tasks.training.common import (
    Checkpoint,
    Progress,
    curve_table,
    dropout,
    fingerprint,
    make_repeatable,
)

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


DEV_BATCH, DEV_MAX_TOKENS = 32, 20  # how the dev split is captioned after each epoch
TEXTS, PHOTOS = "texts", "photographs"  # the phases of a training
TEXT_BATCH, TEXT_DROPOUT = 256, 0.3  # captions a step, and share left out, where there is only text

Score = Callable[[Mapping[str, str], Mapping[str, Sequence[str]]], Mapping[str, float]]


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
    learned: TrainedContent | None = None,
    texts: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Train on the features in Parquet alone; write `fusion.weights.h5` to `out`, return the `curve` table.

    `pairs` has a row a caption: caption_id, photo_id, split, tokens. With a content embedding (`learned`),
    it begins with the training captions among `texts` (caption_id, tokens), photographed or not, and the
    content vectors predicted from text for them (Nukrai et al. 2022, "Text-only training for image
    captioning using noise-injected CLIP"); then come the `pairs`.
    After each epoch the dev split's photographs, where there are any, are captioned and `score`d against
    `references` (by photo_id) for the curve. The last epoch is kept: from few photographs neither the dev
    loss, which stands still while captions still get better, nor the CIDEr of one epoch says more.

    An interrupted training goes on from its last whole epoch, kept in `scratch`, to the same bytes.
    `advance` is told the captions done, once an epoch each. Raises UsageError where no training caption has
    features, StaleModel where the language model does not fit.
    """
    make_repeatable()
    words = load_language_model(language_model, vocabulary.height, lm_settings)
    data = Pairs.read(pairs, image_features, text_features, vocabulary, settings.kind, scratch, learned)
    content_from_text = _texts(learned, texts, vocabulary)
    trainer = _Trainer(
        data,
        content_from_text,
        learned.content_embedding if learned else None,
        words,
        vocabulary,
        settings,
        lm_settings,
    )
    made_from: list[str | bytes | memoryview] = [data.digest]
    if content_from_text:
        made_from += [content_from_text.captions.ids.data, content_from_text.content_vectors.data]
    checkpoint = Checkpoint(
        scratch / "fusion.npz",
        fingerprint(settings.model_dump_json(), language_model.read_bytes(), *made_from),
    )
    progress = Progress(trainer.variables, [], [])
    progress.load(checkpoint)
    advance(sum(trainer.captions_of(row["phase"]) for row in progress.curve))
    phases = [TEXTS] * (settings.text_epochs if content_from_text else 0) + [PHOTOS] * settings.epochs
    for epoch, phase in list(enumerate(phases, 1))[len(progress.curve) :]:
        if progress.curve and progress.curve[-1]["phase"] != phase:
            trainer.forget_averages()
        train_loss = trainer.epoch(phase, epoch, advance)
        with trainer.averaged():
            dev_loss, cider = trainer.dev_loss(), trainer.dev_cider(references, score)
            values: dict[str, Any] = {"dev_loss": dev_loss, "dev_cider": cider, "phase": phase}
            progress.add(epoch, train_loss, -epoch, trainer.model, **values)
        progress.save(checkpoint)
    progress.restore_best(trainer.model)
    save_weights(trainer.model, out / WEIGHTS)
    return curve_table(progress.curve)


def _texts(
    learned: TrainedContent | None, texts: pl.DataFrame | None, vocabulary: pl.DataFrame
) -> Texts | None:
    """The captions that have an predicted from text content embedding, or None where there are none."""
    if (
        learned is None
        or texts is None
        or not learned.content_embedding.size
        or learned.content_from_text.is_empty()
    ):
        return None
    rows = learned.content_from_text.join(texts, on="caption_id", maintain_order="left")
    return Texts(
        encode(rows["tokens"], vocabulary), tensor(rows["content_vector"]), learned.content_embedding.noise
    )


class _Trainer:
    """One fusion in training: its optimizer, its averaged weights and the compiled steps."""

    def __init__(
        self,
        data: Pairs,
        texts: Texts | None,
        content_embedding: ContentEmbedding | None,
        language_model: LanguageModel,
        vocabulary: pl.DataFrame,
        settings: FusionSettings,
        lm_settings: LanguageModelSettings,
    ) -> None:
        import tensorflow as tf

        self.data, self.texts, self.settings = data, texts, settings
        self.language_model, self.max_tokens = language_model, lm_settings.max_tokens
        self.train_rows, self.dev_rows = data.rows(dev=False), data.rows(dev=True)
        self.captions = sum(map(len, self.train_rows))
        self.rows_a_step = max(1, round(settings.batch_size * len(self.train_rows) / self.captions))
        channels = data.photos.shape[-1]
        self.fusion = build_fusion(
            vocabulary.height, channels, settings, lm_settings, content_embedding, settings.seed
        )
        self.model = self.fusion.model
        # The same weights, multiplied as training does it; captions are written in float32 throughout.
        quick: Any = {name: by_product(layer) for name, layer in self.fusion.layers.items()}
        self.learner = replace(self.fusion, layers=quick)
        start_from(self.fusion, language_model)
        self.text_variables = [
            variable
            for name in ("state", "content_embedding", "change", "projection")
            if name in self.fusion.layers
            for variable in self.fusion.layers[name].trainable_variables
        ]
        self.text_optimizer, self.optimizer = self._optimizers()
        self.averages = [tf.Variable(variable.value) for variable in self.model.trainable_variables]
        self._learn_text, self._learn, self._judge = self._compiled_steps()
        self._tokens = vocabulary.sort("id")["token"].to_list()
        words = Words.of(self._tokens)
        self._search = BeamSearch(
            language_model, self.fusion, words, settings.dev_beam, DEV_MAX_TOKENS, DEV_BATCH
        ).compiled()

    @property
    def variables(self) -> list[Any]:
        """All that changes while training."""
        optimizers = self.text_optimizer, self.optimizer
        states = [variable for optimizer in optimizers for variable in optimizer.variables]
        return [*self.model.variables, *states, *self.averages]

    def captions_of(self, phase: str) -> int:
        """How many captions an epoch of `phase` goes over."""
        return len(self.texts.captions) if phase == TEXTS and self.texts else self.captions

    def epoch(self, phase: str, epoch: int, advance: Callable[[int], None]) -> float:
        """One pass over the captions of `phase`; returns the mean -ln p a token."""
        rng = np.random.default_rng((self.settings.seed, epoch))
        epochs = {TEXTS: self._text_epoch, PHOTOS: self._photo_epoch}
        return epochs[phase](rng, advance)

    def _text_epoch(self, rng: np.random.Generator, advance: Callable[[int], None]) -> float:
        """Over captions with no photograph shown, each time with another content embedding that would fit."""
        assert self.texts
        batches = self.texts.batches(TEXT_BATCH, self.max_tokens, rng)
        return self._pass(self._learn_text, batches, rng, advance)

    def _photo_epoch(self, rng: np.random.Generator, advance: Callable[[int], None]) -> float:
        rows = [rng.permutation(self.train_rows[i]) for i in rng.permutation(len(self.train_rows))]
        return self._pass(self._learn, self.data.batches(rows, self.rows_a_step), rng, advance)

    def _pass(
        self,
        learn: Callable[..., tuple[tf.Tensor, tf.Tensor]],
        batches: Iterator[tuple[Batch | TextBatch, int]],
        rng: np.random.Generator,
        advance: Callable[[int], None],
    ) -> float:
        total = count = 0.0
        for batch, captions in batches:
            loss, tokens = learn(*batch, rng.integers(2**31, size=2, dtype=np.int32))
            total, count = total + float(loss), count + float(tokens)
            advance(captions)
        return total / count

    def forget_averages(self) -> None:
        """Forget the averages of the epochs before: the model as it is now is where they begin."""
        for average, variable in zip(self.averages, self.model.trainable_variables, strict=True):
            average.assign(variable)

    def dev_loss(self) -> float | None:
        """Mean -ln p a token of the dev captions, or None where there are none."""
        sums = [self._judge(*batch) for batch, _ in self.data.batches(self.dev_rows, self.rows_a_step)]
        count = sum(float(tokens) for _, tokens in sums)
        return sum(float(loss) for loss, _ in sums) / count if count else None

    def dev_cider(self, references: Mapping[str, Sequence[str]], score: Score) -> float | None:
        """CIDEr of the dev photographs' captions, or None where there are none."""
        captions = dict(self._dev_captions())
        if not captions:
            return None
        return float(score(captions, {photo_id: references[photo_id] for photo_id in captions})["CIDEr"])

    def _dev_captions(self) -> Iterator[tuple[str, str]]:
        numbers = self.data.dev_photos
        for place in range(0, len(numbers), MOST):
            some = numbers[place : place + MOST]
            photos = np.concatenate([self.data.photos.read(int(number), 1) for number in some])
            tokens = self._search(photos)[0].numpy()[:, 0]  # the best of each beam
            for number, ids in zip(some, tokens, strict=True):
                yield self.data.photo_ids[number], " ".join(self._tokens[i] for i in ids if i > UNK)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its averaged weights, which do better than those of any one step."""
        variables = self.model.trainable_variables
        latest = [np.array(variable) for variable in variables]
        for variable, average in zip(variables, self.averages, strict=True):
            variable.assign(average)
        yield
        for variable, value in zip(variables, latest, strict=True):
            variable.assign(value)

    def _optimizers(self) -> list[keras.optimizers.Optimizer]:
        import keras

        def falling(
            highest: float, steps: int, epochs: int
        ) -> keras.optimizers.schedules.LearningRateSchedule:
            return keras.optimizers.schedules.CosineDecay(
                0.0,
                max(1, steps * epochs),
                alpha=0.05,
                warmup_target=highest,
                warmup_steps=max(1, steps // 4),
            )

        settings, variables = self.settings, self.model.trainable_variables
        text_steps = -(-len(self.texts.captions) // TEXT_BATCH) if self.texts else 1
        steps = -(-len(self.train_rows) // self.rows_a_step)
        rates = [
            falling(settings.learning_rate, text_steps, settings.text_epochs),
            falling(settings.learning_rate, steps, settings.epochs),
        ]
        optimizers = [keras.optimizers.Adam(rate, global_clipnorm=1.0) for rate in rates]
        for optimizer, learning in zip(optimizers, [self.text_variables, variables], strict=True):
            optimizer.build(learning)
        return optimizers

    def _compiled_steps(self) -> tuple[Any, ...]:
        import tensorflow as tf

        rows, data = self.rows_a_step, self.data
        content_vectors = data.content_vectors.shape[1]
        batch = [
            tf.TensorSpec((rows, *data.photos.shape), tf.float16),
            tf.TensorSpec((rows, content_vectors), tf.float32),
            tf.TensorSpec((rows, None, *data.states.shape), tf.float16),
            tf.TensorSpec((rows, None), tf.int32),
        ]
        seed = tf.TensorSpec((2,), tf.int32)
        texts = [tf.TensorSpec((TEXT_BATCH, None), tf.int32)] * 2 + [
            tf.TensorSpec((TEXT_BATCH, content_vectors), tf.float32)
        ]

        def compiled(step: Callable[..., Any], *signature: tf.TensorSpec) -> Any:
            # autograph writes what it makes of the code into the temporary folder, where a kill leaves it.
            return tf.function(step, input_signature=signature, autograph=False)

        return (
            compiled(self._learn_from_text, *texts, seed),
            compiled(self._learn_from, *batch, seed),
            compiled(lambda *values: self._losses(Batch(*values), keep_all), *batch),
        )

    def _learn_from_text(
        self, inputs: tf.Tensor, targets: tf.Tensor, content_vectors: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """One step; returns the sum of -ln p and the number of tokens."""
        import tensorflow as tf

        words = self.language_model
        states = read(words.embedding(inputs), words.lstm, learning=False)
        drop = self._drop(seed, states=TEXT_DROPOUT, hidden=TEXT_DROPOUT)
        with tf.GradientTape() as tape:
            losses = self._token_losses(self.learner.imagine(content_vectors), states, targets, drop)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, self.text_variables)
        self.text_optimizer.apply_gradients(zip(gradients, self.text_variables, strict=True))
        self._average(self.text_optimizer)
        return tf.reduce_sum(losses), tf.cast(tf.size(losses), tf.float32)

    def _learn_from(self, *values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One step on a Batch and a seed; returns the sum of -ln p and the number of tokens."""
        import tensorflow as tf

        *batch, seed = values
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            loss, count = self._losses(Batch(*batch), self._drop(seed))
            mean = loss / count
        self.optimizer.apply_gradients(zip(tape.gradient(mean, variables), variables, strict=True))
        self._average(self.optimizer)
        return loss, count

    def _average(self, optimizer: keras.optimizers.Optimizer) -> None:
        import tensorflow as tf

        steps = tf.cast(optimizer.iterations, tf.float32)
        kept = tf.minimum(self.settings.averaging, steps / (steps + 10))  # short at first: forget the start
        for average, variable in zip(self.averages, self.model.trainable_variables, strict=True):
            average.assign(kept * average + (1 - kept) * variable)

    def _memory(self, photos: tf.Tensor, content_vectors: tf.Tensor, drop: Drop) -> Memory:
        import tensorflow as tf

        known = content_vectors if self.fusion.content_embedding else None
        return self.learner.encode(tf.cast(photos, tf.float32), drop, known)

    def _drop(self, seed: tf.Tensor, **others: float) -> Drop:
        """Dropout by place: whole channels of a photograph and of its states, single units elsewhere."""
        import tensorflow as tf

        rates = {"regions": self.settings.feature_dropout, "states": self.settings.feature_dropout}
        rates |= {"hidden": self.settings.dropout} | others

        def drop(values: tf.Tensor, place: str) -> tf.Tensor:
            shape = tf.shape(values)
            mask = shape if place == "hidden" else (shape[0], 1, shape[2])
            return dropout(values, rates[place], seed + list(rates).index(place), mask)

        return drop

    def _losses(self, batch: Batch, drop: Drop) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum of -ln p over the targets that are no padding, and how many they are."""
        import tensorflow as tf

        memory, states = (
            self._memory(batch.photos, batch.content_vectors, drop),
            tf.cast(batch.states, tf.float32),
        )
        losses = self._token_losses(memory, states, batch.targets, drop)
        return tf.reduce_sum(losses), tf.cast(tf.size(losses), tf.float32)

    def _token_losses(self, memory: Memory, states: tf.Tensor, targets: tf.Tensor, drop: Drop) -> tf.Tensor:
        """-ln p of each of the targets that are no padding, (N,)."""
        import tensorflow as tf

        real = tf.where(targets != PAD)
        hidden = self.learner.hidden(memory, states, drop)
        logits = self.learner.layers["output"](tf.gather_nd(hidden, real))
        return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.gather_nd(targets, real), logits)
