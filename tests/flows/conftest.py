"""A small data set of drawn photographs, and one run on it that tests start from."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests import REPOSITORY, free_port
from tests.conftest import Once

COLOURS = {"red": (40, 40, 220), "green": (60, 180, 60), "blue": (220, 90, 40), "yellow": (40, 220, 230)}
SPLITS = {"train": 20, "dev": 5, "test": 5}

EMBEDDED = {"PREFECT_API_URL": ""}  # what a run has in its environment that is to start a server of its own

# Everything real, only small and short.
SMALL = [
    "images.side_px=96",
    "vocabulary.min_count=1",
    "language_model.embedding_size=16",
    "language_model.state_size=32",
    "language_model.epochs=2",
    "fusion.hidden_size=32",
    "fusion.heads=2",
    "fusion.epochs=2",
    "fusion.batch_size=8",
    "joint_embedding.size=16",
    "joint_embedding.epochs=1",
    "predictions.max_tokens=8",
    "predictions.batch_size=8",
    "report.gallery=4",
]


def draw(path: Path, number: int) -> str:
    """A circle or square of some colour and size; returns its caption."""
    colour = list(COLOURS)[number % 4]
    size = 12 + number % 7 * 5
    picture = np.full((120, 160, 3), 235 - number % 5 * 8, np.uint8)
    if number % 2:
        cv2.circle(picture, (80, 60), size, COLOURS[colour], -1)
    else:
        cv2.rectangle(picture, (80 - size, 60 - size), (80 + size, 60 + size), COLOURS[colour], -1)
    cv2.imwrite(str(path), picture)
    return f"A {'large' if size > 25 else 'small'} {colour} {'circle' if number % 2 else 'square'}"


def make_dataset(root: Path) -> Path:
    """30 photographs with two captions each in Flickr8k's layout, one without, one broken."""
    (root / "images").mkdir(parents=True)
    lines, number = [], 0
    for split, count in SPLITS.items():
        names = []
        for _ in range(count):
            name = f"photo{number:02}.png"
            caption = draw(root / "images" / name, number)
            lines += [f"{name}#0\t{caption} on a grey wall .", f"{name}#1\tThere is {caption.lower()} ."]
            names.append(name)
            number += 1
        (root / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names) + "\n")
    draw(root / "images" / "unlabelled.png", 31)
    whole = (root / "images" / "photo00.png").read_bytes()
    (root / "images" / "broken.png").write_bytes(whole[: len(whole) // 2])
    lines += ["gone.png#0\tA large red square without a photograph .", "photo00.png#2\t..."]
    (root / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def cutline(
    *arguments: str | Path, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, from the repository."""
    done = subprocess.run(
        [sys.executable, "-m", "cutline.flows", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def run_json(dataset: Path, workspace: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """`cutline run --json` with the small settings."""
    done = cutline("run", dataset, "--workspace", workspace, "--json", *small(), *arguments, **environment)
    return json.loads(done.stdout)


def small() -> list[str]:
    """The small settings as arguments."""
    return [part for assignment in SMALL for part in ("--set", assignment)]


class Ran:
    """A finished run: its data set, its workspace, its record."""

    def __init__(self, dataset: Path, workspace: Path, record: dict[str, Any]) -> None:
        self.dataset = dataset
        self.workspace = workspace
        self.record = record

    def copy(self, folder: Path) -> Ran:
        """The same in another place, free to be changed; times are kept, paths are not."""
        shutil.copytree(self.workspace, folder / "workspace")
        shutil.copytree(self.dataset, folder / "dataset")
        return Ran(folder / "dataset", folder / "workspace", self.record)

    def run(self, *arguments: str, **environment: str) -> dict[str, Any]:
        return run_json(self.dataset, self.workspace, *arguments, **environment)

    def made(self, record: dict[str, Any]) -> dict[str, int]:
        """Shards made, of the stages that made any."""
        return {stage["name"]: stage["made"] for stage in record["stages"] if stage["made"]}


@pytest.fixture(scope="session")
def ran(once: Once, server: str) -> Ran:
    """One run of every stage; never change what it returns, copy it."""

    def fill(folder: Path) -> None:
        record = run_json(make_dataset(folder / "dataset"), folder / "workspace")
        (folder / "record.json").write_text(json.dumps(record))

    folder = once("ran", fill)
    return Ran(folder / "dataset", folder / "workspace", json.loads((folder / "record.json").read_text()))


def tables(workspace: Path) -> dict[str, str]:
    """Digest of every table and weight that the last run refers to, by stage, place and name."""
    run = json.loads(max((workspace / "runs").glob("*.json")).read_text())
    found = {}
    for stage, keys in run["shards"].items():
        for key in keys:
            record = json.loads((workspace / "shards" / stage / f"{key}.json").read_text())
            for output in record["outputs"]:
                if output["name"] not in ("report.html", "files.parquet"):
                    place = record["partition"] if "/" not in record["partition"][:1] else ""
                    found[f"{stage} {place} {output['name']}"] = output["digest"]
    return found


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`cutline server` on loopback; its API's address.

    From here on runs use it: Prefect's embedded server takes longer to start than such a run takes.
    """
    workspace = tmp_path_factory.mktemp("server")
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = [
        sys.executable,
        "-m",
        "cutline.flows",
        "server",
        "--port",
        str(port),
        "--workspace",
        str(workspace),
    ]
    with (workspace / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
        try:
            _wait_until_healthy(url, process, workspace / "log")
            assert (workspace / "prefect" / "prefect.db").is_file()  # its state lies in the workspace
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PREFECT_API_URL", url)
                password = (workspace / "prefect" / "password").read_text().strip()
                patch.setenv("PREFECT_API_AUTH_STRING", password)
                yield url
        finally:
            process.terminate()
            assert process.wait(30) in (0, -signal.SIGTERM)


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
    """What the server answers; where its database is locked for longer than it waits, it is asked again."""
    password = os.environ["PREFECT_API_AUTH_STRING"]
    signed_in = {"Authorization": f"Basic {base64.b64encode(password.encode()).decode()}"}
    headers = {**signed_in, **csrf_of(url, signed_in), "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/{path}", json.dumps(body).encode(), headers)
    return _read(request)


def csrf_of(url: str, headers: dict[str, str]) -> dict[str, str]:
    """The two headers that Prefect's server wants from whoever changes something."""
    client = str(uuid.uuid4())
    token = _read(urllib.request.Request(f"{url}/csrf-token?client={client}", headers=headers))["token"]
    return {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": token}


def _read(request: urllib.request.Request) -> Any:
    for _ in range(10):
        try:
            return json.load(urllib.request.urlopen(request, timeout=60))
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            time.sleep(1)
    raise AssertionError(f"{request.full_url}: the database stays locked")
