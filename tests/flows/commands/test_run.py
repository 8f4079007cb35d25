"""A run from photographs to captions, cached and rerunnable: shown with the real stages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest

from cutline.tasks.storage.runs import History
from cutline.tasks.storage.workspace import Workspace
from tests import REPOSITORY
from tests.flows.conftest import EMBEDDED, Ran, cutline, draw, make_dataset, run_json, small, tables

STAGES = [
    "ingest", "images", "image_features", "tokens", "vocabulary", "language_model", "text_features",
    "content_embedding", "fusion", "joint_embedding", "content_neighbours", "index",
    "caption_index", "retrieval", "leaks", "predictions",
    "evaluate", "bundle", "report",
]  # fmt: skip


def test_every_stage_is_made_and_the_results_lie_where_the_record_says(ran: Ran) -> None:
    assert [stage["name"] for stage in ran.record["stages"]] == STAGES
    assert all(stage["made"] and not stage["reused"] for stage in ran.record["stages"])
    captions = pl.read_parquet(ran.record["captions"])
    assert captions.height == 31  # 30 with captions, one without; the broken one is a reject
    assert captions["caption"].str.len_chars().min() > 0
    assert captions.filter(pl.col("path") == "images/unlabelled.png").height == 1
    assert "data:image/svg+xml" in Path(ran.record["report"]).read_text()
    assert {path.name for path in Path(ran.record["bundle"]).iterdir()} >= {"bundle.json", "CARD.md"}
    assert set(ran.record["scores"]) >= {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"}
    for stage in ran.record["stages"]:
        assert all((ran.workspace / path).is_file() for path in stage["outputs"])


def test_bad_rows_are_in_the_rejects_table_with_a_reason_and_nothing_is_lost(ran: Ran) -> None:
    rejects = pl.read_parquet(ran.record["rejects"])
    assert sorted(rejects.select("name", "reason").rows()) == [
        ("Flickr8k.token.txt:62", "empty_caption"),
        ("gone.png", "missing_photo"),
        ("images/broken.png", "truncated"),
    ]


def test_a_second_run_makes_nothing_and_imports_neither_tensorflow_nor_prefect(ran: Ran) -> None:
    program = (
        "import sys, json\nfrom cutline.flows.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = ('tensorflow', 'keras', 'prefect', 'nltk', 'cv2')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    arguments = ["run", str(ran.dataset), "--workspace", str(ran.workspace), "--json", *small()]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    record, imported = map(json.loads, done.stdout.splitlines())
    assert ran.made(record) == {}
    assert record["run"] == ran.record["run"]
    assert record["scores"] == ran.record["scores"]
    assert imported == []
    assert "nothing to do" in done.stderr


def test_one_photograph_more_makes_one_shard_a_stage_and_keeps_all_other_vectors(
    ran: Ran, tmp_path: Path
) -> None:
    copy = ran.copy(tmp_path)
    before = features(copy.record, copy.workspace)
    run_json(copy.dataset, copy.workspace)  # the copy has other paths, so ingest and what names paths
    draw(copy.dataset / "images" / "another.png", 45)
    status = json.loads(
        cutline("status", copy.dataset, "--workspace", copy.workspace, "--json", *small()).stdout
    )
    images = next(stage for stage in status["stages"] if stage["name"] == "images")
    assert images["made"] == 1
    assert images["why"] == "rows: 1 new ('images/another.png'), 0 gone"
    record = copy.run()
    made = copy.made(record)
    once = ("ingest", "images", "image_features", "index", "leaks", "predictions", "report")
    assert made == dict.fromkeys(once, 1)
    after = features(record, copy.workspace)
    assert len(after) == len(before) + 1
    assert all(after[photo_id] == vector for photo_id, vector in before.items())


def features(record: dict, workspace: Path) -> dict[str, bytes]:
    """The bytes of each photograph's regions."""
    outputs = next(stage for stage in record["stages"] if stage["name"] == "image_features")["outputs"]
    frame = pl.concat(pl.read_parquet(workspace / path) for path in outputs)
    return {
        photo_id: regions.tobytes()
        for photo_id, regions in zip(frame["photo_id"], frame["regions"].to_numpy(), strict=True)
    }


def test_renaming_a_photograph_changes_no_feature(ran: Ran, tmp_path: Path) -> None:
    copy = ran.copy(tmp_path)
    images = copy.dataset / "images"
    (images / "unlabelled.png").rename(images / "A näme, of another sort.png")
    record = copy.run()
    assert copy.made(record) == {"ingest": 1, "leaks": 1, "report": 1}
    captions = pl.read_parquet(record["captions"])
    assert captions.filter(pl.col("path") == "images/A näme, of another sort.png").height == 1


