"""Finding and removing what no run refers to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import UsageError
from schemas.records import RunRecord
from tasks.packs import files_of
from tasks.workspace import Workspace, is_alive

MADE = ("shards", "bundles", "reports", "code", "packs", "partial", "tmp", "runs")


@dataclass(frozen=True)
class Unused:
    """Files that may go, with their kind (the folder that they lie in)."""

    root: Path
    paths: list[Path]
    size: int  # bytes

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Kind → (files, bytes), largest first."""
        kinds: dict[str, list[int]] = defaultdict(list)
        for path in self.paths:
            parts = path.relative_to(self.root).parts
            kinds["/".join(parts[:2]) if parts[0] == "shards" else parts[0]].append(path.stat().st_size)
        return dict(
            sorted(
                ((kind, (len(sizes), sum(sizes))) for kind, sizes in kinds.items()),
                key=lambda item: -item[1][1],
            )
        )


def find_unused(root: Path, keep: int | None = None) -> Unused:
    """Files of a workspace that no run refers to; with `keep`, all but the newest runs are forgotten.

    Raises UsageError while a run is at work on the workspace.
    """
    workspace = Workspace(root)
    at_work = [pid for pid in _running(workspace.root) if is_alive(pid)]
    if at_work:
        raise UsageError(f"a run is at work on {root} (process {at_work[0]}); prune when it has ended")
    runs = workspace.runs()
    kept = _newest(runs, keep) if keep else runs
    used = set(_used(workspace, kept))
    used |= {workspace.root / "runs" / f"{run.run}.json" for run in kept}
    paths = [path for path in _files(workspace.root) if path not in used]
    return Unused(workspace.root, paths, sum(path.stat().st_size for path in paths))


def remove(unused: Unused) -> None:
    """Delete the files, records first: a shard without its record is not there."""
    for path in sorted(unused.paths, key=lambda path: path.suffix != ".json"):
        path.unlink(missing_ok=True)
    for folder in sorted((unused.root / kind for kind in MADE), reverse=True):
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _used(workspace: Workspace, runs: list[RunRecord]) -> Iterator[Path]:
    """The files that runs refer to."""
    for stage, key in {(stage, key) for run in runs for stage, keys in run.shards.items() for key in keys}:
        record = workspace.read_record(stage, key)
        if record is None:
            continue
        yield workspace.root / "shards" / stage / f"{key}.json"
        yield workspace.root / "code" / f"{record.code}.json"
        for output in record.outputs:
            yield workspace.root / output.path
        if record.stage == "ingest":
            yield from _packs(workspace, record.output("photos.parquet").path)


def _packs(workspace: Workspace, photos: str) -> Iterator[Path]:
    """The packs that hold photographs of a table."""
    import polars as pl

    table = workspace.root / photos
    if table.is_file():
        containers = pl.scan_parquet(table).select("container").drop_nulls().unique().collect()
        for container in containers["container"]:
            yield from files_of(container, workspace.root / "packs")


def _newest(runs: list[RunRecord], keep: int) -> list[RunRecord]:
    kept: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for run in runs:  # newest first
        kept[run.command, run.dataset].append(run)
    return [run for group in kept.values() for run in group[:keep]]


def _files(root: Path) -> Iterator[Path]:
    for kind in MADE:
        for path in sorted((root / kind).rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield path


def _running(root: Path) -> list[int]:
    return [int(path.name) for path in (root / "running").glob("*") if path.name.isdigit()]
