"""The layouts of data sets: what lies in a folder, which layout that is, and what its files say.

| layout      | known by                                  | splits from                                  |
| ----------- | ----------------------------------------- | -------------------------------------------- |
| flickr8k    | `Flickr8k.token.txt`, `results_*.token`   | `Flickr_8k.{train,dev,test}Images.txt`       |
| karpathy    | `dataset_*.json` that holds `sentences`   | `split`; restval is train, val is dev        |
| coco        | `captions_*.json`                         | `train`, `val`, `test` in the file's name    |
| kaggle      | `captions.txt`, `results.csv`, by header  | as flickr8k, where there are lists           |
| imagefolder | `metadata.jsonl`, `metadata.csv`          | column `split`, else folders                 |
| webdataset  | `*.tar`                                   | the shard's name, else folders               |
| parquet     | `*.parquet` with photographs or names     | column `split`, else the file's name, folders |
| folder      | photographs, captions in a `.txt` beside  | folders                                      |

The first that fits is taken. A split word in a name (`val2017`, `train-00000-of-00002.parquet`)
counts as the split; val, valid, validation and eval are dev. Photographs may lie anywhere under the
root: a name is looked for where it says, then by its last part, at last without regard to case.

Hidden files and folders (a leading dot) and `__MACOSX` are passed over. A link to a folder is not
followed: what lies inside the data set is listed at its own place. Nothing is written into a data
set, and nothing is unpacked: a photograph in a tar is addressed by container, offset and size; the
image bytes of a Parquet file are copied once into a pack, since they cannot be addressed in place.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import posixpath
import re
import stat
import tarfile
import tempfile
import unicodedata
from array import array
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from schemas.errors import UnknownDataset

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

# Formats that photographs come in. Some of these are not decoded here: such a file is rejected, by
# its content, and not passed over.
PHOTO_ENDINGS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".heic", ".heif", ".avif", ".jp2", ".jxl"}
)
TEXT_ENDINGS = frozenset({".txt", ".token", ".json", ".jsonl", ".csv", ".tar", ".parquet"})

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation", "development", "eval"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Keys and columns that hold captions, and those that name a photograph's file.
CAPTION_NAME = re.compile(r"(caption|text|sentence|description|raw)s?(_?\d+)?", re.IGNORECASE)
FILE_NAMES = (
    *("file_name", "image_path", "photo_path", "filename", "filepath", "file", "path"),
    *("image", "photo", "image_name", "key"),
)

MAX_LINE_BYTES = 2**20
MAX_TEXT_BYTES = 16 * 2**20  # of a text beside a photograph
MAX_RECORD_LINES = 64  # a quoted field that is not closed by then was not meant as one


class Photo(NamedTuple):
    """A photograph of the data set; `size` in bytes, the three after it are the file's, or its container's.

    `source` is the container in the data set, None for a plain file; `container` the file to read the
    bytes from, at `offset`, which is the source itself (a tar) or an absolute path (a pack).
    """

    path: str
    size: int
    file_size: int
    mtime_ns: int
    inode: int
    source: str | None = None
    container: str | None = None
    offset: int | None = None


class Entry(NamedTuple):
    """What a data set says of one photograph, or of one that is missing (`photo` is None).

    `captions` are pairs of place ("captions.txt:17") and text. Bytes that are not UTF-8 are in the
    text as lone surrogates.
    """

    photo: str | None
    captions: Sequence[tuple[str, str]] = ()
    split: str | None = None
    source_id: str | None = None


class Problem(NamedTuple):
    """Something that cannot be used; a row of the rejects table."""

    kind: str
    name: str
    reason: str
    detail: str


Item = Photo | Entry | Problem


# ---- the files of a data set ----


@dataclass(frozen=True)
class Meant:
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
    meant: Meant = Meant()

    def is_photo(self, path: str) -> bool:
        """Whether `path` is a photograph, by its ending or since it is meant by itself.

        With a manifest, only those are that are meant without being named in it.
        """
        if path in self.meant.paths:
            return ending_of(path) not in (".tar", ".parquet")
        if ending_of(path) not in PHOTO_ENDINGS:
            return False
        return not self.meant.has_manifest or self.meant.holds(path)

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
        place = os.path.realpath(self.root / path)
        if not _is_inside(place, os.fspath(self.root)):
            raise PermissionError("the path leads out of the data set's folder")
        file = os.fdopen(os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise PermissionError("not a regular file")
        return file

    def read_text(self, path: str, max_bytes: int | None = None) -> str:
        """The text of a small listed file; raises OSError, also over `max_bytes`."""
        with self.open(path) as file:
            data = file.read() if max_bytes is None else file.read(max_bytes + 1)
        if max_bytes is not None and len(data) > max_bytes:
            raise OSError(f"over {max_bytes:,} bytes, which is no text beside a photograph")
        return decode(data)


def decode(data: bytes) -> str:
    """UTF-8 to text without a byte order mark; bytes that are none become lone surrogates."""
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


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


def scan(dataset: Path, only: Sequence[str] = ()) -> Files:
    """List every file under `dataset`, in the same order whatever order the file system has.

    With `only`, paths below `dataset`, just those files and what lies in those folders; a Parquet
    file among them may name any photograph of the data set, so then all photographs are listed.
    Raises UnknownDataset where there is no such folder.
    """
    if not dataset.is_dir():
        found = "a file" if dataset.exists() else "nothing"
        raise UnknownDataset(f"a data set is a folder; found {found} at '{dataset}'")
    root = os.path.realpath(dataset)
    meant = Meant(frozenset(posixpath.normpath(path) for path in only))
    rows: list[_FileRow] = []
    problems: list[Problem] = []
    for listed in _walk(root, Meant() if meant.has_manifest else meant):
        if isinstance(listed, Problem):
            problems.append(listed)
        elif not meant.has_manifest or listed[0] in meant.paths or ending_of(listed[0]) in PHOTO_ENDINGS:
            rows.append(listed)
    rows.sort()
    problems.sort()
    sizes = array("q", [row[1] for row in rows])
    mtimes_ns = array("q", [row[2] for row in rows])
    inodes = array("q", [row[3] for row in rows])
    return Files(Path(root), [row[0] for row in rows], sizes, mtimes_ns, inodes, problems, meant)


_FileRow = tuple[str, int, int, int]  # path, size, mtime_ns, inode


def _walk(root: str, meant: Meant) -> Iterator[_FileRow | Problem]:
    on_the_way = {parent for path in meant.paths for parent in _parents(path)}
    by_name = meant.paths | on_the_way
    pending = [("", meant.holds("."))]
    while pending:
        folder, is_whole = pending.pop()
        try:
            with os.scandir(f"{root}/{folder}") as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    is_meant = is_whole or path in meant.paths
                    if _is_passed_over(entry.name) and path not in by_name:
                        continue
                    if not (is_meant or path in on_the_way):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append((path, is_meant))
                    listed = _file_row(entry, path, root) if is_meant else None
                    if listed is not None:
                        yield listed
        except OSError as error:
            yield Problem("file", printable(folder or "."), _reason(error), _cause(error))


def _file_row(entry: os.DirEntry[str], path: str, root: str) -> _FileRow | Problem | None:
    """The row of a file; a problem where it cannot be read, but None if nobody would read it."""
    ending = ending_of(entry.name)
    kind = "photo" if ending in PHOTO_ENDINGS else "file"
    wanted = kind == "photo" or ending in TEXT_ENDINGS
    try:
        is_link = entry.is_symlink()
        status = entry.stat()
    except OSError as error:  # also a link whose target is gone
        return Problem(kind, printable(path), _reason(error), _cause(error)) if wanted else None
    is_folder = stat.S_ISDIR(status.st_mode)
    if is_link and not _is_inside(os.path.realpath(entry.path), root):
        detail = "the link leads out of the data set's folder; put what it points to in its place"
        return Problem(kind, printable(path), "outside_dataset", detail) if wanted or is_folder else None
    if is_folder:
        return (
            Problem(kind, printable(path), "unreadable", "a folder, not a file") if kind == "photo" else None
        )
    if not stat.S_ISREG(status.st_mode):
        detail = "not a regular file (a pipe, a socket or a device)"
        return Problem(kind, printable(path), "unreadable", detail) if wanted else None
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


def _is_passed_over(name: str) -> bool:
    return name[0] == "." or name == "__MACOSX"


def _is_inside(place: str, root: str) -> bool:
    return place == root or place.startswith(root.rstrip("/") + "/")


def _reason(error: OSError) -> str:
    return "vanished" if isinstance(error, FileNotFoundError) else "unreadable"


def _cause(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return printable(text)


# ---- names to photographs ----


@dataclass
class Finder:
    """Finds the photograph that an annotation names, and complains of each name only once."""

    files: Files
    _known: set[str] = field(default_factory=set)
    _last: tuple[tuple[str, str, str], str | None] | None = None

    def find(self, name: str, base: str = "", hint: str = "") -> tuple[str | None, Item | None]:
        """The path of the photograph `name`, and what else there is to say, if anything.

        `base` is the folder that the name is relative to. `hint` is a word in the path that decides
        between several files of the same name; without it the first in order is taken. A name with
        folders that none of the several files is in is missing: a wrong photograph would be worse.
        """
        wanted = name, base, hint
        if self._last is not None and self._last[0] == wanted:  # the next caption of the same one
            return self._last[1], None
        path, news = self._find(*wanted)
        self._last = wanted, path
        return path, news

    def _find(self, name: str, base: str, hint: str) -> tuple[str | None, Item | None]:
        shown = printable(name)
        inside = self._relative(name, base)
        if not is_valid(name) or "\0" in name:
            return None, self._once(
                shown, "bad_name", "the data set names a photograph in bytes that are not UTF-8"
            )
        if inside is None:
            return None, self._once(shown, "outside_dataset", "the path leads out of the data set's folder")
        path = self._match(inside, posixpath.normpath(name), hint)
        if path is None:
            refused = self._refused.get(inside) or self._refused.get(posixpath.basename(inside))
            if refused is not None and self.files.meant.has_manifest:
                return None, self._once(*refused[1:])
            if refused is not None:
                return None, None  # its file is in the rejects already
            return None, self._once(shown, "missing_photo", "named by the data set, not found in its folder")
        if path in self._known or self.files.is_photo(path):
            return path, None
        self._known.add(path)
        return path, self.files.photo(path)

    def _once(self, name: str, reason: str, detail: str) -> Problem | None:
        if name in self._known:
            return None
        self._known.add(name)
        return Problem("photo", name, reason, detail)

    def _relative(self, name: str, base: str) -> str | None:
        """The normal form of `name` from the root; None where it leads out of it."""
        root = os.fspath(self.files.root).rstrip("/") + "/"
        if name.startswith(root):
            name, base = name[len(root) :], ""
        path = posixpath.normpath(posixpath.join(base, name))
        leads_out = path.startswith(("/", "../")) or path == ".." or re.match(r"[A-Za-z]:[\\/]", name)
        return None if leads_out else path

    def _match(self, inside: str, name: str, hint: str) -> str | None:
        rows = self.files.rows
        for path in (inside, name):
            if path in rows:
                return path
        if "\\" in name:  # written on Windows
            return self._match(inside.replace("\\", "/"), name.replace("\\", "/"), hint)
        last = posixpath.basename(name)
        alike = self._by_name.get(last)
        if alike is None:
            alike = self._by_folded_name.get(_fold(last))
        if isinstance(alike, list) and "/" in name:
            alike = self._by_folded_tail.get(_fold(_tail(name)))
        if alike is None:
            return None
        numbers = [alike] if isinstance(alike, int) else alike[:1000]
        paths = [self.files.paths[row] for row in numbers]
        return min(paths, key=lambda path: (not path.endswith("/" + name), bool(hint) and hint not in path))

    @cached_property
    def _by_name(self) -> dict[str, int | list[int]]:
        return _index(posixpath.basename(path) for path in self.files.paths)

    @cached_property
    def _by_folded_name(self) -> dict[str, int | list[int]]:
        return _index(_fold(posixpath.basename(path)) for path in self.files.paths)

    @cached_property
    def _by_folded_tail(self) -> dict[str, int | list[int]]:
        return _index(_fold(_tail(path)) for path in self.files.paths)

    @cached_property
    def by_stem(self) -> dict[str, str]:
        """Path of a photograph by its path without the ending."""
        photos = (path for path in reversed(self.files.paths) if ending_of(path) in PHOTO_ENDINGS)
        return {path[: path.rfind(".")]: path for path in photos}  # of "a.jpg" and "a.png" the first stays

    @cached_property
    def _refused(self) -> dict[str, Problem]:
        problems = self.files.problems
        by_name = {posixpath.basename(problem.name): problem for problem in problems}
        return by_name | {problem.name: problem for problem in problems}


def _tail(path: str) -> str:
    """The last two parts of a path."""
    return "/".join(path.split("/")[-2:])


def _fold(name: str) -> str:
    # A Mac stores names decomposed, and case is lost on the way through other systems.
    return unicodedata.normalize("NFC", name).casefold()


def _index(names: Iterator[str]) -> dict[str, int | list[int]]:
    """Row, or rows where there are several, by name."""
    index: dict[str, int | list[int]] = {}
    for row, name in enumerate(names):
        held = index.get(name)
        if isinstance(held, list):
            held.append(row)
        else:
            index[name] = row if held is None else [held, row]
    return index


def split_in(path: str) -> str | None:
    """The split that a path's words tell, the outermost part first: "val2017/train.jpg" → "dev"."""
    for part in path.split("/"):
        for word in re.findall("[a-z]+", part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def split_of_file(path: str) -> str | None:
    """The split that a file's own name tells, else its folders: "test/train-0.tar" → "train"."""
    folder, _, name = path.rpartition("/")
    return split_in(posixpath.splitext(name)[0]) or split_in(folder)


# ---- which layout ----


@dataclass(frozen=True)
class Detected:
    """The layout of a data set, the files it is known by, and other layouts that fit but are not read."""

    layout: str
    markers: list[str]
    also_fit: tuple[str, ...]


def detect(files: Files, wanted: str = "auto") -> Detected:
    """Find out which layout a data set has; with `wanted` other than "auto" only that one will do.

    Raises UnknownDataset, which tells what was looked for and what was found.
    """
    markers = find_markers(files)
    fitting = [layout for layout in READERS if markers[layout]]
    layout = wanted if wanted in fitting else fitting[0] if fitting and wanted == "auto" else None
    if layout is None:
        raise UnknownDataset(_unknown(files, wanted))
    # A folder of photographs is part of most data sets, and not another layout of them.
    also_fit = tuple(other for other in fitting if other not in (layout, "folder"))
    return Detected(layout, markers[layout], also_fit)


def _unknown(files: Files, wanted: str) -> str:
    if wanted == "auto":
        lines = [f"no layout fits the files in '{files.root}'; looked for:"]
    else:
        lines = [f"the files in '{files.root}' do not fit ingest.layout={wanted}; looked for:"]
    lines += [f"  {layout}: {what}" for layout, what in LOOKED_FOR.items() if wanted in ("auto", layout)]
    endings = Counter(printable(ending_of(path)) or "(no ending)" for path in files.paths)
    found = ", ".join(f"{count:,} × {ending}" for ending, count in endings.most_common(10))
    return "\n".join([*lines, f"found {len(files.paths):,} files{': ' + found if found else ''}"])


LOOKED_FOR = {
    "flickr8k": "Flickr8k.token.txt",
    "karpathy": "dataset_*.json with `images` and their `sentences`",
    "coco": "captions_*.json",
    "kaggle": "captions.txt or results.csv whose first line names the columns, as `image,caption`",
    "imagefolder": "metadata.jsonl or metadata.csv",
    "webdataset": "*.tar",
    "parquet": "*.parquet with a column of photographs or of their names",
    "folder": "photographs: *.jpg, *.png, *.webp, …",
}


def find_markers(files: Files) -> dict[str, list[str]]:
    """The files that each layout is known by."""
    markers: dict[str, list[str]] = {layout: [] for layout in READERS}
    damaged: list[str] = []
    for path in files.paths:
        name = path[path.rfind("/") + 1 :].lower()
        ending = ending_of(name)
        if files.is_photo(path):
            markers["folder"].append(path)
        elif ending not in TEXT_ENDINGS:
            continue
        elif name == "flickr8k.token.txt" or re.fullmatch(r"results_\d+\.token", name):
            markers["flickr8k"].append(path)
        elif re.fullmatch(r"dataset_.*\.json", name) and b'"sentences"' in _head(files, path, 2**20):
            markers["karpathy"].append(path)
        elif re.fullmatch(r"captions_.*\.json", name):
            markers["coco"].append(path)
        elif name in ("captions.txt", "captions.csv", "results.csv") and _kaggle_form(
            _head(files, path, 4096)
        ):
            markers["kaggle"].append(path)
        elif name in ("metadata.jsonl", "metadata.csv"):
            markers["imagefolder"].append(path)
        elif ending == ".tar":
            markers["webdataset"].append(path)
        elif ending == ".parquet":
            has_photos = _has_photos(files, path)
            (damaged if has_photos is None else markers["parquet"] if has_photos else []).append(path)
    markers["folder"] += [problem.name for problem in files.problems if problem.kind == "photo"]
    if markers["parquet"] or not markers["folder"]:
        markers["parquet"] = sorted(markers["parquet"] + damaged)
    return markers


def _head(files: Files, path: str, size: int) -> bytes:
    try:
        with files.open(path) as file:
            return file.read(size)
    except OSError:
        return b""


@dataclass(frozen=True)
class Source:
    """What a reader works on: the files, those that the layout is known by, and where packs go."""

    files: Files
    markers: list[str]
    packs: Path
    max_file_bytes: int
    finder: Finder


def read_layout(files: Files, detected: Detected, packs: Path, max_file_bytes: int) -> Iterator[Item]:
    """Read a data set of a known layout, one item after the other.

    Photographs under the root are all told of, named by an annotation or not. `packs` is a folder
    for the copies that only Parquet needs; bytes over `max_file_bytes` are not copied.
    """
    has_manifest = files.meant.has_manifest
    yield from (problem for problem in files.problems if not has_manifest or files.meant.holds(problem.name))
    for path in files.paths:
        if files.is_photo(path):
            yield files.photo(path)
    source = Source(files, detected.markers, packs, max_file_bytes, Finder(files))
    yield from READERS[detected.layout](source)


# ---- lines and records ----


def read_lines(files: Files, path: str) -> Iterator[tuple[int, str] | Problem]:
    """Number and text of each line that is not blank, cut at line feeds only; CRLF is one, too.

    Unicode has further characters that end a line (U+0085, U+2028); a caption may hold them.
    """
    number = 0
    try:
        with files.open(path) as file:
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                        pass
                    yield _malformed(f"{path}:{number}", f"the line has over {MAX_LINE_BYTES:,} bytes")
                    continue
                text = decode(line) if number == 1 else line.decode("utf-8", "surrogateescape")
                text = text.rstrip("\r\n")
                if text.strip():
                    yield number, text
    except OSError as error:
        yield Problem("file", path, _reason(error), _cause(error))


def _malformed(place: str, detail: str, kind: str = "caption") -> Problem:
    return Problem(kind, printable(place), "malformed", detail)


def read_records(
    files: Files, path: str, is_open: Callable[[str], bool], starts: Callable[[str], bool]
) -> Iterator[tuple[int, str] | Problem]:
    """Lines, and several as one where a quoted field goes on over the end of a line.

    `is_open` tells that the text so far ends inside quotes, `starts` that a line begins a record of
    its own. A quote that is never closed costs nothing but itself: its line stands alone.
    """
    lines = read_lines(files, path)
    waiting: deque[tuple[int, str] | Problem] = deque()
    while True:
        line = waiting.popleft() if waiting else next(lines, None)
        if line is None:
            return
        if isinstance(line, Problem) or not is_open(line[1]):
            yield line
            continue
        text, last = line[1], line[0]
        ahead: list[tuple[int, str] | Problem] = []
        while is_open(text) and len(ahead) < MAX_RECORD_LINES and len(text) < MAX_LINE_BYTES:
            following = waiting.popleft() if waiting else next(lines, None)
            if following is None:
                break
            ahead.append(following)
            if isinstance(following, Problem) or starts(following[1]):
                break
            text += "\n" * (following[0] - last) + following[1]
            last = following[0]
        if is_open(text) or (ahead and isinstance(ahead[-1], Problem)):
            waiting.extendleft(reversed(ahead))
            text = line[1]
        yield line[0], text


_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*("?)')


def _ends_in_quotes(text: str, separator: str) -> bool:
    """Whether a CSV record ends inside a quoted field, and so goes on in the next line."""
    at = 0
    while at <= len(text):
        if text.startswith('"', at):
            quoted = _QUOTED.match(text, at)
            if quoted and not quoted[1]:
                return True
            at = quoted.end() if quoted else at
        at = text.find(separator, at) + 1
        if not at:
            return False
    return False


# ---- flickr8k ----


def _read_flickr8k(source: Source) -> Iterator[Item]:
    """`name#0<tab>caption` a line; one split list a split, a name a line."""
    splits = yield from _read_split_lists(source)
    for path in source.markers:
        for line in read_lines(source.files, path):
            if isinstance(line, Problem):
                yield line
                continue
            place = f"{path}:{line[0]}"
            label, tab, text = line[1].partition("\t")
            name, hash_, number = label.rpartition("#")
            if not (tab and hash_ and name and number.strip().isdigit()):
                yield _malformed(place, f"expected `name#0<tab>caption`, found {printable(line[1], 80)!r}")
                continue
            yield from _entry(source, name, [(place, text)], splits.get(name))


def _entry(
    source: Source, name: str, captions: Sequence[tuple[str, str]], split: str | None = None, **where: str
) -> Iterator[Item]:
    """The entry of the photograph `name`, after what there is to say of the name."""
    photo, news = source.finder.find(name, **where)
    if news is not None:
        yield news
    yield Entry(photo, captions, split)


def _read_split_lists(source: Source) -> Generator[Item, None, dict[str, str]]:
    """Yield an entry for each name in a split list; return the split by name."""
    splits: dict[str, str] = {}
    for path in source.files.paths:
        name = path[path.rfind("/") + 1 :].lower()
        found = re.fullmatch(r"flickr_?\d+k[._](train|dev|val|test)_?images\.txt", name)
        if not found:
            continue
        split = SPLIT_WORDS[found[1]]
        for line in read_lines(source.files, path):
            if isinstance(line, Problem):
                yield line
                continue
            photo_name = line[1].strip()
            yield from _entry(source, photo_name, (), split)
            splits[photo_name] = held_out(splits.get(photo_name), split)
    return splits


def held_out(one: str | None, other: str) -> str:
    """Of two splits the one that is further from training: test, then dev, then train."""
    return max(one or other, other, key=("train", "dev", "test").index)


# ---- kaggle ----


class _KaggleForm(NamedTuple):
    separator: str
    columns: int
    has_header: bool


def _kaggle_form(head: bytes) -> _KaggleForm | None:
    """The form that a file's first line tells, None where it is not of this layout."""
    first = decode(head).partition("\n")[0].strip()
    for separator in ",|":
        columns = [column.strip(' "').lower() for column in first.split(separator)]
        if columns[0] in ("image", "image_name", "filename", "file_name") and len(columns) in (2, 3):
            if re.fullmatch("(caption|comment|text)s?", columns[-1]):
                return _KaggleForm(separator, len(columns), has_header=True)
        elif len(columns) >= 2 and ending_of(columns[0]) in PHOTO_ENDINGS:
            return _KaggleForm(separator, 2, has_header=False)
    return None


def _read_kaggle(source: Source) -> Iterator[Item]:
    """`name,caption` a line; the caption in CSV's quotes or, with commas and all, without."""
    splits = yield from _read_split_lists(source)
    for path in source.markers:
        form = _kaggle_form(_head(source.files, path, 4096))
        if form is None:
            continue  # it was another file a moment ago

        def is_open(text: str, form: _KaggleForm = form) -> bool:
            fields = _two_fields(text, form)
            return fields is not None and _ends_in_quotes(fields[1], "\0")

        records = read_records(source.files, path, is_open, _begins_with_photo(form.separator))
        for index, record in enumerate(records):
            if isinstance(record, Problem):
                yield record
                continue
            if index == 0 and form.has_header:
                continue
            place = f"{path}:{record[0]}"
            fields = _two_fields(record[1], form)
            if fields is None:
                expected = f"expected a name, `{form.separator}` and a caption"
                yield _malformed(place, f"{expected}, found {printable(record[1], 80)!r}")
                continue
            yield from _entry(source, fields[0], [(place, _unquoted(fields[1]))], splits.get(fields[0]))


def _begins_with_photo(separator: str) -> Callable[[str], bool]:
    """Tells of a line whether its first field is a photograph's name, so that it begins a record."""
    endings = "|".join(ending[1:] for ending in PHOTO_ENDINGS)
    pattern = re.compile(rf'"?[^"{separator}]+\.({endings})"?\s*{re.escape(separator)}', re.IGNORECASE)
    return lambda line: pattern.match(line) is not None


def _two_fields(text: str, form: _KaggleForm) -> tuple[str, str] | None:
    """Name and caption as they stand in a record; None where it does not have both."""
    quoted = _QUOTED.match(text)
    at = text.find(form.separator, quoted.end() if quoted and quoted[1] else 0)
    name = _unquoted(text[: max(at, 0)])
    if not name:
        return None
    caption = text[at + 1 :]
    if form.columns == 3:
        number, separator, rest = caption.partition(form.separator)
        # A line of Flickr30k's file lacks the separator after the caption's number.
        caption = rest if separator else re.sub(r"^\s*\d+\s+", "", number)
        if not separator and caption == number:
            return None
    return name, caption.strip()


def _unquoted(text: str) -> str:
    """A field as CSV means it; as it stands where it is not quoted as a whole."""
    text = text.strip()
    quoted = _QUOTED.fullmatch(text)
    return text[1:-1].replace('""', '"') if quoted and quoted[1] and len(text) >= 2 else text


# ---- json: karpathy and coco ----


def _load_json(files: Files, path: str) -> tuple[dict[str, Any], Problem | None]:
    try:
        data = json.loads(files.read_text(path))
    except OSError as error:
        return {}, Problem("file", path, _reason(error), _cause(error))
    except (ValueError, RecursionError) as error:
        return {}, _malformed(path, f"not JSON: {_cause(error)}", "file")
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        return {}, _malformed(path, "expected an object with a list `images`", "file")
    return data, None


def _read_karpathy(source: Source) -> Iterator[Item]:
    """An object an image: `filename`, `filepath`, `split`, `sentences` with `raw`."""
    for path in source.markers:
        data, problem = _load_json(source.files, path)
        if problem:
            yield problem
        for index, image in enumerate(data.get("images", ())):
            place = f"{path}: images[{index}]"
            name = image.get("filename") if isinstance(image, dict) else None
            split = SPLIT_WORDS.get(str(image.get("split")).lower()) if name else None
            if not isinstance(name, str) or not name or split is None:
                yield _malformed(
                    place, "expected `filename` and a `split` of train, restval, val or test", "photo"
                )
                continue
            captions, problems = _captions_at(place, image.get("sentences"))
            yield from problems
            folder = image.get("filepath")
            name = f"{folder}/{name}" if isinstance(folder, str) and folder else name
            photo, news = source.finder.find(name)
            if news is not None:
                yield news
            yield Entry(photo, captions, split, _identifier(image, "cocoid", "imgid"))


def _identifier(image: dict[str, Any], *keys: str) -> str | None:
    for key in keys:
        value = image.get(key)
        if isinstance(value, int | str) and is_valid(str(value)):
            return str(value)
    return None


def _captions_at(place: str, value: Any) -> tuple[list[tuple[str, str]], list[Problem]]:
    """Captions, with their places, in what a data set holds under a caption's name.

    A text, a list of texts, or a list of objects with `raw`, `caption` or `text`; None is none.
    """
    captions: list[tuple[str, str]] = []
    problems: list[Problem] = []
    values = value if isinstance(value, list) else [value]
    for index, one in enumerate(values):
        at = f"{place} [{index}]" if len(values) > 1 else place
        if isinstance(one, dict):
            one = next((one[key] for key in ("raw", "caption", "text") if key in one), one.get("tokens", one))
            one = " ".join(map(str, one)) if isinstance(one, list) else one
        if isinstance(one, str):
            captions.append((at, one))
        elif one is not None:
            problems.append(_malformed(at, f"expected a caption, found {printable(repr(one), 80)}"))
    return captions, problems


def _read_coco(source: Source) -> Iterator[Item]:
    """`images` with `id` and `file_name`, `annotations` with `image_id` and `caption`."""
    for path in source.markers:
        data, problem = _load_json(source.files, path)
        if problem:
            yield problem
        stem = posixpath.splitext(posixpath.basename(path))[0]
        split = split_in(stem)
        photos: dict[int | str, str | None] = {}
        for index, image in enumerate(data.pop("images", ())):
            key, name = (image.get("id"), image.get("file_name")) if isinstance(image, dict) else (None, None)
            if not isinstance(key, int | str) or not isinstance(name, str) or not name or key in photos:
                detail = f"expected a `file_name` and an `id` of its own, found {printable(repr(image), 80)}"
                yield _malformed(f"{path}: images[{index}]", detail, "photo")
                continue
            photos[key], news = source.finder.find(name, hint=stem.partition("_")[2])
            if news is not None:
                yield news
            if photos[key] is not None:
                yield Entry(photos[key], (), split, _identifier(image, "id"))
        annotations = data.get("annotations")
        if not problem and not isinstance(annotations, list):
            yield _malformed(path, "expected a list `annotations`", "file")
            continue
        yield from _read_annotations(path, annotations or [], photos, split)


def _read_annotations(
    path: str, annotations: list[Any], photos: dict[int | str, str | None], split: str | None
) -> Iterator[Item]:
    unknown: set[int | str] = set()
    for index, annotation in enumerate(annotations):
        place = f"{path}: annotations[{index}]"
        key, text = (
            (annotation.get("image_id"), annotation.get("caption"))
            if isinstance(annotation, dict)
            else (None, None)
        )
        if not isinstance(key, int | str) or not isinstance(text, str):
            yield _malformed(
                place, f"expected `image_id` and `caption`, found {printable(repr(annotation), 80)}"
            )
            continue
        if key not in photos and key not in unknown:
            unknown.add(key)
            yield Problem(
                "photo", printable(f"{path}: image {key}"), "missing_photo", "`images` has no such `id`"
            )
        yield Entry(photos.get(key), [(place, text)], split)


# ---- imagefolder ----


def _read_imagefolder(source: Source) -> Iterator[Item]:
    """A row a photograph: its name, relative to the metadata's folder, and its captions."""
    for path in source.markers:
        rows = (
            _read_jsonl(source.files, path) if path.lower().endswith("l") else _read_csv(source.files, path)
        )
        for row in rows:
            if isinstance(row, Problem):
                yield row
            else:
                yield from _read_row(source, path, *row)


def _read_row(source: Source, path: str, place: str, row: dict[str, Any]) -> Iterator[Item]:
    """The items of one row whose columns name a photograph and hold captions."""
    name = next((row[column] for column in FILE_NAMES if isinstance(row.get(column), str)), "")
    if not name:
        yield _malformed(
            place, f"expected a photograph's name in {', '.join(f'`{n}`' for n in FILE_NAMES[:3])}", "photo"
        )
        return
    captions: list[tuple[str, str]] = []
    for column, value in row.items():
        if CAPTION_NAME.fullmatch(column):
            more, problems = _captions_at(place, value)
            captions += more
            yield from problems
    base = posixpath.dirname(path)
    photo, news = source.finder.find(name, base)
    if news is not None:
        yield news
    told = str(row.get("split") or "").lower()
    yield Entry(
        photo,
        captions,
        SPLIT_WORDS.get(told) or split_in(posixpath.dirname(photo or posixpath.join(base, name))),
    )


def _read_jsonl(files: Files, path: str) -> Iterator[tuple[str, dict[str, Any]] | Problem]:
    for line in read_lines(files, path):
        if isinstance(line, Problem):
            yield line
            continue
        place = f"{path}:{line[0]}"
        try:
            row = json.loads(line[1])
        except (ValueError, RecursionError) as error:
            yield _malformed(place, f"not JSON: {_cause(error)}")
            continue
        yield (place, row) if isinstance(row, dict) else _malformed(place, "expected an object")


def _read_csv(files: Files, path: str) -> Iterator[tuple[str, dict[str, Any]] | Problem]:
    header: list[str] | None = None
    records = read_records(files, path, lambda text: _ends_in_quotes(text, ","), _begins_with_photo(","))
    for record in records:
        if isinstance(record, Problem):
            yield record
            continue
        place = f"{path}:{record[0]}"
        try:
            fields = next(csv.reader(_csv_lines(record[1])), [])
        except csv.Error as error:
            yield _malformed(place, _cause(error))
            continue
        if header is None:
            header = [name.strip() for name in fields]
        elif len(fields) != len(header):
            yield _malformed(place, f"expected {len(header)} fields, found {len(fields)}")
        else:
            yield place, {name: _json_list(value) for name, value in zip(header, fields, strict=True)}


def _csv_lines(text: str) -> list[str]:
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + lines[-1:]


def _json_list(value: str) -> Any:
    """A list where a field holds one in JSON, else the field."""
    if value.startswith("[") and value.endswith("]"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


# ---- webdataset ----


@dataclass
class _Sample:
    """The members of a tar that share a key; photographs and texts by the ending after it."""

    photos: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    has_reject: bool = False  # a photograph of it, so that it is not missed


def _read_webdataset(source: Source) -> Iterator[Item]:
    """Tars of samples: members that are named alike up to the first dot of the last part."""
    for path in source.markers:
        samples: dict[str, _Sample] = {}
        try:
            with source.files.open(path) as file:
                yield from _read_members(source, path, file, samples)
        except OSError as error:
            yield Problem("file", path, _reason(error), _cause(error))
        split = split_of_file(path)
        for key, sample in samples.items():
            yield from _read_sample(f"{path}/{key}", sample, split)


def _read_members(source: Source, path: str, file: BinaryIO, samples: dict[str, _Sample]) -> Iterator[Item]:
    """Photographs and problems of a tar; `samples` is filled with what belongs together."""
    seen: set[str] = set()
    end = os.fstat(file.fileno()).st_size
    for member in _members(path, file):
        if isinstance(member, Problem):
            yield member
            continue
        ending = ending_of(member.name)
        if not (ending in PHOTO_ENDINGS or ending in (".txt", ".json")):
            continue
        if any(_is_passed_over(part) for part in member.name.split("/") if part not in ("", ".", "..")):
            continue
        kind = "photo" if ending in PHOTO_ENDINGS else "caption"
        name = posixpath.normpath(member.name)
        folder, slash, last = name.rpartition("/")
        key, _, rest = last.partition(".")
        sample = samples.setdefault(folder + slash + key, _Sample())
        wrong = _what_is_wrong(member, name, end, kind, source.max_file_bytes)
        if wrong is None and name in seen:
            wrong = "malformed", "the tar has two members of this name; the first is taken"
        if wrong is not None:
            sample.has_reject |= kind == "photo"
            yield Problem(kind, printable(f"{path}/{name}"), *wrong)
            continue
        seen.add(name)
        if kind == "photo":
            photo = source.files.part(path, name, path, member.offset_data, member.size)
            sample.photos[rest.lower()] = photo.path
            yield photo
        else:
            sample.texts[rest.lower()] = decode(os.pread(file.fileno(), member.size, member.offset_data))


def _members(path: str, file: BinaryIO) -> Iterator[tarfile.TarInfo | Problem]:
    """The members of a tar, in order, and where it is damaged a problem at the end."""
    at = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            while member := tar.next():
                if tar.offset <= at:  # a negative size leads back: the same members for ever
                    raise tarfile.ReadError("its members overlap")
                at = tar.offset
                vars(tar)["members"] = []  # else they are all kept
                yield member
            at = tar.offset
        # An unreadable header ends a tar for tarfile as its end mark does; they differ in the bytes.
        os.lseek(file.fileno(), at, os.SEEK_SET)
        if os.read(file.fileno(), tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("a header is damaged; what follows it is lost")
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        advice = "" if at else " (a compressed tar has to be unpacked first: its members cannot be addressed)"
        yield _malformed(path, f"the tar breaks off near byte {at:,}: {_cause(error)}{advice}", "file")


def _what_is_wrong(
    member: tarfile.TarInfo, name: str, end: int, kind: str, max_file_bytes: int
) -> tuple[str, str] | None:
    """Reason and detail for not using a member of a tar that is `end` bytes long."""
    if not is_valid(name):
        return "bad_name", "the member's name is not UTF-8"
    if name.startswith(("/", "../")):
        return "outside_dataset", "the member's name leads out of the tar"
    if member.isdir():
        return "unreadable", "a folder, not a file"
    if not member.isreg() or member.issparse():
        return "unreadable", "not a regular member (a link, a pipe, a device or a sparse file)"
    if member.size < 0 or member.offset_data + member.size > end:
        return "truncated", "the tar ends before the member does"
    if kind == "photo" and member.size > max_file_bytes:
        return "too_many_bytes", f"{member.size:,} bytes is over max_file_bytes={max_file_bytes:,}"
    if kind == "caption" and member.size > MAX_TEXT_BYTES:
        return "too_many_bytes", f"{member.size:,} bytes is over {MAX_TEXT_BYTES:,}, the most for a text"
    return None


def _read_sample(place: str, sample: _Sample, split: str | None) -> Iterator[Item]:
    """The entries of a sample: its captions belong to its photograph.

    Further photographs of the sample ("key.left.jpg" beside "key.jpg") have the captions that are
    named like them ("key.left.txt"), if any.
    """
    plain = (rest for rest in sample.photos if "." + rest in PHOTO_ENDINGS)
    main = next(plain, next(iter(sample.photos), None))
    texts: dict[str, dict[str, str]] = {}  # by the part of the ending that photographs and texts share
    for rest, text in sample.texts.items():
        texts.setdefault("" if len(sample.photos) == 1 else rest.rpartition(".")[0], {})[rest] = text
    for rest, photo in sample.photos.items():
        own = texts.pop(rest.rpartition(".")[0], {}) | (texts.pop("", {}) if rest == main else {})
        captions, problems = _captions_of_texts(place, own)
        yield from problems
        yield Entry(photo, captions, split)
    for own in texts.values():
        captions, problems = _captions_of_texts(place, own)
        yield from problems
        if captions and not sample.has_reject:
            yield Problem("photo", printable(place), "missing_photo", "captions without a photograph")
        yield Entry(None, captions, split)


def _captions_of_texts(place: str, texts: dict[str, str]) -> tuple[list[tuple[str, str]], list[Problem]]:
    """Captions in a sample's `.json` and `.txt`, once where both hold the same."""
    captions: list[tuple[str, str]] = []
    problems: list[Problem] = []
    for rest, text in sorted(texts.items(), key=_json_first):  # it tells where one caption has several lines
        at = f"{place}.{rest}"
        if rest.endswith("json"):
            more, problem = _captions_in_json(at, text)
            problems += problem
            captions += more
            continue
        held = {caption.strip() for _, caption in captions}
        if text.strip() not in held:
            captions += [one for one in _caption_lines(at, text) if one[1].strip() not in held]
    return captions, problems


def _json_first(text: tuple[str, str]) -> tuple[bool, str]:
    return not text[0].endswith("json"), text[0]


def _captions_in_json(at: str, text: str) -> tuple[list[tuple[str, str]], list[Problem]]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        return [], [_malformed(at, f"not JSON: {_cause(error)}")]
    if not isinstance(data, dict):
        return _captions_at(at, data)
    key = next((key for key in ("captions", "caption", "sentences", "texts", "text") if key in data), None)
    return _captions_at(at, data[key]) if key else ([], [])


def _caption_lines(place: str, text: str) -> list[tuple[str, str]]:
    """A caption a line; a text of blanks is one caption, an empty one."""
    lines = [(f"{place}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return lines or [(place, "")]


# ---- parquet ----


@dataclass(frozen=True)
class _Columns:
    """Which columns of a Parquet file hold what."""

    image: str | None  # bytes, or a struct with bytes
    bytes: str | None  # the column with the bytes: `image`, or `image.bytes`
    name: str | None
    captions: tuple[str, ...]
    split: str | None

    @property
    def slim(self) -> list[str]:
        """All columns that are read but the bytes."""
        return [name for name in (self.name, *self.captions, self.split) if name]


IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes", "photo")


def _columns_of(schema: pa.Schema) -> _Columns:
    import pyarrow.types as pt

    def is_bytes(type_: pa.DataType) -> bool:
        return pt.is_binary(type_) or pt.is_large_binary(type_) or pt.is_binary_view(type_)

    def is_text(type_: pa.DataType) -> bool:
        type_ = type_.value_type if pt.is_dictionary(type_) else type_
        return pt.is_string(type_) or pt.is_large_string(type_) or pt.is_string_view(type_)

    image = bytes_ = path = None
    for name in IMAGE_NAMES:
        type_ = schema.field(name).type if schema.names.count(name) == 1 else None
        if type_ is None:
            continue
        fields = (
            {type_.field(i).name: type_.field(i).type for i in range(type_.num_fields)}
            if pt.is_struct(type_)
            else {}
        )
        if is_bytes(type_):
            image, bytes_ = name, name
        elif "bytes" in fields and is_bytes(fields["bytes"]):
            image, bytes_ = name, f"{name}.bytes"
            path = f"{name}.path" if "path" in fields and is_text(fields["path"]) else None
        if image:
            break
    texts = {
        field_.name for field_ in schema if schema.names.count(field_.name) == 1 and is_text(field_.type)
    }
    names = [name for name in FILE_NAMES if name in texts]
    captions = [
        field_.name
        for field_ in schema
        if CAPTION_NAME.fullmatch(field_.name) and (field_.name in texts or pt.is_nested(field_.type))
    ]
    split = "split" if "split" in texts else None
    return _Columns(image, bytes_, path or next(iter(names), None), tuple(captions), split)


def _has_photos(files: Files, path: str) -> bool | None:
    """Whether a Parquet file has photographs or captions with their names; None where it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with files.open(path) as file:
            columns = _columns_of(pq.read_schema(file))
    except (pa.ArrowException, OSError):
        return None
    # Many a table has names and is no data set; one that is meant by itself is.
    return bool(columns.bytes or (columns.name and (columns.captions or path in files.meant.paths)))


def _read_parquet(source: Source) -> Iterator[Item]:
    """Rows with a photograph's bytes or its name, and captions; a text column or a list of texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in source.markers:
        try:
            with source.files.open(path) as file:
                parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
                columns = _columns_of(parquet.schema_arrow)
                pack = _packed(source, path, parquet, columns) if columns.bytes else None
                yield from _read_groups(source, path, parquet, columns, pack)
        except (pa.ArrowException, OSError) as error:
            yield _malformed(path, f"not readable as Parquet: {_cause(error)}", "file")


def _read_groups(
    source: Source, path: str, parquet: Any, columns: _Columns, pack: _Pack | None
) -> Iterator[Item]:
    import pyarrow as pa

    first = 0
    reader = _RowReader(source, path, columns, pack)
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        done = 0
        try:
            for batch in parquet.iter_batches(4096, row_groups=[group], columns=columns.slim):
                values = {name: _values(batch, name) for name in columns.slim}
                for i in range(batch.num_rows):
                    row = {name: column[i] for name, column in values.items()}
                    yield from reader.items(first + done + i, row)
                done += batch.num_rows
            for i in range(done, rows if not columns.slim else done):
                yield from reader.items(first + i, {})
        except (pa.ArrowException, OSError, ValueError) as error:
            detail = f"rows {first + done:,} to {first + rows - 1:,} cannot be read: {_cause(error)}"
            yield _malformed(f"{path}/row-{first + done}", detail, "file")
        first += rows


def _values(batch: pa.RecordBatch, name: str) -> list[Any]:
    """A column as texts, lists of texts or None; texts that are not UTF-8 hold lone surrogates."""
    import pyarrow as pa
    import pyarrow.types as pt

    outer, _, inner = name.partition(".")
    column = batch.column(batch.schema.names.index(outer if outer in batch.schema.names else name))
    if inner and pt.is_struct(column.type):
        column = column.field(inner)
    if pt.is_dictionary(column.type):
        column = column.dictionary_decode()
    # Arrow does not check that a text is UTF-8, and fails on the whole column when it is not.
    if pt.is_string(column.type) or pt.is_large_string(column.type) or pt.is_string_view(column.type):
        return [
            None if value is None else decode(value) for value in column.cast(pa.large_binary()).to_pylist()
        ]
    if pt.is_list(column.type) and (
        pt.is_string(column.type.value_type) or pt.is_large_string(column.type.value_type)
    ):
        lists = column.cast(pa.list_(pa.large_binary())).to_pylist()
        return [value and [None if one is None else decode(one) for one in value] for value in lists]
    values: list[Any] = column.to_pylist()
    return values


@dataclass
class _RowReader:
    """Turns the rows of one Parquet file into items."""

    source: Source
    path: str
    columns: _Columns
    pack: _Pack | None
    _photos: dict[tuple[str, int, str | None], str] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)

    def items(self, number: int, row: dict[str, Any]) -> Iterator[Item]:
        """The items of row `number`, counted from 0."""
        place = f"{self.path}/row-{number}"
        name = row.get(self.columns.name or "")
        captions: list[tuple[str, str]] = []
        for column in self.columns.captions:
            more, problems = _captions_at(place, row[column])
            captions += more
            yield from problems
        told = str(row.get(self.columns.split or "") or "").lower()
        split = SPLIT_WORDS.get(told) or split_of_file(self.path)
        photo: str | None = None
        if self.pack is not None and self.pack.sizes[number] >= 0:
            for item in self._packed_photo(number, name, split):
                photo = item.path if isinstance(item, Photo) else photo
                if not isinstance(item, Photo) or item.path not in self._names:
                    yield item
                if isinstance(item, Photo):
                    self._names.add(item.path)
        elif isinstance(name, str) and name:
            photo, news = self._find(name)
            if news is not None:
                yield news
        else:
            yield _malformed(place, "the row has neither the bytes nor the name of a photograph", "photo")
        yield Entry(photo, captions, split)

    def _packed_photo(self, number: int, name: str | None, split: str | None) -> Iterator[Photo | Problem]:
        """The photograph of a row with bytes; rows of the same name, bytes and split are the same."""
        assert self.pack is not None
        offset, size = int(self.pack.offsets[number]), int(self.pack.sizes[number])
        if offset < 0:
            reason = "too_many_bytes" if size > self.source.max_file_bytes else "malformed"
            detail = (
                f"{size:,} bytes is over max_file_bytes={self.source.max_file_bytes:,}"
                if size
                else "cannot be read"
            )
            yield Problem("photo", f"{self.path}/row-{number}", reason, detail)
            return
        shown = _shown(name)
        key = (shown, offset, split)
        if key not in self._photos:
            label = shown or f"row-{number}"
            taken = f"{self.path}/{label}" in self._names
            self._photos[key] = f"{label}#row-{number}" if taken else label
        yield self.source.files.part(self.path, self._photos[key], self.pack.path, offset, size)

    def _find(self, name: str) -> tuple[str | None, Item | None]:
        """The photograph that a row names by its path or, as img2dataset does, by its key alone."""
        base = posixpath.dirname(self.path)
        if self.columns.name == "key" and not ending_of(name):
            shard = posixpath.splitext(self.path)[0]  # 00000.parquet stands beside the folder 00000
            for stem in (f"{shard}/{name}", posixpath.join(base, name)):
                if stem in self.source.finder.by_stem:
                    return self.source.finder.find(self.source.finder.by_stem[stem])
        return self.source.finder.find(name, base)


def _shown(name: str | None) -> str:
    """A name that can be shown as part of a path, or nothing."""
    if not isinstance(name, str) or not is_valid(name) or "\0" in name or len(name) > 500:
        return ""
    path = posixpath.normpath(name).lstrip("/") if name else ""
    return "" if path in ("", ".", "..") or path.startswith("../") else path


@dataclass(frozen=True)
class _Pack:
    """The image bytes of a Parquet file, one behind the other; by row, where and how many.

    A size of -1: the row has no bytes. An offset of -1: the bytes could not be had, or are too many.
    """

    path: str
    offsets: np.ndarray
    sizes: np.ndarray


def _packed(source: Source, path: str, parquet: Any, columns: _Columns) -> _Pack:
    """The pack of a Parquet file, made where there is none yet.

    It is named by the file's path, size, time and inode, so a changed file has another pack. The index
    is put in place last, and tells how long the pack has to be.
    """
    import numpy as np

    files = source.files
    row = files.rows[path]
    told = (
        path,
        files.sizes[row],
        files.mtimes_ns[row],
        files.inodes[row],
        source.max_file_bytes,
        columns.bytes,
    )
    name = hashlib.blake2b(repr((os.fspath(files.root), told)).encode(), digest_size=16).hexdigest()
    folder = Path(os.path.abspath(source.packs))  # noqa: PTH100 (a link in the workspace's path may stay)
    pack, index = folder / f"{name}.pack", folder / f"{name}.npy"
    for _ in range(2):
        try:
            offsets, sizes = np.load(index, allow_pickle=False)
            if len(offsets) == parquet.metadata.num_rows and pack.stat().st_size == _end(offsets, sizes):
                return _Pack(os.fspath(pack), offsets, sizes)
        except (OSError, ValueError, EOFError):
            pass  # there is none, or what is there is not whole
        folder.mkdir(parents=True, exist_ok=True)
        _write_pack(parquet, columns, source.max_file_bytes, pack, index)
    raise OSError(f"the pack '{pack}' cannot be read back")


def _end(offsets: Any, sizes: Any) -> int:
    return int((offsets + sizes)[offsets >= 0].max(initial=0))


def _write_pack(parquet: Any, columns: _Columns, max_file_bytes: int, pack: Path, index: Path) -> None:
    """Copy the image bytes of a Parquet file, the same bytes once, and write where they lie."""
    import numpy as np

    places = np.full((2, parquet.metadata.num_rows), -1, np.int64)
    with tempfile.NamedTemporaryFile(
        dir=pack.parent, prefix=pack.stem, suffix=".partial", delete=False
    ) as file:
        try:
            _copy_images(parquet, columns, max_file_bytes, file, places)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(pack)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    with tempfile.NamedTemporaryFile(
        dir=pack.parent, prefix=pack.stem, suffix=".partial", delete=False
    ) as file:
        np.save(file, places, allow_pickle=False)
    Path(file.name).replace(index)


def _copy_images(parquet: Any, columns: _Columns, max_file_bytes: int, file: Any, places: Any) -> None:
    import pyarrow as pa

    held: dict[bytes, int] = {}  # digest of bytes that are in the pack -> their offset
    first = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        number = first
        try:
            for batch in parquet.iter_batches(32, row_groups=[group], columns=[columns.bytes]):
                column = batch.column(0) if columns.bytes == columns.image else batch.column(0).field("bytes")
                for value in column:
                    data = value.as_buffer() if value.is_valid else None
                    if data is not None:
                        places[:, number] = -1, data.size
                    if data is not None and data.size <= max_file_bytes:
                        digest = hashlib.blake2b(data, digest_size=16).digest()
                        if digest not in held:
                            held[digest] = file.tell()
                            file.write(data)
                        places[0, number] = held[digest]
                    number += 1
        except (pa.ArrowException, OSError):
            places[:, number : first + rows] = [[-1], [0]]
        first += rows


# ---- folder ----

# Texts that lie beside photographs and say nothing of one.
_DOCUMENTS = re.compile(r"(readme|licen[cs]e|copying|notice|authors|changelog|requirements).*", re.IGNORECASE)


def _read_folder(source: Source) -> Iterator[Item]:
    """Photographs, with the captions of `name.txt` beside `name.jpg`, one a line.

    A text without its photograph counts as captions only where its folder also has pairs.
    """
    files, stems = source.files, source.finder.by_stem
    texts = [path for path in files.paths if ending_of(path) == ".txt"]
    paired = {posixpath.dirname(path) for path in texts if path[:-4] in stems}
    refused = {
        problem.name[: problem.name.rfind(".")] for problem in files.problems if problem.kind == "photo"
    }
    for path in texts:
        photo = stems.get(path[:-4])
        folder, name = posixpath.split(path)
        if (
            photo is None
            and path[:-4] not in refused
            and (folder not in paired or _DOCUMENTS.fullmatch(name))
        ):
            continue
        try:
            captions = _caption_lines(path, files.read_text(path, MAX_TEXT_BYTES))
        except OSError as error:
            yield Problem("file", path, _reason(error), _cause(error))
            continue
        if photo is None and path[:-4] not in refused:
            yield Problem("photo", path[:-4], "missing_photo", f"'{path}' has no photograph beside it")
        yield Entry(photo, captions, split_in(folder))
    for path in files.paths:
        if files.is_photo(path):
            yield Entry(path, (), split_in(posixpath.dirname(path)))


READERS: dict[str, Callable[[Source], Iterator[Item]]] = {
    "flickr8k": _read_flickr8k,
    "karpathy": _read_karpathy,
    "coco": _read_coco,
    "kaggle": _read_kaggle,
    "imagefolder": _read_imagefolder,
    "webdataset": _read_webdataset,
    "parquet": _read_parquet,
    "folder": _read_folder,
}
