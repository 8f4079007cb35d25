"""The tokens that a model knows."""

from __future__ import annotations

import polars as pl

from cutline.schemas.settings import VocabularySettings
from cutline.schemas.tables import dtypes_of

PAD, START, END, UNK = range(4)
SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unk>")


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
    dtypes = dtypes_of("vocabulary")
    return pl.concat([special, kept]).with_row_index("id").select(*dtypes).cast(dtypes)
