"""The layout of WebDataset: tars of samples, read in place."""

from __future__ import annotations

import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from cutline.tasks.ingest.columns import caption_columns
from cutline.tasks.ingest.files import (
    PHOTO_ENDINGS,
    SIDECAR_ENDINGS,
    Files,
    Problem,
    cause,
    decode,
    ending_of,
    is_passed_over,
    looks_like_text,
    reason_of,
)
from cutline.tasks.ingest.layouts.base import (
    MAX_TEXT_BYTES,
    Entry,
    Item,
    Layout,
    Source,
    caption_lines,
    captions_at,
    malformed,
    split_in,
    until_useless,
)
from cutline.tasks.ingest.names import fold
from cutline.tasks.runtime.unicode import is_valid, printable


class _TarInfo(tarfile.TarInfo):
    """Refuses extended headers that tarfile would take long or much memory for."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        """Called for each header, once its first block is read; tarfile documents it as the place to
        extend."""
        if self.type in _PAX_TYPES or self.type in _LONG_NAME_TYPES:
            if not 0 <= self.size <= MAX_EXTENDED_HEADER:
                most = f"expected an extended header of at most {MAX_EXTENDED_HEADER:,} bytes"
                raise tarfile.ReadError(f"{most}, found {self.size:,}")
            if self.type in _PAX_TYPES:
                at = tar.fileobj.tell()
                _check_pax(tar.fileobj.read(self.size))
                tar.fileobj.seek(at)
        return super()._proc_member(tar)  # type: ignore[misc]


def _check_pax(records: bytes) -> None:
    """Raise ReadError unless `records` are "LENGTH NAME=VALUE<newline>", one after the other.

    tarfile reads others too, by patterns that take a time which grows with the square of the length
    (CVE-2024-6232).
    """
    at = 0
    while at < len(records) and records[at]:
        length = _PAX_LENGTH.match(records, at)
        end = at + int(length[1]) if length else 0
        record = records[length.end() : end] if length else b""
        if not record.endswith(b"\n") or b"=" not in record:
            raise tarfile.ReadError(f"byte {at:,} of a pax header begins no record")
        at = end
    if _LONG_NUMBER.search(records):
        raise tarfile.ReadError("a pax header holds a number of over 100 digits")


MAX_EXTENDED_HEADER = 2**20  # bytes of a pax header or of a long name
MAX_TEXTS_BYTES = 128 * 2**20  # of all texts in a tar, which are held until its end is read
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG_NAME_TYPES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_NAMES = {"encoding": "utf-8", "errors": "surrogateescape"}
_PAX_LENGTH = re.compile(rb"(\d{1,7}) ")
_LONG_NUMBER = re.compile(rb"\d{101}")


@dataclass
class _Sample:
    """The members of a tar that share a key; photographs and texts by the ending after it."""

    key: str
    photos: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    has_reject: bool = False  # a photograph of it, so that it is not missed


def read_webdataset(source: Source) -> Iterator[Item]:
    """Tars of samples: members that are named alike up to the first dot of the last part."""
    for path in source.markers:
        samples: dict[str, _Sample] = {}
        try:
            with source.files.open(path) as file:
                yield from until_useless(path, _read_members(source, path, file, samples))
        except OSError as error:
            yield Problem("file", path, reason_of(error), cause(error))
        own = split_in(posixpath.splitext(posixpath.basename(path))[0])
        for sample in samples.values():
            split = own or split_in(posixpath.dirname(sample.key)) or split_in(posixpath.dirname(path))
            yield from _read_sample(f"{path}/{sample.key}", sample, split)


def _read_members(source: Source, path: str, file: BinaryIO, samples: dict[str, _Sample]) -> Iterator[Item]:
    """Photographs and problems of a tar; `samples` is filled with what belongs together."""
    seen: set[str] = set()
    texts_bytes = 0
    end = os.fstat(file.fileno()).st_size
    for member in _members(path, file):
        if isinstance(member, Problem):
            yield member
            continue
        ending = ending_of(member.name)
        if any(is_passed_over(part) for part in member.name.split("/") if part not in ("", ".", "..")):
            continue
        if not (ending in PHOTO_ENDINGS or ending in SIDECAR_ENDINGS or ending == ".json"):
            if ending and member.isreg() and not ending[1:].isdigit():
                _note_unread(source, path, ending, file, member)
            continue
        kind = "photo" if ending in PHOTO_ENDINGS else "caption"
        name = posixpath.normpath(member.name)
        folder, slash, last = name.rpartition("/")
        key, _, rest = last.partition(".")
        sample = samples.setdefault(fold(folder + slash + key), _Sample(folder + slash + key))
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
        elif rest.lower() in sample.texts:
            detail = f"the sample has two texts whose names end in '.{rest.lower()}'; the first is taken"
            yield malformed(f"{path}/{name}", detail)
        elif texts_bytes + member.size > MAX_TEXTS_BYTES:
            detail = (
                f"the texts of the tar before it have {texts_bytes:,} of at most {MAX_TEXTS_BYTES:,} bytes"
            )
            yield Problem(kind, printable(f"{path}/{name}"), "too_many_bytes", detail)
        else:
            texts_bytes += member.size
            sample.texts[rest.lower()] = decode(os.pread(file.fileno(), member.size, member.offset_data))


def _note_unread(source: Source, path: str, ending: str, file: BinaryIO, member: tarfile.TarInfo) -> None:
    """Note that members of an ending are texts of which nothing is read."""
    ending, place = f"*{ending}", (min(member.size, 512), member.offset_data)
    if ending in source.unread or looks_like_text(os.pread(file.fileno(), *place)):
        source.note_unread(ending, path)


def _members(path: str, file: BinaryIO) -> Iterator[tarfile.TarInfo | Problem]:
    """The members of a tar, in order, and where it is damaged a problem at the end."""
    at = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_TarInfo, **_NAMES) as tar:  # type: ignore[call-overload]
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
    except (tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError) as error:
        advice = "" if at else " (a compressed tar has to be unpacked first: its members cannot be addressed)"
        yield malformed(path, f"the tar breaks off near byte {at:,}: {cause(error)}{advice}", "file")


def _what_is_wrong(
    member: tarfile.TarInfo, name: str, end: int, kind: str, max_file_bytes: int
) -> tuple[str, str] | None:
    """Reason and detail for not using a member of a tar that is `end` bytes long."""
    if not is_valid(name):
        return "bad_name", "the member's name is not UTF-8"
    if name.startswith(("/", "../")):
        return "outside_dataset", "the member's name leads out of the tar"
    if member.isdir():
        return "not_a_file", "a folder, not a file"
    if not member.isreg() or member.issparse():
        return "not_a_file", "not a regular member (a link, a pipe, a device or a sparse file)"
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
        own |= texts.pop(rest, {})  # "key.jpg.txt"
        captions, problems = _captions_of_texts(place, own)
        yield from problems
        yield Entry(photo, captions, split)
    for part, own in texts.items():
        captions, problems = _captions_of_texts(place, own)
        yield from problems
        if captions and not sample.has_reject:
            yield Problem("photo", printable(place), "missing_photo", "captions without a photograph")
        yield Entry(None, captions, split, name=f"{place}.{part}" if part else place)


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
            captions += [one for one in caption_lines(at, text) if one[1].strip() not in held]
    return captions, problems


def _json_first(text: tuple[str, str]) -> tuple[bool, str]:
    return not text[0].endswith("json"), text[0]


def _captions_in_json(at: str, text: str) -> tuple[list[tuple[str, str]], list[Problem]]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        return [], [malformed(at, f"not JSON: {cause(error)}")]
    if not isinstance(data, dict):
        return captions_at(at, data)
    known = ("captions", "caption", "sentences", "texts", "text")
    names = [*known, *caption_columns(name for name, value in data.items() if value is not None)]
    found = next((data[name] for name in names if data.get(name) is not None), None)
    return captions_at(at, found)


def _matches(files: Files, path: str) -> bool:
    return ending_of(path) == ".tar"


WEBDATASET = Layout("webdataset", "*.tar", _matches, read_webdataset)
