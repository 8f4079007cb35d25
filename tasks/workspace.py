"""The workspace: where shards, records, bundles, reports and runs lie, and how they get there.

A file appears under its name only when it is whole: it is written beside, flushed to disk and
renamed. A record is written after its outputs. So a process may be killed at any moment, and two
may run at once, without a lock: what is there is whole.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from schemas.records import Output, Record, RunRecord
from tasks.code import known_code, recall_code
from tasks.listing import WORKSPACE_MARKER

HASH_BLOCK_BYTES = 1 << 20
CODE_KNOWN = "code.json"


def digest_of(value: object) -> str:
    """BLAKE2b (128 bits, hex) of anything that JSON can write."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def digest_of_file(path: Path) -> str:
    """BLAKE2b (128 bits, hex) of a file's bytes."""
    state = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()


class Workspace:
    """A folder that Cutline owns; nothing is written outside of it."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def mark(self) -> None:
        """Say that this is a workspace, before the first file: a data set that it lies in passes it over."""
        marker = self.root / WORKSPACE_MARKER
        if not marker.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            marker.write_text("Cutline keeps here what it makes.\n", encoding="utf-8")

    # -- records ------------------------------------------------------------------------------

    def lookup(self, stage: str, key: str, deep: bool = False) -> tuple[Record | None, str]:
        """The record of a shard whose outputs are all there and whole, else None and the reason.

        Sizes and times are compared; a file touched since it was made, or every file where `deep`,
        is hashed again.
        """
        record = self.read_record(stage, key)
        if record is None:
            damaged = self._record_path(stage, key).exists()
            return None, "its record is damaged" if damaged else ""
        if record.passing:
            return None, f"{record.passing} rows could not be read last time"
        touched = False
        for output in record.outputs:
            path = self.root / output.path
            try:
                found = path.stat()
            except OSError:
                return None, f"output missing: {output.path}"
            same_time = found.st_mtime_ns == output.mtime_ns
            if found.st_size != output.size:
                return None, f"output damaged: {output.path}"
            if (deep or not same_time) and digest_of_file(path) != output.digest:
                return None, f"output damaged: {output.path}"
            touched |= not same_time
        return (self._refresh(record) if touched else record), ""

    def read_record(self, stage: str, key: str) -> Record | None:
        """The record as written, outputs unchecked; None where there is none or it is damaged."""
        return _read_record(self._record_path(stage, key))

    def records(self, stage: str) -> Iterator[Record]:
        """All records of a stage, newest first."""
        paths = list((self.root / "shards" / stage).glob("*.json"))
        for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            record = _read_record(path)
            if record is not None:
                yield record

    def _record_path(self, stage: str, key: str) -> Path:
        return self.root / "shards" / stage / f"{key}.json"

    def _refresh(self, record: Record) -> Record:
        """Trust the outputs' present times from now on: their bytes were compared."""
        outputs = [
            output.model_copy(update={"mtime_ns": (self.root / output.path).stat().st_mtime_ns})
            for output in record.outputs
        ]
        record = record.model_copy(update={"outputs": outputs})
        self.write_record(record)
        return record

    def write_record(self, record: Record) -> None:
        """Write a record; from now on the shard is there."""
        self.write_text(self._record_path(record.stage, record.key), record.model_dump_json())

    # -- outputs ------------------------------------------------------------------------------

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder of this process alone, gone afterwards; its name tells a later run whose it was."""
        self.mark()
        folder = self.root / "tmp" / f"{platform.node()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def clear_scratch(self) -> None:
        """Remove what killed processes of this machine left half done."""
        for folder in (self.root / "tmp").glob(f"{glob.escape(platform.node())}:*:*"):
            pid = folder.name.rsplit(":", 2)[1]
            if pid.isdigit() and not is_alive(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)

    def partial(self, stage: str, key: str) -> Path:
        """Where a long stage keeps its checkpoints until its record is written."""
        folder = self.root / "partial" / f"{stage}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def publish(self, folder: Path, prefix: str) -> list[Output]:
        """Move every file of `folder` to `prefix` + its name below the workspace, whole."""
        outputs = []
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            target = self.root / f"{prefix}{file.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = digest_of_file(file)
            _flush(file)
            file.replace(target)
            found = target.stat()
            outputs.append(
                Output(
                    name=file.name,
                    path=target.relative_to(self.root).as_posix(),
                    size=found.st_size,
                    mtime_ns=found.st_mtime_ns,
                    digest=digest,
                )
            )
        return outputs

    def write_text(self, path: Path, text: str) -> None:
        """Write a small file whole or not at all."""
        self.mark()
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
        beside.write_text(text, encoding="utf-8")
        _flush(beside)
        beside.replace(path)

    # -- code and runs ------------------------------------------------------------------------

    def write_code(self, digest: str, code: dict[str, str]) -> None:
        """Keep the definitions behind a digest of code, so that a later run can name what changed."""
        path = self.root / "code" / f"{digest}.json"
        if not path.exists():
            self.write_text(path, json.dumps(code, indent=1))

    def read_code(self, digest: str) -> dict[str, str]:
        """The definitions behind a digest of code; empty where they were not kept."""
        try:
            return json.loads((self.root / "code" / f"{digest}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def recall_code(self) -> bool:
        """Spare this process the digests of code that an earlier one found in the same sources."""
        try:
            return recall_code((self.root / CODE_KNOWN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False

    def keep_code(self) -> None:
        """Write down what `recall_code` takes over."""
        self.write_text(self.root / CODE_KNOWN, known_code())

    def write_run(self, run: RunRecord) -> None:
        """Write down a run; what it refers to is kept by `cutline prune`."""
        self.write_text(self.root / "runs" / f"{run.run}.json", run.model_dump_json(indent=1))

    def runs(self) -> list[RunRecord]:
        """All runs, newest first."""
        found = []
        for path in sorted((self.root / "runs").glob("*.json"), reverse=True):
            try:
                found.append(RunRecord.model_validate_json(path.read_bytes()))
            except (OSError, ValidationError):
                continue  # a damaged run record loses its history, nothing else
        return found


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs under that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def started(pid: int) -> str:
    """When a process of this machine began, in ticks since boot; empty where it is gone or the system
    does not tell."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else numbers[18]  # a killed process stays listed until its parent looks


def _read_record(path: Path) -> Record | None:
    try:
        return Record.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute; read without importing them."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("tensorflow-cpu", "keras", "opencv-python-headless", "nltk", "numpy", "polars", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
