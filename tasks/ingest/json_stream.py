"""A large JSON object read entry by entry: memory is taken for one entry of its lists at a time."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

CHUNK_BYTES = 2**20
MAX_VALUE_CHARACTERS = 16 * 2**20  # of an entry of a list, or of a value that is none
MAX_NOT_OBJECTS = 10_000  # entries of all lists that are no objects, or empty ones

_WHITE = re.compile(r"[ \t\n\r]*")


def read_lists(file: BinaryIO) -> Iterator[tuple[str, int, Any]]:
    """Name, index and value of each entry of the lists in a JSON object, in the file's order.

    A list begins with the index -1 and None, so that an empty one is known. Bytes that are not UTF-8 become
    lone surrogates. Raises ValueError where the file is not JSON or no object, where a value is too large,
    and where more than MAX_NOT_OBJECTS entries are not objects; RecursionError for too many brackets.
    """
    text = _Text(file)
    text.expect("{")
    is_first, not_objects = True, 0
    while text.peek() != "}":
        if not is_first:
            text.expect(",")
        is_first = False
        if text.peek() != '"':
            raise text.error("expected a name in quotes")
        name = text.value()
        text.expect(":")
        if text.peek() != "[":
            text.value()
            continue
        text.expect("[")
        yield name, -1, None
        index = 0
        while text.peek() != "]":
            if index:
                text.expect(",")
            value = text.value()
            not_objects += not (value and isinstance(value, dict))
            if not_objects > MAX_NOT_OBJECTS:
                raise text.error(f"over {MAX_NOT_OBJECTS:,} entries of lists are no objects or empty")
            yield name, index, value
            index += 1
        text.expect("]")
    text.expect("}")
    if text.peek():
        raise text.error("expected the end of the file")


class _Text:
    """The characters of a file from a place on, as many as are needed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._json = json.JSONDecoder()
        self._held, self._at = "", 0
        self._passed = 0  # characters before those that are held
        self._ended = False

    def _read(self) -> None:
        """Hold at least twice as much as is left."""
        data = self._file.read(max(CHUNK_BYTES, len(self._held) - self._at))
        self._passed += self._at
        self._held = self._held[self._at :] + self._decoder.decode(data, final=not data)
        self._at, self._ended = 0, not data

    def peek(self) -> str:
        """The next character that is no white space; nothing at the end of the file."""
        while True:
            self._at = _WHITE.match(self._held, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._held):
                return self._held[self._at]
            if self._ended:
                return ""
            self._read()

    def expect(self, character: str) -> None:
        """Pass over `character`. Raises ValueError where another one comes."""
        if self.peek() != character:
            raise self.error(f"expected '{character}'")
        self._at += 1

    def value(self) -> Any:
        """The value that begins here. Raises ValueError and RecursionError."""
        while True:
            self.peek()
            try:
                value, end = self._json.raw_decode(self._held, self._at)
            except json.JSONDecodeError as error:
                if self._ended or len(self._held) - self._at > MAX_VALUE_CHARACTERS:
                    raise self.error(error.msg, error.pos) from None
            else:
                if end < len(self._held) or self._ended:  # else a number may go on
                    self._at = end
                    return value
            self._read()

    def error(self, message: str, at: int | None = None) -> ValueError:
        """The error for what stands at the held character `at`, or here."""
        place = self._passed + (self._at if at is None else at)
        return ValueError(f"{message} at character {place:,}")
