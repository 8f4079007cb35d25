"""Why a shard has to be made: which row, setting, input or definition differs from the last run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from cutline.schemas.errors import StoreFailed
from cutline.schemas.records import Record
from cutline.tasks.engine.fingerprint import changed_definitions, code_digest
from cutline.tasks.engine.stage import Shard
from cutline.tasks.storage.workspace import Workspace


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
        f"{paths.len()} {what} ({few_names([repr(path) for path in paths.head(4)])})"
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
        reasons.append(f"input: {few_names(changed)}")
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
    return [f"code: {few_names(changed_definitions(workspace.read_code(earlier.code), code)) or 'changed'}"]


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
    what = few_names([repr(name) for name in new[label].head(4)])
    return f"rows: {new.height} new{f' ({what})' if what else ''}, {gone} gone"


def few_names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
