"""A workspace on an object store: as one in a folder, whatever the store does."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cutline.schemas.errors import StoreFailed, UsageError
from cutline.schemas.records import Record
from cutline.tasks.storage import object_store as store_module
from cutline.tasks.storage.object_store import address_of
from cutline.tasks.storage.workspace import Workspace
from tests import REPOSITORY
from tests.support.object_store import S3

KEY = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def address(s3: S3, tmp_path: Path) -> str:
    """A workspace of this test alone."""
    return f"s3://photos/{tmp_path.name}"


def on_machine(name: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The workspace as a machine with a cache of its own sees it."""
    monkeypatch.setenv("CUTLINE_CACHE", str(tmp_path / name))
    return Workspace(address)


def record_of(outputs: list) -> Record:
    return Record(
        stage="images", key=KEY, partition="train/01", inputs={}, settings={}, code="c", lineage="l",
        outputs=outputs, rows_in=1, rows_out=1, rejected=0, took_s=0.1, made_at="", versions={},
    )  # fmt: skip


def make(workspace: Workspace, content: bytes = b"0123456789") -> Record:
    with workspace.scratch() as folder:
        (folder / "images.parquet").write_bytes(content)
        record = record_of(workspace.publish(folder, f"shards/images/{KEY}."))
    workspace.write_record(record)
    return record


