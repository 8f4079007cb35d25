"""Checksums inside small JSON files: a record that was changed on the disk is noticed."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeVar

from pydantic import BaseModel

Model = TypeVar("Model", bound=BaseModel)

CHECKSUM = "checksum"


def with_checksum(text: str, indent: int | None = None) -> str:
    """A JSON object with one key more: the digest of all others."""
    content = json.loads(text)
    return json.dumps({**content, CHECKSUM: _digest(content)}, indent=indent, ensure_ascii=False)


def checked(model: type[Model], data: bytes) -> Model:
    """The record that `with_checksum` wrote.

    A file of an earlier version has no checksum and is taken as it is. Raises ValueError where the checksum
    is not that of the content, ValidationError where this is no such record.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return model.model_validate_json(data)  # which says what is wrong with it
    if not isinstance(content, dict) or CHECKSUM not in content:
        return model.model_validate_json(data)
    expected = content.pop(CHECKSUM)
    found = _digest(content)
    if expected != found:
        raise ValueError(f"expected content of the checksum {expected}, found content of {found}")
    return model.model_validate(content)


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
