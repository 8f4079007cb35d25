"""Changes of the disk below a workspace: files and folders that are put in place whole.

What stands in the way, a folder in place of a file or a file in place of a folder, is moved aside and told
of; nothing is deleted for it.
"""

from __future__ import annotations

import os
import sys
import uuid
from contextlib import suppress
from pathlib import Path


def put_in_place(whole: Path, target: Path, root: Path) -> None:
    """Rename a file that is whole to `target`, below `root`, so that it survives a power cut.

    Raises OSError.
    """
    make_folder(target.parent, root)
    try:
        whole.replace(target)
    except (IsADirectoryError, NotADirectoryError):
        move_aside(target, "a file")
        whole.replace(target)
    flush_folder(target.parent)


def make_folder(folder: Path, root: Path) -> None:
    """Make a folder and those above it. Only what lies below `root` is moved aside. Raises OSError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        below = [part for part in (folder, *folder.parents) if part != root and part.is_relative_to(root)]
        in_the_way = next((part for part in below if os.path.lexists(part) and not part.is_dir()), None)
        if in_the_way is None:
            raise
        move_aside(in_the_way, "a folder")
        folder.mkdir(parents=True, exist_ok=True)


def move_aside(path: Path, expected: str) -> Path:
    """Rename what stands in the way, say so on standard error, and return its new path."""
    aside = path.with_name(f"{path.name}.aside-{uuid.uuid4().hex[:8]}")
    path.rename(aside)
    print(
        f"cutline: '{path}': expected {expected}, found something else; moved it to '{aside.name}' and go on",
        file=sys.stderr,
        flush=True,
    )
    return aside


def flush_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk: without that, a rename may be lost in a power cut.

    Does nothing where the file system cannot flush folders.
    """
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(number)
        finally:
            os.close(number)
