"""A real S3 server (moto's) on loopback in a process of its own, which fails when it is told to.

`python -m tests.support.s3_server PORT` serves until it is killed. `/-/faults?…` sets what goes wrong,
`/-/requests` tells what was asked since then, a line each.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
)


class Faults:
    """Middleware: of each so many requests one is refused with 503, answered late, or broken off."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app = app
        self.every: dict[str, int] = {}
        self.late_s = 0.0
        self.asked: list[str] = []
        self.count = 0
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/-/faults":
            values = {name: float(value) for name, value in parse_qsl(environ["QUERY_STRING"])}
            with self.lock:
                self.late_s = values.pop("late_s", 0.0)
                self.every = {name: int(value) for name, value in values.items()}
                self.asked, self.count = [], 0
            return _answer(start, b"{}")
        if path == "/-/requests":
            return _answer(start, json.dumps(self.asked).encode())
        with self.lock:
            self.count += 1
            hit = {name for name, every in self.every.items() if every and self.count % every == 0}
            self.asked.append(f"{environ['REQUEST_METHOD']} {path}?{environ['QUERY_STRING']}")
        if "late" in hit:
            time.sleep(self.late_s)
        if "refused" in hit:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [SLOW_DOWN]
        found = self.app(environ, start)
        if "broken" in hit and environ["REQUEST_METHOD"] == "GET":
            whole = b"".join(found)
            return [whole[: len(whole) // 2]]  # the header told of more: the client sees it break off
        return found


def _answer(start: Callable[..., Any], body: bytes) -> list[bytes]:
    start("200 OK", [("Content-Type", "application/json")])
    return [body]


if __name__ == "__main__":
    app = DomainDispatcherApplication(create_backend_app)
    make_server("127.0.0.1", int(sys.argv[1]), Faults(app), threaded=True).serve_forever()
