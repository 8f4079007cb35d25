"""The tokens that a model knows, and captions as rows of their ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from schemas.settings import VocabularySettings

PAD, START, END, UNK = range(4)
SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unk>")
VOCABULARY_DTYPES: dict[Any, Any] = {"token": pl.String, "id": pl.Int32, "count": pl.Int64}


def make_vocabulary(tokens: pl.DataFrame, settings: VocabularySettings) -> pl.DataFrame:
    """The `vocabulary` of a tokens table, which must be that of the training captions alone.

    Rows 0 to 3 are <pad>, <start>, <end> and <unk>; then come the tokens that occur at least
    `min_count` times, at most `max_size` of them, by falling count, ties by token. The count of
    <unk> is the number of tokens that it stands for; <pad>, <start> and <end> have none.
    """
    words = tokens.lazy().select(pl.col("tokens").explode().alias("token")).drop_nulls()
    counts = words.group_by("token").agg(count=pl.len().cast(pl.Int64)).collect()
    total = int(counts["count"].sum())
    kept = (
        counts.filter(pl.col("count") >= settings.min_count, ~pl.col("token").is_in(SPECIAL_TOKENS))
        .sort("count", "token", descending=[True, False])
        .head(settings.max_size)
    )
    special = pl.DataFrame(
        {"token": SPECIAL_TOKENS, "count": [0, 0, 0, total - int(kept["count"].sum())]},
        schema=kept.schema,
    )
    return pl.concat([special, kept]).with_row_index("id").select(*VOCABULARY_DTYPES).cast(VOCABULARY_DTYPES)


def encode(tokens: pl.Series, vocabulary: pl.DataFrame, max_tokens: int) -> np.ndarray:
    """Captions (n lists of tokens) as ids, int32 (n, max_tokens + 2), in their order.

    A row is <start>, the ids, <end>, and <pad> to its end. A caption of more than `max_tokens` is
    cut and has no <end>: it does not end there. A token outside the vocabulary is <unk>, and so is
    one that is spelt like a special token.
    """
    ids = np.full((len(tokens), max_tokens + 2), PAD, dtype=np.int32)
    if len(tokens) == 0:
        return ids
    lengths = tokens.list.len().fill_null(0).cast(pl.Int64).to_numpy()
    kept = np.minimum(lengths, max_tokens)
    ids[:, 0] = START
    ids[np.arange(len(tokens)), kept + 1] = np.where(lengths > max_tokens, PAD, END)
    rows = np.repeat(np.arange(len(tokens)), kept)
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(kept) - kept, kept) + 1
    ids[rows, columns] = _ids_of(tokens.list.head(max_tokens), vocabulary)
    return ids


def _ids_of(tokens: pl.Series, vocabulary: pl.DataFrame) -> np.ndarray:
    """The ids of all tokens of all captions, one after the other: int32 (number of tokens,)."""
    ordinary = vocabulary.filter(pl.col("id") > UNK).select("token", "id")
    said = tokens.drop_nulls().explode(empty_as_null=False).alias("token").to_frame()
    found = said.join(ordinary, on="token", how="left", maintain_order="left")
    return found["id"].fill_null(UNK).to_numpy()
