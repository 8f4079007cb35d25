"""What a data set says of its photographs, and the forms it is written in: lines, records, captions."""

from __future__ import annotations

import io
import posixpath
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cutline.tasks.ingest.files import PHOTO_ENDINGS, Files, Photo, Problem, cause, encoding_of, reason_of
from cutline.tasks.ingest.finder import Finder
from cutline.tasks.runtime.unicode import printable

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation", "development", "eval"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Keys and columns that hold captions, and those that name a photograph's file.
CAPTION_NAME = re.compile(r"(caption|text|sentence|description|raw)s?(_?\d+)?", re.IGNORECASE)
FILE_NAMES = (
    *("file_name", "image_path", "photo_path", "filename", "filepath", "file", "path"),
    *("image", "photo", "image_name", "key"),
)

MOST_UNREAD = 100  # columns of texts that are told of one by one
MAX_LINE_CHARACTERS = 2**20
LINE_END = re.compile(r"\r\n?|\n")
MAX_TEXT_BYTES = 16 * 2**20  # of a text beside a photograph
MAX_MALFORMED = 1_000  # entries of a file, before it is given up where most are malformed
MAX_CAPTIONS = 10_000  # of one photograph; a list of more is none of captions
MAX_UNCLOSED = 1_000  # quotes of a file; from then on no quoted field goes on in the next line
MAX_RECORD_LINES = 64  # a quoted field that is not closed by then was not meant as one


class Entry(NamedTuple):
    """What a data set says of one photograph, or of one that is missing (`photo` is None).

    `captions` are pairs of place ("captions.txt:17") and text. Bytes that are not UTF-8 are in the
    text as lone surrogates. `name` is what the data set calls the photograph: captions of one that is
    missing belong together by it.
    """

    photo: str | None
    captions: Sequence[tuple[str, str]] = ()
    split: str | None = None
    source_id: str | None = None
    name: str | None = None


Item = Photo | Entry | Problem


@dataclass(frozen=True)
class Source:
    """What a reader works on: the files, those that the layout is known by, and where packs go."""

    files: Files
    markers: list[str]
    packs: Path
    max_file_bytes: int
    finder: Finder
    unread: dict[str, set[str]] = field(default_factory=dict)  # column → the files in which it was not read

    def note_unread(self, column: str, path: str) -> None:
        """Note that a file has texts in a column from which nothing is read.

        Of more than MOST_UNREAD columns the others are noted as one, "…".
        """
        column = column if column in self.unread or len(self.unread) < MOST_UNREAD else "…"
        self.unread.setdefault(column, set()).add(path)


@dataclass(frozen=True)
class Layout:
    """One way in which data sets are laid out; the registry has all of them.

    `matches` tells whether a file belongs to the layout: True, False, or None where the file is damaged,
    so that only its ending speaks for the layout. `read` yields what the files of the layout say.
    """

    name: str  # the value of the setting ingest.layout
    looked_for: str  # for messages: the files that the layout is recognised by
    matches: Callable[[Files, str], bool | None]
    read: Callable[[Source], Iterator[Item]]


def basename(path: str) -> str:
    """The last part of a path in lower case."""
    return path[path.rfind("/") + 1 :].lower()


def entries_of(
    source: Source,
    name: str,
    captions: Sequence[tuple[str, str]],
    split: str | None = None,
    claims: bool = True,
) -> Iterator[Item]:
    """The entry of the photograph `name`, after what there is to say of the name."""
    photo, event = source.finder.find(name, claims=claims)
    if event is not None:
        yield event
    yield Entry(photo, captions, split, name=name)


def until_useless(path: str, items: Iterator[Item]) -> Iterator[Item]:
    """The items of one file; where most of very many are malformed, one problem in place of the rest.

    A file of another kind, or one made to fill the memory, would else give a reject for every few bytes.
    """
    malformed_items = others = 0
    for item in items:
        yield item
        if isinstance(item, Problem) and item.reason == "malformed":
            malformed_items += 1
        else:
            others += 1
        if malformed_items > MAX_MALFORMED and malformed_items > others:
            detail = (
                f"{malformed_items:,} entries of it are malformed, {others:,} are not; the rest is not read"
            )
            yield malformed(path, detail, "file")
            return


