"""On a schedule: `cutline serve` beside a real server, new photographs, nothing new, and a killed run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from cutline.flows.cli.main import main
from cutline.flows.orchestration.schedules import parse_schedules
from cutline.flows.orchestration.serving import schedule_of
from cutline.schemas.errors import UsageError
from tests import REPOSITORY
from tests.flows.conftest import Ran, ask, cutline, draw

WAIT_S = 240
EVERY_FEW_SECONDS = ("--schedule", "nightly-captions=6")


@contextmanager
def serving(photos: Path, ran: Ran, url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`cutline serve`, once it offers its deployments."""
    command = [sys.executable, "-m", "cutline.flows", "serve", str(photos), "--workspace", str(ran.workspace)]
    environment = {"PREFECT_API_URL": url, "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    log = photos.parent / "serve.log"
    with log.open("a") as told:
        process = subprocess.Popen(
            [*command, "--model", ran.record["bundle"], *arguments],
            cwd=REPOSITORY, env={**os.environ, **environment}, stdout=told, stderr=told, text=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + WAIT_S
            while not deployments_of(url, photos):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.25)
            yield process
        finally:
            process.terminate()
            process.wait(60)


def deployments_of(url: str, photos: Path) -> dict[str, dict[str, Any]]:
    """What one `cutline serve` offers at the server, by what it runs; nothing until all is there."""
    found = ask(url, "deployments/filter")
    nightly = [one for one in found if one["parameters"].get("photos") == str(photos)]
    endings = [one["name"].removeprefix("nightly-captions") for one in nightly]  # its names end alike
    offered = {
        one["name"].removesuffix(end): one for end in endings for one in found if one["name"].endswith(end)
    }
    return offered if len(offered) == 3 else {}


def runs_of(url: str, photos: Path) -> list[dict[str, Any]]:
    """The runs that were at work on a folder, in order; those that came too early are left out."""
    nightly = {"id": {"any_": [deployments_of(url, photos)["nightly-captions"]["id"]]}}
    found = ask(url, "flow_runs/filter", sort="START_TIME_ASC", deployments=nightly)
    return [run for run in found if run["start_time"] and run["state_type"] != "CANCELLED"]


def wait_for(url: str, photos: Path, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first run on a folder that is as wanted."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        for run in runs_of(url, photos):
            if wanted(run):
                return run
        time.sleep(0.25)
    raise AssertionError([(run["state_name"], run["state"]["message"]) for run in runs_of(url, photos)])


def process_of(run: dict[str, Any]) -> int | None:
    """The process that the run's tag names."""
    return next((int(tag.split(":")[2]) for tag in run["tags"] if tag.startswith("process:")), None)


def check_deployments(url: str, photos: Path) -> None:
    """One at a time of each kind, and parameters with types, from which the page makes a form."""
    found = deployments_of(url, photos)
    assert set(found) == {"nightly-captions", "train", "reprocess"}
    for deployment in found.values():
        assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
        assert deployment["global_concurrency_limit"]["limit"] == 1
    crop = found["train"]["parameter_openapi_schema"]["definitions"]["ImagesSettings"]["properties"]["crop"]
    assert crop["enum"] == [
        "centre",
        "pad",
        "squash",
    ]
    assert found["reprocess"]["parameter_openapi_schema"]["properties"]["dry_run"]["type"] == "boolean"


@pytest.mark.long
def test_a_schedule_captions_what_is_new_says_so_where_nothing_is_and_a_killed_run_ends(
    ran: Ran,
    server: str,
    tmp_path: Path,
) -> None:
    copy = ran.copy(tmp_path)
    photos = tmp_path / "inbox"
    photos.mkdir()
    draw(photos / "first.png", 61)
    with serving(photos, copy, server, *EVERY_FEW_SECONDS) as process:
        running = wait_for(
            server, photos, lambda run: run["state_name"] == "Running" and bool(process_of(run))
        )
        process.kill()  # first who would notice, then the run itself
        os.kill(process_of(running), signal.SIGKILL)
    assert (
        ask(server, "flow_runs/filter", flow_runs={"id": {"any_": [running["id"]]}})[0]["state_name"]
        == "Running"
    )

    with serving(photos, copy, server, *EVERY_FEW_SECONDS):
        killed = wait_for(
            server, photos, lambda run: run["id"] == running["id"] and run["state_name"] == "Crashed"
        )
        assert "Its process was killed" in killed["state"]["message"]
        first = wait_for(server, photos, lambda run: run["state_name"] == "Completed")
        model = Path(ran.record["bundle"]).name
        assert first["state"]["message"].startswith(f"1 photograph captioned by {model}")
        check_deployments(server, photos)
        # New in this folder, though its caption is known from another run.
        shutil.copyfile(copy.dataset / "images" / "photo01.png", photos / "second.png")
        second = wait_for(
            server, photos, lambda run: run["state_name"] == "Completed" and run["id"] != first["id"]
        )
        assert second["state"]["message"].startswith("1 photograph captioned")
        idle = wait_for(
            server,
            photos,
            lambda run: run["state_name"] == "Nothing new" and run["start_time"] > second["start_time"],
        )
        assert "2 photographs" in idle["state"]["message"]
    (written,) = (copy.workspace / "captions").iterdir()
    assert written.name.startswith("inbox-")
    captions = pl.read_parquet(written)
    assert captions["path"].to_list() == ["first.png", "second.png"]
    before = pl.read_parquet(ran.record["captions"]).filter(path="images/photo01.png")
    assert captions["caption"][1] == before["caption"][0]
    tasks = ask(server, "task_runs/filter", flow_runs={"id": {"any_": [idle["id"]]}})
    assert tasks == []  # nothing was done
    ended = [run for run in runs_of(server, photos) if run["end_time"]]
    for before, after in pairwise(ended):  # no two at once
        assert datetime.fromisoformat(before["end_time"]) <= datetime.fromisoformat(after["start_time"])


def test_folders_of_one_name_are_served_side_by_side_and_the_end_of_one_leaves_the_other(
    ran: Ran, server: str, tmp_path: Path
) -> None:
    copy = ran.copy(tmp_path)
    one, other = tmp_path / "one" / "inbox", tmp_path / "other" / "inbox"
    for number, photos in enumerate((one, other)):
        photos.mkdir(parents=True)
        draw(photos / "photo.png", 70 + number)
    with serving(one, copy, server) as first:
        with serving(other, copy, server):
            for photos in (one, other):
                nightly = deployments_of(server, photos)["nightly-captions"]
                ask(server, f"deployments/{nightly['id']}/create_flow_run")  # as "Quick run" of the page does
            for photos in (one, other):
                done = wait_for(server, photos, lambda run: run["state_name"] == "Completed")
                assert done["state"]["message"].startswith("1 photograph captioned")
                assert done["parameters"]["photos"] == str(photos)
            check_refused_twice(one, copy, server, first.pid)
        assert not deployments_of(server, one)["nightly-captions"]["paused"]


def check_refused_twice(photos: Path, ran: Ran, url: str, process: int) -> None:
    """The same folder from the same workspace is one deployment, which a second `cutline serve` would end."""
    done = cutline("serve", photos, "--workspace", ran.workspace, check=False, PREFECT_API_URL=url)
    assert done.returncode == 2
    for named in (photos, ran.workspace, f"process {process}"):
        assert str(named) in done.stderr


NIGHTS = """
import io, json, os, sys
from pathlib import Path
import polars as pl
from cutline.flows.orchestration.server import choose_server
workspace = Path(sys.argv[1])
choose_server(workspace)
from cutline.flows.orchestration.flows import caption_new
from cutline.tasks.storage.workspace import Workspace
ended = []
for night in sys.argv[2:]:
    machine, photos = night.split("=")
    os.environ["CUTLINE_CACHE"] = machine
    ended.append(caption_new(Path(photos), workspace=workspace, return_state=True).name)
store = Workspace(workspace).store
files = {path: pl.read_parquet(io.BytesIO(store.read(path))) for path in store.listing("captions")}
print(json.dumps([ended, {path: frame["path"].to_list() for path, frame in files.items()}]))
"""


CUT_OFF = """
import sys
from pathlib import Path
import cutline.flows.orchestration.flows as nights
from cutline.flows.orchestration.server import choose_server
from tests.flows.conftest import draw
workspace, photos = Path(sys.argv[1]), Path(sys.argv[2])
choose_server(workspace)
write = nights.write_captions

def cut_off(*_):
    raise OSError("cut off")

for number, ending in enumerate([write, cut_off, write]):
    if number < 2:
        draw(photos / f"photo{number}.png", 60 + number)
    nights.write_captions = ending
    print(nights.caption_new(photos, workspace=workspace, return_state=True).name)
"""


@pytest.mark.usefixtures("server")
def test_a_night_cut_off_before_its_file_was_written_is_made_good_by_the_next(tmp_path: Path) -> None:
    """Also where someone has captioned the folder by hand meanwhile: the file lacks nothing that is known."""
    inbox, workspace = tmp_path / "inbox", tmp_path / "workspace"
    inbox.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CUT_OFF, str(workspace), str(inbox)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.stdout.splitlines()[-3:] == ["Completed", "Failed", "Nothing new"], done.stderr
    (file,) = (workspace / "captions").iterdir()
    assert pl.read_parquet(file)["path"].to_list() == ["photo0.png", "photo1.png"]
    written = file.stat().st_mtime_ns
    cutline("caption", inbox, "--workspace", workspace, "--out", file)
    assert file.stat().st_mtime_ns == written  # it holds the same already


@pytest.mark.usefixtures("server")
def test_folders_of_one_name_have_captions_of_their_own_and_a_store_holds_them(tmp_path: Path) -> None:
    """Two inboxes, and one of them again, also on a machine whose cache is empty."""
    inboxes = [tmp_path / "a" / "inbox", tmp_path / "b" / "inbox"]
    for number, inbox in enumerate(inboxes):
        inbox.mkdir(parents=True)
        draw(inbox / f"photo{number}.png", 60 + number)
    one, other = tmp_path / "one", tmp_path / "other"
    nights = [f"{one}={inboxes[0]}", f"{one}={inboxes[1]}", f"{one}={inboxes[0]}", f"{other}={inboxes[0]}"]
    environment = {**os.environ, "CUTLINE_CACHE": str(one)}
    done = subprocess.run(
        [sys.executable, "-c", NIGHTS, "memory://nightly", *nights],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ended, files = json.loads(done.stdout.splitlines()[-1])
    assert ended == ["Completed", "Completed", "Nothing new", "Nothing new"]
    assert sorted(files.values()) == [["photo0.png"], ["photo1.png"]]
    assert all(path.startswith("captions/inbox-") for path in files)


@pytest.mark.parametrize("schedule", ["train", "weekly=60", "=60"])
def test_a_schedule_of_another_form_is_refused(schedule: str) -> None:
    with pytest.raises(UsageError, match="expected NAME=WHEN"):
        parse_schedules([schedule])


@pytest.mark.parametrize(
    "when",
    [
        "9" * 5000,
        "0",
        str(366 * 86_400 + 1),
        "* * *",
        "soon",
        "@daily",
        "0 0 2 * * *",
        "60 2 * * *",
        "0 2 31 2 *",
        "",
    ],
)
def test_a_time_that_is_none_or_never_comes_is_refused(when: str) -> None:
    with pytest.raises(UsageError, match="expected a number of seconds, or five fields of cron"):
        parse_schedules([f"train={when}"])


@pytest.mark.parametrize("when", ["1", str(366 * 86_400), "0 2 * * *", "*/5 8-18 * * mon-fri", "0 2 29 2 *"])
def test_a_time_that_is_taken_is_one_for_prefect_too(when: str) -> None:
    assert parse_schedules([f"train={when}"]) == {"train": when}
    schedule = schedule_of(when, "Europe/Vienna")
    assert schedule.cron == (None if when.isdigit() else when)


def test_serve_needs_a_folder_a_data_set_to_train_on_and_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(photos: Path, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["serve", str(photos), "--workspace", str(tmp_path), *arguments])
        return done.exit_code, done.stderr

    code, told = serve(tmp_path / "nowhere")
    assert (code, "found nothing there" in told) == (2, True)
    code, told = serve(tmp_path, "--schedule", "train=60")
    assert (code, "expected --dataset" in told) == (2, True)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr("cutline.flows.orchestration.server.WAIT_S", 1.0)
    monkeypatch.setattr(
        "cutline.flows.orchestration.deployments.FOR_SERVED_RUNS", {}
    )  # which would stay in this process
    code, told = serve(tmp_path, "--schedule", "nightly-captions=@daily")
    assert (code, "five fields" in told, "waiting for" in told) == (2, True, False)
    code, told = serve(tmp_path)
    assert (code, "start `cutline server` first" in told) == (2, True)
