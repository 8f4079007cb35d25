"""The workspace: where shards, records, bundles, reports and runs lie, and how they get there.

A file appears under its name only when it is whole: it is written in tmp/ (from where the next run
removes it if this one is killed), flushed to disk and renamed; on an object store, put in one request.
A record is written after its outputs. So a process may be killed at any moment, and two may run at
once, without a lock: what is there is whole.

Behind a workspace with an address stands an object store, with the same names; its folder is then a
cache of this machine. A file of the cache is trusted as any other: by its size and time, else by its
digest, which the record holds.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from cutline.schemas.errors import DamagedFile, StoreFailed, UsageError
from cutline.schemas.records import Output, Record, RunRecord
from cutline.tasks import DEFAULT_WORKSPACE
from cutline.tasks.runtime.formatting import count_of
from cutline.tasks.runtime.processes import is_alive, lock_on, started
from cutline.tasks.storage.checksums import checked, with_checksum
from cutline.tasks.storage.disk import make_folder, put_in_place
from cutline.tasks.storage.object_store import AT_ONCE, Listed, Store, address_of, folder_of

WORKSPACE_MARKER = ".cutline-workspace"


def path_of(workspace: Workspace, record: Record, name: str) -> Path:
    """The file of an output."""
    return workspace.file(record.output(name).path)


def in_place(record: Record, workspace: Workspace) -> Record:
    """The record with absolute paths, so that it can be read from another workspace."""
    outputs = [
        output.model_copy(update={"path": str(workspace.file(output.path))}) for output in record.outputs
    ]
    return record.model_copy(update={"outputs": outputs})


MADE = ("shards", "bundles", "reports", "models", "code", "packs", "partial", "tmp", "runs")
CACHES = DEFAULT_WORKSPACE / "stores"


def digest_of(value: object) -> str:
    """BLAKE2b (128 bits, hex) of anything that JSON can write."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def digest_of_file(path: Path) -> str:
    """BLAKE2b (128 bits, hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def cache_of(address: str) -> Path:
    """The folder of this machine that stands before a store: in $CUTLINE_CACHE, else in `CACHES`."""
    name = re.sub(r"[^a-z0-9]+", "-", address.lower())[:60].strip("-")
    return Path(os.environ.get("CUTLINE_CACHE") or CACHES) / f"{name}-{digest_of(address)[:8]}"


def bundle_at(where: Path | str) -> Path:
    """The folder of a bundle on this machine; one of a store, s3://…/bundles/NAME, is fetched.

    Raises UsageError for another address, StoreFailed where it cannot be fetched.
    """
    workspace, name = _bundle_parts(where)
    return workspace.folder(name) if workspace else Path(where)


def bundle_folder(where: Path | str) -> Path:
    """Where `bundle_at` puts a bundle on this machine; asks no store, so it need not be there."""
    workspace, name = _bundle_parts(where)
    return workspace.root / name if workspace else Path(where)


def _bundle_parts(where: Path | str) -> tuple[Workspace | None, str]:
    """The workspace of a bundle on a store, and the bundle's folder there; None where it is on no store."""
    address = address_of(where)
    if address is None:
        return None, ""
    workspace, _, name = address.rpartition("/bundles/")
    if not workspace:
        raise UsageError(f"bundle '{address}': expected a store's address that ends in /bundles/NAME")
    return Workspace(workspace), f"bundles/{name}"


