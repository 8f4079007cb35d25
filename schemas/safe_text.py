"""Names and texts of strangers, made safe to show: one function per medium.

A file name may hold any character: escape sequences steer a terminal, characters that set the direction of
writing reorder a line, and characters without width make two names look alike. They are written out, as
Python writes them in a string, so that nothing is hidden and nothing is lost. Two characters without width
stay, as words of Persian and of Indian languages and most emoji need them: U+200C and U+200D.
"""

from __future__ import annotations

import re

# C0 and C1 without newline and tab; soft hyphen, fillers and others without width; separators of lines;
# marks, embeddings, overrides and isolates of direction; halves of surrogate pairs; tags; noncharacters.
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
BREAKS = str.maketrans({"\n": r"\n", "\t": r"\t"})


def written_out(text: str) -> str:
    """A text of several lines with all unsafe characters written out; newlines and tabs stay.

    >>> written_out("a\\x1b[31mb"), written_out("a\\u202eb")
    ('a\\\\x1b[31mb', 'a\\\\u202eb')
    """
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def for_terminal(value: object) -> str:
    """Any value as one line of a terminal: newlines and tabs are written out too."""
    return written_out(str(value)).translate(BREAKS)


def for_page(value: object) -> object:
    """A text for a page in HTML, before it is escaped; what is no plain text stays as it is."""
    return written_out(value) if type(value) is str else value


def for_log(value: object, longest: int = 400) -> str:
    """Any value as one line of a log, or of a name, state or table that Prefect's page shows."""
    return for_terminal(str(value)[:longest])


def json_for_terminal(text: str) -> str:
    """JSON whose texts mean the same and hold no unsafe character: they are written as \\uXXXX."""
    return UNSAFE.sub(lambda match: "".join(f"\\u{unit:04x}" for unit in _units(match[0])), text)


def _units(character: str) -> list[int]:
    """The units of UTF-16, as JSON counts them."""
    data = character.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)]
