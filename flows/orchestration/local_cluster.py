"""A Dask cluster of this machine's processes, for `--runner dask`.

Whoever can send a message to a Dask scheduler or worker can have it run any function. So they talk over TLS
with a certificate made for this run, which stays in memory, and answer no one without it. Dask's web pages
(`start_http_server`) are off: even without its dashboard Dask would open one on each process.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import dask
from distributed import Nanny, Scheduler, Security, SpecCluster, Worker

HOST = "127.0.0.1"


class PagelessScheduler(Scheduler):
    """A scheduler without web pages."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Open nothing."""


class PagelessWorker(Worker):
    """A worker without web pages."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Open nothing."""


def local_cluster(workers: int, folder: Path) -> SpecCluster:
    """Start a scheduler in this process and `workers` processes of one thread each.

    All files of the cluster are in `folder`; who starts the cluster removes it.
    """
    security = Security.temporary()
    shared = {"host": HOST, "protocol": "tls://", "security": security}
    of_worker = {
        **shared,
        "nthreads": 1,
        "worker_class": PagelessWorker,
        "local_directory": str(folder),
        "memory_limit": 1 / workers,  # of the memory of this machine
        "dashboard": False,
        "silence_logs": logging.ERROR,
    }
    with dask.config.set({"temporary-directory": str(folder)}):
        return SpecCluster(
            scheduler={"cls": PagelessScheduler, "options": {**shared, "port": 0, "dashboard": False}},
            workers={number: {"cls": Nanny, "options": of_worker} for number in range(workers)},
            security=security,
            silence_logs=logging.ERROR,
        )
