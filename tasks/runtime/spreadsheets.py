"""CSV that is safe to open in a spreadsheet.

A spreadsheet takes a cell that begins with `=`, `+`, `-`, `@`, a tab or a line end for a formula, and may
run it (OWASP, CSV injection). Such a text is written with an apostrophe before it.
"""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

# Also the full-width forms of these characters, which some spreadsheets take for them.
_STARTS = "[=+\\-@\\t\\r\\n\uff1d\uff0b\uff0d\uff20]"
_ESCAPED = re.compile(f"'+{_STARTS}")
_DANGEROUS = f"^'*{_STARTS}"


def neutralise(text: str) -> str:
    """A text that no spreadsheet takes for a formula; `restore` gives it back as it was.

    A text that already begins with apostrophes and such a character gets one more, so that none is lost.

    >>> neutralise("=1+1"), neutralise("'=1+1"), neutralise("'tis a dog")
    ("'=1+1", "''=1+1", "'tis a dog")
    """
    return "'" + text if re.match(_DANGEROUS, text) else text


def restore(text: str) -> str:
    """The text that `neutralise` was given.

    >>> restore("'=1+1"), restore("'tis a dog")
    ('=1+1', "'tis a dog")
    """
    return text[1:] if _ESCAPED.match(text) else text


def write_csv(frame: pl.DataFrame, path: Path) -> None:
    """Write a table as CSV in UTF-8, its texts neutralised; numbers stay as they are."""
    texts = pl.col(pl.String)
    dangerous = texts.str.contains(_DANGEROUS)
    frame.with_columns(pl.when(dangerous).then(pl.lit("'") + texts).otherwise(texts).name.keep()).write_csv(
        path
    )
