"""Finding and removing what no run refers to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cutline.flows.pipeline.failed_runs import failed_runs
from cutline.schemas.errors import StoreFailed, UsageError
from cutline.schemas.records import RunRecord
from cutline.tasks.storage.packs import files_of
from cutline.tasks.storage.workspace import WORKSPACE_MARKER, Workspace


@dataclass(frozen=True)
class Unused:
    """Files that may go: path below the workspace → bytes. Their kind is the folder that they lie in.

    `keep` is how many runs of each data set were to be kept; None where all were.
    """

    workspace: Workspace
    sizes: dict[str, int]
    keep: int | None = None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    @property
    def bundles(self) -> list[str]:
        """The names of the bundles that would go."""
        return sorted({path.split("/")[1] for path in self.sizes if path.startswith("bundles/")})

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Kind → (files, bytes), largest first."""
        kinds: dict[str, list[int]] = defaultdict(list)
        for path, size in self.sizes.items():
            parts = path.split("/")
            kinds["/".join(parts[:2]) if parts[0] == "shards" else parts[0]].append(size)
        return dict(
            sorted(
                ((kind, (len(sizes), sum(sizes))) for kind, sizes in kinds.items()),
                key=lambda item: -item[1][1],
            )
        )


def demand_workspace(where: Path) -> None:
    """Raises UsageError where there is no workspace, as with a mistyped --workspace."""
    workspace = Workspace(where)
    if not workspace.store and not (workspace.root / WORKSPACE_MARKER).is_file():
        raise UsageError(f"'{where}': expected what a run has made, found no workspace there")


def find_unused(where: Path, keep: int | None = None) -> Unused:
    """Files of a workspace that no run refers to; with `keep`, all but the newest runs are forgotten.

    Raises UsageError while a run is at work on the workspace.
    """
    workspace = Workspace(where)
    at_work = workspace.at_work()
    if at_work:
        raise UsageError(f"a run is at work on {workspace.where} ({at_work[0]}); prune when it has ended")
    made = workspace.made()
    runs = list(workspace.runs())
    kept = _newest(runs, keep) if keep else runs
    used = set(_used(workspace, [*kept, *failed_runs(workspace)])) | {f"runs/{run.run}.json" for run in kept}
    return Unused(workspace, {path: size for path, size in made.items() if path not in used}, keep)


def find_made(where: Path) -> Unused:
    """Every file that was made, told in the same way."""
    workspace = Workspace(where)
    return Unused(workspace, workspace.made())


def remove(unused: Unused) -> Unused:
    """Delete those of the files that still may go, and return them; records first.

    A person may have thought it over for an hour: so who is at work and what runs refer to is looked at
    again. Raises UsageError while a run is at work on the workspace.
    """
    with unused.workspace.not_pruned():
        still = find_unused(Path(unused.workspace.where), unused.keep).sizes
        gone = {path: size for path, size in unused.sizes.items() if path in still}
        unused.workspace.remove(list(gone))
    return Unused(unused.workspace, gone, unused.keep)


def _used(workspace: Workspace, runs: list[RunRecord]) -> Iterator[str]:
    """The files that runs refer to."""
    keys: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        yield from _model_files(workspace, run)
        for stage, named in run.shards.items():
            keys[stage].update(named)
    for stage, of_stage in keys.items():
        workspace.look_ahead(stage, of_stage)
        for key in of_stage:
            record = workspace.read_record(stage, key)
            if record is None:
                continue
            yield f"shards/{stage}/{key}.json"
            yield f"code/{record.code}.json"
            yield from (output.path for output in record.outputs)
            if record.stage == "ingest":
                yield from _packs(workspace, record.output("photos.parquet").path)


def _model_files(workspace: Workspace, run: RunRecord) -> Iterator[str]:
    """The files of the model that photographs were captioned with, if they lie in the workspace.

    On a store they are copies in models/. In a folder they are those of a bundle, which is kept whole:
    what captioned a folder last night is to do so tonight.
    """
    root = workspace.root.resolve()
    for path in run.model.values():
        if not Path(path).is_absolute():
            yield path
        elif (bundle := Path(path).resolve().parent).is_relative_to(root) and bundle.is_dir():
            yield from (file.relative_to(root).as_posix() for file in bundle.iterdir())


def _packs(workspace: Workspace, photos: str) -> Iterator[str]:
    """The packs that hold photographs of a table."""
    import polars as pl

    try:
        table = workspace.file(photos)
    except StoreFailed:
        return
    if table.is_file():
        containers = pl.scan_parquet(table).select("container").drop_nulls().unique().collect()
        for container in containers["container"]:
            yield from (f"packs/{path.name}" for path in files_of(container, Path("packs")))


def _newest(runs: list[RunRecord], keep: int) -> list[RunRecord]:
    kept: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for run in runs:  # newest first
        kept[run.command, run.dataset].append(run)
    return [run for group in kept.values() for run in group[:keep]]
