"""Prefect's server and the dashboard obey their own user alone: no web page, and no other local user."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from starlette.testclient import TestClient
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from cutline.flows.dashboard.app import make_app
from cutline.flows.orchestration.password import password_of, read_password
from cutline.flows.orchestration.server import choose_server, start_embedded, wait_for_embedded
from tests import REPOSITORY, free_port
from tests.flows.conftest import Ran, ask, csrf_of, cutline, draw

AUTOMATION = {
    "name": "foreign",
    "trigger": {
        "type": "event",
        "posture": "Reactive",
        "expect": ["prefect.flow-run.Completed"],
        "threshold": 1,
        "within": 0,
    },
    "actions": [{"type": "do-nothing"}],
}
JSON = {"Content-Type": "application/json"}


class Served:
    """A server with a deployment on it, and what its owner may send."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.port = int(url.split(":")[2].partition("/")[0])
        password = os.environ["PREFECT_API_AUTH_STRING"].encode()
        self.signed_in = {"Authorization": f"Basic {base64.b64encode(password).decode()}"}
        flow = ask(url, "flows/", name="guarded")
        self.deployment = ask(url, "deployments/", name=str(uuid.uuid4()), flow_id=flow["id"])["id"]

    def send(self, method: str, path: str, body: object, headers: dict[str, str]) -> tuple[int, str]:
        """Status and text of the answer to a request with exactly these headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, f"/api/{path}", skip_host=True, skip_accept_encoding=True)
        data = b"" if body is None else json.dumps(body).encode()
        for name, value in {"Host": f"127.0.0.1:{self.port}", **headers}.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def attacks(self, headers: dict[str, str]) -> list[tuple[int, str]]:
        """Answers to: read deployments, let one run a program before it starts, create an automation."""
        pull = [{"prefect.deployments.steps.run_shell_script": {"script": "touch was_run"}}]
        return [
            self.send("POST", "deployments/filter", {}, headers),
            self.send("PATCH", f"deployments/{self.deployment}", {"pull_steps": pull}, headers),
            self.send("POST", "automations/", AUTOMATION, headers),
            self.send("POST", f"deployments/{self.deployment}/create_flow_run", {}, headers),
            self.send("GET", f"deployments/{self.deployment}", None, headers),
        ]

    def check_untouched(self) -> None:
        automations = {found["name"] for found in ask(self.url, "automations/filter")}
        assert AUTOMATION["name"] not in automations
        found = ask(self.url, "deployments/filter", deployments={"id": {"any_": [self.deployment]}})
        assert [deployment["pull_steps"] or [] for deployment in found] == [[]]
        of_deployment = {"id": {"any_": [self.deployment]}}
        assert ask(self.url, "flow_runs/filter", deployments=of_deployment) == []


@pytest.fixture(scope="module")
def served(server: str) -> Served:
    return Served(server)


FOREIGN = {
    "no password": JSON,
    "another password": {**JSON, "Authorization": "Basic " + base64.b64encode(b"cutline:guess").decode()},
    "an empty password": {**JSON, "Authorization": "Basic " + base64.b64encode(b"cutline:").decode()},
    "a simple request of a page": {"Content-Type": "text/plain", "Origin": "http://evil.example"},
    "a form of a page": {"Content-Type": "application/x-www-form-urlencoded", "Origin": "null"},
    "no type": {},
    "a name that resolves to 127.0.0.1": {**JSON, "Host": "evil.example:{port}"},
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_a_stranger_neither_reads_nor_changes_anything(served: Served, headers: dict[str, str]) -> None:
    sent = {name: value.format(port=served.port) for name, value in headers.items()}
    assert {status for status, _ in served.attacks(sent)} <= {400, 401, 403, 415}
    served.check_untouched()


WRONG = {
    "foreign Host": {"Host": "evil.example"},
    "foreign Host that ends like ours": {"Host": "evil-127.0.0.1"},
    "foreign Host with our port": {"Host": "127.0.0.1.evil.example:{port}"},
    "Host of another machine": {"Host": "192.0.2.1:{port}"},
    "Host with a user": {"Host": "127.0.0.1@evil.example"},
    "empty Host": {"Host": ""},
    "foreign Origin": {"Origin": "http://evil.example"},
    "Origin of a sandboxed frame": {"Origin": "null"},
    "Origin of another server of this machine": {"Origin": "http://127.0.0.1:1"},
    "Origin that begins like ours": {"Origin": "http://127.0.0.1:{port}.evil.example"},
    "Origin that is the foreign Host": {"Host": "evil.example", "Origin": "http://evil.example"},
    "fetched by another site": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
}


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
def test_not_even_the_password_opens_the_server_to_a_foreign_name_or_page(
    served: Served, headers: dict[str, str]
) -> None:
    wrong = {name: value.format(port=served.port) for name, value in headers.items()}
    known = {**served.signed_in, **csrf_of(served.url, served.signed_in), **JSON, **wrong}
    assert {status for status, _ in served.attacks(known)} <= {400, 403}
    served.check_untouched()


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_a_body_that_is_not_said_to_be_json_is_refused(served: Served, kind: str | None) -> None:
    known = {**served.signed_in, **csrf_of(served.url, served.signed_in)}
    headers = {**known, **({"Content-Type": kind} if kind else {})}
    assert [status for status, _ in served.attacks(headers)[:4]] == [415] * 4
    served.check_untouched()


def test_a_change_needs_the_token_that_prefect_gives_to_a_client(served: Served) -> None:
    status, text = served.send("POST", "automations/", AUTOMATION, {**served.signed_in, **JSON})
    assert (status, "CSRF" in text) == (403, True)
    served.check_untouched()


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST"])
def test_the_owner_reads_and_writes_under_each_name_of_the_server(served: Served, host: str) -> None:
    own = host.format(port=served.port)
    known = {**served.signed_in, **csrf_of(served.url, served.signed_in), **JSON, "Host": own}
    for headers in (known, {**known, "Origin": f"http://{own}"}):
        status, text = served.send("POST", "deployments/filter", {}, headers)
        assert (status, served.deployment in text) == (200, True)


def test_the_events_of_the_server_reach_its_own_clients_alone(served: Served) -> None:
    """Websockets, which a page may open to any server without asking first."""
    address = f"ws://127.0.0.1:{served.port}/api/events/out"

    async def opened(token: str | None, origin: str | None) -> bool:
        subprotocols: Any = ["prefect"]
        try:
            async with connect(address, subprotocols=subprotocols, origin=origin) as socket:  # type: ignore[arg-type]
                await socket.send(json.dumps({"type": "auth", "token": token}))
                return json.loads(await socket.recv())["type"] == "auth_success"
        except WebSocketException:
            return False

    password = os.environ["PREFECT_API_AUTH_STRING"]
    assert asyncio.run(opened(password, None))
    assert asyncio.run(opened(password, f"http://127.0.0.1:{served.port}"))
    assert not asyncio.run(opened(password, "http://evil.example"))
    assert not asyncio.run(opened(None, None))
    assert not asyncio.run(opened("cutline:guess", None))


# -- a real browser -----------------------------------------------------------------------------

ATTACK = """async ([url, deployment]) => {
    const automation = AUTOMATION;
    const pull = {pull_steps: [{"prefect.deployments.steps.run_shell_script": {script: "touch was_run"}}]};
    const tried = [
        () => fetch(url + "/deployments/" + deployment),
        () => fetch(url + "/deployments/filter", {method: "POST", body: "{}"}),
        () => fetch(url + "/deployments/filter", {method: "POST", body: new Blob(["{}"])}),
        () => fetch(url + "/automations/", {
            method: "POST", mode: "no-cors", body: JSON.stringify(automation),
        }),
        () => fetch(url + "/automations/", {
            method: "POST", mode: "no-cors", body: new Blob([JSON.stringify(automation)]),
        }),
        () => fetch(url + "/automations/", {
            method: "POST", body: JSON.stringify(automation), headers: {"Content-Type": "application/json"},
        }),
        () => fetch(url + "/deployments/" + deployment, {
            method: "PATCH", body: JSON.stringify(pull), headers: {"Content-Type": "application/json"},
        }),
        () => fetch(url + "/deployments/" + deployment + "/create_flow_run", {method: "POST", body: "{}"}),
    ];
    const found = [];
    for (const one of tried) {
        try { const answer = await one(); found.push(answer.ok ? "ok" : "refused"); }
        catch (error) { found.push("blocked"); }
    }
    return found;
}""".replace("AUTOMATION", json.dumps(AUTOMATION))


class _Foreign(BaseHTTPRequestHandler):
    """A web page of someone else."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>foreign</title>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def foreign() -> Iterator[int]:
    """The port of a web server that is not ours."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Foreign) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("no chromium on the path: this test needs a browser (Debian: apt install chromium)")
    arguments = ["--host-resolver-rules=MAP evil.example 127.0.0.1"]  # as an attacker's DNS answers
    arguments += ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1", "localhost"])
def test_a_page_of_another_server_neither_reads_nor_changes_anything(
    served: Served, foreign: int, page: Page, name: str
) -> None:
    page.goto(f"http://{name}:{foreign}/")
    expect(page).to_have_title("foreign")
    tried = page.evaluate(ATTACK, [served.url, served.deployment])
    assert len(tried) == 8
    assert set(tried) <= {"blocked", "refused"}
    served.check_untouched()


def test_a_page_whose_name_resolves_to_this_machine_is_refused(served: Served, page: Page) -> None:
    """DNS rebinding: the foreign page and the server are one origin for the browser."""
    answer = page.goto(f"http://evil.example:{served.port}/")
    assert answer is not None
    assert answer.status == 400
    tried = page.evaluate(ATTACK, [f"http://evil.example:{served.port}/api", served.deployment])
    assert set(tried) <= {"blocked", "refused"}
    served.check_untouched()


def test_the_page_cannot_be_shown_in_a_frame_of_another(served: Served, foreign: int, page: Page) -> None:
    page.goto(f"http://localhost:{foreign}/")
    page.set_content(f'<iframe src="http://127.0.0.1:{served.port}/"></iframe>')
    page.wait_for_timeout(1000)
    assert all(frame.url.startswith("chrome-error:") for frame in page.frames[1:])


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_the_user_signs_in_on_prefects_page_with_the_line_of_the_file(
    served: Served, page: Page, name: str
) -> None:
    page.goto(f"http://{name}:{served.port}/deployments")
    field = page.locator("input[type=password]")
    field.fill(os.environ["PREFECT_API_AUTH_STRING"])
    field.press("Enter")
    page.wait_for_url(re.compile("deployments|dashboard"), timeout=60_000)
    page.goto(f"http://{name}:{served.port}/deployments")
    expect(page.get_by_text("guarded").first).to_be_visible(timeout=60_000)


# -- the password, and who is let in with it -----------------------------------------------------


def test_the_password_is_random_and_in_a_file_of_its_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    before = os.umask(0)
    try:
        password = password_of(tmp_path / "one")
    finally:
        os.umask(before)
    file = tmp_path / "one" / "password"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert password == file.read_text().strip() == password_of(tmp_path / "one")
    assert password != password_of(tmp_path / "other")
    assert len(password.removeprefix("cutline:")) >= 32
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["password"]


def test_a_password_that_others_could_have_read_is_replaced(tmp_path: Path) -> None:
    before = password_of(tmp_path)
    (tmp_path / "password").chmod(0o644)
    assert read_password(tmp_path) == before  # whoever reads it changes nothing
    assert password_of(tmp_path) != before
    assert stat.S_IMODE((tmp_path / "password").stat().st_mode) == 0o600


def test_no_command_line_and_no_log_holds_the_password(served: Served) -> None:
    password = os.environ["PREFECT_API_AUTH_STRING"].partition(":")[2]
    shown = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert any(b"prefect_server.py" in line for line in shown)
    assert not any(password.encode() in line for line in shown)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[tuple[Path, str, Path]]:
    """`cutline server` on a workspace, started as a user does: the workspace, its address, its output."""
    workspace, port, log = tmp_path / "workspace", free_port(), tmp_path / "server.log"
    command = [sys.executable, "-m", "flows", "server", "--port", str(port), "--workspace", str(workspace)]
    names = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    with log.open("w") as told:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=told, stderr=told)
    url = f"http://127.0.0.1:{port}/api"
    try:
        for _ in range(900):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2).read()
                break
            except OSError:
                time.sleep(0.2)
        yield workspace, url, log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def test_a_run_of_the_same_workspace_finds_server_and_password_by_itself(
    ran: Ran, own_server: tuple[Path, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, url, log = own_server
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.delenv("PREFECT_API_AUTH_STRING")
    assert str(workspace / "prefect" / "password") in log.read_text()
    photos = tmp_path / "photos"
    photos.mkdir()
    draw(photos / "photo.png", 3)
    cutline("caption", photos, "--model", ran.record["bundle"], "--out", tmp_path / "captions.jsonl",
            "--workspace", workspace)  # fmt: skip
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", (workspace / "prefect" / "password").read_text().strip())
    assert [run["state_name"] for run in ask(url, "flow_runs/filter")] == ["Completed"]
    assert os.environ["PREFECT_API_AUTH_STRING"] not in log.read_text()


@pytest.mark.long
def test_a_worker_of_the_same_workspace_finds_server_and_password_by_itself(
    ran: Ran, own_server: tuple[Path, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, url, _ = own_server
    photos = tmp_path / "photos"
    photos.mkdir()
    draw(photos / "photo.png", 3)
    folder = REPOSITORY / "flows" / "deployment"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PREFECT_HOME": str(tmp_path / "client"),
        "CUTLINE_WORKSPACE": str(workspace),
        "CUTLINE_PHOTOS": str(photos),
        "CUTLINE_DATASET": str(photos),
    }
    done = subprocess.run(
        [folder / "deploy.sh"], env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", (workspace / "prefect" / "password").read_text().strip())
    (nightly,) = [d for d in ask(url, "deployments/filter") if d["name"] == "nightly-captions"]
    parameters = {"model": ran.record["bundle"]}
    run = ask(url, f"deployments/{nightly['id']}/create_flow_run", parameters=parameters)
    worker = subprocess.Popen(
        [folder / "worker.sh"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 400
        states = {"id": {"any_": [run["id"]]}}
        while (found := ask(url, "flow_runs/filter", flow_runs=states)[0])["end_time"] is None:
            assert worker.poll() is None
            assert time.monotonic() < deadline, found["state"]
            time.sleep(1)
        assert found["state_name"] == "Completed", found["state"]
    finally:
        worker.send_signal(signal.SIGINT)
        worker.wait(60)


def test_the_password_is_not_sent_to_whoever_took_the_servers_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server is away, any user of the machine may listen there, and answer like Prefect."""
    heard: list[str] = []

    class Squatter(_Foreign):
        def do_GET(self) -> None:
            heard.append(str(self.headers))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'"3.8.8"')

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "none"))
    home = tmp_path / "workspace" / "prefect"
    home.mkdir(parents=True)
    password = password_of(home)
    assert password
    with ThreadingHTTPServer(("127.0.0.1", 0), Squatter) as squatter:
        Thread(target=squatter.serve_forever, daemon=True).start()
        (home / "address").write_text(f"http://127.0.0.1:{squatter.server_address[1]}/api")
        assert choose_server(tmp_path / "workspace") is None  # the run takes the embedded one
        squatter.shutdown()
    assert heard
    assert not any("Authorization" in headers for headers in heard)


