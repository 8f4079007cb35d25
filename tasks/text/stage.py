"""The stages that tokenize captions and count the words."""

from __future__ import annotations

import polars as pl

from cutline.tasks.engine.executor import make_rows, read_slice
from cutline.tasks.engine.stage import Made, Stage, Work
from cutline.tasks.storage.tables import read_table, write_table

CAPTIONS = Stage("captions", "cutline.tasks.text.stage:make_tokens_shard")
VOCABULARY = Stage("vocabulary", "cutline.tasks.text.stage:make_vocabulary_table")


def make_tokens_shard(work: Work) -> Made:
    """Tokens and content tokens of a shard's captions."""
    from cutline.tasks.text.stopwords import load_stopwords
    from cutline.tasks.text.tokenizer import tokenize_captions

    captions = read_slice(work, "captions")
    stopwords = load_stopwords(work.settings.captions.stopwords)

    def compute(ids: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
        rows = captions.filter(pl.col("caption_id").is_in(ids.implode()))
        return tokenize_captions(rows, stopwords, work.advance)

    return make_rows(work, "tokens", captions["caption_id"], compute)


def make_vocabulary_table(work: Work) -> Made:
    """Tokens of the training captions, with ids and counts."""
    from cutline.tasks.text.vocabulary import make_vocabulary

    tokens = read_table(work.paths("tokens"), "tokens")
    vocabulary = make_vocabulary(tokens, work.settings.vocabulary)
    write_table(vocabulary, work.out / "vocabulary.parquet", "vocabulary")
    work.advance(tokens.height)
    return Made(tokens.height, vocabulary.height)
