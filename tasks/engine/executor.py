"""Makes one shard: calls the stage's function, publishes its files, then writes its record."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from datetime import UTC, datetime

import polars as pl

from cutline.schemas.records import Record
from cutline.schemas.tables import TRANSIENT, check
from cutline.tasks.engine.fingerprint import code_digest
from cutline.tasks.engine.stage import Advance, Shard, StageContext, StageResult
from cutline.tasks.runtime.tensorflow import load_tensorflow
from cutline.tasks.storage.tables import count_lost, tensor_sizes, write_table
from cutline.tasks.storage.workspace import Workspace, library_versions


def make_shard(shard: Shard, workspace: Workspace, advance: Advance) -> Record:
    """Make one shard, publish its files, then its record, and return the record.

    Where another run has ended the same shard meanwhile, its files may be in use: they stay, as does its
    record, which is then returned.
    """
    module, _, name = shard.stage.function.partition(":")
    function: Callable[[StageContext], StageResult] = getattr(importlib.import_module(module), name)
    if shard.stage.tensorflow:
        load_tensorflow()
    started = time.monotonic()
    before, _ = workspace.lookup(shard.stage.name, shard.key)
    with workspace.scratch() as out:
        made = function(StageContext(shard, workspace, out, advance))
        meanwhile, _ = workspace.lookup(shard.stage.name, shard.key)
        if meanwhile is not None and meanwhile != before:
            workspace.forget_partial(shard.stage.name, shard.key)
            return meanwhile
        rejects = made.rejects
        if rejects is not None and rejects.height:
            write_table(rejects, out / "rejects.parquet", "rejects")
        outputs = workspace.publish(out, shard.prefix)
    code = shard.stage.code
    workspace.write_code(code_digest(code), code)
    record = Record(
        stage=shard.stage.name,
        key=shard.key,
        partition=shard.partition,
        inputs=shard.inputs,
        settings=shard.settings,
        code=code_digest(code),
        lineage=shard.lineage,
        outputs=outputs,
        rows_in=made.rows_in,
        rows_out=made.rows_out,
        rejected=0 if rejects is None else count_lost(rejects),
        transient=0 if rejects is None else rejects.filter(pl.col("reason").is_in(list(TRANSIENT))).height,
        reused_rows=made.reused_rows,
        gone_over=shard.rows,
        took_s=round(time.monotonic() - started, 3),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=library_versions(),
    )
    workspace.write_record(record)
    workspace.forget_partial(shard.stage.name, shard.key)
    return record


# -- rows that stay the same are taken over ----------------------------------------------------


def make_rows(
    context: StageContext,
    table: str,
    ids: pl.Series,
    compute: Callable[[pl.Series], tuple[pl.DataFrame, pl.DataFrame | None]],
) -> StageResult:
    """Make a table with a row for each of `ids`, in their order.

    Rows that a shard of the same lineage holds are copied from it; `compute` gets the other ids.
    """
    file = f"{table}.parquet"
    taken = _taken_over(context, file, ids)
    reused_rows = sum(frame.height for frame in taken)
    context.advance(reused_rows)
    missing = (
        ids.filter(~ids.is_in(pl.concat([frame[ids.name] for frame in taken]).implode())) if taken else ids
    )
    frame, rejects = compute(missing) if missing.len() or not taken else (taken[0].clear(), None)
    if taken:
        order = pl.DataFrame([ids])
        frame = order.join(pl.concat([*taken, frame]), on=ids.name, how="inner", maintain_order="left")
    write_table(frame, context.out / file, table, **tensor_sizes(frame))
    return StageResult(ids.len(), frame.height, rejects, reused_rows)


def _taken_over(context: StageContext, file: str, ids: pl.Series) -> list[pl.DataFrame]:
    """Rows of `ids` that earlier shards of the same lineage hold, no row twice."""
    taken: list[pl.DataFrame] = []
    wanted = ids
    for key in context.shard.sources.get("donors", []):
        record, _ = context.workspace.lookup(context.shard.stage.name, key)
        if record is None or not wanted.len():
            continue
        path = context.workspace.file(record.output(file).path)
        held = pl.read_parquet(path, columns=[ids.name])[ids.name]
        if held.is_in(wanted.implode()).any():
            taken.append(pl.read_parquet(path).filter(pl.col(ids.name).is_in(wanted.implode())))
            wanted = wanted.filter(~wanted.is_in(held.implode()))
    return taken


def read_slice(context: StageContext, table: str) -> pl.DataFrame:
    """The rows of an ingest table that are the shard's; the table was checked when written."""
    rows = (
        pl.scan_parquet(context.path("rows"))
        .slice(context.shard.sources["start"], context.shard.rows)
        .collect()
    )
    return check(rows, table)