def malformed(place: str, detail: str, kind: str = "caption") -> Problem:
    """What is not of the form that its layout prescribes; `place` may hold any characters."""
    return Problem(kind, printable(place), "malformed", detail)


# ---- splits ----


def split_in(path: str) -> str | None:
    """The split that a path's words tell, the outermost part first: "val2017/train.jpg" → "dev"."""
    for part in path.split("/"):
        for word in re.findall("[a-z]+", part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def split_of_file(path: str) -> str | None:
    """The split that a file's own name tells, else its folders: "test/train-0.tar" → "train"."""
    folder, _, name = path.rpartition("/")
    return split_in(posixpath.splitext(name)[0]) or split_in(folder)


def told_split(value: Any, place: str) -> tuple[str | None, Problem | None]:
    """The split that a data set tells of a row, None where it tells none; or what is wrong with it."""
    word = str(value or "").strip()
    split = SPLIT_WORDS.get(word.lower())
    if split or not word:
        return split, None
    expected = "a `split` of train, restval, val, dev or test"
    return None, malformed(place, f"expected {expected}, found {printable(word, 80)!r}; the row is left out")


def held_out(one: str | None, other: str) -> str:
    """Of two splits the one that is further from training: test, then dev, then train."""
    return max(one or other, other, key=("train", "dev", "test").index)


# ---- lines and records ----


def read_lines(files: Files, path: str) -> Iterator[tuple[int, str] | Problem]:
    """Number and text of each line that is not blank; LF, CRLF and CR end a line.

    Unicode has further characters that end a line (U+0085, U+2028); a caption may hold them.
    """
    number = 0
    try:
        opened = files.open(path)
        encoding = encoding_of(opened.read(2))
        opened.seek(0)
        errors = "surrogateescape" if encoding == "utf-8" else "replace"
        with io.TextIOWrapper(opened, encoding, errors) as file:
            while line := file.readline(MAX_LINE_CHARACTERS + 1):
                number += 1
                text = line.removesuffix("\n")
                if len(text) > MAX_LINE_CHARACTERS:
                    while (rest := file.readline(MAX_LINE_CHARACTERS)) and not rest.endswith("\n"):
                        pass
                    yield malformed(
                        f"{path}:{number}", f"the line has over {MAX_LINE_CHARACTERS:,} characters"
                    )
                    continue
                text = text.removeprefix("\ufeff") if number == 1 else text
                if text.strip():
                    yield number, text
    except OSError as error:
        yield Problem("file", path, reason_of(error), cause(error))


def read_records(
    files: Files,
    path: str,
    is_open: Callable[[str], bool],
    starts: Callable[[str], bool],
    separator: str,
) -> Iterator[tuple[int, str] | Problem]:
    """Lines, and several as one where a quoted field goes on over the end of a line.

    `is_open` tells that a line ends inside quotes, `starts` that a line begins a record of its own;
    `separator` stands between the fields that may follow the quoted one. A quote that is never closed
    costs nothing but itself: its line stands alone.
    """
    lines = read_lines(files, path)
    waiting: deque[tuple[int, str] | Problem] = deque()
    unclosed = 0
    while True:
        line = waiting.popleft() if waiting else next(lines, None)
        if line is None:
            return
        if isinstance(line, Problem) or unclosed > MAX_UNCLOSED or not is_open(line[1]):
            yield line
            continue
        text, last, is_inside = line[1], line[0], True
        ahead: list[tuple[int, str] | Problem] = []
        while is_inside and len(ahead) < MAX_RECORD_LINES and len(text) < MAX_LINE_CHARACTERS:
            following = waiting.popleft() if waiting else next(lines, None)
            if following is None:
                break
            ahead.append(following)
            if isinstance(following, Problem) or starts(following[1]):
                break
            text += "\n" * (following[0] - last) + following[1]
            last = following[0]
            is_inside = ends_in_quotes('"' + following[1], separator)
        if is_inside or (ahead and isinstance(ahead[-1], Problem)):
            unclosed += 1
            waiting.extendleft(reversed(ahead))
            text = line[1]
        yield line[0], text


QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*("?)')


def ends_in_quotes(text: str, separator: str) -> bool:
    """Whether a CSV record ends inside a quoted field, and so goes on in the next line."""
    at = 0
    while at <= len(text):
        if text.startswith('"', at):
            quoted = QUOTED.match(text, at)
            if quoted and not quoted[1]:
                return True
            at = quoted.end() if quoted else at
        at = text.find(separator, at) + 1
        if not at:
            return False
    return False


def begins_with_photo(separator: str) -> Callable[[str], bool]:
    """Tells of a line whether its first field is a photograph's name, so that it begins a record."""
    endings = "|".join(ending[1:] for ending in PHOTO_ENDINGS)
    pattern = re.compile(rf'"?[^"{separator}]+\.({endings})"?\s*{re.escape(separator)}', re.IGNORECASE)
    return lambda line: pattern.match(line) is not None


# ---- captions ----


def captions_at(place: str, value: Any) -> tuple[list[tuple[str, str]], list[Problem]]:
    """Captions, with their places, in what a data set holds under a caption's name.

    A text, a list of texts, or a list of objects with `raw`, `caption` or `text`; None is none. Of a
    conversation (objects with `from` and `value`, or `role` and `content`) it is the first answer.
    """
    captions: list[tuple[str, str]] = []
    problems: list[Problem] = []
    values = value if isinstance(value, list) else [value]
    if len(values) > MAX_CAPTIONS:
        found = f"expected at most {MAX_CAPTIONS:,} captions of one photograph, found {len(values):,}"
        return [], [malformed(place, found)]
    if any(_speaker(one) for one in values):
        values = next(([text] for one in values if _speaker(one) in _MODELS and (text := _said(one))), [])
    for index, one in enumerate(values):
        at = f"{place} [{index}]" if len(values) > 1 else place
        if isinstance(one, dict):
            one = next((one[key] for key in ("raw", "caption", "text") if key in one), one.get("tokens", one))
            one = " ".join(map(str, one)) if isinstance(one, list) else one
        if isinstance(one, str):
            captions.append((at, one))
        elif one is not None:
            problems.append(malformed(at, f"expected a caption, found {printable(repr(one), 80)}"))
    return captions, problems


_MODELS = ("gpt", "chatgpt", "assistant", "model", "bot")


def _speaker(turn: Any) -> str | None:
    """Who speaks in a turn of a conversation; None where it is none."""
    if not isinstance(turn, dict):
        return None
    speaker = turn.get("from") if "value" in turn else turn.get("role") if "content" in turn else None
    return speaker.lower() if isinstance(speaker, str) else None


def _said(turn: dict[str, Any]) -> str | None:
    content = turn["value"] if "value" in turn else turn["content"]
    if isinstance(content, list):  # of parts, some of which are texts
        content = " ".join(part["text"] for part in content if isinstance(part, dict) and part.get("text"))
    return content if isinstance(content, str) and content.strip() else None


def caption_lines(place: str, text: str) -> list[tuple[str, str]]:
    """A caption a line; a text of blanks is one caption, an empty one, one of too many lines is whole."""
    if sum(text.count(end) for end in "\r\n") > 2 * MAX_CAPTIONS:
        return [(place, text)]  # too long for a caption, which is said where captions are checked
    lines = [
        (f"{place}:{number}", line) for number, line in enumerate(LINE_END.split(text), 1) if line.strip()
    ]
    return lines or [(place, "")]
