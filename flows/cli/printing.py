"""The tables that a command ends with, for people; on standard error, so that --json stays clean."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cutline.schemas.records import RunRecord
from cutline.schemas.safe_text import for_terminal, json_for_terminal
from cutline.schemas.tables import NOTICES, REASONS
from cutline.tasks.decoding.perplexity import Perplexity
from cutline.tasks.runtime.formatting import change_in_form, count_of, in_form, metric_of, quoted
from cutline.tasks.storage.tables import read_table
from cutline.tasks.storage.workspace import Workspace

if TYPE_CHECKING:
    from cutline.tasks.evaluation.compare_runs import Comparison


WIDTH_OF_FILES = 160  # of a line, where the output is no terminal


class _PipedConsole(Console):
    """Raises BrokenPipeError where a reader has closed the pipe (`| head`); rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles the error."""
        raise BrokenPipeError


def _console(stderr: bool) -> Console:
    console = _PipedConsole(stderr=stderr, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH_OF_FILES
    return console


console = _console(stderr=True)
LEAKS_SHOWN = 3
SCORES_SHOWN = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")


def show_run(record: RunRecord) -> None:
    """Stages with what was made and why, where the results lie, and the held-out scores."""
    table = _stage_table("made", "reused", "rows in", "rows out", "rejected", "seconds", "why")
    for stage in record.stages:
        counts = (stage.made, stage.reused, stage.rows_in, stage.rows_out, stage.rejected)
        table.add_row(stage.name, *(f"{n:,}" for n in counts), f"{stage.took_s:,.1f}", _text(stage.why))
    console.print(table)
    for name in ("captions", "rejects", "report", "bundle"):
        if path := getattr(record, name):
            console.print(f"{name:<9} {_text(path)}", soft_wrap=True)
    shown = [
        f"{metric_of(name).label} {record.scores[name]:.3f}" for name in SCORES_SHOWN if name in record.scores
    ]
    if shown:
        console.print(f"scores    {'  '.join(shown)}", soft_wrap=True)
    if not any(stage.made for stage in record.stages):
        console.print("nothing to do: all of it was made before")


def show_status(record: RunRecord) -> None:
    """What a run would make, and why."""
    table = _stage_table("to make", "reused", "about seconds", "why")
    for stage in record.stages:
        seconds = "?" if stage.estimate_s is None else f"{stage.estimate_s:,.1f}" if stage.made else ""
        table.add_row(stage.name, f"{stage.made:,}", f"{stage.reused:,}", seconds, _text(stage.why))
    console.print(table)
    show_leaks(record)
    if not any(stage.made for stage in record.stages):
        console.print("up to date: a run would make nothing")
        return
    told = [stage.estimate_s for stage in record.stages if stage.estimate_s is not None]
    missing = " and what is marked ?, which no earlier run tells" if len(told) < len(record.stages) else ""
    console.print(f"about {duration(sum(told))} by the rates of earlier runs, without start-up{missing}")


def show_leaks(record: RunRecord) -> None:
    """Photographs that are nearly, captions that are quite the same in two splits, as the last run found."""
    path = Workspace(record.workspace).file(record.leaks) if record.leaks else None
    if path is None or not path.exists():
        return
    leaks = read_table(path, "leaks")
    told = {
        "photo": ("near-duplicates between splits", "photographs"),
        "caption": ("the same words in two splits", "captions"),
    }
    for kind, (what, of) in told.items():
        some = leaks.filter(pl.col("kind") == kind)
        if not some.height:
            continue
        console.print(f"{what}: {count_of(some.height, 'pair')} of {of}, for example")
        for row in some.head(LEAKS_SHOWN).iter_rows(named=True):
            one, other = (_text(row[name][:80]) for name in ("name", "other_name"))
            similarity = f" ({row['similarity']:.3f})" if kind == "photo" else ""
            splits = _text(row["split"]), _text(row["other_split"])
            console.print(f"  {splits[0]} {one} = {splits[1]} {other}{similarity}", soft_wrap=True)
    if leaks.height:
        console.print(f"  all of them: {_text(record.leaks)}", soft_wrap=True)


def duration(seconds: float) -> str:
    """20 s, 5 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_comparison(comparison: Comparison, most: int, stderr: bool) -> None:
    """Settings, scores and captions of two runs side by side."""
    out = _console(stderr)
    captions = comparison.captions
    out.print(f"{_text(comparison.after)} beside {_text(comparison.before)}")
    for name, before, after in comparison.settings:
        out.print(f"{_text(name)}: {_text(before)} → {_text(after)}")
    out.print(
        f"{count_of(captions.height, 'caption')} changed, {comparison.same:,} stayed the same, "
        f"{comparison.new:,} of new photographs, {comparison.gone:,} gone"
    )
    if comparison.scores.height:
        table = _table("split", "metric", "before", "after", "change")
        for split, metric, before, after, change in comparison.scores.iter_rows():
            shown = metric_of(metric)
            values = (in_form(before, shown.form), in_form(after, shown.form))
            table.add_row(_text(split), _text(shown.label), *values, change_in_form(change, shown.form))
        out.print(table)
    if most and captions.height:
        table = _table("photo", "before", "after", "CIDEr")
        for row in captions.head(most).iter_rows(named=True):
            no_cider = row["cider_after"] is None
            cider = "" if no_cider else f"{row['cider_before']:.2f} → {row['cider_after']:.2f}"
            table.add_row(*(_text(row[name]) for name in ("path", "before", "after")), cider)
        out.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def show_rejects(rejects: pl.DataFrame) -> None:
    """Rejects by reason, with what the reason means and the first name; notices after the losses."""
    if not rejects.height:
        console.print("nothing was rejected")
        return
    out = _console(stderr=False)
    is_notice = pl.col("reason").is_in(list(NOTICES))
    losses, notices = rejects.filter(~is_notice), rejects.filter(is_notice)
    if losses.height:
        out.print(f"{count_of(losses.height, 'row')} could not be used")
        out.print(_reasons(losses))
    if notices.height:
        are = "describes the data set and is" if notices.height == 1 else "describe the data set and are"
        out.print(f"{count_of(notices.height, 'notice')}, which {are} no loss")
        out.print(_reasons(notices))