def test_the_embedded_server_of_a_run_obeys_the_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("PREFECT_API_URL", "")
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    assert choose_server(tmp_path / "workspace") is None
    url = start_embedded()
    wait_for_embedded(url)
    embedded = Served(url)
    for headers in FOREIGN.values():
        sent = {name: value.format(port=embedded.port) for name, value in headers.items()}
        assert {status for status, _ in embedded.attacks(sent)} <= {400, 401, 403, 415}
    known = {**embedded.signed_in, **csrf_of(url, embedded.signed_in), **JSON}
    for wrong in WRONG.values():
        sent = {name: value.format(port=embedded.port) for name, value in wrong.items()}
        assert {status for status, _ in embedded.attacks({**known, **sent})} <= {400, 403}
    embedded.check_untouched()
    assert not (tmp_path / "workspace" / "prefect" / "password").exists()


CALLED_FROM_PYTHON = """
import os, urllib.error, urllib.request
import cutline.flows.orchestration.flows
from prefect import flow
from prefect.client.orchestration import get_client

@flow
def tried():
    with get_client(sync_client=True) as client:
        runs, url = len(client.read_flow_runs()), str(client.api_url).rstrip("/")
    body = {"data": b"{}", "headers": {"Content-Type": "application/json"}}
    request = urllib.request.Request(f"{url}/deployments/filter", **body)
    try:
        return runs, urllib.request.urlopen(request).status
    except urllib.error.HTTPError as refused:
        return runs, refused.code

assert "PREFECT_API_AUTH_STRING" not in os.environ
print(tried())
"""


STARTUP = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"  # on a machine that does much else


def test_a_server_that_prefect_starts_for_a_flow_called_from_python_has_a_password(tmp_path: Path) -> None:
    names = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", CALLED_FROM_PYTHON], cwd=REPOSITORY, capture_output=True, text=True,
        env={**environment, "PREFECT_HOME": str(tmp_path), STARTUP: "120"}, timeout=300,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["(1, 401)"], done.stderr


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
def test_the_dashboard_answers_its_own_names_and_pages_alone(tmp_path: Path, headers: dict[str, str]) -> None:
    client = TestClient(make_app(tmp_path / "workspace"), base_url="http://127.0.0.1:4280")
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"Host": "localhost:9000", "Origin": "http://localhost:9000"}).is_success
    wrong = {name: value.format(port=4280) for name, value in headers.items()}
    assert client.get("/", headers=wrong).status_code in (400, 403)
