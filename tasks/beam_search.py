"""Beam search for many photographs at once, compiled into one graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.errors import UsageError
from tasks.vocabulary import END, PAD, START, UNK

if TYPE_CHECKING:
    import tensorflow as tf

    from tasks.fusion import Fusion
    from tasks.language_model import LanguageModel

# A caption that ends in one of these has been cut off. Two of them in a row ("in a") may come
# twice in a caption; any other pair of words that comes twice is a repeated phrase.
NEEDS_MORE = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "his",
        "their",
        "its",
        "my",
        "your",
        "our",
        "'s",
        "of",
        "and",
        "or",
        "but",
        "with",
        "without",
        "at",
        "to",
        "from",
        "by",
        "for",
        "in",
        "on",
        "into",
        "onto",
        "inside",
        "over",
        "under",
        "near",
        "behind",
        "between",
        "beside",
        "through",
        "during",
        "against",
        "toward",
        "towards",
        "above",
        "below",
        "across",
        "around",
        "along",
        "as",
        "while",
        "who",
        "which",
        "whose",
        "where",
        "is",
        "are",
        "was",
        "were",
        "be",
        "being",
    ]
)
RULE_BROKEN = 1_000.0  # nats: more than any caption's probability can make up for
IMPOSSIBLE = -1e30


@dataclass(frozen=True)
class Words:
    """What the search knows of each token: may it be written, must another follow; (V,) bool each."""

    written: np.ndarray
    needs_more: np.ndarray

    @staticmethod
    def of(tokens: Sequence[str]) -> Words:
        """From the vocabulary's tokens by id. Raises UsageError where it holds no word."""
        if len(tokens) <= UNK + 1:
            raise UsageError(
                "the vocabulary holds no word, so no caption can be written; lower vocabulary.min_count"
            )
        written = np.arange(len(tokens)) > UNK
        return Words(written, np.array([token in NEEDS_MORE for token in tokens]) & written)


@dataclass(frozen=True)
class Hypotheses:
    """Captions found for each photograph, best first.

    tokens (B, K, max_tokens + 1) int32, filled up with <pad> after <end>; log_probability (B, K)
    float32, of all tokens and the <end>; length (B, K) float32, counting the <end>. Where there
    are fewer than K captions, the rest has a log_probability below -1e29.
    """

    tokens: np.ndarray
    log_probability: np.ndarray
    length: np.ndarray

    @property
    def score(self) -> np.ndarray:
        """Log-probability a token, (B, K)."""
        return self.log_probability / self.length


