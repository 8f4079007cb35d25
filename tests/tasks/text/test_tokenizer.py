"""Captions become the words that a person reads, whatever script and typing they come in."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cutline.schemas.errors import UsageError
from cutline.schemas.tables import check
from cutline.tasks.text.stopwords import load_stopwords
from cutline.tasks.text.tokenizer import as_text, is_word, split, split_plainly, tokenize, tokenize_captions

EXAMPLES = {
    "plain": ("A dog!", ["a", "dog"]),
    "spaces before punctuation": ("Two dogs , one ball .", ["two", "dogs", "one", "ball"]),
    "two sentences": ("A dog. The cat... sleeps..", ["a", "dog", "the", "cat", "sleeps"]),
    "possessive": ("The man's hat, the dogs' bowl", ["the", "man", "'s", "hat", "the", "dogs", "bowl"]),
    "curly apostrophe": ("The man’s hat", ["the", "man", "'s", "hat"]),
    "contraction": ("They don't, can't, cannot", ["they", "do", "n't", "ca", "n't", "can", "not"]),
    "hyphens": ("a black-and-white, t-shirt - red", ["a", "black-and-white", "t-shirt", "red"]),
    "loose hyphens": ("multi- -tiered –cake—now", ["multi", "tiered", "cake", "now"]),
    "digits": (
        "2 men, #23, 3.5 km, 1,000 at 10:30am",
        ["2", "men", "23", "3.5", "km", "1,000", "at", "10:30", "am"],
    ),
    "abbreviations": ("Mr. X at Main St., U.S.", ["mr.", "x", "at", "main", "st.", "u.s."]),
    "possessive at the end": ("a heap of CD's.", ["a", "heap", "of", "cd", "'s"]),
    "quotes": ("\"Stop\" ‘here’ «now» ''then'' „da“", ["stop", "here", "now", "then", "da"]),
    "brackets": ("(left) [right] {x} <y>", ["left", "right", "x", "y"]),
    "decomposed accent": ("cafe\u0301", ["caf\u00e9"]),
    "German": ("GROSSE Straße, Füße; Äpfel", ["grosse", "straße", "füße", "äpfel"]),
    "French": ("l’été à l'école « ici »", None),
    "Arabic": ("كلب يجري على العشب، أليس كذلك؟", ["كلب", "يجري", "على", "العشب", "أليس", "كذلك"]),
    "Hindi": ("कुत्ता घास पर दौड़ रहा है।", ["कुत्ता", "घास", "पर", "दौड़", "रहा", "है"]),
    "Persian joiner": ("می\u200cدود", ["می\u200cدود"]),
    "Chinese": ("一只狗，在草地上。", list("一只狗在草地上")),
    "Japanese": ("犬が走る。", list("犬が走る")),
    "Korean": ("개가 달린다!", ["개가", "달린다"]),
    "Catalan": ("col·legi · blau", ["col·legi", "blau"]),
    "emoji": ("A dog 🐕 and a family 👨‍👩‍👧‍👦!❤️", ["a", "dog", "and", "a", "family"]),
    "emoji at a word": ("dog🐕runs", ["dog", "runs"]),
    "invisible characters": ("\ufeffa d\u00ado\u200dg\u2060 \u200erun\u200bs", ["a", "dog", "run", "s"]),
    "special tokens": ("<end> <unk> &lt;start&gt; <pad>", ["end", "unk", "start", "pad"]),
    "entity": ("salt &amp; pepper", ["salt", "pepper"]),
    "entities": ("caf&eacute;&nbsp;Levi&#039;s &#8211; 5&#x22;", ["café", "levi", "'s", "5"]),
    "escaped twice": ("a &amp;quot;big&amp;quot; dog", ["a", "big", "dog"]),
    "tags": ('red<br/>blue <b class="x">bold</b> <p>end<!-- no\nword -->', ["red", "blue", "bold", "end"]),
    "no tag": ("a <heart> 3 < 5 & R&D", ["a", "heart", "3", "5", "r", "d"]),
    "control characters": ("a\x00dog\x1fruns\u2028far", ["a", "dog", "runs", "far"]),
    "nothing": ("", []),
    "no word": ("?! ... -- 🐕 。 \u0301 \u200d", []),
}
EXAMPLES["French"] = (EXAMPLES["French"][0], ["l'été", "à", "l'école", "ici"])


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_caption_becomes_these_words(name: str) -> None:
    text, words = EXAMPLES[name]
    assert tokenize(text) == words


def test_the_examples_of_the_docstring_are_true() -> None:
    stopwords = load_stopwords("english")
    rows = re.findall(r"``(.+?)`` +\[(.+?)\] +\[(.+?)\]", tokenize.__doc__ or "")
    assert len(rows) == 9
    for text, tokens, content in rows:
        words = tokenize(text)
        assert words == tokens.split(", ")
        assert [word for word in words if word not in stopwords] == content.split(", ")


# What captions are made of when somebody means harm, and single characters that rules look at.
MARKS = (
    "' '' \" . .. ... , : ; ! ? - -- / & % $ # @ * ( ) [ ] { } < > = + ~ | ^ \\ _ ` ’ “ ” « » – — … 。 · ״"
)
WORDS = (
    "can't cannot gonna wanna gotta lemme gimme more'n d'ye 'tis 'twas 's n't 're 'n' dogs' st. u.s. etc., "
    "10:30am 6'2 3.5 .5 1,2 a:b bird's-eye Σ ΑΣ İ ß क् \u200c \u200d \u00ad \u0301 e\u0301 一 ー ½ &amp; <end>"
)
SPACES = [" ", "  ", "\n", "\t", "\x1c", "\x85", "\u00a0", "\u2028", "\u3000", "\u200b"]
PIECES = st.one_of(
    st.text(max_size=6),
    st.sampled_from(MARKS.split()),
    st.sampled_from(WORDS.split(" ")),
    st.sampled_from(SPACES),
)


@settings(max_examples=1_500)
@given(st.lists(PIECES, max_size=12).map("".join))
@example("dog. cat. (dog.) \"dog.\" st. 'st.'")
@example("' ' '' 's' ''s x'y 'z")
@example("a , b ,c ,,d ,, : :x ::")
def test_remembering_words_changes_no_token(text: str) -> None:
    assert split(text) == split_plainly(text)


@settings(max_examples=500)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_tokens_are_words_without_spaces_in_one_spelling(text: str) -> None:
    for token in tokenize(text):
        assert any(character.isalnum() for character in token)
        assert not any(character.isspace() for character in token)
        assert not any(character in '<>"“”' for character in token)


@settings(max_examples=500)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_tokens_can_be_written_even_where_the_text_cannot(text: str) -> None:
    " ".join(tokenize(text + "\ud83d" + text)).encode("utf-8")


def test_words_of_letters_come_apart_only_where_nltk_says_so() -> None:
    """The shortcut for words of letters alone knows all of NLTK's contractions."""
    from nltk.tokenize.destructive import MacIntyreContractions, NLTKWordTokenizer

    patterns = MacIntyreContractions.CONTRACTIONS2 + MacIntyreContractions.CONTRACTIONS4
    words = {"".join(re.findall(r"\((?!\?)([^)]*)\)", pattern)) for pattern in patterns}
    assert {"cannot", "gonna"} <= words
    for word in words:
        assert split(word) == NLTKWordTokenizer().tokenize(word + " ")


