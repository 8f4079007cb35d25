"""Tokens as ids: ragged arrays, padded batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from cutline.tasks.text.vocabulary import END, PAD, START, UNK


@dataclass(frozen=True)
class Ragged:
    """Captions as token ids end to end, `ids` (N,) int32; each begins at its `starts` (captions + 1,)."""

    ids: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, caption: int) -> np.ndarray:
        return self.ids[self.starts[caption] : self.starts[caption + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each caption, (captions,) int64."""
        return np.diff(self.starts)

    def padded(self, rows: np.ndarray, width: int) -> np.ndarray:
        """The sequences of `rows` as (len(rows), width) int32, cut at `width` and filled up with <pad>."""
        places = self.starts[rows][:, None] + np.arange(width)
        inside = np.arange(width) < self.lengths[rows][:, None]
        if not len(self.ids):
            return np.full(inside.shape, PAD, np.int32)
        return np.where(inside, self.ids[np.minimum(places, len(self.ids) - 1)], PAD).astype(np.int32)

    def inputs_and_targets(
        self, rows: np.ndarray, size: int, max_tokens: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is read of the sequences `rows` and what each token is to predict, (size, T) int32 each.

        Each is cut at `max_tokens`; missing rows and positions are <pad>.
        """
        whole_lengths = self.starts[rows + 1] - self.starts[rows]
        lengths = np.minimum(whole_lengths, max_tokens)
        width = int(lengths.max())
        inputs, targets = np.full((2, size, width + 1), PAD, np.int32)
        inputs[: len(rows), 0] = START
        inputs[: len(rows), 1:] = targets[: len(rows), :-1] = self.padded(rows, width)
        whole = whole_lengths <= max_tokens  # a caption that was cut does not end there
        targets[np.arange(len(rows)), lengths] = np.where(whole, END, PAD)
        return inputs, targets


def alike_in_length(
    lengths: np.ndarray, size: int, window: int, rng: np.random.Generator | None
) -> Iterator[np.ndarray]:
    """The numbers of all captions once, `size` at a time: by length, or in random order with an `rng`.

    Random batches of all lengths teach better than batches of one length, but are half padding. So
    captions are drawn at random for `window` batches at a time, and those of about one length put together.
    """
    drawn = rng.permutation(len(lengths)) if rng else np.arange(len(lengths))
    many = window * size if rng else max(len(lengths), 1)
    for first in range(0, len(drawn), many):
        some = drawn[first : first + many]
        some = some[np.argsort(lengths[some], kind="stable")]
        places = np.arange(0, len(some), size)
        for place in rng.permutation(places) if rng else places:
            yield some[place : place + size]


def encode(tokens: pl.Series, vocabulary: pl.DataFrame) -> Ragged:
    """The ids of each list of `tokens`; what the vocabulary lacks, or reserves, becomes <unk>.

    `vocabulary` has token and id.
    """
    words = vocabulary.filter(pl.col("id") > UNK)
    lengths = tokens.list.len().to_numpy().astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flat = tokens.filter(tokens.list.len() > 0).explode()
    ids = flat.replace_strict(words["token"], words["id"], default=UNK, return_dtype=pl.Int32)
    return Ragged(ids.to_numpy(), starts)