def test_a_data_set_in_another_place_is_read_again_and_nothing_else_is_made(ran: Ran, tmp_path: Path) -> None:
    copy = ran.copy(tmp_path)
    assert copy.made(copy.run()) == {"ingest": 1}
    renamed = copy.dataset.rename(tmp_path / "renamed")
    record = run_json(renamed, copy.workspace)
    assert copy.made(record) == {"bundle": 1, "report": 1}  # which tell its name
    assert "`renamed`" in Path(record["bundle"], "CARD.md").read_text()


def test_a_workspace_that_was_moved_says_where_its_results_are_now(ran: Ran, tmp_path: Path) -> None:
    moved = Ran(ran.dataset, ran.copy(tmp_path).workspace, ran.record)
    record = moved.run()
    assert moved.made(record) == {}
    for name in ("report", "captions", "rejects", "bundle"):
        assert Path(record[name]).is_relative_to(moved.workspace), name
    assert moved.run()["run"] == record["run"]


def test_captions_are_held_against_every_caption_that_was_learned_from(ran: Ran) -> None:
    """For the share that was copied, those without a photograph count too."""
    store = Workspace(ran.workspace)
    run = History(store).run(ran.record["run"])
    (language_model,), (scores,) = (store.records_of(run, stage) for stage in ("language_model", "evaluate"))
    learned = {name for name in language_model.inputs if name.startswith("tokens train")}
    assert {name.partition("/")[0] for name in learned} == {"tokens train", "tokens train-text"}
    assert learned <= scores.inputs.keys()