def captions_of(texts: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"caption_id": [f"{n:032x}" for n in range(len(texts))], "text": texts})


def test_a_table_of_captions_becomes_tokens_and_rejects() -> None:
    seen: list[int] = []
    captions = captions_of(["A dog runs.", "...", "It is the one.", "🐕" * 300])
    tokens, rejects = tokenize_captions(captions, frozenset({"a", "it", "is", "the", "one"}), seen.append)
    check(tokens, "tokens")
    check(rejects, "rejects")
    assert tokens.rows() == [
        (f"{0:032x}", ["a", "dog", "runs"], ["dog", "runs"]),
        (f"{2:032x}", ["it", "is", "the", "one"], []),
    ]
    assert rejects["reason"].to_list() == ["empty_caption"] * 2
    assert rejects["stage"].to_list() == ["tokens"] * 2
    assert rejects["kind"].to_list() == ["caption"] * 2
    assert rejects["name"][0] == "..."
    assert len(rejects["name"][1]) == 200
    assert sum(seen) == captions.height


def test_a_table_without_captions_keeps_its_columns() -> None:
    tokens, rejects = tokenize_captions(captions_of([]).cast(pl.String), frozenset(), lambda rows: None)
    check(tokens, "tokens")
    check(rejects, "rejects")
    assert tokens.is_empty()
    assert rejects.is_empty()


def test_a_word_of_many_thousand_characters_is_no_trouble() -> None:
    for piece in ("'", "a.", "-a", ".)", "é'", "a'\"."):
        assert split(piece * 20_000) == split_plainly(piece * 20_000)


