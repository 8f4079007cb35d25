"""The LSTM that learns the language of the captions, from every training caption, photographed or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from cutline.schemas.errors import UsageError
from cutline.schemas.settings import LanguageModelSettings
from cutline.tasks.models.language_model import WEIGHTS, LanguageModel, build_language_model
from cutline.tasks.models.lstm import product, read
from cutline.tasks.models.weights import save_weights
from cutline.tasks.text.encoding import Ragged, alike_in_length, encode
from cutline.tasks.text.vocabulary import PAD
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


WINDOW = 16  # batches; captions are drawn at random for so many, then shared out among them by length
CLIP = 0.25  # a longer gradient, all weights together, is shortened to this


def train_language_model(
    train: pl.DataFrame,
    dev: pl.DataFrame,
    vocabulary: pl.DataFrame,
    settings: LanguageModelSettings,
    out: Path,
    scratch: Path,
    advance: Callable[[int], None],
) -> pl.DataFrame:
    """Train on the `tokens` tables `train` and `dev`; write `language_model.weights.h5` to `out`.

    Returns the `curve` table; a dev loss is the mean of -ln p a token, so perplexity is its
    exponential. A checkpoint an epoch in `scratch` makes an interrupted training go on where it
    was, to the same bytes. `advance` is told the captions done, `settings.epochs` times each.
    Raises UsageError where there is nothing to learn from.
    """
    captions, held_out = encode(train["tokens"], vocabulary), encode(dev["tokens"], vocabulary)
    if not len(captions):
        raise UsageError("no training caption is left for the language model: check the data set's splits")
    make_repeatable()
    network = build_language_model(vocabulary.height, settings, settings.seed)
    trainer = _Trainer(captions, network, settings)
    made_from = fingerprint(
        settings.model_dump_json(), *_parts(captions), *_parts(held_out), str(vocabulary.height)
    )
    checkpoint = Checkpoint(scratch / "language_model.npz", made_from)
    progress = Progress([*trainer.model.variables, *trainer.optimizer.variables], [], [])
    progress.load(checkpoint)
    advance(len(captions) * len(progress.curve))
    for epoch in range(len(progress.curve) + 1, settings.epochs + 1):
        if progress.stopped:
            break
        train_loss = trainer.epoch(epoch, advance)
        dev_loss = trainer.loss(held_out) if len(held_out) else None
        progress.add(
            epoch, train_loss, -epoch if dev_loss is None else dev_loss, trainer.model, dev_loss=dev_loss
        )
        progress.stopped = progress.epochs_since_best() >= settings.patience
        progress.save(checkpoint)
    progress.restore_best(trainer.model)
    save_weights(trainer.model, out / WEIGHTS)
    return curve_table(progress.curve)


def learning_rates(
    highest: float, steps: int, rising: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Adam's rates: up to `highest` over `rising` steps, then straight down to nothing after `steps`."""
    import keras

    class Rates(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: tf.Tensor) -> tf.Tensor:
            done = keras.ops.cast(step, "float32")
            return highest * keras.ops.minimum((done + 1) / rising, (steps - done) / max(steps - rising, 1))

    return Rates()


def perplexity(
    language_model: LanguageModel, tokens: pl.Series, vocabulary: pl.DataFrame, batch_size: int = 64
) -> float:
    """exp of the mean of -ln p over all tokens of these captions and their ends; <unk> counts as a word."""
    return float(np.exp(_mean_loss(language_model, encode(tokens, vocabulary), batch_size)))


def _parts(captions: Ragged) -> tuple[bytes, bytes]:
    return captions.ids.tobytes(), captions.starts.tobytes()


@dataclass
class _Batch:
    """Captions of about one length: what is read and what each token is to predict, (B, T) int32."""

    inputs: np.ndarray
    targets: np.ndarray
    captions: int


def _batches(
    captions: Ragged, batch_size: int, max_tokens: int, rng: np.random.Generator | None
) -> Iterator[_Batch]:
    """All captions once: by length, or in random order where there is an `rng`.

    Each batch has `batch_size` rows; the last is filled up with empty ones, which weigh nothing.
    """
    lengths = np.minimum(captions.lengths, max_tokens)
    for rows in alike_in_length(lengths, batch_size, WINDOW, rng):
        yield _Batch(*captions.inputs_and_targets(rows, batch_size, max_tokens), len(rows))


