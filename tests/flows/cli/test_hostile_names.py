"""Files with hostile names, from the command line to the pages: nothing of theirs arrives unseen."""

from __future__ import annotations

import html
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cutline.flows.dashboard.app import make_app
from tests import REPOSITORY
from tests.flows.conftest import Ran, ask, cutline, draw, make_dataset, small

NAMES = [
    "esc\x1b]0;owned\x07\x1b[2J.png",
    "csi\x9b31m.png",
    "rtl\u202egnp.exe.png",
    "isolate\u2066\u2069.png",
    "zero\u200bwidth\ufeff.png",
    "marks\u200e\u200f.png",
    "line\u2028break\u2029.png",
    "return\rover.png",
    "new\ncutline: done.png",
]
RAW = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def raw(text: str) -> list[str]:
    """What of the names arrived as it was; \\r\\n ends a line of a terminal."""
    return [hex(ord(found)) for found in RAW.findall(text)] + re.findall(r"\r(?!\n)", text)


class Hostile:
    """A data set with hostile names, and its run."""

    def __init__(self, folder: Path) -> None:
        self.workspace = folder / "workspace"
        self.dataset = make_dataset(folder / "data\x1b[31m\u202eset")
        for number, name in enumerate(NAMES):
            draw(self.dataset / "images" / name, 40 + number)
            (self.dataset / "images" / f"broken {name}").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
        many = ("--set", "ingest.max_reject_rate=0.5")
        self.run = cutline("run", self.dataset, "--workspace", self.workspace, *small(), *many)

    def cutline(self, *arguments: str | Path, check: bool = True) -> str:
        done = cutline(*arguments, "--workspace", self.workspace, check=check)
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, server: str) -> Hostile:
    return Hostile(tmp_path_factory.mktemp("hostile"))


def test_a_run_its_status_and_its_rejects_show_every_name_on_one_line(hostile: Hostile) -> None:
    assert raw(hostile.run.stdout + hostile.run.stderr) == []
    assert raw(hostile.cutline("status", hostile.dataset, *small())) == []
    shown = hostile.cutline("rejects", hostile.dataset)
    assert raw(shown) == []
    assert r"\x1b[31m\u202eset" in shown
    listed = hostile.cutline("rejects", hostile.dataset, "--json")
    assert raw(listed) == []
    names = {reject["name"] for reject in json.loads(listed.splitlines()[0])}
    assert {f"images/broken {name}" for name in NAMES} <= names  # programs get them as they are


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "nothing\x1b[2J\u202e"],
        ["caption", "nothing\x1b[2J\u202e", "--out", "a.jsonl"],
        ["caption", ".", "--out", "captions\x1b[2J\u202e.txt"],
        ["search", "--photo", "nothing\x1b[2J\u202e"],
        ["rejects", "nothing\x1b[2J\u202e"],
        ["run", "data/sample", "--set", "images.\x1b[2J\u202e=1"],
        ["run", "data/sample", "--config", "\x1b[2J\u202e.yaml"],
        ["\x1b[2J\u202e"],
        ["dashboard", "\x1b[2J\u202e"],
    ],
    ids=lambda arguments: arguments[0].strip("\x1b\u202e"),
)
def test_error_messages_hold_no_raw_name(hostile: Hostile, arguments: list[str]) -> None:
    done = cutline(*arguments, check=False)
    assert done.returncode == 2, done.stderr
    assert raw(done.stdout + done.stderr) == []
    assert "2J" in done.stderr


def test_a_traceback_holds_no_raw_name() -> None:
    program = "import sys; from cutline.flows.cli.main import main, _show_traceback\n"
    program += "sys.excepthook = _show_traceback\n"
    program += "raise RuntimeError('name\\x1b[2J\\u202e')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert raw(done.stderr) == []
    assert r"name\x1b[2J\u202e" in done.stderr


def test_captions_on_a_real_terminal_with_its_progress(hostile: Hostile, ran: Ran, tmp_path: Path) -> None:
    """What rich itself sends (colours, cursor) is known; nothing of the names is among it."""
    command = [sys.executable, "-m", "flows", "caption", hostile.dataset / "images", "--model"]
    command += [ran.record["bundle"], "--out", tmp_path / "captions.jsonl", "--workspace", tmp_path / "new"]
    command += ["--set", "ingest.max_reject_rate=0.6"]
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [str(part) for part in command], cwd=REPOSITORY, stdout=follower, stderr=follower, stdin=follower
    )
    os.close(follower)
    received = b""
    while True:
        try:
            received += os.read(leader, 65536)
        except OSError:
            break
    assert process.wait(400) == 0, received
    text = received.decode(errors="surrogateescape")
    sent_by_rich = re.compile(r"\x1b\[[0-9;?]*[mKAhlGH]|\r")
    assert "\x1b]0;" not in text
    assert "\x1b[2J" not in text
    assert raw(sent_by_rich.sub("", text)) == []


def test_the_report_and_the_dashboard_hold_no_raw_name(hostile: Hostile) -> None:
    (report,) = hostile.workspace.rglob("report.html")
    assert raw(report.read_text(encoding="utf-8")) == []
    client = TestClient(make_app(hostile.workspace), base_url="http://127.0.0.1:4280")
    known: set[str] = set()
    waiting = {"/", "/datasets", "/runs", "/captions", "/rejects", "/stale", "/disk", "/curves"}
    while waiting and len(known) < 150:
        path = waiting.pop()
        known.add(path)
        answer = client.get(path)
        if answer.headers["content-type"].startswith(("text/html", "image/svg")):
            assert raw(answer.text) == [], path
            assert raw(html.unescape(answer.text)) == [], path
            links = re.findall(r'(?:href|src)="(/[^"]*)"', answer.text)
            waiting |= {link.replace("&amp;", "&") for link in links} - known
    assert any(r"\u202egnp" in client.get(path).text for path in ("/captions", "/rejects"))


def test_prefects_page_gets_no_raw_name(hostile: Hostile, server: str) -> None:
    runs = [run for run in ask(server, "flow_runs/filter") if r"\u202eset" in run["name"]]
    assert len(runs) == 1
    of_run = {"flow_runs": {"id": {"any_": [runs[0]["id"]]}}, "limit": 200}
    shown = [run["name"] for run in runs] + [run["state"]["message"] or "" for run in runs]
    shown += [run["name"] for run in ask(server, "task_runs/filter", **of_run)]
    artifacts = ask(server, "artifacts/filter", **of_run)
    tables = [json.loads(found["data"]) for found in artifacts if found["type"] == "table"]
    shown += [str(value) for rows in tables for row in rows for value in row.values()]
    shown += [found["data"] for found in artifacts if found["type"] == "markdown"]
    assert len(shown) > 20
    assert [found for text in shown for found in raw(text)] == []