class Workspace:
    """A folder that Cutline owns, or a store with such a folder before it; nothing is written elsewhere."""

    def __init__(self, where: Path | str) -> None:
        """`where` is a folder, or an address such as s3://BUCKET/PREFIX. Raises UsageError."""
        address = address_of(where)
        self.store = Store(address) if address else None
        self.root = (cache_of(address) if address else folder_of(where)).absolute()
        self.where = address or str(self.root)
        self._listed: dict[str, dict[str, Listed]] = {}  # folder of the store -> what lies in it
        self._outputs: dict[str, Output] = {}  # path -> what the store should hold there

    def reached_at(self, path: str) -> str:
        """The full path or address of a file, for records and people."""
        return f"{self.where}/{path}" if self.store else str(self.root / path)

    def mark(self) -> None:
        """Say that this is a workspace, before the first file: a data set that it lies in passes it over."""
        marker = self.root / WORKSPACE_MARKER
        if not marker.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            marker.write_text("Cutline keeps here what it makes.\n", encoding="utf-8")

    def check_writable(self) -> None:
        """Write a file and take it away again. Raises OSError."""
        with self.scratch() as folder:
            (folder / "written").write_bytes(b"x")

    # -- records ------------------------------------------------------------------------------

    def look_ahead(self, stage: str, keys: Iterable[str]) -> None:
        """List what a store holds of a stage, once, and read the records of `keys` that are new here.

        Until the next time, lookups of the stage ask the store no more.
        """
        if self.store is None:
            return
        folder = f"shards/{stage}"
        listed = self._listed[folder] = self.store.listing(folder)
        wanted = [path for key in keys if (path := f"{folder}/{key}.json") in listed]
        new = [path for path in wanted if not self._seen(path, listed[path]).exists()]
        for path, data in zip(new, self.store.read_all(new), strict=True):
            self._keep_seen(path, listed[path], data)

    def lookup(self, stage: str, key: str, deep: bool = False) -> tuple[Record | None, str]:
        """The record of a shard whose outputs are all there and whole, else None and the reason.

        Sizes and times are compared; a file touched since it was made, or every file where `deep`,
        is hashed again. Of a store sizes are compared, and where `deep` every file is read anew.
        """
        data = self._read(f"shards/{stage}/{key}.json")
        record = self._parsed(data)
        if record is None:
            return None, "its record is damaged" if data is not None else ""
        if record.transient:
            return None, f"{count_of(record.transient, 'row')} could not be read last time"
        states = [(self._state(output, deep), output.path) for output in record.outputs]
        for state, path in states:
            if state in ("missing", "damaged"):
                return None, f"output {state}: {path}"
        return (self._refresh(record) if any(state == "touched" for state, _ in states) else record), ""

    def _state(self, output: Output, deep: bool) -> str:
        """missing, damaged, touched (since it was made, yet the same) or whole."""
        if self.store:
            size = self._stored_size(output.path)
            if size is None or size != output.size:
                return "missing" if size is None else "damaged"
            return "damaged" if deep and not self._fetch(output.path, output) else "whole"
        path = self.root / output.path
        try:
            found = path.stat()
        except OSError:
            return "missing"
        same_time = found.st_mtime_ns == output.mtime_ns
        if found.st_size != output.size:
            return "damaged"
        try:
            if (deep or not same_time) and digest_of_file(path) != output.digest:
                return "damaged"
        except OSError:  # a folder, or a file that the disk cannot read any more
            return "damaged"
        return "whole" if same_time else "touched"

    def is_whole(self, output: Output) -> bool:
        """Whether a file is as its record says; in a folder its bytes are compared."""
        return self._state(output, deep=self.store is None) in ("whole", "touched")

    def read_record(self, stage: str, key: str) -> Record | None:
        """The record as written, outputs unchecked; None where there is none or it is damaged."""
        return self._parsed(self._read(f"shards/{stage}/{key}.json"))

    def _parsed(self, data: bytes | None) -> Record | None:
        if data is None:
            return None
        try:
            record = checked(Record, data)
        except ValueError:  # pydantic's too
            return None
        if self.store:
            self._outputs.update({output.path: output for output in record.outputs})
        return record

    def records(self, stage: str) -> Iterator[Record]:
        """All records of a stage, newest first."""
        for path in self._newest_first(f"shards/{stage}"):
            record = self._parsed(self._read(path))
            if record is not None:
                yield record

    def _newest_first(self, folder: str) -> list[str]:
        """The paths of a folder's JSON files, the newest first."""
        if self.store is None:
            times: dict[str, int] = {}
            for path in (self.root / folder).glob("*.json"):
                with suppress(OSError):  # pruned a moment ago
                    times[path.relative_to(self.root).as_posix()] = path.stat().st_mtime_ns
            return sorted(times, key=times.__getitem__, reverse=True)
        if folder not in self._listed:
            self._listed[folder] = self.store.listing(folder)
        listed = self._listed[folder]
        found = [path for path in listed if path.endswith(".json")]
        return sorted(found, key=lambda path: listed[path].modified, reverse=True)

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
        self.write_text(f"shards/{record.stage}/{record.key}.json", with_checksum(record.model_dump_json()))
        self._outputs.update({output.path: output for output in record.outputs} if self.store else {})

    # -- small files --------------------------------------------------------------------------

    def write_text(self, path: Path | str, text: str) -> None:
        """Write a small file of the workspace, whole or not at all; a Path is of this machine alone."""
        self.mark()
        if self.store and isinstance(path, str):
            self.store.write(path, text.encode("utf-8"))
            self._listed.pop(path.rpartition("/")[0], None)
            return
        with self._half() as half:
            half.write_text(text, encoding="utf-8")
            _flush(half)
            put_in_place(half, self.root / path, self.root)

    def _read(self, path: str) -> bytes | None:
        """The bytes of a small file; None where there is none."""
        if self.store is None:
            try:
                return (self.root / path).read_bytes()
            except OSError:
                return None
        listed = self._listed.get(path.rpartition("/")[0])
        if listed is None:
            return self.store.read(path)
        if path not in listed:
            return None
        seen = self._seen(path, listed[path])
        with suppress(FileNotFoundError):  # also where a run beside this one has just replaced it
            return seen.read_bytes()
        return self._keep_seen(path, listed[path], self.store.read(path))

    def _seen(self, path: str, listed: Listed) -> Path:
        """Where a small object is kept on this machine: another content has another name."""
        return self.root / "seen" / path / digest_of(listed.stamp)

    def _keep_seen(self, path: str, listed: Listed, data: bytes | None) -> bytes | None:
        seen = self._seen(path, listed)
        if data is not None and len(data) == listed.size:
            seen.parent.mkdir(parents=True, exist_ok=True)
            with self._half() as half:
                half.write_bytes(data)
                half.replace(seen)
            for former in seen.parent.iterdir():
                if former != seen:
                    former.unlink(missing_ok=True)
        return data

    # -- outputs ------------------------------------------------------------------------------

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder of this process alone, gone afterwards."""
        folder = self._own_path()
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _half(self) -> Iterator[Path]:
        """Where this process alone writes one file, to be renamed once it is whole; else gone afterwards."""
        path = self._own_path()
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _own_path(self) -> Path:
        """A new path; its name tells a later run whose it was."""
        owner = f"{platform.node()}:{os.getpid()}:{started(os.getpid())}"
        return self._tmp() / f"{owner}-{uuid.uuid4().hex[:12]}"

    def _tmp(self) -> Path:
        """The folder of what goes with the process that writes it."""
        self.mark()
        folder = self.root / "tmp"
        make_folder(folder, self.root)
        return folder

    def clear_scratch(self) -> None:
        """Remove what killed processes of this machine left half done."""
        for path in (self.root / "tmp").glob(f"{glob.escape(platform.node())}:*:*"):
            _, pid, rest = path.name.rsplit(":", 2)
            start = rest.rpartition("-")[0]  # none in the names of former versions
            if not pid.isdigit() or is_alive(int(pid), start):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

        for path in (self.root / "tmp").glob("*.lock"):
            with suppress(OSError, Timeout), FileLock(path, blocking=False, fallback_to_soft=False):
                path.unlink(missing_ok=True)  # of a shard that no process makes

    def partial(self, stage: str, key: str) -> Path:
        """Where a long stage keeps its checkpoints until its record is written."""
        folder = self._partial(stage, key)
        make_folder(folder, self.root)
        return folder

    def forget_partial(self, stage: str, key: str) -> None:
        """Remove what `partial` kept, if anything."""
        shutil.rmtree(self._partial(stage, key), ignore_errors=True)

    def _partial(self, stage: str, key: str) -> Path:
        return self.root / "partial" / f"{stage}-{key}"

    def publish(self, folder: Path, prefix: str) -> list[Output]:
        """Move every file of `folder` to `prefix` + its name below the workspace, whole.

        Raises StoreFailed.
        """
        outputs = []
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            target = self.root / f"{prefix}{file.name}"
            digest = digest_of_file(file)
            _flush(file)
            path = target.relative_to(self.root).as_posix()
            if self.store:
                self.store.upload(file, path)
                self._listed.pop(path.rpartition("/")[0], None)
            put_in_place(file, target, self.root)
            found = target.stat()
            outputs.append(
                Output(
                    name=file.name,
                    path=path,
                    size=found.st_size,
                    mtime_ns=found.st_mtime_ns,
                    digest=digest,
                )
            )
        return outputs

    def file(self, path: Path | str) -> Path:
        """A file of the workspace on this machine, by its path below it or by its address.

        From a store it is fetched on first use and held to the digest in its record; StoreFailed where
        it differs or is gone.
        """
        if self.store is None:
            return self.root / path
        name = str(path).removeprefix(f"{self.where}/")
        if Path(name).is_absolute() or self._is_fetched(name):
            return self.root / name
        output = self._output_at(name)
        if self._fetch(name, output) or self._fetch(name, self._output_at(name, again=True)):
            return self.root / name
        raise StoreFailed(
            f"{self.where}/{name}: expected the {f'{output.size:,} bytes' if output else 'file'} that its "
            "record tells of, found none or others; run again with --deep, which makes it again"
        )

    def files(self, paths: Sequence[Path | str]) -> list[Path]:
        """As `file`, several at once."""
        if self.store is None or len(paths) < 2:
            return [self.file(path) for path in paths]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self.file, paths))

    def shared_path(self, file: Path, digest: str) -> str:
        """What a worker of this workspace finds a file by: its path, or that of its copy in the store."""
        return f"models/{digest}/{file.name}" if self.store else str(file.absolute())

    def shared(self, file: Path, digest: str) -> str:
        """As `shared_path`, and the copy is there."""
        path = self.shared_path(file, digest)
        if self.store and self.store.size(path) is None:
            self.store.upload(file, path)
        return path

    def share(self, folder: str) -> None:
        """Put into the store what lies in a folder of the cache and is not there yet."""
        if self.store is None:
            return
        there = self.store.listing(folder)
        for file in sorted((self.root / folder).glob("*")):
            path = file.relative_to(self.root).as_posix()
            if path not in there and not path.endswith(".partial"):
                self.store.upload(file, path)

    def borrow_packs(self, other: Workspace) -> None:
        """See the packs of another workspace here too: of what they hold no copy is made again."""
        packs = self.root / "packs"
        packs.mkdir(parents=True, exist_ok=True)
        for file in sorted((other.root / "packs").glob("*")):
            (packs / file.name).symlink_to(file.absolute())

    def upload(self, path: str) -> None:
        """Put a file of the cache into the store, in place of what is there; in a folder it is there."""
        if self.store:
            self.store.upload(self.root / path, path)
            self._listed.pop(path.rpartition("/")[0], None)

    def folder(self, path: str) -> Path:
        """A folder of the workspace on this machine, such as a bundle, with all its files."""
        if self.store:
            self.files(list(self.store.listing(path)))
        return self.root / path

    def _output_at(self, path: str, again: bool = False) -> Output | None:
        """What the record of a shard says of one of its files; None where no record is known."""
        found = re.match(r"^shards/([^/]+)/([0-9a-f]+)\.", path)
        if found and (again or path not in self._outputs):
            assert self.store  # a folder's files need no looking up
            self._parsed(self.store.read(f"shards/{found[1]}/{found[2]}.json"))
        return self._outputs.get(path)

    def _is_fetched(self, path: str) -> bool:
        """Whether the cache holds a file as its record has it."""
        output = self._output_at(path)
        file = self.root / path
        try:
            found = file.stat()
        except OSError:
            return False
        if output is None or (found.st_size, found.st_mtime_ns) == (output.size, output.mtime_ns):
            return True
        if found.st_size != output.size or digest_of_file(file) != output.digest:
            return False
        os.utime(file, ns=(output.mtime_ns, output.mtime_ns))
        return True

    def _fetch(self, path: str, output: Output | None) -> bool:
        """Copy an object into the cache, whole; False where it is gone or not what the record says."""
        assert self.store
        target = self.root / path
        with self._half() as half:
            if not self.store.download(path, half):
                return False
            if output is not None:
                if digest_of_file(half) != output.digest:
                    return False
                os.utime(half, ns=(output.mtime_ns, output.mtime_ns))
            put_in_place(half, target, self.root)
            return True

    def _stored_size(self, path: str) -> int | None:
        """Bytes of an object of the store, from a listing where its folder has one."""
        assert self.store
        folder = path.rpartition("/")[0]
        if folder.partition("/")[0] in ("bundles", "reports") and folder not in self._listed:
            self._listed[folder] = self.store.listing(folder)
        if folder in self._listed:
            listed = self._listed[folder].get(path)
            return listed.size if listed else None
        return self.store.size(path)

    def made(self) -> dict[str, int]:
        """The size in bytes of everything that was made, by path."""
        if self.store:
            listed = (item for kind in MADE for item in self.store.listing(kind).items())
            return {path: found.size for path, found in listed}
        sizes: dict[str, int] = {}
        for kind in MADE:
            for folder, _, names in os.walk(self.root / kind):
                for path in (Path(folder, name) for name in names):
                    with suppress(FileNotFoundError):  # a run at work was done with it
                        if not path.is_symlink():
                            sizes[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return sizes

    def remove(self, paths: Sequence[str]) -> None:
        """Delete files, records first: a shard without its record is not there."""
        ordered = sorted(paths, key=lambda path: not path.endswith(".json"))
        if self.store:
            records = sum(path.endswith(".json") for path in ordered)
            self.store.remove(ordered[:records])
            self.store.remove(ordered[records:])
            self._listed.clear()
        for path in ordered:
            (self.root / path).unlink(missing_ok=True)
        for kind in MADE:
            for folder, inner, _ in os.walk(self.root / kind, topdown=False):
                for name in inner:
                    with suppress(OSError):  # it holds something
                        Path(folder, name).rmdir()

    # -- who is at work ---------------------------------------------------------------------------

    @contextmanager
    def at_work_on(self) -> Iterator[None]:
        """Say that this process is at work on the workspace, so that nothing is pruned under it."""
        self.mark()
        self.clear_scratch()
        self._clear_markers()
        with self.not_pruned():
            self.write_text(self.marker, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n{started(os.getpid())}")
        try:
            yield
        finally:
            self._remove_marker(self.marker)

    @contextmanager
    def not_pruned(self) -> Iterator[None]:
        """Hold the lock that a run takes while it begins, and `cutline prune` while it removes files.

        So no run begins between the last look of prune and the removal. Other machines that share a store,
        and file systems without locks, do not see it.
        """
        self.mark()
        try:
            lock = lock_on(self.root / "lock", lambda _process: None)
        except OSError:
            yield
            return
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def alone_on(self, key: str, waits_for: Callable[[str], None]) -> Iterator[None]:
        """While no other process makes the shard of that key; `waits_for` is told of the one that does.

        Machines that share a store do not see each other's locks, nor does anyone where the file system has
        none: then both make the shard.
        """
        file = self._tmp() / f"{key}.lock"
        try:
            lock = lock_on(file, waits_for)
        except OSError:
            yield
            return
        try:
            yield
        finally:
            file.unlink(missing_ok=True)  # whoever waits for it sees that, and makes another
            lock.release()

    @property
    def marker(self) -> str:
        """The file that says that this process is at work."""
        return f"running/{platform.node()}:{os.getpid()}"

    def has(self, path: str) -> bool:
        """Whether there is a file of that path."""
        return self._stored_size(path) is not None if self.store else (self.root / path).is_file()

    def at_work(self) -> list[str]:
        """Processes at work on the workspace; of another machine's all that did not end by themselves."""
        found = []
        for path, node, pid in self._markers():
            if node != platform.node():
                where = self.reached_at(path)
                found.append(f"process {pid} of {node}; if it was killed, remove {where}")
            elif self._is_at_work(path, pid):
                found.append(f"process {pid}")
        return found

    def _clear_markers(self) -> None:
        """Remove those of killed processes of this machine."""
        for path, node, pid in self._markers():
            if node == platform.node() and not self._is_at_work(path, pid):
                self._remove_marker(path)

    def _markers(self) -> list[tuple[str, str, str]]:
        """The path, the machine and the number of the process of each marker."""
        if self.store:
            names = [path.rpartition("/")[2] for path in self.store.listing("running")]
        else:
            names = [path.name for path in (self.root / "running").glob("[!.]*:*")]
        return [(f"running/{name}", *name.rpartition(":")[::2]) for name in sorted(names)]

    def _is_at_work(self, path: str, pid: str) -> bool:
        """Whether the process of this machine is alive that wrote a marker."""
        start = (self._read(path) or b"").decode("utf-8", "replace").partition("\n")[2]
        return pid.isdigit() and is_alive(int(pid), start)

    def _remove_marker(self, path: str) -> None:
        if self.store:
            self.store.remove([path])
        (self.root / path).unlink(missing_ok=True)

    # -- code and runs ------------------------------------------------------------------------

    def write_code(self, digest: str, code: dict[str, str]) -> None:
        """Keep the definitions behind a digest of code, so that a later run can name what changed."""
        path = self.root / "code" / f"{digest}.json"
        if not path.exists():
            text = json.dumps(code, indent=1)
            self.write_text(f"code/{digest}.json", text)
            if self.store:  # a note that it is there
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")

    def read_code(self, digest: str) -> dict[str, str]:
        """The definitions behind a digest of code; empty where they were not kept."""
        try:
            return json.loads(self._read(f"code/{digest}.json") or b"{}")
        except ValueError:
            return {}

    def write_run(self, run: RunRecord) -> None:
        """Write down a run; what it refers to is kept by `cutline prune`."""
        self.write_text(f"runs/{run.run}.json", with_checksum(run.model_dump_json(), indent=1))

    def run_names(self) -> dict[str, object]:
        """The name of each run, newest first, with a stamp that changes when its record does."""
        stamps: dict[str, object] = {}
        if self.store:
            self._listed["runs"] = self.store.listing("runs")
            stamps = {path: listed.stamp for path, listed in self._listed["runs"].items()}
        else:
            for path in (self.root / "runs").glob("*.json"):
                with suppress(OSError):  # pruned a moment ago
                    stamps[path.name] = path.stat().st_mtime_ns, path.stat().st_size
        names = {Path(path).stem: stamp for path, stamp in stamps.items() if path.endswith(".json")}
        return dict(sorted(names.items(), reverse=True))  # they begin with the time

    def read_run(self, name: str) -> bytes | None:
        """The record of a run as it is written; None where there is none."""
        path = f"runs/{name}.json"
        if self.store and path not in self._listed.get("runs", {}):
            return self.store.read(path)  # it may have ended since they were listed
        return self._read(path)

    def runs(self) -> Iterator[RunRecord]:
        """All runs, newest first; a record is read when its turn comes, and not before."""
        for name in self.run_names():
            try:
                run = checked(RunRecord, self.read_run(name) or b"")
            except ValueError:
                continue  # a damaged run record loses its history, nothing else
            yield run

    def records_of(self, run: RunRecord, stage: str) -> list[Record]:
        """The records of a run's stage, in its order; none for a stage that it does not have.

        Raises DamagedFile where one is missing or cannot be read.
        """
        keys = run.shards.get(stage, [])
        if keys:
            self.look_ahead(stage, keys)
        # A key that is none could name a file elsewhere.
        found = [self.read_record(stage, key) if key.isalnum() else None for key in keys]
        paths = [f"shards/{stage}/{key}.json" for key in keys]
        _check_all_there(run, stage, paths, [record is not None for record in found])
        return [record for record in found if record]

    def outputs_of(self, run: RunRecord, stage: str, name: str) -> list[Path]:
        """The files called `name` that a run's stage made, on this machine.

        Raises DamagedFile where one is missing, StoreFailed where a store holds another.
        """
        paths = [record.output(name).path for record in self.records_of(run, stage)]
        _check_all_there(run, stage, paths, [self.has(path) for path in paths])
        return self.files(paths)


def _check_all_there(run: RunRecord, stage: str, paths: Sequence[str], there: Sequence[bool]) -> None:
    """Raise DamagedFile where one of the paths is not there."""
    missing = [path for path, is_there in zip(paths, there, strict=True) if not is_there]
    if missing:
        found = len(paths) - len(missing)
        raise DamagedFile(
            f"run {run.run}: expected {len(paths):,} files of its stage {stage}, found {found:,}: "
            f"{missing[0]} is missing or damaged; `cutline {run.command}` makes it again"
        )


class ReadOnlyWorkspace(Workspace):
    """A workspace that is looked at: a file touched and found the same is not written down as such."""

    def write_record(self, record: Record) -> None:
        """Nothing is written."""


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