@dataclass(frozen=True)
class BeamSearch:
    """Searches the captions of `batch_size` photographs at a time; beam 1 is greedy.

    Partial captions are compared by their log-probability a token, ended ones beside those still
    growing. No special token is written; a caption has at least one word; where there is another
    way it ends in none of NEEDS_MORE, repeats no word at once and no pair of words at all.
    """

    language_model: LanguageModel
    fusion: Fusion
    words: Words
    beam: int
    max_tokens: int
    batch_size: int

    def compiled(self) -> Any:
        """The search as one graph: (batch_size, R, C) float32 -> tokens, log_probability, length."""
        import tensorflow as tf

        return tf.function(
            self._search,
            input_signature=[tf.TensorSpec((self.batch_size, None, None), tf.float32)],
            autograph=False,
        )

    def _search(self, photos: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        import tensorflow as tf

        rows, beam, size = self.batch_size, self.beam, self.language_model.lstm.units
        memory = self.fusion.encode(photos)
        start = (
            tf.constant(0),
            tf.fill((rows, beam, self.max_tokens + 1), PAD),
            tf.fill((rows, beam), START),
            tf.zeros((rows, beam, size)),
            tf.zeros((rows, beam, size)),
            tf.tile([[0.0] + [IMPOSSIBLE] * (beam - 1)], (rows, 1)),  # all beams begin as the same caption
            tf.zeros((rows, beam)),
            tf.zeros((rows, beam)),
        )
        _, tokens, _, _, _, log_probability, broken, length = tf.while_loop(
            lambda step, _, last, *__: (
                (step <= self.max_tokens) & tf.reduce_any((last != END) & (last != PAD))
            ),
            lambda *state: self._extend(memory, *state),
            start,
        )
        best = tf.argsort(log_probability / length - broken, direction="DESCENDING", stable=True)
        return tuple(tf.gather(x, best, batch_dims=1) for x in (tokens, log_probability, length))

    def _extend(
        self,
        memory: Any,
        step: tf.Tensor,
        tokens: tf.Tensor,
        last: tf.Tensor,
        states: tf.Tensor,
        cells: tf.Tensor,
        log_probability: tf.Tensor,
        broken: tf.Tensor,
        length: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        """Each beam by one token, and of all these the best; the beams of a photograph compete."""
        import tensorflow as tf

        rows, beam, size = self.batch_size, self.beam, self.language_model.lstm.units
        flat = (rows * beam, size)
        states, cells = self.language_model.step(
            tf.reshape(last, (-1,)), tf.reshape(states, flat), tf.reshape(cells, flat)
        )
        states, cells = tf.reshape(states, (rows, beam, size)), tf.reshape(cells, (rows, beam, size))
        gained = tf.nn.log_softmax(self.fusion.logits(memory, states))  # (B, K, V)
        ended = (last == END) | (last == PAD)
        only_pad = tf.one_hot(PAD, len(self.words.written), on_value=0.0, off_value=IMPOSSIBLE)
        gained = tf.where(ended[..., None], only_pad, gained + self._forbidden(step))
        rules = tf.where(ended[..., None], 0.0, RULE_BROKEN * self._rules_broken(step, tokens, last))
        total, broken = log_probability[..., None] + gained, broken[..., None] + rules
        length = length + tf.where(ended, 0.0, 1.0)
        rank = tf.reshape(total / length[..., None] - broken, (rows, -1))
        _, chosen = tf.math.top_k(rank, beam)  # (B, K) of beam * V
        parent, token = chosen // len(self.words.written), chosen % len(self.words.written)

        def of_parent(values: tf.Tensor) -> tf.Tensor:
            return tf.gather(values, parent, batch_dims=1)

        here = tf.one_hot(step, self.max_tokens + 1, on_value=True, off_value=False, dtype=tf.bool)
        return (
            step + 1,
            tf.where(here, token[..., None], of_parent(tokens)),
            token,
            of_parent(states),
            of_parent(cells),
            tf.gather(tf.reshape(total, (rows, -1)), chosen, batch_dims=1),
            tf.gather(tf.reshape(broken, (rows, -1)), chosen, batch_dims=1),
            of_parent(length),
        )

    def _forbidden(self, step: tf.Tensor) -> tf.Tensor:
        """(V,): IMPOSSIBLE for special tokens, an <end> at the start and a word too many, else 0."""
        import tensorflow as tf

        is_end = np.arange(len(self.words.written)) == END
        allowed = (self.words.written & (step < self.max_tokens)) | (is_end & (step > 0))
        return tf.where(allowed, 0.0, IMPOSSIBLE)

    def _rules_broken(self, step: tf.Tensor, tokens: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
        """How many rules of good style each next token would break, (B, K, V)."""
        import tensorflow as tf

        size = len(self.words.written)
        needs_more = tf.constant(self.words.needs_more)
        again = tf.one_hot(last, size)
        before, after = tokens[:, :, :-1], tokens[:, :, 1:]
        pair = (before == last[..., None]) & (after != PAD)
        pair &= ~(tf.gather(needs_more, before) & tf.gather(needs_more, after))
        row, beam = tf.meshgrid(tf.range(self.batch_size), tf.range(self.beam), indexing="ij")
        row, beam = (tf.broadcast_to(x[..., None], tf.shape(after)) for x in (row, beam))
        places = tf.stack([row, beam, after], -1)
        repeated = tf.scatter_nd(places, tf.cast(pair, tf.float32), (self.batch_size, self.beam, size))
        is_end = np.arange(size) == END
        dangling = tf.cast(tf.gather(needs_more, last)[..., None] & is_end, tf.float32)
        last_word = tf.cast(needs_more & (step == self.max_tokens - 1), tf.float32)
        return again + tf.minimum(repeated, 1.0) + dangling + last_word
