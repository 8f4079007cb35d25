"""A run uses the Prefect server that answers, and leaves there what a person wants to see."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import Ran, cutline, draw, small


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server on loopback; its API's address."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait_until_healthy(url, process, home / "log")
            yield url
        finally:
            process.terminate()
            process.wait(30)


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).read()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(log.read_text())


def ask(url: str, path: str, **body: Any) -> Any:
    request = urllib.request.Request(
        f"{url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return json.load(urllib.request.urlopen(request, timeout=20))


def test_states_and_artifacts_of_a_run_are_on_the_server_that_answers(
    ran: Ran, server: str, tmp_path: Path
) -> None:
    copy = ran.copy(tmp_path)
    draw(copy.dataset / "images" / "another.png", 52)
    done = cutline(
        "run", copy.dataset, "--workspace", copy.workspace, "--json", *small(), PREFECT_API_URL=server
    )
    record = json.loads(done.stdout)
    assert not (copy.workspace / "prefect" / "prefect.db").exists() or ran.workspace.exists()
    (flow_run,) = ask(server, "flow_runs/filter")
    assert flow_run["state_name"] == "Completed"
    states = {run["name"]: run["state_name"] for run in ask(server, "task_runs/filter", limit=200)}
    assert states["fusion: 1 reused"] == "Cached"
    made = sum(stage["made"] for stage in record["stages"])
    assert sum(state == "Completed" for state in states.values()) == made
    assert any(name.startswith("image_features unlabelled") for name in states)
    artifacts = {found["key"] or found["type"] for found in ask(server, "artifacts/filter", limit=200)}
    assert artifacts >= {"stages", "scores", "rejects", "report", "progress"}


def test_where_no_server_answers_a_run_says_so_and_uses_the_embedded_one(ran: Ran, tmp_path: Path) -> None:
    copy = ran.copy(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/api"
    done = cutline("run", copy.dataset, "--workspace", copy.workspace, *small(), PREFECT_API_URL=nobody)
    assert f"expected a server at {nobody}, none answered; this run uses the embedded one" in done.stderr
    assert "Traceback" not in done.stderr
