"""Where the shards of a run are made: on this machine, or on the workers of a Dask cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flows.server import choose_server, is_loopback
from schemas.errors import UsageError
from schemas.records import RunRecord
from tasks.cluster import LOCAL, scheduler_of

CORES_A_WORKER = 4  # of a cluster on this machine; TensorFlow gains little from more


def start(flow: str, *args: Any, root: Path, runner: str = LOCAL, **kwargs: Any) -> RunRecord:
    """Call a flow of `flows.prefect_flows` by its name, from a terminal, on a runner.

    `root` is the folder for the embedded server's state. Raises UsageError, ClusterFailed.
    """
    address = scheduler_of(runner)  # fails before Prefect is imported, if it must
    url = choose_server(root)
    _check_server(runner, address, url)
    from flows import prefect_flows

    called: Callable[..., RunRecord] = getattr(prefect_flows, flow)
    if runner == LOCAL:
        return prefect_flows.from_terminal(called, *args, **kwargs)
    with _on_dask(called, address, url, root) as on_dask:
        return prefect_flows.from_terminal(on_dask, *args, **kwargs)


def _check_server(runner: str, address: str | None, url: str | None) -> None:
    """Refuse a server that workers of other machines cannot reach: each would start one of its own."""
    if address is None or is_loopback(urlsplit(address).hostname):
        return
    if url is None or is_loopback(urlsplit(url).hostname):
        raise UsageError(
            f"--runner {runner}: expected a Prefect server that the workers reach, found "
            f"{url or 'the embedded one'}, which only this machine does; start one that listens on the "
            "network, and set PREFECT_API_URL=http://HOST:4200/api"
        )


@contextmanager
def _on_dask(flow: Any, address: str | None, url: str | None, root: Path) -> Iterator[Any]:
    """The flow on a Dask cluster, of this machine where there is no address, with one server for all."""
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise UsageError(
            f"--runner dask: expected the packages of a cluster, found none ({error}); "
            "pip install 'prefect-dask' 'distributed'"
        ) from None
    from prefect.settings import PREFECT_API_URL, temporary_settings

    for name in (
        "distributed",
        *(name for name in logging.root.manager.loggerDict if "distributed." in name),
    ):
        logging.getLogger(name).setLevel(logging.ERROR)  # it tells of every connection that ends

    with ExitStack() as stack:
        if url is None:
            # Else each worker would start a server of its own.
            from prefect.server.api.server import SubprocessASGIServer

            server = SubprocessASGIServer()
            server.start(timeout=120)
            stack.callback(server.stop)
            stack.enter_context(temporary_settings({PREFECT_API_URL: server.api_url}))
        if address:
            runner = DaskTaskRunner(address=address)
        else:
            workers = max(2, (os.cpu_count() or 1) // CORES_A_WORKER)
            folder = root / "tmp" / "dask"
            folder.mkdir(parents=True, exist_ok=True)
            cluster = {
                "n_workers": workers,
                "threads_per_worker": 1,
                "dashboard_address": None,
                "silence_logs": logging.ERROR,
                "local_directory": str(folder),
            }
            runner = DaskTaskRunner(cluster_kwargs=cluster)
        yield flow.with_options(task_runner=runner)
