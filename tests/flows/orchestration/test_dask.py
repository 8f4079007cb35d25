"""Shards on the workers of a real Dask cluster, the workspace on a real S3 server: as on one machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from cutline.flows.commands.prune import find_unused, remove
from cutline.flows.commands.run import last_rejects
from cutline.schemas.errors import ClusterFailed, UsageError
from cutline.tasks.bundles.bundle import load_bundle
from cutline.tasks.dask_workers import check_workers, scheduler_of
from cutline.tasks.storage.object_store import Store
from cutline.tasks.storage.workspace import Workspace, bundle_at
from tests import REPOSITORY, free_port
from tests.flows.conftest import EMBEDDED, Ran, cutline, draw, small, tables
from tests.support.object_store import KEY_ID, S3, SECRET


class Cluster:
    """A Dask scheduler and two workers in processes of their own, each with its own cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self._start("scheduler", "--host", "127.0.0.1", "--port", self.address.rpartition(":")[2])
        # The first is started anew when it dies, by its nanny; the second is not.
        self._start("worker", self.address, "--host", "127.0.0.1", "--name", "restarted", "--nthreads", "1")
        self._start(
            "worker", self.address, "--host", "127.0.0.1", "--name", "lost", "--nthreads", "1", "--no-nanny"
        )

    def _start(self, *command: str) -> None:
        name = f"{command[0]}{len(self.processes)}"
        (self.folder / name).mkdir()
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "CUTLINE_CACHE": str(self.folder / name),
            "DASK_TEMPORARY_DIRECTORY": str(self.folder / name),
        }
        with (self.folder / f"{name}.log").open("wb") as log:
            program = "import sys; from dask.__main__ import main; sys.exit(main())"
            arguments = [sys.executable, "-c", program, *command, "--no-dashboard"]
            process = subprocess.Popen(
                arguments, cwd=self.folder / name, env=environment, stdout=log, stderr=log
            )
        self.processes.append(process)

    def logs(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("*.log"))

    def stop(self) -> None:
        for process in self.processes[::-1]:  # workers say goodbye to their scheduler
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def cluster(s3: S3, tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "cluster").mkdir()
    cluster = Cluster(tmp_path / "cluster")
    yield cluster
    cluster.stop()


def worker_called(client: Client, name: str) -> tuple[str, int]:
    """Address and process of a worker."""
    for address, told in client.scheduler_info()["workers"].items():
        if told["name"] == name:
            return address, client.run(os.getpid, workers=[address])[address]
    raise AssertionError(f"no worker {name}")


def kill_while_at_work(client: Client, name: str, when: Callable[[], bool]) -> int:
    """Kill a worker's process in the middle of a shard; its number."""
    address, pid = worker_called(client, name)
    while not (when() and client.processing().get(address)):
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return pid


MADE_BY_WORKERS = ("images", "image_features", "tokens", "text_features", "predictions")
MADE_HERE = ("evaluate", "bundle")


def copy_to(store: Store, workspace: Path) -> None:
    """A local workspace on a store, without what a cluster is to make; what is trained stays as it is."""
    left_out = tuple(f"shards/{stage}/" for stage in (*MADE_BY_WORKERS, *MADE_HERE))
    for kind in ("shards", "bundles", "reports", "code"):
        for file in sorted((workspace / kind).rglob("*")):
            path = file.relative_to(workspace).as_posix()
            if file.is_file() and not path.startswith(left_out):
                store.upload(file, path)


