"""Lines of text drawn from the model, how likely it finds a text, and the real captions nearest to a line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from cutline.schemas.errors import StaleModel, UsageError
from cutline.tasks.decoding.beam_search import Words
from cutline.tasks.text.encoding import encode
from cutline.tasks.text.tokenizer import as_text
from cutline.tasks.text.vocabulary import END, PAD, START, UNK

if TYPE_CHECKING:
    import tensorflow as tf

    from cutline.tasks.models.fusion import Fusion
    from cutline.tasks.models.language_model import LanguageModel


LINES_PER_PASS = 32
MOST_TOKENS = 1_000


# ---- drawing a token ----


@dataclass(frozen=True)
class Sampling:
    """How lines are drawn. Raises UsageError for a number out of its range."""

    temperature: float = 1.0  # logits are divided by it; 0 takes the most likely token
    top_p: float = 1.0  # share of the probability that the nucleus holds
    max_tokens: int = 20  # that are added to the text
    seed: int = 1

    def __post_init__(self) -> None:
        for name, expected, holds in (
            ("temperature", "a number of at least 0", 0 <= self.temperature < math.inf),
            ("top-p", "a number above 0 and up to 1", 0 < self.top_p <= 1),
            ("max-tokens", f"1 to {MOST_TOKENS:,}", 1 <= self.max_tokens <= MOST_TOKENS),
            ("seed", "a whole number of at least 0", self.seed >= 0),
        ):
            if not holds:
                value = getattr(self, name.replace("-", "_"))
                raise UsageError(f"{name}: expected {expected}, found {value}")


def probabilities(logits: np.ndarray, allowed: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """What to draw from: the softmax of logits / temperature over the allowed tokens, cut to its nucleus.

    (B, V) logits and (V,) bool -> (B, V) float64, each row summing to 1. The nucleus (Holtzman et
    al. 2020) is the fewest most likely tokens whose probabilities, after the temperature, sum to at
    least `top_p`; of equally likely ones the lower ids. At temperature 0 the most likely is certain.
    """
    values = np.where(allowed, logits.astype(np.float64), -np.inf)
    if temperature == 0:
        return np.eye(values.shape[-1])[values.argmax(-1)]
    with np.errstate(over="ignore"):  # -inf is as good as any number of that size
        shares = np.exp((values - values.max(-1, keepdims=True)) / temperature)
    shares /= shares.sum(-1, keepdims=True)
    if top_p < 1:
        order = np.argsort(-shares, axis=-1, kind="stable")
        sorted_ = np.take_along_axis(shares, order, -1)
        before = np.zeros_like(sorted_)
        before[:, 1:] = np.cumsum(sorted_, -1)[:, :-1]
        np.put_along_axis(shares, order, np.where(before < top_p, sorted_, 0.0), -1)
        shares /= shares.sum(-1, keepdims=True)
    return shares


def draw(shares: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """One token a row by its share: (B, V), and (B,) of [0, 1) -> (B,) int32; never one of share 0."""
    sums = np.cumsum(shares, -1)
    target = np.minimum(uniforms * sums[:, -1], np.nextafter(sums[:, -1], 0))
    return (sums <= target[:, None]).sum(-1).astype(np.int32)


# ---- drawing lines ----


@dataclass(frozen=True)
class Line:
    """A text as it was continued.

    `log_probability` is what the model itself gives the written tokens, and the <end> where it drew
    one, after the prompt: in nats, before temperature and nucleus.
    """

    prompt: list[str]
    written: list[str]
    ended: bool  # by itself, not by max_tokens
    log_probability: float

    @property
    def tokens(self) -> list[str]:
        return self.prompt + self.written

    @property
    def text(self) -> str:
        """The words with spaces between; a clitic joins the word before: man 's → man's."""
        return as_text(self.tokens)

    @property
    def score(self) -> float:
        """Log-probability a token."""
        return self.log_probability / (len(self.written) + self.ended)


@dataclass(frozen=True)
class Sampler:
    """Draws lines from the language model, or captions of one photograph from its fusion.

    `photo` is what the fusion sees of it, (R, C). No special token is written, and at least one word is.
    """

    language_model: LanguageModel
    vocabulary: Sequence[str]  # tokens by id
    fusion: Fusion | None = None
    photo: np.ndarray | None = None

    def lines(self, prompt: Sequence[str], count: int, sampling: Sampling) -> Iterator[Line]:
        """`count` lines that begin with the tokens of `prompt`, each read as <unk> where it is unknown.

        Line i follows from the seed and i alone: it is the same however many are drawn, and
        more `max_tokens` only make it longer. Raises UsageError where the vocabulary holds no word,
        StaleModel where the model yields what is no number.
        """
        is_written = Words.of(self.vocabulary).written
        read = self._read([START, *self._ids(prompt)])
        for first in range(0, count, LINES_PER_PASS):
            rows = range(first, min(first + LINES_PER_PASS, count))
            yield from self._pass(list(prompt), rows, read, is_written, sampling)

    def _pass(
        self,
        prompt: list[str],
        rows: range,
        read: tuple[np.ndarray, Any, Any],
        is_written: np.ndarray,
        sampling: Sampling,
    ) -> Iterator[Line]:
        """The lines of the numbers `rows`; there are always LINES_PER_PASS, the rest ended at once."""
        logits, state, cell = read
        is_end = np.arange(len(is_written)) == END
        uniforms = _uniforms(rows, sampling)
        tokens = np.full(uniforms.shape, PAD, np.int32)
        ended = np.arange(LINES_PER_PASS) >= len(rows)
        total = np.zeros(LINES_PER_PASS)
        for place in range(sampling.max_tokens):
            allowed = is_written | is_end if place else is_written
            shares = probabilities(logits, allowed, sampling.temperature, sampling.top_p)
            tokens[:, place] = last = np.where(ended, PAD, draw(shares, uniforms[:, place]))
            total += np.where(ended, 0.0, _log_softmax(logits)[np.arange(LINES_PER_PASS), last])
            ended |= last == END
            if ended.all() or place == sampling.max_tokens - 1:
                break
            logits, state, cell = self._step(last, state, cell)
        for ids, log_probability in zip(tokens[: len(rows)], total, strict=False):
            words = [self.vocabulary[i] for i in ids if i > UNK]
            yield Line(prompt, words, bool((ids == END).any()), float(log_probability))

    def _ids(self, tokens: Sequence[str]) -> list[int]:
        table = pl.DataFrame({"token": self.vocabulary, "id": range(len(self.vocabulary))})
        return encode(pl.Series([tokens], dtype=pl.List(pl.String)), table).ids.tolist()

    def _read(self, ids: Sequence[int]) -> tuple[np.ndarray, Any, Any]:
        """Logits, state and cell after `ids`, the same in all rows."""
        state = cell = np.zeros((LINES_PER_PASS, self.language_model.lstm.units), np.float32)
        for i in ids:
            logits, state, cell = self._step(np.full(LINES_PER_PASS, i, np.int32), state, cell)
        return logits, state, cell

    def _step(self, tokens: np.ndarray, state: Any, cell: Any) -> tuple[np.ndarray, Any, Any]:
        """Read one token each: (B,) int32 -> the next one's logits (B, V) float32, the new state and cell."""
        logits, state, cell = self._compiled_step(tokens, state, cell)
        logits = np.asarray(logits)
        check_numbers(logits)
        return logits, state, cell

    @cached_property
    def _compiled_step(self) -> Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
        """One graph of one shape, so that a row does not depend on how many lines are wanted."""
        import tensorflow as tf

        predict = self._foretelling()
        numbers = tf.TensorSpec((LINES_PER_PASS, self.language_model.lstm.units), tf.float32)

        @tf.function(
            input_signature=[tf.TensorSpec((LINES_PER_PASS,), tf.int32), numbers, numbers], autograph=False
        )
        def step(
            tokens: tf.Tensor, state: tf.Tensor, cell: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            state, cell = self.language_model.step(tokens, state, cell)
            return predict(state), state, cell

        return step

    def _foretelling(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """States (B, state_size) -> logits (B, V)."""
        import tensorflow as tf

        if self.fusion is None or self.photo is None:
            return lambda state: logits_of(self.language_model, state)
        fusion, memory = self.fusion, self.fusion.encode(tf.constant(self.photo[None], tf.float32))
        # The lines stand side by side as states that ask one photograph.
        return lambda state: fusion.logits(memory, state[None])[0]


def _uniforms(rows: range, sampling: Sampling) -> np.ndarray:
    """(LINES_PER_PASS, max_tokens) of [0, 1): those of a line follow from the seed and its number."""
    uniforms = np.zeros((LINES_PER_PASS, sampling.max_tokens))
    for place, row in enumerate(rows):
        uniforms[place] = np.random.default_rng((sampling.seed, row)).random(sampling.max_tokens)
    return uniforms


def logits_of(language_model: LanguageModel, state: tf.Tensor) -> tf.Tensor:
    return language_model.embedding(language_model.projection(state), reverse=True)


def check_numbers(values: np.ndarray | float) -> None:
    if not np.isfinite(values).all():
        raise StaleModel(
            "the model's weights are damaged: expected numbers, found NaN or infinity; train it again"
        )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    values = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))
