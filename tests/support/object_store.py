"""Starting and asking the S3 server of `tests.support.s3_server`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from tests import REPOSITORY, free_port

SECRET = "a-secret-that-nobody-writes-down"
KEY_ID = "AKIAOFTHETESTS"


class S3:
    """A running server with the bucket `photos`."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def faults(self, **every: float) -> None:
        """What goes wrong from now on: `refused`, `late`, `broken` once in so many requests each."""
        query = "&".join(f"{name}={value}" for name, value in every.items())
        urllib.request.urlopen(f"{self.url}/-/faults?{query}", timeout=20).read()

    def asked(self) -> list[str]:
        """The requests since the faults were set."""
        return json.load(urllib.request.urlopen(f"{self.url}/-/requests", timeout=20))

    def create_bucket(self) -> None:
        for _ in range(300):
            try:
                request = urllib.request.Request(f"{self.url}/photos", method="PUT")
                urllib.request.urlopen(request, timeout=20).read()
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError("the S3 server does not answer")


@contextmanager
def s3_server() -> Iterator[S3]:
    """A server in a process of its own, gone afterwards."""
    port = free_port()
    command = [sys.executable, "-m", "tests.support.s3_server", str(port)]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        server = S3(port)
        server.create_bucket()
        yield server
    finally:
        process.kill()
        process.wait()
