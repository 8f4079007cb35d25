"""The stages that tokenize captions and count the words."""

from __future__ import annotations

import polars as pl

from cutline.tasks.engine.executor import make_rows, read_slice
from cutline.tasks.engine.stage import Stage, StageContext, StageResult
from cutline.tasks.storage.tables import read_table, write_table

TOKENS = Stage("tokens", "cutline.tasks.text.stage:make_tokens_shard")
VOCABULARY = Stage("vocabulary", "cutline.tasks.text.stage:make_vocabulary_table")


def make_tokens_shard(context: StageContext) -> StageResult:
    """Tokens and content tokens of a shard's captions."""
    from cutline.tasks.text.stopwords import load_stopwords
    from cutline.tasks.text.tokenizer import tokenize_captions

    captions = read_slice(context, "captions")
    stopwords = load_stopwords(context.settings.tokens.stopwords)

    def compute(ids: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
        rows = captions.filter(pl.col("caption_id").is_in(ids.implode()))
        return tokenize_captions(rows, stopwords, context.advance)

    return make_rows(context, "tokens", captions["caption_id"], compute)


def make_vocabulary_table(context: StageContext) -> StageResult:
    """Tokens of the training captions, with ids and counts."""
    from cutline.tasks.text.vocabulary import make_vocabulary

    tokens = read_table(context.paths("tokens"), "tokens")
    vocabulary = make_vocabulary(tokens, context.settings.vocabulary)
    write_table(vocabulary, context.out / "vocabulary.parquet", "vocabulary")
    context.advance(tokens.height)
    return StageResult(tokens.height, vocabulary.height)
