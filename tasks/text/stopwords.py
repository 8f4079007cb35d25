"""Stop-word lists: NLTK's, a file's, or the one that comes with Cutline."""

from __future__ import annotations

import os
import sys
import unicodedata
import zipfile
from collections.abc import Iterable
from pathlib import Path

from cutline.schemas.errors import UsageError
from cutline.schemas.settings import expanded


def load_stopwords(setting: str) -> frozenset[str]:
    """The stop words that `setting` names: a language, or a file with a word a line.

    A language is looked up in NLTK's own lists where its `stopwords` corpus is installed (in the
    folders that `nltk.data.path` begins with; NLTK itself, slow to import, stays out); for English
    a list of ours steps in. A file is UTF-8, and `#` begins a comment. Words are brought into the
    spelling of tokens; where one holds an apostrophe, its parts count too (don't: do, n't).

    Raises UsageError if there is no such list, or if it is not of that form.
    """
    language = setting.strip().lower()
    if language.isidentifier():
        text = _nltk_list(language)
        if text is None and language == "english":
            text = Path(__file__).with_name("stopwords.txt").read_text(encoding="utf-8")
        if text is not None:
            return _words_of_list(text, setting)
    return _words_of_list(_read_list(setting), setting)


def _words_of_list(text: str, source: str) -> frozenset[str]:
    words: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.partition("#")[0].split()
        if len(entry) > 1:
            raise UsageError(
                f"stop words '{source}', line {number}: expected one word a line, "
                f"found {len(entry)}: '{line.strip()[:60]}'"
            )
        for word in entry:
            words |= _as_tokens(word)
    return frozenset(words)


def _as_tokens(word: str) -> set[str]:
    """A listed word as the tokens that it can appear as."""
    whole = unicodedata.normalize("NFC", word.lower()).replace("’", "'")
    stem, apostrophe, _ = whole.partition("'")
    if not apostrophe:
        return {whole}
    # Contractions come apart before n't and before the apostrophe; NLTK is not imported for this.
    if whole.endswith("n't"):
        return {whole, whole[:-3], "n't"} - {""}
    return {whole, stem, whole[len(stem) :]} - {"", "'"}


def _read_list(setting: str) -> str:
    path = expanded(setting)
    if not path.is_file():
        known = ", ".join(sorted({"english", *_nltk_languages()}))
        raise UsageError(
            f"tokens.stopwords='{setting}': neither a file nor a language whose stop words are here "
            f"({known}); give the path of a file with a word a line, or install NLTK's lists with "
            "'python -m nltk.downloader stopwords'"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"tokens.stopwords='{setting}': expected a text file in UTF-8; {error}") from None


def _nltk_folders() -> Iterable[Path]:
    """Where NLTK looks for its data, in its order."""
    named = [folder for folder in os.environ.get("NLTK_DATA", "").split(os.pathsep) if folder]
    yield from (expanded(folder) for folder in named)
    yield expanded("~/nltk_data")
    yield from (Path(sys.prefix, inner) for inner in ("nltk_data", "share/nltk_data", "lib/nltk_data"))
    yield from (
        Path(root, "nltk_data") for root in ("/usr/share", "/usr/local/share", "/usr/lib", "/usr/local/lib")
    )


def _nltk_list(language: str) -> str | None:
    """NLTK's list of a language, from its folder or the archive it came in; None where there is none."""
    for folder in _nltk_folders():
        plain, archive = folder / "corpora/stopwords" / language, folder / "corpora/stopwords.zip"
        try:
            if plain.is_file():
                return plain.read_text(encoding="utf-8")
            if archive.is_file():
                with zipfile.ZipFile(archive) as lists:
                    return lists.read(f"stopwords/{language}").decode("utf-8")
        except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError):
            continue  # a damaged or foreign corpus is as good as none
    return None


def _nltk_languages() -> set[str]:
    folders = [folder / "corpora/stopwords" for folder in _nltk_folders()]
    names = (path.name for folder in folders if folder.is_dir() for path in folder.iterdir())
    return {name for name in names if name.isidentifier() and name.islower()}
