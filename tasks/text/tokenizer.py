"""Captions as tokens: the words a person reads, in the style of the Penn Treebank."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from html import unescape
from typing import NamedTuple

import polars as pl

from cutline.schemas.tables import dtypes_of

_ROWS_A_STEP = 1_000  # captions between two reports of progress
_NAME_LENGTH = 200  # characters of a rejected caption that its row shows
_REMEMBERED_LENGTH = 64  # a longer run of characters is no word that comes back

# Abbreviations whose period belongs to the word, as in the Treebank: "st.", but "dog" and ".".
_ABBREVIATED = (
    "mr mrs ms dr prof rev hon gov gen col maj capt lt sgt cpl sen rep pres jr sr bros "
    "st ave blvd rd mt ft ct bldg inc co corp ltd dept univ est tel etc vs cf al ph.d "
    "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri "
    "calif conn fla ga ky va ind ariz colo minn mo okla tenn wis"
)
_ABBREVIATIONS = frozenset(_ABBREVIATED.split())
_INITIALS = re.compile(r"[a-z](?:\.[a-z])+")  # u.s, d.c
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_ELEMENTS = (
    "a abbr article b big blockquote br center cite code del div em figcaption figure font h[1-6] hr i img "
    "ins label li mark ol p pre q s script section small span strike strong style sub sup table tbody "
    "td th tr u ul"
)
_TAG = re.compile(rf"</?(?:{'|'.join(_ELEMENTS.split())})(?:\s[^<>]*|/)?>|<!--.*?-->", re.I | re.S)

_CLITIC = re.compile(r" (?=(?:n't|'(?:s|m|d|re|ve|ll))(?: |$))")

# A space between two characters of Chinese or Japanese, which `_SPACING` takes apart. The class is written
# twice on purpose: a change of `_SPACING` would have all tokens made again.
_WITHOUT_SPACE = r"[々\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_JOINED = re.compile(rf"(?<={_WITHOUT_SPACE}) (?={_WITHOUT_SPACE})")

# Words of letters alone that NLTK's tokenizer takes apart.
_TWO_WORDS = frozenset(["cannot", "gimme", "gonna", "gotta", "lemme", "wanna"])

# Characters that are not seen: soft hyphen, direction marks, word joiner, byte order mark,
# variation selectors, tags. The two joiners mean something between letters of Arabic and Indic
# scripts only.
_UNSEEN = re.compile(
    r"[\u00ad\u061c\u200e\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e01ef]"
    r"|(?<![\u0600-\u1aff])[\u200c\u200d]|[\u200c\u200d](?![\u0600-\u1aff])"
)
_SPELLINGS = str.maketrans(
    dict.fromkeys("’‘‛´ʼ＇′", "'")
    | dict.fromkeys("“”„‟«»‹›″`", '"')
    | dict.fromkeys("‐‑−", "-")
    | dict.fromkeys("‒–—―", " -- ")
    | dict.fromkeys("…‥", "...")
    | {"¼": " 1/4", "½": " 1/2", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3"}
)

# Where a space must stand before NLTK's tokenizer sees the text: what the Treebank's tokenizer for
# captions takes apart and NLTK's does not. No rule looks past a space, so that a word's tokens do
# not depend on its neighbours.
_SPACING: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\ud800-\udfff]"), " "),
    (re.compile(r"\"|''+"), " "),
    # Chinese and Japanese put no space between words: each character is a token.
    (
        re.compile(r"[々\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"),
        r" \g<0> ",
    ),
    (re.compile(r"\.{2,}"), " ... "),
    (re.compile(r"-{2,}"), " -- "),
    (re.compile(r"[=~|^\\]|\+(?!\d)"), r" \g<0> "),
    (re.compile(r"(?<!\S)/|/(?!\S)"), " / "),
    (re.compile(r"('s?)-(?=\w)"), r" \1 - "),  # bird's-eye
    (re.compile(r"(?<!\S)-(?=[^\s\d-])|-(?=[,.;:!?)\]}]|(?!\S))"), " - "),
    (re.compile(r"(\d)'(?=\d)"), r"\1 ' "),  # 6'2
    (re.compile(r"(:\d\d)([ap]m)\b"), r"\1 \2"),
    (re.compile(r"(?<!\S)\.(?=[^\W\d_])"), " . "),
)
_LAST_PERIOD = re.compile(r"(?<![\w.'-])([\w.'-]*)\.(?=[\])}>',;:!?]*(?!\S))")
# A dot or quote inside a Catalan or Hebrew word is part of it.
_SYMBOL = re.compile(r"(?!(?<=\w)[\u00b7\u2027\u05f3\u05f4](?=\w))[^\w\s\x00-\x7f]")


def as_text(tokens: Iterable[str]) -> str:
    """Words with spaces between, but none before a clitic or between Chinese or Japanese characters.

    >>> as_text(["they", "'re", "on", "the", "man", "'s", "boat"])
    "they're on the man's boat"
    >>> as_text(["子", "在", "公", "园", "里", "玩"])
    '子在公园里玩'
    """
    return _JOINED.sub("", _CLITIC.sub("", " ".join(tokens)))


def tokenize(text: str) -> list[str]:
    """The words of a caption: lower case, accents composed (NFC), no punctuation.

    NLTK's `NLTKWordTokenizer` cuts the text, as it needs no downloaded data and follows the Penn
    Treebank, which is what captions are scored on (see `caption_metrics`). A token needs a letter or
    a digit of some script; so punctuation, symbols and emoji go. Hyphenated words stay whole,
    contractions and possessives come apart, and abbreviations keep their period.

    =========================  ===============================  ========================
    text                       tokens                           content_tokens (English)
    =========================  ===============================  ========================
    ``A dog!``                 [a, dog]                         [dog]
    ``The man's hat.``         [the, man, 's, hat]              [man, hat]
    ``They don't run…``        [they, do, n't, run]             [run]
    ``a black-and-white cat``  [a, black-and-white, cat]        [black-and-white, cat]
    ``2 cars on Main St.``     [2, cars, on, main, st.]         [2, cars, main, st.]
    ``<b>Levi&#039;s</b>``     [levi, 's]                       [levi]
    ``Zwei Füße im Gras``      [zwei, füße, im, gras]           [zwei, füße, im, gras]
    ``कुत्ता दौड़ रहा है।``         [कुत्ता, दौड़, रहा, है]               [कुत्ता, दौड़, रहा, है]
    ``一只狗。``                 [一, 只, 狗]                       [一, 只, 狗]
    =========================  ===============================  ========================
    """
    return [token for word in _without_html(text).split() for token in _parts(word).words]


def is_word(token: str) -> bool:
    """Whether a token holds a letter or a digit of any script."""
    return token.isalnum() or any(map(str.isalnum, token))


def split(text: str) -> list[str]:
    """All tokens of a text, punctuation too: `split_plainly`, remembering words it has seen.

    Captions say the same words again and again; no rule of `split_plainly` looks past a space, so
    a text's tokens are those of its words, one after the other.
    """
    return [token for word in _without_html(text).split() for token in _parts(word).tokens]


def split_plainly(text: str) -> list[str]:
    """All tokens of a text, punctuation too, by one call of NLTK's tokenizer."""
    return _cut(_without_html(text))


