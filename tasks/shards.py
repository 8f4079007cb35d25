"""How rows are cut into shards, how a shard is named, and why it has to be made.

A shard is a pure function, named by the hash of what made it: the digests of its inputs, the
settings of its stage alone, and the code that computes it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from schemas.errors import StoreFailed
from schemas.records import Record
from tasks.code import changed_definitions, code_digest, code_of
from tasks.workspace import Workspace, digest_of

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Stage:
    """A stage: its name, the function that makes one shard, and what else its key must know."""

    name: str
    function: str  # "tasks.stages:make_images"
    files: tuple[str, ...] = ()  # files of the repository that the function reads
    folder: str = "shards"  # bundles and reports have folders of their own
    tensorflow: bool = False  # whether it computes with it
    reads_photos: bool = False  # from the data set
    settings: str = ""  # whose settings are its own, where those are another stage's

    @property
    def code(self) -> dict[str, str]:
        """Digest of each definition that makes a shard, by name."""
        return code_of(self.function, *self.files)


@dataclass(frozen=True)
class Shard:
    """One shard to look up or to make; holds small values only, so that it can travel.

    `inputs` are digests and part of the key; `sources` say where the inputs lie and are not.
    """

    stage: Stage
    place: str
    inputs: dict[str, str]
    settings: dict[str, Any]
    lineage: str
    sources: dict[str, Any] = field(default_factory=dict)
    rows: int = 0  # how many rows it has, for progress
    title: str = ""  # names the folder of a bundle or report

    @property
    def key(self) -> str:
        """The digest of all that makes it, 32 hexadecimal digits: stage, inputs, settings and code."""
        return digest_of([self.stage.name, self.inputs, self.settings, code_digest(self.stage.code)])

    @property
    def prefix(self) -> str:
        """Where its outputs go, below the workspace."""
        if self.stage.folder == "shards":
            return f"shards/{self.stage.name}/{self.key}."
        return f"{self.stage.folder}/{self.title}-{self.key[:8]}/"


def lineage_of(stage: Stage, settings: dict[str, Any], upstream: str, **inputs: str) -> str:
    """Digest of all settings and code from the files up to this stage.

    Rows of two shards of one lineage with the same id are the same, so they can be taken over.
    """
    return digest_of([stage.name, settings, code_digest(stage.code), upstream, inputs])


@dataclass(frozen=True)
class Cut:
    """Rows start:stop of a table, as one shard."""

    place: str
    start: int
    stop: int


def cut(ids: Sequence[str], family: str, most: int, offset: int = 0) -> list[Cut]:
    """Cut sorted hexadecimal ids into shards of at most `most` rows, by content.

    The ids are split in two at their first bit, each half at its next, until a part is small
    enough. A row added or removed touches the one part that its id falls into, wherever it
    stands; a full part splits in two. Ids are digests, so parts are even in size.
    """
    if not ids:
        return []

    cuts: list[Cut] = []

    def split(bits: str, start: int, stop: int) -> None:
        if stop == start:
            return
        if stop - start <= most or len(bits) == 128:
            cuts.append(Cut(f"{family}/{bits}", offset + start, offset + stop))
            return
        middle = bisect_left(ids, f"{int((bits + '1').ljust(128, '0'), 2):032x}", start, stop)
        split(bits + "0", start, middle)
        split(bits + "1", middle, stop)

    split("", 0, len(ids))
    return cuts


def place_of_row(family: str, row_id: str) -> str:
    """The place of one row of a family: that of its shard, with all further bits of its id.

    >>> place_of_row("train", "f0" * 16)[:14]
    'train/11110000'
    """
    return f"{family}/{int(row_id, 16):0128b}"


def place_that_holds(place: str, places: Container[str]) -> str | None:
    """The one of `places` that is `place`, or that all its rows fall into; None where there is none.

    >>> place_that_holds("train/0110", {"train/00", "train/01"})
    'train/01'
    """
    family, slash, bits = place.rpartition("/")
    ends = range(len(bits), -1, -1) if slash else [len(bits)]
    return next((held for end in ends if (held := f"{family}{slash}{bits[:end]}") in places), None)


class Overlaps:
    """Finds the places whose ids can be the same as those of another, whatever their split.

    Looks at the few that matter, not at all: a stage may have hundreds of thousands.
    """

    def __init__(self, places: Iterable[str]) -> None:
        self._by_bits: dict[str, list[str]] = {}
        for place in places:
            self._by_bits.setdefault(_bits(place), []).append(place)
        self._sorted = sorted(self._by_bits)
        self._lengths = sorted({len(bits) for bits in self._by_bits})

    def of(self, place: str) -> list[str]:
        """The places that hold `place`, are it, or are within it."""
        bits = _bits(place)
        found = [bits[:length] for length in self._lengths if length < len(bits)]
        first, end = bisect_left(self._sorted, bits), bisect_left(self._sorted, bits + "2")
        return [other for key in [*found, *self._sorted[first:end]] for other in self._by_bits.get(key, [])]


def _bits(place: str) -> str:
    return place.rpartition("/")[2]


def path_of(workspace: Workspace, record: Record, name: str) -> Path:
    """The file of an output."""
    return workspace.file(record.output(name).path)


def in_place(record: Record, workspace: Workspace) -> Record:
    """The record with absolute paths, so that it can be read from another workspace."""
    outputs = [
        output.model_copy(update={"path": str(workspace.file(output.path))}) for output in record.outputs
    ]
    return record.model_copy(update={"outputs": outputs})


def changed_files(before: Path, after: Path) -> str:
    """Which files of a data set are new, changed or gone between two `files` tables, for people."""
    columns = ["path", "size", "mtime_ns", "inode"]
    old, new = pl.read_parquet(before, columns=columns), pl.read_parquet(after, columns=columns)
    counts = {
        "new": new.join(old, on="path", how="anti")["path"],
        "changed": new.join(old, on="path", how="semi").join(old, on=columns, how="anti")["path"],
        "gone": old.join(new, on="path", how="anti")["path"],
    }
    told = [
        f"{paths.len()} {what} ({_few([repr(path) for path in paths.head(4)])})"
        for what, paths in counts.items()
        if paths.len()
    ]
    return f"files: {', '.join(told)}" if told else "files: captions or lists changed"


def why_made(shard: Shard, earlier: Record | None, workspace: Workspace, found: str) -> str:
    """Which setting, code, rows or input differ from `earlier`, for people.

    `found` is what a lookup of the very shard said: an output missing or damaged.
    """
    if found:
        return found
    if earlier is None:
        return "not made before"
    reasons = _changed_settings(shard, earlier) + _changed_code(shard, earlier, workspace)
    names = shard.inputs.keys() | earlier.inputs.keys()
    changed = sorted(name for name in names if shard.inputs.get(name) != earlier.inputs.get(name))
    if "rows" in changed:
        changed.remove("rows")
        reasons.append(_changed_rows(shard, earlier, workspace))
    if changed:
        reasons.append(f"input: {_few(changed)}")
    return "; ".join(reasons) or "not made before"


def _changed_settings(shard: Shard, earlier: Record) -> list[str]:
    before, after = earlier.settings, shard.settings
    stage = shard.stage.settings or shard.stage.name
    return [
        f"setting {stage}.{name}: {before.get(name)} → {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _changed_code(shard: Shard, earlier: Record, workspace: Workspace) -> list[str]:
    code = shard.stage.code
    if code_digest(code) == earlier.code:
        return []
    return [f"code: {_few(changed_definitions(workspace.read_code(earlier.code), code)) or 'changed'}"]


def _changed_rows(shard: Shard, earlier: Record, workspace: Workspace) -> str:
    """Which rows are new or gone, by name where the name is known."""
    source = pl.read_parquet(workspace.file(shard.sources["rows"])).slice(shard.sources["start"], shard.rows)
    output = next(output for output in earlier.outputs if output.name != "rejects.parquet")
    id_name, label = source.columns[0], "path" if "path" in source.columns else "text"
    try:
        path = workspace.file(output.path)
    except StoreFailed:
        return "rows changed"
    if not path.exists():
        return "rows changed"
    before = pl.read_parquet(path, columns=[id_name])
    new = source.join(before, on=id_name, how="anti")
    gone = before.join(source, on=id_name, how="anti").height
    what = _few([repr(name) for name in new[label].head(4)])
    return f"rows: {new.height} new{f' ({what})' if what else ''}, {gone} gone"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
