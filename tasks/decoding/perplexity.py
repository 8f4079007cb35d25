"""Perplexity of texts under the language model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from cutline.schemas.errors import UsageError
from cutline.tasks.decoding.sampling import check_numbers, logits_of
from cutline.tasks.text.encoding import Ragged, encode
from cutline.tasks.text.tokenizer import tokenize
from cutline.tasks.text.vocabulary import END, PAD, START, UNK

if TYPE_CHECKING:
    import tensorflow as tf

    from cutline.tasks.models.language_model import LanguageModel


CAPTIONS_PER_BATCH = 64
# A file of any length is read a lot at a time; the captions of a lot are sorted by length together.
LINES_PER_BATCH = 4_096
CHARACTERS_PER_BATCH = 2**22
MAX_LINE_CHARACTERS = 2**20
EXAMPLES_KEPT = 10


def unknown_words(tokens: Iterable[str], vocabulary: Sequence[str]) -> list[str]:
    """Those of `tokens` that the vocabulary (tokens by id) lacks, each once."""
    known = set(vocabulary[UNK + 1 :])
    return list(dict.fromkeys(token for token in tokens if token not in known))


# ---- perplexity ----


@dataclass
class Perplexity:
    """How well a language model predicts a text."""

    log_probability: float = 0.0  # in nats, of all tokens and ends
    captions: int = 0
    tokens: int = 0  # with an <end> a caption
    unknown: int = 0  # tokens that were read as <unk>
    without_words: int = 0  # lines that hold no word, and do not count
    examples: tuple[str, ...] = ()  # the first unknown words

    @property
    def perplexity(self) -> float:
        """exp of the mean of -ln p a token."""
        return math.exp(min(-self.log_probability / self.tokens, 700.0))


def perplexity_of(
    language_model: LanguageModel, vocabulary: Sequence[str], lines: Iterable[str]
) -> Perplexity:
    """The perplexity of a text with a caption a line; each <end> counts as a token, as does each <unk>.

    The same as `training.language_model.perplexity`, in memory that grows neither with the text nor
    with its lines' length. Raises UsageError where no line holds a word.
    """
    score, predict = Perplexity(), _compiled_prediction(language_model)
    known = set(vocabulary[UNK + 1 :])
    table = pl.DataFrame({"token": vocabulary, "id": range(len(vocabulary))})
    for lot in _lots(lines):
        captions = [tokens for line in lot if (tokens := tokenize(line))]
        score.without_words += len(lot) - len(captions)
        score.captions += len(captions)
        score.tokens += sum(map(len, captions)) + len(captions)
        unknown = [token for tokens in captions for token in tokens if token not in known]
        score.unknown += len(unknown)
        score.examples = tuple(dict.fromkeys([*score.examples, *unknown]))[:EXAMPLES_KEPT]
        encoded = encode(pl.Series(captions, dtype=pl.List(pl.String)), table)
        by_length = np.argsort(encoded.lengths, kind="stable")
        for place in range(0, len(by_length), CAPTIONS_PER_BATCH):
            score.log_probability += predict(encoded, by_length[place : place + CAPTIONS_PER_BATCH])
    if not score.captions:
        raise UsageError("perplexity: expected a text with a caption a line, found no line with a word in it")
    check_numbers(score.log_probability)
    return score


def _lots(lines: Iterable[str]) -> Iterator[list[str]]:
    lot, characters = [], 0
    for line in lines:
        lot.append(line)
        characters += len(line)
        if len(lot) == LINES_PER_BATCH or characters > CHARACTERS_PER_BATCH:
            yield lot
            lot, characters = [], 0
    if lot:
        yield lot


def _compiled_prediction(language_model: LanguageModel) -> Callable[[Ragged, np.ndarray], float]:
    """Captions and the numbers of up to CAPTIONS_A_PASS of them -> ln p of all their tokens and ends."""
    import tensorflow as tf

    ids = tf.TensorSpec((CAPTIONS_PER_BATCH,), tf.int32)
    numbers = tf.TensorSpec((CAPTIONS_PER_BATCH, language_model.lstm.units), tf.float32)

    @tf.function(input_signature=[ids, ids, numbers, numbers], autograph=False)
    def step(
        tokens: tf.Tensor, targets: tf.Tensor, state: tf.Tensor, cell: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        state, cell = language_model.step(tokens, state, cell)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits_of(language_model, state))
        return -losses, state, cell

    def predict(captions: Ragged, rows: np.ndarray) -> float:
        lengths = captions.lengths[rows]
        words = np.full((CAPTIONS_PER_BATCH, int(lengths.max()) + 2), PAD, np.int32)
        words[:, 0] = START
        words[: len(rows), 1:-1] = captions.padded(rows, words.shape[1] - 2)
        words[np.arange(len(rows)), lengths + 1] = END
        state = cell = np.zeros((CAPTIONS_PER_BATCH, language_model.lstm.units), np.float32)
        total = 0.0
        for tokens, targets in zip(words.T, words.T[1:], strict=False):
            gained, state, cell = step(tokens, targets, state, cell)
            total += float(np.asarray(gained, np.float64)[targets != PAD].sum())
        return total

    return predict


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a text file in UTF-8. Raises UsageError where it is none, or a line has no end."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            while line := file.readline(MAX_LINE_CHARACTERS + 1):
                if len(line.removesuffix("\n")) > MAX_LINE_CHARACTERS:
                    raise UsageError(
                        f"{path}: expected a caption a line, found a line of more than "
                        f"{MAX_LINE_CHARACTERS:,} characters; break it into lines"
                    )
                yield line
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: expected a text file in UTF-8 with a caption a line; {error}") from None