def test_what_one_machine_made_another_finds_and_reads(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make(on_machine("one", address, tmp_path, monkeypatch))
    other = on_machine("other", address, tmp_path, monkeypatch)
    assert other.lookup("images", KEY) == (record, "")
    assert other.file(record.outputs[0].path).read_bytes() == b"0123456789"
    assert other.file(record.outputs[0].path).is_relative_to(tmp_path / "other")


def test_a_record_is_read_once_a_machine_and_again_when_it_has_changed(
    address: str, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = on_machine("one", address, tmp_path, monkeypatch)
    make(one)
    for expected in (2, 1):  # a listing and the record; then the listing alone
        s3.faults()
        again = Workspace(address)
        again.look_ahead("images", [KEY])
        assert again.lookup("images", KEY)[0] is not None
        assert len(s3.asked()) == expected
    changed = make(one, b"other bytes")
    again.look_ahead("images", [KEY])
    assert again.lookup("images", KEY)[0] == changed
    assert again.file(changed.outputs[0].path).read_bytes() == b"other bytes"


def test_a_full_disk_is_told_as_that_and_not_as_the_stores_fault(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make(on_machine("one", address, tmp_path, monkeypatch))
    other = on_machine("other", address, tmp_path, monkeypatch)
    other.lookup("images", KEY)

    def is_full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert other.store
    monkeypatch.setattr(other.store._opened[0], "get_file", is_full)
    with pytest.raises(OSError, match="No space left on device"):
        other.file(record.outputs[0].path)


def test_an_output_that_is_gone_cut_or_changed_in_the_store_is_found(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = on_machine("one", address, tmp_path, monkeypatch)
    record = make(workspace)
    path = record.outputs[0].path
    assert workspace.store
    workspace.store.write(path, b"0123456780")
    assert workspace.lookup("images", KEY)[0] == record  # of the same size: only a deep look tells
    assert workspace.lookup("images", KEY, deep=True) == (None, f"output damaged: {path}")
    other = on_machine("other", address, tmp_path, monkeypatch)
    with pytest.raises(StoreFailed, match=r"expected the 10 bytes that its record tells of.*--deep"):
        other.file(path)
    assert not (other.root / path).exists()
    workspace.store.write(path, b"01")
    assert workspace.lookup("images", KEY) == (None, f"output damaged: {path}")
    workspace.store.remove([path])
    assert workspace.lookup("images", KEY) == (None, f"output missing: {path}")


def test_a_damaged_file_of_the_cache_is_fetched_again(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(on_machine("one", address, tmp_path, monkeypatch))
    other = on_machine("other", address, tmp_path, monkeypatch)
    file = other.file(f"shards/images/{KEY}.images.parquet")
    file.write_bytes(b"0123456780")
    assert other.file(f"shards/images/{KEY}.images.parquet").read_bytes() == b"0123456789"


def test_a_store_that_refuses_answers_late_and_breaks_off_is_asked_again(
    address: str, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = on_machine("one", address, tmp_path, monkeypatch)
    s3.faults(refused=3, late=4, late_s=0.2)
    record = make(one, b"x" * 300_000)
    for every in ({"refused": 3, "late": 4, "late_s": 0.2}, {"broken": 3}):
        s3.faults(**every)
        other = on_machine(f"other {every}", address, tmp_path, monkeypatch)
        for _ in range(4):
            assert other.lookup("images", KEY) == (record, "")
            other.file(record.outputs[0].path).unlink()
        assert sum(request.startswith("GET") for request in s3.asked()) > 8  # so many without faults


@pytest.mark.parametrize("verb", ["write", "read", "list"])
def test_a_store_that_never_answers_ends_the_run_with_what_was_tried(
    verb: str, address: str, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = on_machine("one", address, tmp_path, monkeypatch)
    monkeypatch.setitem(
        store_module.S3_OPTIONS["config_kwargs"], "retries", {"mode": "standard", "total_max_attempts": 1}
    )
    store = workspace.store
    assert store
    s3.faults(refused=1)
    calls = {
        "write": lambda: store.write("a", b""),
        "read": lambda: store.read("a"),
        "list": lambda: store.listing("a"),
    }
    with pytest.raises(StoreFailed, match=rf"could not {verb} {address}/a: 5 tries in \d+ s.*request rate"):
        calls[verb]()
    assert len(s3.asked()) == 5


def test_a_bucket_that_does_not_exist_is_told(tmp_path: Path, s3: S3) -> None:
    with pytest.raises(StoreFailed, match="expected its bucket, found none; create it first"):
        Workspace("s3://another-bucket/x").write_text("a", "")


UPLOAD = """
import sys
from pathlib import Path
from cutline.tasks.storage.workspace import Workspace
from tests.tasks.storage.test_object_store import make, record_of, KEY
workspace = Workspace(sys.argv[1])
with workspace.scratch() as folder:
    (folder / "a.parquet").write_bytes(b"0123456789")
    with (folder / "b.parquet").open("wb") as file:
        file.truncate(110 * 2**20)
    outputs = workspace.publish(folder, f"shards/images/{KEY}.")
workspace.write_record(record_of(outputs))
"""


def test_killed_in_the_middle_of_an_upload_nothing_is_there_that_a_rerun_trusts(
    address: str, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.faults(late=1, late_s=0.4)
    environment = {**os.environ, "CUTLINE_CACHE": str(tmp_path / "one"), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", UPLOAD, address]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    while not any("partNumber=" in request for request in s3.asked()):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    s3.faults()
    workspace = on_machine("one", address, tmp_path, monkeypatch)
    assert workspace.store
    assert list(workspace.store.listing("shards")) == [f"shards/images/{KEY}.a.parquet"]
    assert workspace.lookup("images", KEY) == (None, "")
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
    record, _ = workspace.lookup("images", KEY)
    assert record is not None
    assert workspace.store.size(f"shards/images/{KEY}.b.parquet") == 110 * 2**20


def test_any_address_of_fsspec_will_do() -> None:
    workspace = Workspace("memory://anything/at/all")
    record = make(workspace)
    assert Workspace("memory://anything/at/all").lookup("images", KEY) == (record, "")
    assert [found.key for found in workspace.records("images")] == [KEY]
    workspace.remove([f"shards/images/{KEY}.json"])
    assert workspace.lookup("images", KEY) == (None, "")


def test_an_address_stays_one_as_a_path_and_file_means_a_folder(tmp_path: Path) -> None:
    assert Workspace(Path("s3://photos/night")).where == "s3://photos/night"
    assert Workspace(f"file://{tmp_path}").root == tmp_path
    assert Workspace(f"file://{tmp_path}").store is None
    assert address_of("C:/photographs") is None


@pytest.mark.parametrize(
    "address", ["s3://AKIA:secret@photos/night", "https://x.org/a?X-Amz-Signature=secret", "s3://", "sftp://u:secret@h/x"]
)  # fmt: skip
def test_credentials_in_an_address_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(UsageError) as refused:
        Workspace(address)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("without", "address", "told"),
    [
        ("s3fs", "s3://photos/night", "pip install 's3fs'"),
        ("fsspec", "s3://photos/night", "pip install 's3fs'"),
        ("gcsfs", "gs://photos/night", "pip install 'gcsfs'"),
        ("", "nothing-like-it://photos/night", "nothing-like-it"),
    ],
)
def test_without_the_packages_a_message_says_what_to_install(without: str, address: str, told: str) -> None:
    program = (
        "import sys\nfrom cutline.flows.cli.main import main\n"
        "sys.modules[sys.argv.pop(1)] = None\nmain(['status', 'data/sample', '--workspace', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, without or "none", address],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
