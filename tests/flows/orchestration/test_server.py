"""A run uses the Prefect server that answers, and leaves there what a person wants to see."""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from threading import Thread

import httpx
import pytest

from cutline.flows.orchestration.server import (
    answers,
    home_with_database,
    is_loopback,
    start_embedded,
    wait_for_embedded,
)
from cutline.schemas.errors import ServerLost
from tests import free_port
from tests.flows.conftest import EMBEDDED, Ran, ask, cutline, draw, small


def test_states_and_artifacts_of_a_run_are_on_the_server_that_answers(
    ran: Ran, server: str, tmp_path: Path
) -> None:
    copy = ran.copy(tmp_path)
    draw(copy.dataset / "images" / "another.png", 52)
    done = cutline(
        "run", copy.dataset, "--workspace", copy.workspace, "--json", *small(), PREFECT_API_URL=server
    )
    record = json.loads(done.stdout)
    assert not (copy.workspace / "prefect" / "prefect.db").exists()
    named = {"name": {"any_": ["run dataset"]}}
    (flow_run,) = ask(server, "flow_runs/filter", flow_runs=named, sort="START_TIME_DESC", limit=1)
    of_run = {"flow_runs": {"id": {"any_": [flow_run["id"]]}}, "limit": 200}
    assert flow_run["state_name"] == "Completed"
    made = sum(stage["made"] for stage in record["stages"])
    for _ in range(50):  # what a run says last is on its way to the database for a second
        states = {run["name"]: run["state_name"] for run in ask(server, "task_runs/filter", **of_run)}
        if (completed := sum(state == "Completed" for state in states.values())) == made:
            break
        time.sleep(0.2)
    assert completed == made
    assert states["fusion: 1 reused"] == "Cached"
    assert any(name.startswith("image_features unlabelled") for name in states)
    artifacts = {found["key"] or found["type"] for found in ask(server, "artifacts/filter", **of_run)}
    assert artifacts >= {"stages", "scores", "rejects", "samples", "report", "progress"}


PROXIES = {  # that no one answers at
    "http_proxy": f"http://127.0.0.1:{free_port()}",
    "HTTPS_PROXY": f"http://127.0.0.1:{free_port()}",
    "all_proxy": f"socks5://127.0.0.1:{free_port()}",
    "no_proxy": "example.com",
}
NOBODY = f"http://127.0.0.1:{free_port()}/api"


@pytest.fixture(scope="module")
def alone(
    ran: Ran, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A run where no server answers, started from a folder with a Python file, and where the environment
    names proxies; its end, and that folder."""
    copy = ran.copy(tmp_path_factory.mktemp("alone"))
    strangers = copy.workspace.parent / "strangers"
    strangers.mkdir()
    (strangers / "click.py").write_text("open('was_run', 'w').close()\nraise SystemExit(1)\n")
    command = [Path(sys.executable).with_name("cutline"), "run", copy.dataset, "--workspace", copy.workspace]
    done = subprocess.run(
        [*command, *small(), "--set", "report.gallery=3"],
        cwd=strangers, env=os.environ | {"PREFECT_API_URL": NOBODY} | PROXIES, capture_output=True,
        text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done, strangers


def test_where_no_server_answers_a_run_says_so_and_uses_the_embedded_one(
    alone: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, _ = alone
    assert f"expected a server at {NOBODY}, none answered; this run uses the embedded one" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_proxy_is_not_asked_for_what_listens_on_this_machine(
    alone: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, strangers = alone
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(strangers.parent / "workspace" / "prefect" / "prefect.db")) as database:
        states = database.execute("SELECT state_name FROM flow_run").fetchall()
    assert states == [("Completed",)]


def test_what_two_servers_that_begin_at_once_would_both_write_is_left_to_one_that_stays(
    alone: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    """Prefect's kinds of blocks, which end the later of the two; that file says that they are written."""
    _, strangers = alone
    home = strangers.parent / "workspace" / "prefect"
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        assert database.execute("SELECT name FROM block_type").fetchall() == []
    assert not (home / "memo_store.toml").exists()


def test_python_files_of_the_folder_that_a_run_is_started_from_are_not_run(
    alone: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    """Neither by the run nor by Prefect's server, which it starts."""
    _, strangers = alone
    assert [path.name for path in strangers.iterdir()] == ["click.py"]


def test_something_else_that_listens_at_the_servers_port_is_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listens:
        port = listens.getsockname()[1]

        def greet() -> None:
            caller, _ = listens.accept()
            with caller:
                caller.recv(4096)
                caller.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        Thread(target=greet, daemon=True).start()
        assert not answers(f"http://127.0.0.1:{port}/api")


def test_a_workspace_begins_with_the_database_that_prefect_itself_would_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [Path(sys.executable).with_name("prefect"), "server", "database", "upgrade", "-y"]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "theirs"), **EMBEDDED}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    monkeypatch.delenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", raising=False)
    home = home_with_database(tmp_path / "workspace")
    ours, theirs = (tables_of(folder / "prefect.db") for folder in (home, tmp_path / "theirs"))
    assert ours == theirs
    assert len(ours) > 50
    with closing(sqlite3.connect(home / "prefect.db")) as connection:
        connection.execute("CREATE TABLE history (run TEXT)")
    home_with_database(tmp_path / "workspace")
    assert len(tables_of(home / "prefect.db")) == len(ours) + 1, "a database with history is kept"


def tables_of(database: Path) -> list[tuple[str, ...]]:
    """The definitions of all tables and indices, and which version of Prefect's they are.

    Prefect adds the constraints of a table in any order.
    """
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name").fetchall()
        lines = [(kind, name, *sorted(re.split(r",?\s*\n", sql or ""))) for kind, name, sql in found]
        return lines + connection.execute("SELECT * FROM alembic_version").fetchall()


def test_a_port_that_is_taken_and_an_address_without_a_password_are_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = cutline("server", "--port", port, "--workspace", tmp_path, check=False)
    assert done.returncode == 2
    assert f"expected to listen at 127.0.0.1:{port}" in done.stderr
    done = cutline("server", "--host", "0.0.0.0", "--workspace", tmp_path, check=False)
    assert done.returncode == 2
    assert "set PREFECT_SERVER_API_AUTH_STRING" in done.stderr


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_addresses_of_this_machine_alone_need_no_password(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["127.example.com", "0.0.0.0", "::", "example.com", "192.168.0.1", "", None])
def test_a_name_that_only_begins_like_this_machine_is_another(host: str | None) -> None:
    assert not is_loopback(host)


def test_a_server_that_goes_away_is_told_of_in_one_line() -> None:
    from cutline.flows.orchestration.flows import from_terminal

    with pytest.raises(ServerLost, match="run it again: what was made is kept"):
        from_terminal(lambda: httpx.get(NOBODY), NOBODY)


def test_a_server_that_cannot_start_beside_a_run_is_told_of_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = f"sqlite+aiosqlite:///{tmp_path}/there/is/no/such/folder/prefect.db"
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", nowhere)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
    with pytest.raises(ServerLost, match="`cutline server`, which says what is wrong"):
        wait_for_embedded(start_embedded())
