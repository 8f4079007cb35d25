"""The tables that a command ends with, for people; on standard error, so that --json stays clean."""

from __future__ import annotations

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from schemas.records import RunRecord
from schemas.tables import REASONS

WIDTH_OF_FILES = 160  # of a line, where the output is no terminal


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=WIDTH_OF_FILES)


console = _console(stderr=True)
SCORES_SHOWN = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")


def show_run(record: RunRecord) -> None:
    """Stages with what was made and why, where the results lie, and the held-out scores."""
    table = _stage_table("made", "reused", "rows in", "rows out", "rejected", "seconds", "why")
    for stage in record.stages:
        counts = (stage.made, stage.reused, stage.rows_in, stage.rows_out, stage.rejected)
        table.add_row(stage.name, *(f"{n:,}" for n in counts), f"{stage.took_s:,.1f}", escape(stage.why))
    console.print(table)
    for name in ("captions", "rejects", "report", "bundle"):
        if path := getattr(record, name):
            console.print(f"{name:<9} {escape(path)}", soft_wrap=True)
    shown = [f"{name} {record.scores[name]:.3f}" for name in SCORES_SHOWN if name in record.scores]
    if shown:
        console.print(f"scores    {'  '.join(shown)}", soft_wrap=True)
    if not any(stage.made for stage in record.stages):
        console.print("nothing to do: all of it was made before")


def show_status(record: RunRecord) -> None:
    """What a run would make, and why."""
    table = _stage_table("to make", "reused", "why")
    for stage in record.stages:
        table.add_row(stage.name, f"{stage.made:,}", f"{stage.reused:,}", escape(stage.why))
    console.print(table)
    if not any(stage.made for stage in record.stages):
        console.print("up to date: a run would make nothing")


def show_rejects(rejects: pl.DataFrame) -> None:
    """Rejects by reason, with what the reason means and the first few names."""
    if not rejects.height:
        console.print("nothing was rejected")
        return
    table = Table(box=None, header_style="bold")
    for column in ("stage", "reason", "rows", "what it means", "for example"):
        table.add_column(column, justify="right" if column == "rows" else "left", overflow="fold")
    groups = rejects.group_by("stage", "reason", maintain_order=True).agg(
        pl.len(), pl.col("name", "detail").first()
    )
    for stage, reason, rows, name, detail in groups.iter_rows():
        table.add_row(stage, reason, f"{rows:,}", REASONS[reason], escape(f"{name}: {detail}"[:200]))
    _console(stderr=False).print(table)


def _stage_table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="left" if column == "why" else "right", overflow="fold")
    return table
