"""What the columns of a table or record mean, by their names, without regard to case."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from cutline.tasks.ingest.layouts.base import FILE_NAMES

# Columns that name a photograph's file, the most certain first.
NAME_COLUMNS = (*FILE_NAMES, "file_path", "img_path", "image_file", "img", "images", "image_id", "id")
# Columns that hold captions. Those of a later kind are read only where there is none of an earlier one:
# the prompt beside a caption is what was asked, and no caption.
_KINDS = (
    re.compile(
        r"((?!(num|n|no|has|is|len)[ _-])[\w -]+[ _-])?captions?([ _-]?\d+)?"
        r"|(text|sentence|description|raw|comment)s?([ _-]?\d+)?",
        re.IGNORECASE,
    ),
    re.compile(r"alt([ _-]?texts?)?", re.IGNORECASE),
    re.compile(r"prompts?", re.IGNORECASE),
    re.compile(r"conversations?|messages", re.IGNORECASE),
)
CAPTIONS_ARE_IN = "caption, text, sentence, description, comment, alt_text, prompt or conversations"
# Columns of texts that are known to be no captions.
_OTHER = re.compile(
    r"split|url|uid|uuid|md5|sha\d+|hash|status|error_message|exif|.*[ _-](id|url|hash)", re.IGNORECASE
)
# Cutline's own captions have these columns; what a model wrote is never learned from.
_OWN = frozenset({"path", "photo_id", "split", "caption", "score"})
OWN_FILE = (
    "Cutline wrote it: captions by a model are no captions by people; to learn from what you have corrected, "
    "keep only the columns `path` and `caption`"
)


def is_own(columns: Iterable[str]) -> bool:
    """Whether these are the columns of captions that Cutline wrote."""
    return set(columns) >= _OWN


def name_column(columns: Iterable[str]) -> str | None:
    """The column that names a photograph's file; None where there is none."""
    by_name = {column.strip().lower(): column for column in columns}
    return next((by_name[name] for name in NAME_COLUMNS if name in by_name), None)


def caption_columns(columns: Iterable[str]) -> list[str]:
    """The columns that hold captions, in their order; none of Cutline's own.

    >>> caption_columns(["image", "prompt", "caption_0", "blip caption"])
    ['caption_0', 'blip caption']
    """
    columns = list(columns)
    kinds = {column: kind for column in columns if (kind := _kind(column.strip())) is not None}
    if not kinds or is_own(columns):
        return []
    first = min(kinds.values())
    return [column for column in columns if kinds.get(column) == first]


def may_hold_captions(column: str) -> bool:
    """Whether texts in a column of that name might be captions, as nothing else is known of them."""
    name = column.strip().lower()
    return name not in NAME_COLUMNS and not _OTHER.fullmatch(name)


def is_text(value: Any) -> bool:
    """Whether a value is a text with letters, or a list of such."""
    value = value[0] if isinstance(value, list) and value else value
    return isinstance(value, str) and any(map(str.isalpha, value))


@lru_cache(maxsize=4096)
def _kind(column: str) -> int | None:
    return next((number for number, kind in enumerate(_KINDS) if kind.fullmatch(column)), None)
