"""A vocabulary counts the training captions, and captions become rows of its ids."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline.schemas.settings import VocabularySettings
from cutline.schemas.tables import check
from cutline.tasks.text.encoding import encode
from cutline.tasks.text.tokenizer import tokenize
from cutline.tasks.text.vocabulary import END, PAD, SPECIAL_TOKENS, START, UNK, make_vocabulary


def tokens_of(*captions: list[str]) -> pl.DataFrame:
    ids = [f"{n:032x}" for n in range(len(captions))]
    return pl.DataFrame(
        {"caption_id": ids, "tokens": captions, "content_tokens": captions},
        schema={
            "caption_id": pl.String,
            "tokens": pl.List(pl.String),
            "content_tokens": pl.List(pl.String),
        },
    )


TOKENS = tokens_of(["a", "dog"], ["a", "cat", "a"], ["a", "dog", "cat", "zebra"], ["été"])


def test_special_tokens_come_first_then_falling_count_then_the_token() -> None:
    vocabulary = make_vocabulary(TOKENS, VocabularySettings(min_count=1, max_size=10))
    check(vocabulary, "vocabulary")
    assert vocabulary.rows() == [
        ("<pad>", PAD, 0),
        ("<start>", START, 0),
        ("<end>", END, 0),
        ("<unk>", UNK, 0),
        ("a", 4, 4),
        ("cat", 5, 2),
        ("dog", 6, 2),
        ("zebra", 7, 1),
        ("été", 8, 1),
    ]


def test_unk_counts_the_tokens_that_it_replaces() -> None:
    vocabulary = make_vocabulary(TOKENS, VocabularySettings(min_count=2, max_size=10))
    assert vocabulary["token"].to_list() == [*SPECIAL_TOKENS, "a", "cat", "dog"]
    assert vocabulary["count"][UNK] == 2


def test_only_the_most_frequent_are_kept() -> None:
    many = tokens_of([f"w{n:02d}" for n in range(30) for _ in range(n + 1)])
    vocabulary = make_vocabulary(many, VocabularySettings(min_count=1, max_size=10))
    assert vocabulary["token"].to_list()[4:] == [f"w{n:02d}" for n in range(29, 19, -1)]
    assert vocabulary["count"].sum() == many["tokens"].list.len().sum()


def test_no_caption_makes_a_vocabulary_of_special_tokens() -> None:
    for captions in (tokens_of(), tokens_of([])):
        vocabulary = make_vocabulary(captions, VocabularySettings())
        check(vocabulary, "vocabulary")
        assert vocabulary["token"].to_list() == list(SPECIAL_TOKENS)


def test_captions_become_the_ids_of_their_tokens() -> None:
    vocabulary = make_vocabulary(TOKENS, VocabularySettings(min_count=2, max_size=10))
    found = encode(TOKENS["tokens"], vocabulary)
    assert found.ids.dtype == np.int32
    assert [found[row].tolist() for row in range(4)] == [[4, 6], [4, 5, 4], [4, 6, 5, UNK], [UNK]]


@pytest.mark.parametrize("said", ["<end> <unk> <pad> <start>", "&lt;end&gt;", "A dog <END>"])
def test_a_caption_that_says_a_special_token_does_not_hold_it(said: str) -> None:
    captions = tokens_of(tokenize(said), ["dog"])
    vocabulary = make_vocabulary(captions, VocabularySettings(min_count=1, max_size=10))
    assert (encode(captions["tokens"], vocabulary)[0] > UNK).all()


def test_a_token_spelt_like_a_special_one_is_unknown() -> None:
    """Even in a tokens table that was written by somebody else."""
    captions = tokens_of(["<end>", "<end>", "<pad>", "dog"])
    vocabulary = make_vocabulary(captions, VocabularySettings(min_count=1, max_size=10))
    assert vocabulary["token"].to_list() == [*SPECIAL_TOKENS, "dog"]
    assert vocabulary["count"][UNK] == 3
    assert encode(captions["tokens"], vocabulary)[0].tolist() == [UNK, UNK, UNK, 4]


@settings(max_examples=150)
@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "c", "ç", "d d", "<end>"]), max_size=7), max_size=8),
    st.integers(1, 3),
)
def test_rows_are_those_of_a_plain_loop(captions: list[list[str]], min_count: int) -> None:
    table = tokens_of(*captions)
    vocabulary = make_vocabulary(table, VocabularySettings(min_count=min_count, max_size=10))
    counts = Counter(token for caption in captions for token in caption if token not in SPECIAL_TOKENS)
    kept = sorted((token for token in counts if counts[token] >= min_count), key=lambda t: (-counts[t], t))
    assert vocabulary["token"].to_list()[4:] == kept

    known = {token: place for place, token in enumerate(kept, start=4)}
    found = encode(table["tokens"], vocabulary)
    assert len(found) == len(captions)
    for row, caption in enumerate(captions):
        assert found[row].tolist() == [known.get(token, UNK) for token in caption]