def _without_html(text: str) -> str:
    """A text with the characters that its entities stand for, and without the tags of HTML."""
    if "&" not in text and "<" not in text:
        return text
    for _ in range(2):  # what comes out of a shop's database was often escaped twice
        text = _ENTITY.sub(lambda entity: unescape(entity[0]), text)
    return _TAG.sub(" ", text)


def _cut(text: str) -> list[str]:
    # The last period of a text would be cut from "st." too: a period of our own takes its place.
    return _tokenizer()(_prepare(text) + " .")[:-1]


class Parts(NamedTuple):
    """What a run of characters without a space consists of: all tokens, and those that are words."""

    tokens: tuple[str, ...]
    words: tuple[str, ...]


def _parts(word: str) -> Parts:
    return _remembered_parts(word) if len(word) <= _REMEMBERED_LENGTH else _new_parts(word)


def _new_parts(word: str) -> Parts:
    lower = word.lower()
    if word.isascii() and word.isalpha() and lower not in _TWO_WORDS:
        return Parts((lower,), (lower,))  # no rule touches it
    tokens = tuple(_cut(word))
    return Parts(tokens, tuple(filter(is_word, tokens)))


_remembered_parts = lru_cache(maxsize=2**16)(_new_parts)


@cache
def _tokenizer() -> Callable[[str], list[str]]:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer().tokenize


def _prepare(text: str) -> str:
    """`text` in lower case, in one spelling, with spaces where NLTK's tokenizer needs them."""
    text = _UNSEEN.sub("", text).translate(_SPELLINGS)
    text = unicodedata.normalize("NFC", text.lower())
    for pattern, replacement in _SPACING:
        text = pattern.sub(replacement, text)
    if not text.isascii():
        text = _SYMBOL.sub(_set_apart, text)
    text = _LAST_PERIOD.sub(_part_period, text)
    return " ".join(text.split())


def _set_apart(symbol: re.Match[str]) -> str:
    """Spaces around punctuation and symbols outside ASCII; combining marks stay where they are."""
    character = symbol[0]
    return f" {character} " if unicodedata.category(character)[0] in "PS" else character


def _part_period(end: re.Match[str]) -> str:
    word = end[1]
    if word.endswith("."):
        return end[0]  # an ellipsis, which stands apart already
    belongs = word in _ABBREVIATIONS or _INITIALS.fullmatch(word)
    return f"{word}. " if belongs else f"{word} . "


def tokenize_captions(
    captions: pl.DataFrame, stopwords: frozenset[str], advance: Callable[[int], None]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The `tokens` of a captions table, and `rejects` for captions that hold no word.

    `captions` needs the columns caption_id and text. Rows keep their order. A caption of stop words
    alone stays, with no content tokens.
    """
    ids: list[str] = []
    tokens: list[list[str]] = []
    content: list[list[str]] = []
    empty: list[str] = []
    for step in captions.select("caption_id", "text").iter_slices(_ROWS_A_STEP):
        for caption_id, text in step.iter_rows():
            words = tokenize(text)
            if words:
                ids.append(caption_id)
                tokens.append(words)
                content.append([word for word in words if word not in stopwords])
            else:
                empty.append(text)
        advance(step.height)
    table = pl.DataFrame(
        {"caption_id": ids, "tokens": tokens, "content_tokens": content}, schema=dtypes_of("tokens")
    )
    return table, _rejects(empty)


def _rejects(texts: Sequence[str]) -> pl.DataFrame:
    rows = [
        (
            "tokens",
            "caption",
            text[:_NAME_LENGTH],
            "empty_caption",
            "no letter and no digit is in this caption",
        )
        for text in texts
    ]
    return pl.DataFrame(rows, schema=dtypes_of("rejects"), orient="row")
