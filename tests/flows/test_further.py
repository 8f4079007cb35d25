"""Further captions in a run: who reads them, what they remake, and where they are told of."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from tasks.history import History
from tasks.workspace import Workspace
from tests.flows.conftest import Ran, cutline, small

TAUGHT = {"gist", "fusion", "caption", "evaluate", "bundle", "report"}


def test_further_captions_teach_gist_and_fusion_and_leave_the_language_as_it_was(
    ran: Ran, tmp_path: Path
) -> None:
    dev = (ran.dataset / "Flickr_8k.devImages.txt").read_text().split()[0]
    told = (ran.dataset / "Flickr8k.token.txt").read_text().splitlines()
    held_out = next(line.partition("\t")[2] for line in told if line.startswith(f"{dev}#0"))
    lines = [f"A zebra beside a {colour} square ." for colour in ("red", "green", "blue") for _ in range(20)]
    more = tmp_path / "more.txt"
    more.write_text("\n".join([*lines, held_out.rstrip(" .")]))
    copy = Ran(ran.dataset, ran.copy(tmp_path).workspace, ran.record)
    settings = ["--set", f"further.captions={more}"]

    record = copy.run(*settings)
    assert copy.made(record) == {"further": 1, "captions": 1} | {
        stage["name"]: stage["made"] for stage in ran.record["stages"] if stage["name"] in TAUGHT
    }
    stages = {stage["name"]: stage for stage in record["stages"]}
    assert stages["further"]["rows_out"] == 60
    before = {stage["name"]: stage for stage in ran.record["stages"]}
    assert stages["gist"]["rows_in"] == before["gist"]["rows_in"] + 60

    rejects = pl.read_parquet(record["rejects"]).filter(pl.col("stage") == "further")
    assert rejects.select("kind", "name", "reason").rows() == [("caption", "more.txt:61", "leak")]
    assert record["reject_rate"] < ran.record["reject_rate"]  # a notice is no loss, and more was read
    store = Workspace(copy.workspace)
    run = History(store).run(record["run"])
    (scores,) = store.records_of(run, "evaluate")
    assert any(name.startswith("tokens further/") for name in scores.inputs)  # looked through for copies
    assert "- further captions: 60\n" in Path(record["bundle"], "CARD.md").read_text()
    assert "further ones, of another kind: 60." in Path(record["report"]).read_text()

    assert copy.made(copy.run(*settings)) == {}
    with more.open("a") as file:
        file.write("\nA zebra and nothing else .")
    done = cutline("status", copy.dataset, "--workspace", copy.workspace, "--json", *small(), *settings)
    whys = {stage["name"]: stage["why"] for stage in json.loads(done.stdout)["stages"] if stage["made"]}
    assert whys["further"] == "input: files"
    assert whys.keys() == {"further", "captions", *TAUGHT}

    assert copy.made(copy.run()) == {}  # without them it is what it was


def test_a_path_with_nothing_there_ends_the_run_before_anything_is_made(ran: Ran, tmp_path: Path) -> None:
    arguments = ("--set", f"further.captions={tmp_path / 'nowhere'}")
    done = cutline(
        "run", ran.dataset, "--workspace", tmp_path / "workspace", *small(), *arguments, check=False
    )
    assert done.returncode == 2
    assert "further.captions: expected a folder or a file with captions, found nothing" in done.stderr
    assert not list((tmp_path / "workspace").glob("shards/*/*.parquet"))
