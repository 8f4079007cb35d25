"""Text that is valid UTF-8 and safe to show."""

from __future__ import annotations


def printable(text: str, limit: int = 200) -> str:
    """`text` in valid Unicode (what is not is escaped) and of at most `limit` characters."""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def is_valid(text: str) -> bool:
    """Whether `text` can be written as UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