@pytest.mark.parametrize(
    ("assignment", "kept"),
    [
        ("images.crop=pad", {"ingest", "tokens", "vocabulary", "language_model", "text_features"}),
        ("predictions.beam=1", set(STAGES) - {"predictions", "evaluate", "bundle", "report"}),
        ("fusion.kind=concat", set(STAGES) - {"fusion", "predictions", "evaluate", "bundle", "report"}),
        (
            "language_model.epochs=3",
            {"ingest", "images", "image_features", "tokens", "vocabulary", "content_embedding"},
        ),
        ("report.gallery=2", set(STAGES) - {"report"}),
    ],
)
def test_another_setting_remakes_its_stage_and_what_follows(
    ran: Ran, assignment: str, kept: set[str]
) -> None:
    done = cutline(
        "status", ran.dataset, "--workspace", ran.workspace, "--json", *small(), "--set", assignment
    )
    record = json.loads(done.stdout)
    assert {stage["name"] for stage in record["stages"] if not stage["made"]} == kept
    first = next(stage for stage in record["stages"] if stage["made"])
    name = assignment.partition("=")[0]
    assert first["why"].startswith(f"setting {name}: ")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the code, free to be edited."""
    for folder in ("flows", "tasks", "schemas"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pretrained").symlink_to(REPOSITORY / "data" / "pretrained")
    return tmp_path


def status_of(checkout: Path, ran: Ran) -> dict[str, str]:
    """Why each stage would be made, by the code of a checkout."""
    command = [
        sys.executable,
        "-m",
        "cutline.flows",
        "status",
        str(ran.dataset),
        "--workspace",
        str(ran.workspace),
    ]
    done = subprocess.run(
        [*command, "--json", *small()], cwd=checkout, capture_output=True, text=True, check=True
    )
    return {stage["name"]: stage["why"] for stage in json.loads(done.stdout)["stages"] if stage["made"]}


def test_a_comment_in_a_stages_code_remakes_nothing(ran: Ran, checkout: Path) -> None:
    file = checkout / "tasks" / "images.py"
    file.write_text("# A remark.\n" + file.read_text().replace("\n\n\ndef ", "\n\n\n# Another.\ndef "))
    assert status_of(checkout, ran) == {}


def test_a_changed_line_remakes_that_stage_and_what_follows(ran: Ran, checkout: Path) -> None:
    file = checkout / "tasks" / "images.py"
    text = file.read_text()
    assert "def crop_to_square" in text
    body = text.index(":\n", text.index(") -> np.ndarray", text.index("def crop_to_square"))) + 2
    docstring_end = text.index('"""', text.index('"""', body) + 3) + 3
    file.write_text(text[:docstring_end] + "\n    image_rgb = image_rgb[::-1]" + text[docstring_end:])
    why = status_of(checkout, ran)
    assert why["images"].startswith("code: tasks/images/decode.py crop_to_square")
    of_text = {"ingest", "tokens", "vocabulary", "language_model", "text_features"}
    assert set(why) == set(STAGES) - of_text


def test_an_output_deleted_or_damaged_by_hand_is_made_again_the_same(ran: Ran, tmp_path: Path) -> None:
    copy = ran.copy(tmp_path)
    before = tables(copy.workspace)
    features_file = next((copy.workspace / "shards" / "image_features").glob("*.parquet"))
    tokens_file = next((copy.workspace / "shards" / "tokens").glob("*.tokens.parquet"))
    features_file.unlink()
    damaged = bytearray(tokens_file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    tokens_file.write_bytes(damaged)
    record = copy.run()
    assert copy.made(record) == {"ingest": 1, "image_features": 1, "tokens": 1}  # its paths are others
    reasons = {stage["name"]: stage["why"] for stage in record["stages"]}
    assert reasons["image_features"].startswith("output missing: shards/image_features/")
    assert reasons["tokens"].startswith("output damaged: shards/tokens/")
    assert tables(copy.workspace) == before


KILLED_AT = {
    "images": "shards/ingest/*.json",
    "image_features": "shards/images/*.json",
    "language_model": "partial/language_model-*/*",
    "fusion": "partial/fusion-*/*",
    "report": "shards/evaluate/*.json",
}


@pytest.mark.long
def test_killed_in_the_middle_of_any_stage_a_rerun_ends_as_if_nothing_had_happened(
    ran: Ran, tmp_path: Path
) -> None:
    """The first time together with Prefect's server, which the last run has to get along with."""
    dataset, workspace = make_dataset(tmp_path / "dataset"), tmp_path / "workspace"
    command = [
        sys.executable,
        "-m",
        "cutline.flows",
        "run",
        str(dataset),
        "--workspace",
        str(workspace),
        *small(),
    ]
    for stage, sign in KILLED_AT.items():
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | (EMBEDDED if stage == "images" else {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for(lambda sign=sign: any(workspace.glob(sign)), process, stage)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    record = run_json(dataset, workspace, **EMBEDDED)
    assert any(stage["reused"] for stage in record["stages"])
    assert tables(workspace) == tables(ran.workspace)
    assert not list((workspace / "partial").iterdir())


@pytest.mark.long
def test_ctrl_c_ends_a_run_in_seconds_and_the_same_command_goes_on_from_there(
    ran: Ran, tmp_path: Path
) -> None:
    copy = ran.copy(tmp_path)
    change = "predictions.beam=3"
    # A terminal tells every process that runs in it.
    code, told = ended_at(copy, "predictions", change, lambda process: os.killpg(process.pid, signal.SIGINT))
    assert told.splitlines()[-1] == STOPPED
    assert code == 1
    record = copy.run("--set", change, **EMBEDDED)
    caption = next(stage for stage in record["stages"] if stage["name"] == "predictions")
    assert caption["reused"] > 0
    assert caption["made"] > 0
    assert record["scores"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_killed_leaves_no_process_behind(
    ran: Ran, tmp_path: Path, number: signal.Signals
) -> None:
    copy = ran.copy(tmp_path)
    code, told = ended_at(copy, "images", "images.crop=pad", lambda process: process.send_signal(number))
    if number == signal.SIGTERM:
        assert told.splitlines()[-1] == STOPPED
        assert code == 1


STOPPED = "cutline: stopped; the same command goes on from here"


def ended_at(
    ran: Ran, stage: str, change: str, end: Callable[[subprocess.Popen[str]], None]
) -> tuple[int, str]:
    """End a run in the middle of a stage that a changed setting has made anew.

    Its exit code, and what it and its children said until all had ended.
    """
    known = set((ran.workspace / "shards" / stage).iterdir())
    arguments = ["run", str(ran.dataset), "--workspace", str(ran.workspace), *small(), "--set", change]
    process = subprocess.Popen(
        [sys.executable, "-m", "cutline.flows", *arguments],
        cwd=REPOSITORY,
        env=os.environ | EMBEDDED,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(lambda: set((ran.workspace / "shards" / stage).glob("*.json")) - known, process, stage)
        end(process)
        _, told = process.communicate(timeout=20)  # to its end, which is when no process holds it any more
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, told


def wait_for(happened, process: subprocess.Popen, what: str) -> None:
    deadline = time.monotonic() + 200
    while not happened():
        assert process.poll() is None, f"the run ended before it could be killed at {what}"
        assert time.monotonic() < deadline, f"never came to {what}"
        time.sleep(0.02)


@pytest.mark.long
def test_of_two_runs_at_once_on_one_workspace_each_makes_what_the_other_does_not(
    ran: Ran, tmp_path: Path
) -> None:
    """Both succeed, and the tables are those of one run."""
    dataset, workspace = make_dataset(tmp_path / "dataset"), tmp_path / "workspace"
    command = [
        *(
            sys.executable,
            "-m",
            "cutline.flows",
            "run",
            str(dataset),
            "--workspace",
            str(workspace),
            "--json",
        ),
        *small(),
    ]
    runs = [
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | EMBEDDED,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    made: Counter[str] = Counter()
    told = ""
    for process in runs:
        record, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors  # their two embedded servers may quarrel over one database
        made.update(ran.made(json.loads(record)))
        told += errors
    assert made == ran.made(ran.record)
    assert "waiting for what it makes" in told
    assert tables(workspace) == tables(ran.workspace)
