"""Reprocessing: what a change remakes, said before and after, and what became of the captions."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import polars as pl
import pytest

from cutline.flows.commands.reprocess import compare as compare_newest
from cutline.schemas.errors import UsageError
from cutline.schemas.records import RunRecord
from cutline.tasks.evaluation.compare_runs import compare
from cutline.tasks.storage.workspace import Workspace
from tests.flows.conftest import Ran, ask, cutline

CHANGES = [
    "--set",
    "predictions.beam=1",
    "--set",
    "predictions.alternatives=1",
    "--set",
    "predictions.max_tokens=4",
]
REMADE = {"predictions", "evaluate", "bundle", "report"}


def test_a_dry_run_says_what_why_and_how_long_with_the_last_settings_and_makes_nothing(ran: Ran) -> None:
    before = sorted(ran.workspace.rglob("*.json"))
    done = cutline("reprocess", ran.dataset, "--workspace", ran.workspace, "--dry-run", "--json", *CHANGES)
    stages = {stage["name"]: stage for stage in json.loads(done.stdout)["stages"]}
    assert {name for name, stage in stages.items() if stage["made"]} == REMADE
    assert stages["predictions"]["why"].startswith(
        "setting predictions.alternatives: 3 → 1; setting predictions.beam: 20 → 1"
    )
    took = {stage["name"]: stage["took_s"] for stage in ran.record["stages"]}
    for name, stage in stages.items():
        # All rows are made again, so it takes as long as last time, less what Prefect took.
        assert stage["estimate_s"] == 0 if name not in REMADE else 0 < stage["estimate_s"] <= took[name] + 0.1
    assert "about " in done.stderr
    assert sorted(ran.workspace.rglob("*.json")) == before


def test_a_new_data_set_is_foretold_with_the_settings_of_the_newest_run(ran: Ran, tmp_path: Path) -> None:
    other = ran.copy(tmp_path).dataset
    (other / "images" / "photo03.png").unlink()
    done = cutline("reprocess", other, "--workspace", ran.workspace, "--dry-run", "--json")
    stages = {stage["name"]: stage for stage in json.loads(done.stdout)["stages"]}
    assert stages["images"]["reused"] == 3  # the shards that hold the same photographs
    assert all(stage["estimate_s"] is not None for stage in stages.values())
    assert stages["fusion"]["estimate_s"] > 0


def test_what_depends_on_a_change_is_made_and_laid_side_by_side_with_the_run_before(
    ran: Ran, server: str, tmp_path: Path
) -> None:
    copy = Ran(ran.dataset, ran.copy(tmp_path).workspace, ran.record)
    again = ["reprocess", "--workspace", copy.workspace, "--json", *CHANGES]
    done = cutline(*again, PREFECT_API_URL=server)
    record = json.loads(done.stdout)
    assert set(copy.made(record)) == REMADE

    found = json.loads(cutline("compare", "--workspace", copy.workspace, "--json").stdout)
    assert found["after"] == record["run"]
    assert {change["name"] for change in found["settings"]} == {
        "predictions.alternatives", "predictions.beam", "predictions.max_tokens",
    }  # fmt: skip
    check_against_the_tables(copy, found)
    assert f"{found['changed']} captions changed" in done.stderr

    (run,) = ask(
        server,
        "flow_runs/filter",
        flow_runs={"name": {"any_": ["reprocess dataset"]}},
        sort="START_TIME_DESC",
        limit=1,
    )
    assert run["state"]["message"].startswith("7 shards made, ")
    artifacts = {
        artifact["key"]: artifact
        for artifact in ask(server, "artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}}, limit=200)
    }
    plan = {row["stage"]: row for row in json.loads(artifacts["plan"]["data"])}
    assert "setting predictions.beam: 20 → 1" in plan["predictions"]["why"]
    assert {name for name, row in plan.items() if row["to make"]} == REMADE
    page = artifacts["comparison"]["data"]
    assert "`predictions.beam`: 20 → 1" in page
    assert "![](data:image/jpeg;base64," in page


def check_against_the_tables(copy: Ran, found: dict) -> None:
    """Captions and scores of both runs, read from their own files."""
    workspace = Workspace(copy.workspace)
    after, before = islice(workspace.runs(), 2)
    old, new = (pl.read_parquet(run.captions).select("path", "caption") for run in (before, after))
    both = old.join(new, on="path", suffix="_after")
    changed = both.filter(pl.col("caption") != pl.col("caption_after"))
    assert changed.height > 0
    assert sorted((row["path"], row["before"], row["after"]) for row in found["captions"]) == sorted(
        changed.rows()
    )
    assert found["changed"] + found["same"] == both.height == 31
    scores = {(row["split"], row["metric"]): row for row in found["scores"]}
    assert scores["test", "CIDEr"]["before"] == pytest.approx(before.scores["CIDEr"])
    assert scores["test", "CIDEr"]["after"] == pytest.approx(after.scores["CIDEr"])
    # The captions' own CIDEr adds up to how the score of their split moved.
    test = [row for row in found["captions"] if row["split"] == "test"]
    moved = sum(row["cider_after"] - row["cider_before"] for row in test) / 5
    assert moved == pytest.approx(scores["test", "CIDEr"]["change"])
    assert all(row["cider_after"] is None for row in found["captions"] if row["split"] == "train")
    backwards = compare(workspace, after, before)
    assert backwards.scores["change"].to_list() == pytest.approx(
        (-pl.Series([row["change"] for row in found["scores"]])).to_list()
    )


def test_runs_are_named_by_the_beginning_of_their_ids(ran: Ran) -> None:
    run = ran.record["run"]
    done = cutline("compare", run[:12], run, "--workspace", ran.workspace)
    assert "0 captions changed, 31 stayed the same" in done.stdout
    done = cutline("compare", "--workspace", ran.workspace, check=False)
    assert (done.returncode, "expected a run before" in done.stderr) == (2, True)
    done = cutline("compare", "1999", run, "--workspace", ran.workspace, check=False)
    assert (done.returncode, "found none" in done.stderr) == (2, True)


def test_without_an_earlier_run_there_is_nothing_to_reprocess(tmp_path: Path) -> None:
    done = cutline("reprocess", "--workspace", tmp_path, check=False)
    assert (done.returncode, "start with `cutline run`" in done.stderr) == (2, True)


def test_runs_of_other_data_sets_and_of_caption_are_not_offered_to_compare_with(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for number, (command, dataset) in enumerate([("caption", "/b"), ("run", "/a"), ("run", "/b")], start=1):
        workspace.write_run(
            RunRecord(
                run=f"2026010{number}-000000-000000", command=command, dataset=dataset,
                workspace=workspace.where, settings={}, shards={}, stages=[], finished_at="",
            )
        )  # fmt: skip
    with pytest.raises(UsageError, match="expected a run before 20260103-000000-000000 on /b") as told:
        compare_newest(None, None, tmp_path)
    assert "20260101" not in str(told.value)
    assert "20260102" not in str(told.value)
