"""The entries of a list in an annotation file in JSON, read one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cutline.tasks.ingest.files import Files, Problem, cause, reason_of
from cutline.tasks.ingest.json_stream import read_lists
from cutline.tasks.ingest.layouts.base import malformed


def read_entries(files: Files, path: str, key: str) -> Iterator[tuple[int, Any] | Problem]:
    """Index and value of each entry of the list `key`; a problem in place of what is not JSON."""
    found = False
    try:
        with files.open(path) as file:
            for name, index, value in read_lists(file):
                if found and name != key:
                    return
                found |= name == key
                if found and index >= 0:
                    yield index, value
    except OSError as error:
        yield Problem("file", path, reason_of(error), cause(error))
    except (ValueError, RecursionError) as error:
        yield malformed(path, f"not JSON: {cause(error)}", "file")
    else:
        if not found:
            yield malformed(path, f"expected an object with a list `{key}`", "file")
