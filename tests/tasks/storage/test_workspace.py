"""What is under its name in a workspace is whole, and a lookup notices what is not."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cutline.schemas.errors import DamagedFile
from cutline.schemas.records import Record, RunRecord
from cutline.tasks.runtime.processes import started
from cutline.tasks.storage.workspace import Workspace
from tests import REPOSITORY

NAMES = ("20260101-000000-000001", "20260102-000000-000002", "20260103-000000-000003")


@pytest.fixture
def made(tmp_path: Path) -> tuple[Workspace, Record]:
    """A workspace with one shard of one file."""
    workspace = Workspace(tmp_path)
    with workspace.scratch() as folder:
        (folder / "images.parquet").write_bytes(b"0123456789")
        outputs = workspace.publish(folder, "shards/images/k.")
    record = Record(
        stage="images", key="k", partition="train/", inputs={}, settings={}, code="", lineage="",
        outputs=outputs, rows_in=1, rows_out=1, rejected=0, took_s=0.0, made_at="", versions={},
    )  # fmt: skip
    workspace.write_record(record)
    return workspace, record


def test_a_shard_that_is_whole_is_found(made: tuple[Workspace, Record]) -> None:
    workspace, record = made
    assert workspace.lookup("images", "k") == (record, "")
    assert workspace.lookup("images", "k", deep=True) == (record, "")
    assert workspace.lookup("images", "other") == (None, "")


def test_a_deleted_output_is_noticed(made: tuple[Workspace, Record]) -> None:
    workspace, record = made
    (workspace.root / record.outputs[0].path).unlink()
    assert workspace.lookup("images", "k") == (None, "output missing: shards/images/k.images.parquet")


@pytest.mark.parametrize("content", [b"012", b"0123456780", b""])
def test_a_damaged_output_is_noticed(made: tuple[Workspace, Record], content: bytes) -> None:
    workspace, record = made
    (workspace.root / record.outputs[0].path).write_bytes(content)
    assert workspace.lookup("images", "k") == (None, "output damaged: shards/images/k.images.parquet")


def test_a_bit_that_flipped_unseen_is_found_by_a_deep_look(made: tuple[Workspace, Record]) -> None:
    workspace, record = made
    path, time = workspace.root / record.outputs[0].path, record.outputs[0].mtime_ns
    path.write_bytes(b"0123456780")
    os.utime(path, ns=(time, time))
    assert workspace.lookup("images", "k")[0] == record
    assert workspace.lookup("images", "k", deep=True)[0] is None


def test_a_copy_with_other_times_is_trusted_after_one_comparison(made: tuple[Workspace, Record]) -> None:
    workspace, record = made
    path = workspace.root / record.outputs[0].path
    os.utime(path, ns=(1, 1))
    found, _ = workspace.lookup("images", "k")
    assert found is not None
    assert found.outputs[0].mtime_ns == path.stat().st_mtime_ns
    assert workspace.read_record("images", "k") == found


@pytest.mark.parametrize("text", ["", "{", '{"stage": "images"}'])
def test_a_damaged_record_counts_as_not_made(made: tuple[Workspace, Record], text: str) -> None:
    workspace, _ = made
    (workspace.root / "shards/images/k.json").write_text(text)
    assert workspace.lookup("images", "k") == (None, "its record is damaged")


@pytest.mark.parametrize(("transient", "told"), [(1, "1 row"), (2, "2 rows")])
def test_a_shard_with_rows_that_may_be_back_is_tried_again(
    made: tuple[Workspace, Record], transient: int, told: str
) -> None:
    workspace, record = made
    workspace.write_record(record.model_copy(update={"transient": transient, "rejected": 2}))
    assert workspace.lookup("images", "k") == (None, f"{told} could not be read last time")


def test_scratch_is_gone_also_after_a_failure(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with Workspace(tmp_path).scratch() as folder:
            (folder / "half").write_bytes(b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_scratch_of_a_killed_process_is_cleared_and_of_a_living_one_kept(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from cutline.tasks.storage.workspace import Workspace\n"
        "with Workspace(Path(sys.argv[1])).scratch() as folder:\n"
        "    (folder / 'half').write_bytes(b'x')\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY)
    workspace = Workspace(tmp_path)
    with workspace.scratch() as mine:
        assert len(list((tmp_path / "tmp").iterdir())) == 2
        workspace.clear_scratch()
        assert list((tmp_path / "tmp").iterdir()) == [mine]


AT_A_SHARD = """
import sys, time
from pathlib import Path
from cutline.tasks.storage.workspace import Workspace
with Workspace(Path(sys.argv[1])).alone_on("k", print):
    print("at it", flush=True)
    if sys.argv[2] == "killed":
        time.sleep(400)
