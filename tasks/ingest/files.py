"""The files of a data set, and the photographs among them.

Hidden files and folders (a leading dot) and `__MACOSX` are passed over. A link to a folder is not
followed: what lies inside the data set is listed at its own place. A folder in which Cutline keeps
what it makes, known by the file `WORKSPACE_MARKER` in it, is no part of the data set that it lies in.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cutline.schemas.errors import UnknownDataset
from cutline.tasks.images.links import OUTSIDE, may_read
from cutline.tasks.runtime.unicode import is_valid, printable
from cutline.tasks.storage.workspace import WORKSPACE_MARKER

# Formats that photographs come in. Some of these are not decoded here: such a file is rejected, by
# its content, and not passed over.
PHOTO_ENDINGS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".heic", ".heif", ".avif", ".jp2", ".jxl"}
)
# Of a text beside a photograph, whose caption it is.
SIDECAR_ENDINGS = frozenset({".txt", ".text", ".caption", ".captions", ".cap"})
TEXT_ENDINGS = SIDECAR_ENDINGS | {".token", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".tar", ".parquet"}


class Photo(NamedTuple):
    """A photograph of the data set; `size` in bytes, the three after it are the file's, or its container's.

    `source` is the container in the data set, None for a plain file; `container` is where the bytes are
    read, from `offset` on: the source itself (a tar), or "pack:" and the name of a pack.
    """

    path: str
    size: int
    file_size: int
    mtime_ns: int
    inode: int
    source: str | None = None
    container: str | None = None
    offset: int | None = None


class Problem(NamedTuple):
    """Something that cannot be used; a row of the rejects table."""

    kind: str
    name: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Selection:
    """What of a data set is meant: all of it, or these files and folders."""

    paths: frozenset[str] = frozenset()

    @property
    def has_manifest(self) -> bool:
        """Whether a Parquet file is meant by itself: then the photographs that it names are, too."""
        return any(ending_of(path) == ".parquet" for path in self.paths)

    def holds(self, path: str) -> bool:
        """Whether `path` is meant, by itself or with a folder that it lies in."""
        everything = not self.paths or "." in self.paths
        return everything or path in self.paths or any(parent in self.paths for parent in _parents(path))


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


@dataclass(frozen=True)
class Files:
    """The regular files under `root`, sorted by path: slim columns, since there may be millions."""

    root: Path
    paths: list[str]
    sizes: array[int]
    mtimes_ns: array[int]
    inodes: array[int]
    problems: list[Problem]
    selection: Selection = Selection()
    read: set[str] = field(default_factory=set)  # the files that something was read from

    def is_photo(self, path: str) -> bool:
        """Whether `path` is a photograph, by its ending or since it is meant by itself.

        With a manifest, only those are that are meant without being named in it.
        """
        if path in self.selection.paths:
            return ending_of(path) not in (".tar", ".parquet")
        if ending_of(path) not in PHOTO_ENDINGS:
            return False
        return not self.selection.has_manifest or self.selection.holds(path)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row by path."""
        return {path: row for row, path in enumerate(self.paths)}

    def photo(self, path: str) -> Photo:
        """The plain file `path` as a photograph."""
        row = self.rows[path]
        size = self.sizes[row]
        return Photo(path, size, size, self.mtimes_ns[row], self.inodes[row])

    def part(self, source: str, name: str, container: str, offset: int, size: int) -> Photo:
        """A photograph `name` inside the file `source`."""
        row = self.rows[source]
        where = (self.sizes[row], self.mtimes_ns[row], self.inodes[row])
        return Photo(f"{source}/{name}", size, *where, source, container, offset)

    def open(self, path: str) -> BinaryIO:
        """Open a listed file for reading; raises OSError, also where a pipe has taken its place."""
        self.read.add(path)
        return self.look_into(path)

    def look_into(self, path: str) -> BinaryIO:
        """As `open`, but only to find out what the file is."""
        place = os.path.realpath(self.root / path)
        if not may_read(place, os.fspath(self.root)):
            raise PermissionError("the path leads out of the data set's folder")
        file = os.fdopen(os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise PermissionError("not a regular file")
        return file

    def head(self, path: str, size: int) -> bytes:
        """The first bytes of a listed file; none where it cannot be read."""
        try:
            with self.look_into(path) as file:
                return file.read(size)
        except OSError:
            return b""

    def read_text(self, path: str, max_bytes: int | None = None) -> str:
        """The text of a small listed file; raises OSError, also over `max_bytes`."""
        with self.open(path) as file:
            data = file.read() if max_bytes is None else file.read(max_bytes + 1)
        if max_bytes is not None and len(data) > max_bytes:
            raise OSError(f"over {max_bytes:,} bytes, which is no text beside a photograph")
        return decode(data)


def encoding_of(data: bytes) -> str:
    """The encoding of a text by its first two bytes: UTF-16 by its byte order mark, else UTF-8."""
    return "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"


def decode(data: bytes) -> str:
    """UTF-8 to text without a byte order mark; bytes that are none become lone surrogates.

    UTF-16 where its byte order mark stands at the beginning.
    """
    if encoding_of(data) != "utf-8":
        return data.decode("utf-16", "replace")
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def looks_like_text(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a text with letters, in UTF-8 or UTF-16."""
    if encoding_of(head) != "utf-8":
        return True
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character was cut in two
            return False
        text = head[: error.start].decode()
    return any(map(str.isalpha, text)) and not any(ord(one) < 32 and one not in "\t\n\r\f" for one in text)


def scan(dataset: Path, only: Sequence[str] = ()) -> Files:
    """List every file under `dataset`, in the same order whatever order the file system has.

    With `only`, paths below `dataset`, just those files and what lies in those folders; a Parquet
    file among them may name any photograph of the data set, so then all photographs are listed.
    Raises UnknownDataset where there is no such folder, or where all of it is a workspace.
    """
    if not dataset.is_dir():
        found = "a file" if dataset.exists() else "nothing"
        raise UnknownDataset(f"a data set is a folder; found {found} at '{dataset}'")
    root = os.path.realpath(dataset)
    if not only and os.path.lexists(f"{root}/{WORKSPACE_MARKER}"):
        raise UnknownDataset(
            f"'{dataset}' is a workspace: what a run makes there would be its data set the next time. "
            f"Give another --workspace; if it is none any more, delete {WORKSPACE_MARKER} in it"
        )
    selection = Selection(frozenset(posixpath.normpath(path) for path in only))
    rows: list[_FileRow] = []
    problems: list[Problem] = []
    for listed in _walk(root, Selection() if selection.has_manifest else selection):
        if isinstance(listed, Problem):
            problems.append(listed)
        elif (
            not selection.has_manifest
            or listed[0] in selection.paths
            or ending_of(listed[0]) in PHOTO_ENDINGS
        ):
            rows.append(listed)
    rows.sort()
    if selection.paths:  # else every path of a whole data set would be gone through for nothing
        problems += _not_met(selection, [*(row[0] for row in rows), *(problem.name for problem in problems)])
    problems.sort()
    sizes = array("q", [row[1] for row in rows])
    mtimes_ns = array("q", [row[2] for row in rows])
    inodes = array("q", [row[3] for row in rows])
    return Files(Path(root), [row[0] for row in rows], sizes, mtimes_ns, inodes, problems, selection)


def _not_met(selection: Selection, listed: Sequence[str]) -> list[Problem]:
    """A problem for each file or folder that is meant and was not come upon."""
    met = {path for path in listed if path in selection.paths}
    met |= {parent for path in listed for parent in _parents(path) if parent in selection.paths} | {"."}
    detail = (
        "it was named, and is not there; a folder that a link leads to is not read: name the folder itself"
    )
    return [Problem("file", printable(path), "vanished", detail) for path in selection.paths - met]


_FileRow = tuple[str, int, int, int]  # path, size, mtime_ns, inode


def _walk(root: str, selection: Selection) -> Iterator[_FileRow | Problem]:
    on_the_way = {parent for path in selection.paths for parent in _parents(path)}
    by_name = selection.paths | on_the_way
    pending = [("", selection.holds("."))]
    while pending:
        folder, is_whole = pending.pop()
        if folder and folder not in by_name and os.path.lexists(f"{root}/{folder}/{WORKSPACE_MARKER}"):
            continue
        try:
            with os.scandir(f"{root}/{folder}") as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    is_meant = is_whole or path in selection.paths
                    if is_passed_over(entry.name) and path not in by_name:
                        continue
                    if not (is_meant or path in on_the_way):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append((path, is_meant))
                    listed = _file_row(entry, path, root) if is_meant else None
                    if listed is not None:
                        yield listed
        except OSError as error:
            yield Problem("file", printable(folder or "."), reason_of(error), cause(error))


def _file_row(entry: os.DirEntry[str], path: str, root: str) -> _FileRow | Problem | None:
    """The row of a file; a problem where it cannot be read, but None if nobody would read it."""
    ending = ending_of(entry.name)
    kind = "photo" if ending in PHOTO_ENDINGS else "file"
    wanted = kind == "photo" or ending in TEXT_ENDINGS
    is_link = entry.is_symlink()
    try:
        status = entry.stat()
    except OSError as error:
        if is_link and error.errno in (errno.ENOENT, errno.ELOOP):
            detail = "a link that leads nowhere"
            return Problem(kind, printable(path), "not_a_file", detail) if wanted else None
        return Problem(kind, printable(path), reason_of(error), cause(error)) if wanted else None
    is_folder = stat.S_ISDIR(status.st_mode)
    if is_link and not may_read(place := os.path.realpath(entry.path), root):
        detail = OUTSIDE.format(place=printable(place, 120))
        return Problem(kind, printable(path), "outside_dataset", detail) if wanted or is_folder else None
    if is_folder:
        return (
            Problem(kind, printable(path), "not_a_file", "a folder, not a file") if kind == "photo" else None
        )
    if not stat.S_ISREG(status.st_mode):
        detail = "not a regular file (a pipe, a socket or a device)"
        return Problem(kind, printable(path), "not_a_file", detail) if wanted else None
    if not is_valid(path):
        return (
            Problem(kind, printable(path), "bad_name", "the path is not UTF-8; rename it") if wanted else None
        )
    # Some file systems number up to 2**64; the tables have 63 bits.
    return path, status.st_size, status.st_mtime_ns, status.st_ino & (2**63 - 1)


def ending_of(path: str) -> str:
    """The last ending of a path in lower case, with its dot: "a/b.tar.JPG" → ".jpg"."""
    dot = path.rfind(".")
    return path[dot:].lower() if dot > path.rfind("/") else ""


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of that name is no part of any data set: hidden, or of a Mac."""
    return name[0] == "." or name == "__MACOSX"


def reason_of(error: OSError) -> str:
    """The reason code of a file that cannot be read: vanished or unreadable."""
    return "vanished" if isinstance(error, FileNotFoundError) else "unreadable"


def cause(error: Exception) -> str:
    """What an error says, in valid Unicode of at most 200 characters; of an OSError without the path."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return printable(text)