# ---- stop words ----


@pytest.fixture
def no_corpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """NLTK's data would be in the folder that is returned, which is not there yet."""
    monkeypatch.setattr("cutline.tasks.text.stopwords._nltk_folders", lambda: [tmp_path / "nltk_data"])
    return tmp_path / "nltk_data"


def test_our_own_list_steps_in_for_english(no_corpus: Path) -> None:
    stopwords = load_stopwords("english")
    assert {"a", "the", "is", "of", "don't", "n't", "'s", "ca"} <= stopwords
    assert not {"dog", "man", "red", "two", "left", "behind-the-scenes"} & stopwords
    text = "The dogs aren't on a man's hat because they can't be"
    assert [word for word in tokenize(text) if word not in stopwords] == ["dogs", "man", "hat"]


def test_every_word_of_our_list_is_a_token_or_comes_apart_into_some(no_corpus: Path) -> None:
    stopwords = load_stopwords("english")
    assert all(set(tokenize(word)) <= stopwords for word in stopwords if is_word(word))


def test_nltks_list_is_taken_where_it_is_installed(no_corpus: Path) -> None:
    folder = no_corpus / "corpora/stopwords"
    folder.mkdir(parents=True)
    (folder / "english").write_text("dog\nshan't\n")
    (folder / "german").write_text("für\nÜber\n", encoding="utf-8")
    assert load_stopwords("english") == {"dog", "shan't", "sha", "n't"}
    assert load_stopwords("German") == {"für", "über"}


def test_nltks_list_is_read_from_its_archive_too(no_corpus: Path) -> None:
    (no_corpus / "corpora").mkdir(parents=True)
    with zipfile.ZipFile(no_corpus / "corpora/stopwords.zip", "w") as archive:
        archive.writestr("stopwords/danish", "og\n")
    assert load_stopwords("danish") == {"og"}
    with pytest.raises(UsageError):
        load_stopwords("klingon")


def test_the_folders_are_those_that_nltk_looks_into(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from nltk.data import path as searched

    from cutline.tasks.text.stopwords import _nltk_folders

    ours = [str(folder) for folder in _nltk_folders()]
    assert [folder for folder in ours if folder in searched] == [
        folder for folder in searched if folder in ours
    ]
    assert len([folder for folder in ours if folder in searched]) >= 7
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    assert next(iter(_nltk_folders())) == tmp_path


def test_a_language_without_a_list_is_refused_with_the_remedy(no_corpus: Path) -> None:
    with pytest.raises(UsageError, match=r"german.*python -m nltk.downloader stopwords"):
        load_stopwords("german")


def test_a_file_holds_a_word_a_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("\ufeff# mine\nDog\n\ncafe\u0301  # a comment\nman’s\n", encoding="utf-8")
    assert load_stopwords(str(path)) == {"dog", "café", "man's", "man", "'s"}


def test_two_words_on_a_line_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("dog\nhot dog\n")
    with pytest.raises(UsageError, match="line 2: expected one word a line, found 2: 'hot dog'"):
        load_stopwords(str(path))


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(UsageError, match="UTF-8"):
        load_stopwords(str(path))
    with pytest.raises(UsageError, match="neither a file nor a language"):
        load_stopwords(str(tmp_path / "absent.txt"))


def test_stop_words_are_loaded_without_nltk() -> None:
    code = (
        "import sys; from cutline.tasks.text.stopwords import load_stopwords; load_stopwords('english'); "
        "assert 'nltk' not in sys.modules and 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


@pytest.mark.real_data
def test_real_captions_have_the_tokens_of_one_plain_call_each(real_data: Path) -> None:
    lines = (real_data / "data/flickr8k/Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    texts = [line.partition("\t")[2] for line in lines[::10]]
    tokens, rejects = tokenize_captions(captions_of(texts), frozenset(), lambda rows: None)
    plain = [[token for token in split_plainly(text) if is_word(token)] for text in texts]
    assert tokens["tokens"].to_list() == [words for words in plain if words]
    assert rejects.height == sum(not words for words in plain)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("子在公园里玩", "子在公园里玩"),
        ("犬がボールで遊ぶ。", "犬がボールで遊ぶ"),
        ("a dog 在 公园", "a dog 在公园"),
        ("개가 공원에서 논다", "개가 공원에서 논다"),
    ],
)
def test_chinese_and_japanese_are_written_without_spaces(caption: str, expected: str) -> None:
    assert as_text(tokenize(caption)) == expected
