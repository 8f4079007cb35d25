"""The joint embedding: photographs and texts projected into one space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from cutline.tasks.runtime.npz import Expected, read_npz, stale

JOINT_EMBEDDING = "joint_embedding.npz"
ARRAYS = ("photo", "photo_bias", "state", "word", "text_bias")


@dataclass(frozen=True)
class JointEmbedding:
    """The two projections; float32 arrays."""

    photo: np.ndarray  # (C, size)
    photo_bias: np.ndarray  # (size,)
    state: np.ndarray  # (S, size)
    word: np.ndarray  # (W, size)
    text_bias: np.ndarray  # (size,)
    words: tuple[str, ...]
    weights: np.ndarray  # (W,) how telling each word is
    stopwords: tuple[str, ...]  # left out of a text that is searched by

    def photo_vectors(self, pooled: np.ndarray) -> np.ndarray:
        """(n, C) pooled features → (n, size) float32 of length 1."""
        return unit(photo_input(pooled) @ self.photo + self.photo_bias)

    def text_vectors(self, states: np.ndarray, content_tokens: pl.Series) -> np.ndarray:
        """(n, S) mean states at content words and the content words → (n, size) float32 of length 1."""
        bags = bags_of(content_tokens, self.words, self.weights)
        return unit(np.asarray(states, np.float32) @ self.state + bags.dense() @ self.word + self.text_bias)

    def save(self, path: Path) -> None:
        """Write the projections, float16, which all later stages read."""
        arrays = {name: getattr(self, name).astype(np.float16) for name in (*ARRAYS, "weights")}
        words = {name: np.array(getattr(self, name), np.str_) for name in ("words", "stopwords")}
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays, **words)

    @staticmethod
    def load(path: Path) -> JointEmbedding:
        """What `save` wrote. Raises StaleModel where the file is damaged or something else."""
        try:
            found = read_npz(path, EXPECTED)
            numbers = {name: found[name].astype(np.float32) for name in (*ARRAYS, "weights")}
            size = numbers["text_bias"].shape[-1]
            shapes = {name: (numbers[name].ndim, numbers[name].shape[-1]) for name in ARRAYS}
            expected = {name: (1 if "bias" in name else 2, size) for name in ARRAYS}
            if shapes != expected or not all(np.isfinite(values).all() for values in numbers.values()):
                raise ValueError(f"expected finite arrays of {size} columns, found {shapes}")
            if not len(found["words"]) == len(numbers["weights"]) == len(numbers["word"]):
                raise ValueError("a word lacks its vector or its weight")
            words, stopwords = (_texts(found[name]) for name in ("words", "stopwords"))
        except ValueError as error:
            content = "the projections of photographs and texts"
            raise stale(path, content, error, "train them again") from None
        return JointEmbedding(words=words, stopwords=stopwords, **numbers)


def photo_input(pooled: np.ndarray) -> np.ndarray:
    """Pooled features as they are projected: roots, which even out bursts (Arandjelović and Zisserman
    2012), of length 1. (n, C) → (n, C) float32."""
    return unit(np.sqrt(np.maximum(np.asarray(pooled, np.float32), 0)))


def unit(values: np.ndarray) -> np.ndarray:
    """Rows (…, size) brought to length 1, float32; a row of zeros stays one."""
    lengths = np.linalg.norm(values, axis=-1, keepdims=True)
    return (values / np.maximum(lengths, 1e-12)).astype(np.float32)


# ---- bags of words ----


@dataclass(frozen=True)
class Bags:
    """The words of texts and their weights, end to end; text i has those from starts[i] to starts[i + 1]."""

    words: np.ndarray  # (N,) int32
    values: np.ndarray  # (N,) float32
    starts: np.ndarray  # (texts + 1,) int64
    width: int

    def dense(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Some texts as (n, width) float32."""
        numbers = np.arange(len(self.starts) - 1)[rows]
        bags = np.zeros((len(numbers), self.width), np.float32)
        counts = self.starts[numbers + 1] - self.starts[numbers]
        row = np.repeat(np.arange(len(numbers)), counts)
        place = np.arange(len(row)) + np.repeat(
            self.starts[numbers] - np.concatenate([[0], counts.cumsum()])[:-1], counts
        )
        bags[row, self.words[place]] = self.values[place]
        return bags


def bags_of(content_tokens: pl.Series, words: Sequence[str], weights: np.ndarray) -> Bags:
    """Counts of the known words, times their weights, scaled to length 1; the rest is left out."""
    table = pl.DataFrame(
        {"token": words, "word": range(len(words)), "weight": weights},
        {"token": pl.String, "word": pl.Int32, "weight": pl.Float32},
    )
    texts = pl.DataFrame({"token": content_tokens}, {"token": pl.List(pl.String)}).with_row_index("text")
    counts = (
        texts.filter(pl.col("token").list.len() > 0)
        .explode("token")
        .join(table, on="token")
        .group_by("text", "word")
        .agg(value=pl.len() * pl.col("weight").first())
        .with_columns(pl.col("value") / (pl.col("value") ** 2).sum().over("text").sqrt())
        .sort("text", "word")
    )
    starts = np.searchsorted(counts["text"].to_numpy(), np.arange(texts.height + 1))
    values = counts["value"].cast(pl.Float32).to_numpy()
    return Bags(counts["word"].to_numpy(), values, starts.astype(np.int64), len(words))


EXPECTED = {
    **{name: Expected("f", 1 if "bias" in name else 2) for name in ARRAYS},
    "weights": Expected("f", 1),
    **{name: Expected("U", 1) for name in ("words", "stopwords")},
}


def _texts(values: np.ndarray) -> tuple[str, ...]:
    """The texts of an array. Raises ValueError where one is not valid Unicode."""
    texts = tuple(map(str, values))
    "".join(texts).encode()
    return texts
