"""What of a data set is not read, and why: each column, ending and file of texts in one notice."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from cutline.tasks.ingest.columns import CAPTIONS_ARE_IN, OWN_FILE
from cutline.tasks.ingest.files import (
    PHOTO_ENDINGS,
    SIDECAR_ENDINGS,
    TEXT_ENDINGS,
    Files,
    Problem,
    decode,
    ending_of,
    looks_like_text,
)
from cutline.tasks.ingest.layouts.base import LINE_END, Source
from cutline.tasks.ingest.layouts.parquet import IMAGE_NAMES, columns_found
from cutline.tasks.ingest.layouts.table_rows import is_own_file
from cutline.tasks.runtime.unicode import printable

ARCHIVES = frozenset({".gz", ".tgz", ".zip", ".bz2", ".tbz", ".xz", ".txz", ".zst", ".7z", ".rar"})
UNPACK = "an archive is not read: unpack it in its folder, and run this again (tars are read as they are)"
_DOCUMENTS = re.compile(r"(readme|licen[cs]e|copying|notice|authors|changelog|makefile|dockerfile)\b.*", re.I)
_PROGRAMS = frozenset({".py", ".ipynb", ".sh", ".bat", ".lock", ".dvc", ".log", ".pth", ".js", ".css"})
_KNOWN = TEXT_ENDINGS | PHOTO_ENDINGS | _PROGRAMS | {""}
SHOWN = 3  # files of a kind in a message


def unread_columns(source: Source) -> Iterator[Problem]:
    """A notice for each column, or ending within tars, of texts that nothing was read from."""
    for column, paths in sorted(source.unread.items()):
        name = f"{min(paths)}: {column}"
        many = f"in {len(paths):,} files; " if len(paths) > 1 else ""
        if column.startswith("*"):
            detail = (
                f"texts of this ending are not read; captions are read from {', '.join(_SIDECARS)} and *.json"
            )
        else:
            detail = f"the column is not read; captions are read from columns called {CAPTIONS_ARE_IN}"
        yield Problem("file", printable(name), "not_read", many + detail)


_SIDECARS = [f"*{ending}" for ending in sorted(SIDECAR_ENDINGS)]


def unread_endings(files: Files) -> Iterator[Problem]:
    """A notice for each further ending whose files are texts or archives, by the first of them."""
    by_ending: dict[str, list[str]] = {}
    for path in files.paths:
        ending = ending_of(path)
        if ending in _KNOWN or _DOCUMENTS.fullmatch(posixpath.basename(path)) or files.is_photo(path):
            continue
        if path in files.read:
            continue
        by_ending.setdefault(ending, []).append(path)
    for ending, paths in by_ending.items():
        is_archive = ending in ARCHIVES
        if not is_archive and not looks_like_text(files.head(paths[0], 512)):
            continue
        name = paths[0] if len(paths) == 1 else f"*{ending}"
        many = f"{len(paths):,} such files; " if len(paths) > 1 else ""
        texts = f"such texts are not read; captions beside photographs are read from {', '.join(_SIDECARS)}"
        yield Problem("file", printable(name), "not_read", many + (UNPACK if is_archive else texts))


def why_unread(files: Files, path: str) -> str | None:
    """Why a table or text was not read, where the file itself tells: what was expected, what was found."""
    if ending_of(path) == ".parquet":
        found = columns_found(files, path)
        if found is None:
            return None
        return OWN_FILE if found[1] else _wanted_in_parquet(found[0])
    if is_own_file(files, path):
        return OWN_FILE
    name = posixpath.basename(path).lower()
    if "caption" in name and ending_of(name) in (".txt", ".csv", ".tsv"):
        first = printable(LINE_END.split(decode(files.head(path, 4096)), 1)[0], 80)
        return (
            "expected a first line that names the columns of a photograph (file_name, image, path, …) and of "
            f"captions ({CAPTIONS_ARE_IN}), separated by a comma, tab, ; or |; found {first!r}"
        )
    return None


def _wanted_in_parquet(columns: list[str]) -> str:
    return (
        f"expected bytes of photographs in a column {', '.join(IMAGE_NAMES[:4])}, … or their names in "
        "file_name, image_path, path, … beside captions in caption, text, …; found the columns "
        f"{printable(', '.join(columns), 200)}"
    )


def why_unknown(files: Files) -> list[str]:
    """Lines that tell why nothing of a data set can be read: links, archives, Parquet of other columns."""
    lines = [f"  '{problem.name}': {problem.detail}" for problem in files.problems[:SHOWN]]
    lines += [f"  and {len(files.problems) - SHOWN:,} more" for _ in files.problems[SHOWN : SHOWN + 1]]
    archives = [path for path in files.paths if ending_of(path) in ARCHIVES]
    lines += [f"  '{printable(archives[0])}': {UNPACK}"] if archives else []
    for path in [path for path in files.paths if ending_of(path) in TEXT_ENDINGS][:SHOWN]:
        why = why_unread(files, path)
        lines += [f"  '{printable(path)}': {why}"] if why else []
    return lines