def _token_losses(logits: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The sum of -ln p over the targets that are no padding, and how many they are."""
    import tensorflow as tf

    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    real = tf.cast(targets != PAD, losses.dtype)
    return tf.reduce_sum(losses * real), tf.reduce_sum(real)


def _mean_loss(language_model: LanguageModel, captions: Ragged, batch_size: int) -> float:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((batch_size, None), tf.int32)] * 2, autograph=False)
    def losses(inputs: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return _token_losses(language_model.model(inputs), targets)

    longest = int(captions.lengths.max(initial=1))
    sums = [losses(batch.inputs, batch.targets) for batch in _batches(captions, batch_size, longest, None)]
    return float(sum(float(loss) for loss, _ in sums) / sum(float(count) for _, count in sums))


def _adam(
    rates: keras.optimizers.schedules.LearningRateSchedule, longest: float
) -> keras.optimizers.Optimizer:
    """Keras's Adam in one pass over the numbers instead of ten; a gradient is cut to the length `longest`."""
    import keras
    import tensorflow as tf

    class Adam(keras.optimizers.Adam):
        def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
            index, step = self._get_variable_index(variable), tf.cast(self.iterations + 1, tf.float32)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=self._momentums[index].value.handle,
                v=self._velocities[index].value.handle,
                beta1_power=self.beta_1**step,
                beta2_power=self.beta_2**step,
                lr=learning_rate,
                beta1=self.beta_1,
                beta2=self.beta_2,
                epsilon=self.epsilon,
                grad=gradient,
            )

    return Adam(rates, global_clipnorm=longest)


class _Trainer:
    """One language model in training: its optimizer and the compiled step."""

    def __init__(
        self, captions: Ragged, language_model: LanguageModel, settings: LanguageModelSettings
    ) -> None:

        self.captions, self.settings = captions, settings
        self.language_model, self.model = language_model, language_model.model
        steps = -(-len(captions) // settings.batch_size)
        rate = learning_rates(settings.learning_rate, steps * settings.epochs, -(-steps // 4))
        self.optimizer = _adam(rate, CLIP)
        self.optimizer.build(self.model.trainable_variables)
        self._step = self._compiled_step()

    def epoch(self, epoch: int, advance: Callable[[int], None]) -> float:
        """One pass over the captions; returns the mean loss a token."""
        rng = np.random.default_rng((self.settings.seed, epoch))
        total = count = 0.0
        for batch in _batches(self.captions, self.settings.batch_size, self.settings.max_tokens, rng):
            seed = rng.integers(2**31, size=2, dtype=np.int32)
            loss, tokens = self._step(batch.inputs, batch.targets, seed)
            total, count = total + float(loss), count + float(tokens)
            advance(batch.captions)
        return total / count

    def loss(self, captions: Ragged) -> float:
        return _mean_loss(self.language_model, captions, self.settings.batch_size)

    def _compiled_step(self) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
        import tensorflow as tf

        rows = tf.TensorSpec((self.settings.batch_size, None), tf.int32)

        @tf.function(input_signature=[rows, rows, tf.TensorSpec((2,), tf.int32)], autograph=False)
        def step(inputs: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            variables = self.model.trainable_variables
            words = self.language_model.embedding(inputs)
            with tf.GradientTape() as tape:
                tape.watch(words)
                real = targets != PAD
                logits = self._logits(words, seed, real)
                loss, count = _token_losses(logits, tf.boolean_mask(targets, real))
                mean = loss / count
            to_words, *gradients = tape.gradient(mean, [words, *variables])
            # The matrix's gradient as the input is added by hand: the tape would make one long list of both.
            of = self.language_model.embedding.embeddings
            place = next(i for i, variable in enumerate(variables) if variable is of)
            flat = tf.reshape(to_words, (-1, of.shape[1]))
            gradients[place] += tf.math.unsorted_segment_sum(flat, tf.reshape(inputs, (-1,)), of.shape[0])
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return loss, count

        return step

    def _logits(self, words: tf.Tensor, seed: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
        """The logits (N, V) at the `real` places, with dropout, one mask a caption, between the layers."""
        import tensorflow as tf

        net, batch, rate = self.language_model, self.settings.batch_size, self.settings.dropout
        embedded = (batch, 1, self.settings.embedding_size)
        words = dropout(words, rate / 2, seed, embedded)
        states = dropout(read(words, net.lstm), rate, seed + 1, (batch, 1, self.settings.state_size))
        projected = dropout(net.projection(states), rate / 2, seed + 2, embedded)
        return product(tf.boolean_mask(projected, real), net.embedding.embeddings.value, transpose_b=True)