@pytest.mark.long
@pytest.mark.timeout(1200)  # on a machine that does much else
def test_a_run_on_a_cluster_whose_workers_die_and_whose_store_fails_gives_the_same_tables(
    ran: Ran, cluster: Cluster, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUTLINE_CACHE", str(tmp_path / "cache"))
    workspace = Workspace("s3://photos/night")
    assert workspace.store
    copy_to(workspace.store, ran.workspace)
    client = Client(cluster.address, set_as_default=False, timeout=300)
    client.wait_for_workers(2, timeout=300)
    killed: list[int] = []

    def has(stage: str, count: int) -> bool:
        listed = Workspace(workspace.where).store.listing(f"shards/{stage}")  # type: ignore[union-attr]
        return sum(path.endswith(".json") for path in listed) >= count

    def kill() -> None:
        killed.append(kill_while_at_work(client, "restarted", lambda: has("images", 4)))
        killed.append(kill_while_at_work(client, "lost", lambda: has("image_features", 1)))

    s3.faults(refused=19, late=11, late_s=0.2, broken=23)
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    command = ["run", ran.dataset, "--workspace", workspace.where, "--runner", f"dask://{cluster.address}"]
    done = cutline(*command, "--json", *small(), check=False, **EMBEDDED)
    assert done.returncode == 0, done.stderr + cluster.logs()
    assert len(killed) == 2
    s3.faults()
    client.close()
    record = json.loads(done.stdout)
    assert record["report"].startswith(f"{workspace.where}/reports/")
    assert record["scores"] == ran.record["scores"]
    # What follows from the tables that the workers made was found by their digests: they are the same.
    assert set(ran.made(record)) == {*MADE_BY_WORKERS, *MADE_HERE}
    assert digests(workspace, record) == tables(ran.workspace)
    by_workers = {path.parts[-2] for path in cluster.folder.glob("worker*/*/shards/*/*")}
    assert by_workers >= set(MADE_BY_WORKERS)
    assert by_workers.isdisjoint(MADE_HERE)
    check_that_nothing_is_left_to_do(ran, workspace.where, s3)
    check_rejects_bundle_and_prune(workspace.where, record)
    check_that_no_secret_is_written(cluster, workspace.store, tmp_path, done.stderr)


def digests(workspace: Workspace, record: dict[str, Any]) -> dict[str, str]:
    """As `tables`, of a run on a store: the bytes that lie there are hashed anew."""
    (run,) = [run for run in workspace.runs() if run.run == record["run"]]
    found = {}
    for stage, keys in run.shards.items():
        for key in keys:
            shard, why = workspace.lookup(stage, key, deep=True)
            assert shard is not None, why
            for output in shard.outputs:
                if output.name not in ("report.html", "files.parquet"):
                    place = shard.partition if "/" not in shard.partition[:1] else ""
                    found[f"{stage} {place} {output.name}"] = output.digest
    return found


def check_that_nothing_is_left_to_do(ran: Ran, workspace: str, s3: S3) -> None:
    """A second run asks the store for a listing a stage, and imports neither TensorFlow nor Prefect."""
    program = (
        "import sys, json\nfrom cutline.flows.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = ('tensorflow', 'keras', 'prefect', 'distributed')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    command = [sys.executable, "-c", program, "run", str(ran.dataset), "--workspace", workspace, "--json"]
    for _ in range(2):  # the first reads the records that this machine has not seen
        s3.faults()
        done = subprocess.run(
            [*command, *small()], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        again, imported = map(json.loads, done.stdout.splitlines())
        assert ran.made(again) == {}
        assert imported == []
    stages = len(again["stages"])
    assert len(s3.asked()) <= stages + 4  # and the runs, ingest once more, the bundle, the report
    assert all("list-type=2" in request for request in s3.asked())


def check_rejects_bundle_and_prune(workspace: str, record: dict[str, Any]) -> None:
    assert last_rejects(None, Path(workspace))[1].height == 3
    bundle = load_bundle(bundle_at(record["bundle"]))
    assert bundle.description.scores["test"]["CIDEr"] == record["scores"]["CIDEr"]
    store = Workspace(workspace).store
    assert store
    assert find_unused(Path(workspace)).sizes == {}
    store.write("shards/images/ffff.images.parquet", b"of a worker that was lost")
    store.write("reports/old-12345678/report.html", b"of no run")
    unused = find_unused(Path(workspace))
    assert sorted(unused.sizes) == ["reports/old-12345678/report.html", "shards/images/ffff.images.parquet"]
    remove(unused)
    assert find_unused(Path(workspace)).sizes == {}


def check_that_no_secret_is_written(cluster: Cluster, store: Store, folder: Path, told: str) -> None:
    objects = store.listing("")
    assert len(objects) > 50
    texts = [path for path in objects if path.endswith((".json", ".html", ".csv", ".md", ".txt"))]
    written = b"".join(data or b"" for data in store.read_all(texts)) + (told + cluster.logs()).encode()
    written += b"".join(path.read_bytes() for path in (folder / "cache").rglob("prefect.db*"))
    for secret in (SECRET, KEY_ID):
        assert secret.encode() not in written


def test_workers_that_see_no_workspace_or_no_photographs_are_found_out_first(
    cluster: Cluster, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "workspace")
    (tmp_path / "photo.png").write_bytes(b"0123")
    with Client(cluster.address, set_as_default=False, timeout=300) as client:
        with pytest.raises(
            ClusterFailed, match=r"worker tcp://.*sees no workspace at .*share under one path"
        ):
            check_workers(client, workspace, str(tmp_path), None)
        with workspace.at_work_on():
            assert check_workers(client, workspace, str(tmp_path), ("photo.png", 4))
            assert not check_workers(client, workspace, str(tmp_path), ("photo.png", 5))
            assert not check_workers(client, workspace, "/of/another/machine", ("photo.png", 4))


def test_a_cluster_that_is_not_there_is_told_before_anything_is_started() -> None:
    port = free_port()
    with pytest.raises(
        ClusterFailed, match=rf"expected a Dask scheduler, none answered.*dask worker 127.0.0.1:{port}"
    ):
        scheduler_of(f"dask://127.0.0.1:{port}")
    for runner in ("dusk", "dask://", "dask://host", "tcp://host:1", "dask://host:port"):
        with pytest.raises(UsageError, match="expected local, dask or dask://HOST:PORT"):
            scheduler_of(runner)


def listening(pids: set[int]) -> dict[str, int]:
    """Addresses (hexadecimal, as Linux names them) at which processes listen, by their process."""
    sockets = {}
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                sockets[str(link.readlink())] = pid
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A" and f"socket:[{parts[9]}]" in sockets:
                found[parts[1]] = sockets[f"socket:[{parts[9]}]"]
    return found


def family_of(pid: int) -> set[int]:
    """A process and all that it started, and they in turn."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    found = {pid}
    for file in children:
        with suppress(OSError):
            for child in file.read_text().split():
                found |= family_of(int(child))
    return found


def speaks_http(address: str) -> bool:
    port = int(address.rpartition(":")[2], 16)
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            connection.settimeout(5)
            return connection.recv(100).startswith(b"HTTP/")
    except OSError:
        return False


def answers_dask(address: str) -> bool:
    """Whether a stranger can talk to it as Dask's own processes do."""
    port = int(address.rpartition(":")[2], 16)
    try:
        with Client(f"tcp://127.0.0.1:{port}", set_as_default=False, timeout=3):
            return True
    except OSError:
        return False


@pytest.mark.long
def test_a_cluster_of_this_machine_opens_no_page_obeys_no_stranger_and_leaves_no_file(
    ran: Ran, server: str, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(12):
        draw(photos / f"photo{number}.png", number)
    workspace = tmp_path / "workspace"
    command = [sys.executable, "-m", "flows", "caption", photos, "--model", ran.record["bundle"]]
    command += ["--out", tmp_path / "captions.jsonl", "--workspace", workspace, "--runner", "dask"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
    seen: set[str] = set()
    pages, obeyed = [], []
    while process.poll() is None:
        for address in listening(family_of(process.pid)).keys() - seen:
            seen.add(address)
            pages += [address] if speaks_http(address) else []
            if len(seen) <= 2:  # the scheduler's is among the first; a stranger's attempt takes seconds
                obeyed += [address] if answers_dask(address) else []
        time.sleep(0.1)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    assert len(seen) >= 3  # a scheduler and two workers
    assert {address.rpartition(":")[0] for address in seen} == {"0100007F"}  # loopback
    assert pages == []
    assert obeyed == []
    assert [path.name for path in temporary.rglob("*") if "dask" in path.name] == []
    assert list((workspace / "tmp").iterdir()) == []
    assert len((tmp_path / "captions.jsonl").read_text().splitlines()) == 12
