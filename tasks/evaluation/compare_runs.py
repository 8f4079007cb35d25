"""Two runs side by side: which settings and captions differ, and how the scores moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from cutline.schemas.errors import UsageError
from cutline.schemas.records import RunRecord
from cutline.schemas.tables import dtypes_of
from cutline.tasks.evaluation.caption_metrics import cider_of_each
from cutline.tasks.storage.runs import flat_settings
from cutline.tasks.storage.tables import read_table
from cutline.tasks.storage.workspace import Workspace


@dataclass(frozen=True)
class Comparison:
    """What became of the captions of one run in another.

    `settings` are (name, before, after) of those that differ. `scores` has a row a split and metric:
    split, metric, before, after, change. `captions` has a row for each photograph whose caption
    changed, those first whose CIDEr moved most: path, split, photo_id, before, after, score_before,
    score_after (mean log-probabilities of a token, each by its own model), cider_before, cider_after
    (null outside the dev and test split).
    """

    before: str
    after: str
    settings: list[tuple[str, Any, Any]]
    same: int
    gone: int  # photographs that only the run before captioned
    new: int  # photographs that only the run after captioned
    scores: pl.DataFrame
    captions: pl.DataFrame

    def as_dict(self) -> dict[str, Any]:
        """For programs: all of it, as JSON can write it."""
        settings = [dict(zip(("name", "before", "after"), row, strict=True)) for row in self.settings]
        return {
            "before": self.before,
            "after": self.after,
            "settings": settings,
            "changed": self.captions.height,
            "same": self.same,
            "new": self.new,
            "gone": self.gone,
            "scores": self.scores.to_dicts(),
            "captions": self.captions.to_dicts(),
        }


def compare(workspace: Workspace, before: RunRecord, after: RunRecord) -> Comparison:
    """Compare the captions and scores of two runs; photographs are the same by their bytes.

    Raises DamagedFile where what a run made is not there any more.
    """
    old, new = _predictions(workspace, before), _predictions(workspace, after)
    both = new.join(old, on="photo_id", suffix="_before")
    changed = both.filter(pl.col("caption") != pl.col("caption_before"))
    photos = _ingested(workspace, after, "photos").select("photo_id", "path", "split")
    rows = changed.join(photos, on="photo_id", maintain_order="left")
    people = _ingested(workspace, after, "captions")
    cider = cider_of_each(old, people).join(cider_of_each(new, people), on="photo_id", suffix="_after")
    moved = (pl.col("cider_after") - pl.col("cider_before")).abs()
    captions = (
        rows.join(cider, on="photo_id", how="left", maintain_order="left")
        .select(
            "path", "split", "photo_id",
            before="caption_before", after="caption", score_before="score_before", score_after="score",
            cider_before="cider", cider_after="cider_after",
        )
        .sort(moved, "path", descending=[True, False], nulls_last=True)
    )  # fmt: skip
    return Comparison(
        before.run,
        after.run,
        _settings_that_differ(before.settings, after.settings),
        same=both.height - changed.height,
        gone=old.height - both.height,
        new=new.height - both.height,
        scores=_moved_scores(workspace, before, after),
        captions=captions,
    )


def _predictions(workspace: Workspace, run: RunRecord) -> pl.DataFrame:
    """photo_id, caption and score of every photograph that a run captioned."""
    files = workspace.outputs_of(run, "predictions", "predictions.parquet")
    columns = ["photo_id", "caption", "score"]
    if not files:
        return pl.DataFrame(schema={"photo_id": pl.String, "caption": pl.String, "score": pl.Float32})
    return pl.read_parquet(files, columns=columns)


def _ingested(workspace: Workspace, run: RunRecord, table: str) -> pl.DataFrame:
    (file,) = workspace.outputs_of(run, "ingest", f"{table}.parquet")
    return read_table(file, table)


def _settings_that_differ(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    old, new = flat_settings(before), flat_settings(after)
    return [
        (name, old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _moved_scores(workspace: Workspace, before: RunRecord, after: RunRecord) -> pl.DataFrame:
    """The scores of both runs, test first; those of a metric that one of them lacks are left out."""
    old, new = (_scores(workspace, run) for run in (before, after))
    both = new.join(old, on=["split", "metric"], suffix="_before", maintain_order="left")
    return both.sort("split", descending=True, maintain_order=True).select(
        "split",
        "metric",
        before="value_before",
        after="value",
        change=pl.col("value") - pl.col("value_before"),
    )


def _scores(workspace: Workspace, run: RunRecord) -> pl.DataFrame:
    files = workspace.outputs_of(run, "evaluate", "scores.parquet")
    tables = [read_table(file, "scores") for file in files]
    return pl.concat(tables) if tables else pl.DataFrame(schema=dtypes_of("scores"))


def choose_runs(
    runs: Sequence[RunRecord], before: str | None, after: str | None
) -> tuple[RunRecord, RunRecord]:
    """The runs that two ids, or beginnings of ids, name; without them the newest and the one before.

    `runs` are newest first. Raises UsageError where an id names none or several.
    """
    later = _named(runs, after) if after else next((run for run in runs if run.command == "run"), None)
    if later is None:
        raise UsageError("expected two runs to compare, found none; start with `cutline run`")
    if before:
        return _named(runs, before), later
    older = runs[runs.index(later) + 1 :]
    earlier = next(
        (run for run in older if (run.command, run.dataset) == (later.command, later.dataset)), None
    )
    if earlier is None:
        raise UsageError(
            f"expected a run before {later.run} on {later.dataset}, found none; name two of "
            f"{_list(runs)}, or make one: `cutline reprocess --set STAGE.KEY=VALUE`"
        )
    return earlier, later


def _named(runs: Sequence[RunRecord], name: str) -> RunRecord:
    found = [run for run in runs if run.run.startswith(name)]
    if len(found) != 1:
        what = "several runs" if found else "none"
        raise UsageError(
            f"run '{name}': expected the beginning of one run's id, found {what}: {_list(found or runs)}"
        )
    return found[0]


def _list(runs: Sequence[RunRecord]) -> str:
    """The newest runs, for a message."""
    return ", ".join(run.run for run in runs[:5]) or "no runs"
