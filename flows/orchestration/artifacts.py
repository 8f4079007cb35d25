"""What a run leaves on its page at the Prefect server: tables, sample captions, what changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import polars as pl
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from cutline.schemas.records import RunRecord
from cutline.schemas.safe_text import for_log
from cutline.schemas.tables import NOTICES
from cutline.tasks.evaluation.compare_runs import Comparison
from cutline.tasks.report.report import thumbnail
from cutline.tasks.report.samples import Sample, samples
from cutline.tasks.runtime.formatting import change_in_form, count_of, decimal, in_form, is_a_guess, metric_of
from cutline.tasks.storage.workspace import Workspace

SAMPLES = 12
THUMBNAIL_PX = 128
CHANGES = 24  # captions shown side by side


def leave_artifacts(record: RunRecord, shown: Sequence[str] = ()) -> None:
    """Put the stage table, the scores, the rejects, sample captions and the files on the run's page.

    The samples are of the photographs in `shown`, else of the held-out split.
    """
    columns = ("name", "made", "reused", "rows_in", "rows_out", "rejected", "took_s", "why")
    rows = [{column: getattr(stage, column) for column in columns} for stage in record.stages]
    create_table_artifact(_safe(rows), key="stages", description=f"Stages of run {record.run}")
    if record.scores:
        scores = [
            {"metric": metric_of(name).label, "value": in_form(value, metric_of(name).form)}
            for name, value in record.scores.items()
        ]
        create_table_artifact(scores, key="scores", description="Scores on the held-out split")
    leave_rejects(record)
    store = Workspace(record.workspace)
    if found := samples(store, record, SAMPLES, shown):
        create_markdown_artifact(
            sample_table(found), key="samples", description="Captions of some photographs"
        )
    if record.report:
        create_link_artifact(store.file(record.report).as_uri(), link_text="Report of the run", key="report")
        create_markdown_artifact(
            "\n".join(
                f"- {name}: {_text(getattr(record, name))}"
                for name in ("report", "captions", "rejects", "bundle")
            ),
            key="files",
            description="Where the files of the run lie",
        )


def leave_rejects(record: RunRecord) -> None:
    """Rejects by stage and reason, with the first names of each."""
    store = Workspace(record.workspace)
    paths = [
        store.file(path)
        for stage in record.stages
        for path in stage.outputs
        if path.endswith("rejects.parquet") and stage.name != "report"
    ]
    if not paths:
        return
    rejects = (
        pl.read_parquet(paths)
        .group_by("stage", "reason", maintain_order=True)
        .agg(
            notice=pl.col("reason").first().is_in(list(NOTICES)),
            rows=pl.len(),
            for_example=pl.col("name").head(3).str.join(", "),
        )
    )
    create_table_artifact(_safe(rejects.to_dicts()), key="rejects", description="Rejects by reason")


def leave_plan(record: RunRecord) -> None:
    """Put on the page what would be made, why, and how long by the rates of the last run."""
    rows = [
        {
            "stage": stage.name,
            "to make": stage.made,
            "reused": stage.reused,
            "about seconds": None if stage.estimate_s is None else round(stage.estimate_s, 1),
            "why": stage.why,
        }
        for stage in record.stages
    ]
    create_table_artifact(_safe(rows), key="plan", description="What is to be made, and why")


def leave_comparison(comparison: Comparison, after: RunRecord) -> None:
    """Put on the page how the scores moved and which captions changed, side by side."""
    shown = comparison.captions.head(CHANGES)
    pictures = {
        sample.path: sample
        for sample in samples(Workspace(after.workspace), after, CHANGES, shown["photo_id"].to_list())
    }
    create_markdown_artifact(
        comparison_page(comparison, pictures), key="comparison", description="Beside the run before"
    )


def comparison_page(comparison: Comparison, pictures: dict[str, Sample]) -> str:
    """The comparison in Markdown, with a picture where there is one."""
    changed = comparison.captions
    lines = [f"Run `{comparison.after}` beside `{comparison.before}`", ""]
    lines += [f"- `{name}`: {_text(before)} → {_text(after)}" for name, before, after in comparison.settings]
    lines += [
        "",
        f"{count_of(changed.height, 'caption')} changed, {comparison.same:,} stayed the same; "
        f"{count_of(comparison.new, 'photograph')} new, {comparison.gone:,} gone.",
        "",
        "| split | metric | before | after | change |",
        "| --- | --- | --- | --- | --- |",
    ]
    for split, name, before, after, change in comparison.scores.iter_rows():
        metric = metric_of(name)
        values = (in_form(before, metric.form), in_form(after, metric.form))
        moved = change_in_form(change, metric.form)
        lines.append(f"| {' | '.join((split, _text(metric.label), *values, moved))} |")
    lines += ["", "| photo | before | after | CIDEr |", "| --- | --- | --- | --- |"]
    for row in changed.head(CHANGES).iter_rows(named=True):
        picture = _picture(pictures[row["path"]]) if row["path"] in pictures else ""
        cider = "" if row["cider_after"] is None else f"{row['cider_before']:.2f} → {row['cider_after']:.2f}"
        lines.append(
            f"| {picture} {_text(row['path'])} | {_text(row['before'])} | {_text(row['after'])} | {cider} |"
        )
    return "\n".join(lines)


def sample_table(found: Sequence[Sample]) -> str:
    """Photographs with their captions, scores and distances, in Markdown."""
    lines = ["| photo | caption | score | distance | split |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {_picture(sample)} {_text(sample.path)} | {_text(sample.caption)} "
        f"| {decimal(sample.score)} | {_distance(sample.distance)} | {sample.split} |"
        for sample in found
    ]
    return "\n".join(lines)


def _distance(distance: float | None) -> str:
    return f"{decimal(distance)}{': a guess' if is_a_guess(distance) else ''}"


def _safe(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: for_log(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]


def _picture(sample: Sample) -> str:
    return f"![]({thumbnail(sample.square, THUMBNAIL_PX)})"


def _text(value: object) -> str:
    """Any text as a cell of a Markdown table, none of it read as Markdown or HTML."""
    shown = for_log(value)
    return re.sub(r"[^\w \-.,/→]", lambda found: f"&#{ord(found[0])};", shown).replace("_", "&#95;")