def _reasons(rejects: pl.DataFrame) -> Table:
    table = Table(box=None, header_style="bold")
    for column in ("stage", "reason", "rows", "what it means", "for example"):
        table.add_column(column, justify="right" if column == "rows" else "left", overflow="fold")
    groups = rejects.group_by("stage", "reason", maintain_order=True).agg(
        pl.len(), pl.col("name", "detail").first()
    )
    for stage, reason, rows, name, detail in groups.iter_rows():
        table.add_row(stage, reason, f"{rows:,}", REASONS[reason], _text(f"{name}: {detail}"[:200]))
    return table


def _text(value: object) -> str:
    """Any text as a line, none of it read as markup."""
    return escape(for_terminal(value))


def _stage_table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="left" if column == "why" else "right", overflow="fold")
    return table


def show_lines(found: dict[str, Any], as_json: bool) -> None:
    """The lines on standard output, with the real captions nearest to each beneath it."""
    if found["unknown_words"]:
        click.echo(
            f"cutline: the model does not know {quoted(found['unknown_words'])}: read as <unk>", err=True
        )
    if as_json:
        click.echo(json_for_terminal(json.dumps(found, ensure_ascii=False)))
        return
    for line in found["lines"]:
        click.echo(for_terminal(line["text"]))
        for near in line.get("nearest", []):
            words = near["distance"]
            what = "copy" if near["copy"] else f"{words} word{'' if words == 1 else 's'} differ"
            click.echo(for_terminal(f"    {what:<16}  {near['caption']}"))


def show_perplexity(found: Perplexity, as_json: bool) -> None:
    """The perplexity on standard output; what it counts on standard error."""
    if as_json:
        click.echo(json.dumps({"perplexity": found.perplexity, **asdict(found)}, ensure_ascii=False))
        return
    click.echo(
        f"cutline: {count_of(found.captions, 'caption')}, {count_of(found.tokens, 'token')} with their ends, "
        f"of which {found.unknown:,} ({found.unknown / found.tokens:.1%}) are <unk>"
        + (f": {', '.join(word[:40] for word in found.examples)}" if found.examples else "")
        + (f"; without a word: {count_of(found.without_words, 'line')}" if found.without_words else ""),
        err=True,
    )
    click.echo(f"{found.perplexity:.2f}")


def show_found(found: dict[str, Any], as_json: bool) -> None:
    """Names, scores and captions on standard output; on standard error where they were searched."""
    click.echo(for_terminal(f"searched run {found['run']} on {found['dataset']}"), err=True)
    if found["unknown_words"]:
        click.echo(f"cutline: no training caption has {quoted(found['unknown_words'])}: left out", err=True)
    if as_json:
        click.echo(json_for_terminal(json.dumps(found, ensure_ascii=False)))
        return
    for photo in found["photos"]:
        click.echo(for_terminal(f"{photo['score']:6.3f}  {photo['path']}  {photo['caption'] or ''}".rstrip()))
    if found["captions"]:
        click.echo("\ncaptions that fit")
    for caption in found["captions"]:
        click.echo(for_terminal(f"{caption['score']:6.3f}  {caption['caption']}"))