"""


@pytest.mark.parametrize("ends", ["killed", "by itself"])
def test_a_shard_that_another_process_makes_is_waited_for_until_it_ends_in_whatever_way(
    ends: str, tmp_path: Path
) -> None:
    """Meanwhile others can be made; afterwards nothing of it is left."""
    workspace = Workspace(tmp_path)
    waited_for: list[str] = []
    command = [sys.executable, "-c", AT_A_SHARD, str(tmp_path), ends]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "at it\n"
        with workspace.alone_on("another", waited_for.append):
            assert waited_for == []
        if ends == "killed":

            def kill(process: str) -> None:
                waited_for.append(process)
                other.kill()

            with workspace.alone_on("k", kill):
                assert waited_for == [f"process {other.pid} of {platform.node()}"]
        else:
            other.wait()
            with workspace.alone_on("k", waited_for.append):
                assert waited_for == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_of_many_processes_one_at_a_time_makes_a_shard(tmp_path: Path) -> None:
    """Each adds one to a number that it has read a moment ago."""
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from cutline.tasks.storage.workspace import Workspace\n"
        "folder = Path(sys.argv[1])\ncount = folder / 'count'\n"
        "for _ in range(20):\n    with Workspace(folder).alone_on('k', lambda _: None):\n"
        "        before = int(count.read_text())\n        time.sleep(0.002)\n"
        "        count.write_text(str(before + 1))\n"
    )
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=REPOSITORY) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert (tmp_path / "count").read_text() == "80"


def test_of_a_file_that_was_being_written_when_a_run_was_killed_nothing_is_left(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from cutline.tasks.storage.workspace import Workspace\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Workspace(Path(sys.argv[1])).write_text('runs/a.json', 'half of it')"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY)
    workspace = Workspace(tmp_path)
    assert [path.read_text() for path in (tmp_path / "tmp").iterdir()] == ["half of it"]
    with workspace.at_work_on():
        pass
    assert workspace.made() == {}


@pytest.fixture(params=["folder", "store"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Workspace:
    """A workspace, in a folder or on a store, in which nothing lies yet."""
    return Workspace(tmp_path if request.param == "folder" else f"memory://{tmp_path.name}")


def leave(workspace: Workspace, pid: int, start: str | None) -> str:
    """What a killed run leaves: its marker, whose path is returned, and a scratch folder.

    Without a `start` as former versions wrote them.
    """
    marker = f"running/{platform.node()}:{pid}"
    workspace.write_text(marker, "2026-11-26T20:00:00Z" + ("" if start is None else f"\n{start}"))
    (workspace.root / "tmp" / f"{platform.node()}:{pid}:{'' if start is None else f'{start}-'}0f").mkdir(
        parents=True
    )
    return marker


@pytest.mark.parametrize("has_start", [True, False])
def test_what_a_process_that_is_alive_has_begun_stays(empty: Workspace, has_start: bool) -> None:
    alive = os.getppid()
    marker = leave(empty, alive, started(alive) if has_start else None)
    with empty.at_work_on():
        assert len(list((empty.root / "tmp").iterdir())) == 1
    assert empty.has(marker)
    assert empty.at_work() == [f"process {alive}"]


def test_a_process_that_has_the_number_of_a_killed_run_is_no_run(empty: Workspace) -> None:
    marker = leave(empty, os.getppid(), "1")
    assert empty.at_work() == []
    with empty.at_work_on():
        assert empty.at_work() == [f"process {os.getpid()}"]
    assert not empty.has(marker)
    assert list((empty.root / "tmp").iterdir()) == []


def test_the_marker_of_another_machine_stays_and_one_half_written_is_none(empty: Workspace) -> None:
    empty.write_text("running/elsewhere:7", "2026-11-26T20:00:00Z\n1")
    beside = empty.root / "running" / ".elsewhere:8.0123456789ab"
    beside.parent.mkdir(exist_ok=True)
    beside.write_text("")
    with empty.at_work_on():
        pass
    where = empty.reached_at("running/elsewhere:7")
    assert empty.at_work() == [f"process 7 of elsewhere; if it was killed, remove {where}"]


@pytest.fixture(params=["folder", "store"])
def run_of_two(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Workspace, RunRecord]:
    """A workspace, in a folder or on a store, with a run that made two shards of images."""
    workspace = Workspace(tmp_path if request.param == "folder" else f"memory://{tmp_path.name}")
    keys = ["0" * 32, "f" * 32]
    for key in keys:
        with workspace.scratch() as folder:
            (folder / "images.parquet").write_bytes(key.encode())
            outputs = workspace.publish(folder, f"shards/images/{key}.")
        record = Record(
            stage="images", key=key, partition="train/", inputs={}, settings={}, code="", lineage="",
            outputs=outputs, rows_in=1, rows_out=1, rejected=0, took_s=0.0, made_at="", versions={},
        )  # fmt: skip
        workspace.write_record(record)
    return workspace, a_run(NAMES[0], {"images": keys})


def a_run(name: str, shards: dict[str, list[str]]) -> RunRecord:
    return RunRecord(
        run=name, command="run", dataset="/pictures", workspace="", settings={}, shards=shards, stages=[],
        finished_at="",
    )  # fmt: skip


def test_what_a_run_made_is_found_in_its_order(run_of_two: tuple[Workspace, RunRecord]) -> None:
    workspace, run = run_of_two
    assert [record.key for record in workspace.records_of(run, "images")] == run.shards["images"]
    files = workspace.outputs_of(run, "images", "images.parquet")
    assert [file.read_text() for file in files] == run.shards["images"]
    assert workspace.records_of(run, "report") == []
    assert workspace.outputs_of(run, "report", "captions.parquet") == []


def test_a_record_or_file_of_a_run_that_is_gone_is_told_with_what_brings_it_back(
    run_of_two: tuple[Workspace, RunRecord],
) -> None:
    workspace, run = run_of_two
    key = run.shards["images"][1]
    workspace.remove([f"shards/images/{key}.images.parquet"])
    assert len(workspace.records_of(run, "images")) == 2
    told = (
        r"expected 2 files of its stage images, found 1: shards/images/{}.* is missing or damaged; "
        "`cutline run` makes it again"
    )
    with pytest.raises(DamagedFile, match=told.format(f"{key}.images.parquet")):
        workspace.outputs_of(run, "images", "images.parquet")
    workspace.write_text(f"shards/images/{key}.json", "{")
    with pytest.raises(DamagedFile, match=told.format(f"{key}.json")):
        workspace.records_of(run, "images")


def test_a_run_that_names_a_record_outside_the_workspace_is_not_followed(
    made: tuple[Workspace, Record],
) -> None:
    workspace, _ = made
    (workspace.root / "shards/elsewhere").mkdir()
    with pytest.raises(DamagedFile):
        workspace.records_of(a_run(NAMES[0], {"elsewhere": ["../images/k"]}), "elsewhere")


@pytest.fixture(params=["folder", "store"])
def with_runs(request: pytest.FixtureRequest, tmp_path: Path) -> Workspace:
    """A workspace, in a folder or on a store, with three runs."""
    workspace = Workspace(tmp_path if request.param == "folder" else f"memory://{tmp_path.name}")
    for name in NAMES:
        workspace.write_run(a_run(name, {}))
    return workspace


def test_whoever_needs_the_newest_run_reads_no_other(
    with_runs: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads = with_runs.read_run, []
    monkeypatch.setattr(with_runs, "read_run", lambda name: reads.append(name) or read(name))
    assert next(with_runs.runs()).run == NAMES[2]
    assert reads == [NAMES[2]]
    assert [run.run for run in with_runs.runs()] == sorted(NAMES, reverse=True)


def test_a_damaged_run_and_one_that_is_pruned_while_others_are_read_are_passed_over(
    with_runs: Workspace,
) -> None:
    with_runs.write_text("runs/20260104-000000-000004.json", "{")
    runs = with_runs.runs()
    assert next(runs).run == NAMES[2]
    with_runs.remove([f"runs/{NAMES[1]}.json"])
    assert [run.run for run in runs] == [NAMES[0]]


def test_a_run_that_ends_after_they_were_listed_is_read_by_its_name(with_runs: Workspace) -> None:
    text = (with_runs.read_run(NAMES[0]) or b"").decode()
    assert list(with_runs.run_names()) == sorted(NAMES, reverse=True)
    Workspace(with_runs.where).write_text("runs/20260105-000000-000005.json", text)
    assert with_runs.read_run("20260105-000000-000005") == text.encode()
    assert with_runs.read_run("20260106-000000-000006") is None


def test_what_was_made_is_told_while_a_run_puts_files_aside_and_takes_them_away(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.write_text("shards/images/k.json", "{}")
    ended = threading.Event()

    def context() -> None:
        while not ended.is_set():
            with workspace.scratch() as folder:
                for number in range(50):
                    (folder / str(number)).write_bytes(b"x")

    at_work = threading.Thread(target=context)
    at_work.start()
    try:
        for _ in range(300):
            assert workspace.made()["shards/images/k.json"] == 2
    finally:
        ended.set()
        at_work.join()
    assert workspace.made() == {"shards/images/k.json": 2}


def test_folders_that_pruning_leaves_empty_go_too_and_others_stay(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for path in ("reports/old/report.html", "reports/new/report.html", "partial/fusion-k/checkpoint"):
        workspace.write_text(path, "x")
    workspace.remove(["reports/old/report.html", "partial/fusion-k/checkpoint"])
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["new"]
    assert list((tmp_path / "partial").iterdir()) == []


def test_the_lock_of_a_shard_that_no_process_makes_is_removed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with workspace.alone_on("0a", lambda _process: None):
        (tmp_path / "tmp" / "0b.lock").write_text("process 1 of a killed run")
        workspace.clear_scratch()
        assert [path.name for path in (tmp_path / "tmp").glob("*.lock")] == ["0a.lock"]


def test_a_record_with_any_bit_changed_is_refused_or_says_the_same(made: tuple[Workspace, Record]) -> None:
    workspace, record = made
    path = workspace.root / "shards" / record.stage / f"{record.key}.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (1, 4, 16):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            assert workspace.read_record(record.stage, record.key) in (None, record)


def test_a_record_of_an_earlier_version_without_a_checksum_is_read(made: tuple[Workspace, Record]) -> None:
    workspace, record = made
    path = workspace.root / "shards" / record.stage / f"{record.key}.json"
    path.write_text(record.model_dump_json())
    assert workspace.read_record(record.stage, record.key) == record


def test_a_run_file_with_any_bit_changed_is_passed_over_or_says_the_same(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    run = a_run(NAMES[0], {"images": ["0a"]})
    workspace.write_run(run)
    path = tmp_path / "runs" / f"{run.run}.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        assert list(workspace.runs()) in ([], [run])
