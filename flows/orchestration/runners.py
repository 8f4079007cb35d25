"""Where the shards of a run are made: on this machine, or on the workers of a Dask cluster."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from cutline.flows.orchestration.server import choose_server, is_loopback, start_embedded, wait_for_embedded
from cutline.schemas.errors import UsageError
from cutline.schemas.records import RunRecord
from cutline.tasks.dask_workers import LOCAL, scheduler_of
from cutline.tasks.runtime.tensorflow import load_tensorflow
from cutline.tasks.storage.workspace import Workspace

CORES_PER_WORKER = 4  # of a cluster on this machine; TensorFlow gains little from more
STOPPED = "cutline: stopped; the same command goes on from here"
ENDS_WITHIN_S = 5.0  # of Ctrl-C or SIGTERM
END_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def start(flow: str, *args: Any, root: Path, runner: str = LOCAL, **kwargs: Any) -> RunRecord:
    """Call a flow of `cutline.flows.orchestration.flows` by its name, from a terminal, on a runner.

    `root` is the folder for the embedded server's state. Raises UsageError, ClusterFailed, OSError where
    nothing can be written there.
    """
    address = scheduler_of(runner)  # fails before Prefect is imported, if it must
    Workspace(root).check_writable()  # of what else fails there Prefect says nothing for two minutes
    answering = choose_server(root)
    _check_server(runner, address, answering)
    with _ended_by_signals():
        url = answering or start_embedded()
        from cutline.flows.orchestration import flows  # while that starts, on another core

        if not answering:
            if runner == LOCAL:
                load_tensorflow()  # which nearly all that may be missing needs
            wait_for_embedded(url)
        called = getattr(flows, flow).with_options(on_running=[_take_sigterm])
        with Workspace(root).scratch() as folder:
            on_runner = called if runner == LOCAL else _on_dask(called, address, folder)
            return flows.from_terminal(on_runner, url, *args, **kwargs)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end the process in ENDS_WITHIN_S at most, and the second at once.

    Left to itself Prefect waits for the shard in the making, which may be an hour of training. Until then
    the terminal is put in order, and Prefect told that the run has ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # called by other code, to whom signals belong
        return

    ends = threading.Event()

    def interrupt(_number: int, _frame: Any) -> NoReturn:
        ends.set()
        for number in END_SIGNALS:
            signal.signal(number, lambda _number, _frame: _stop())
        wait = threading.Timer(ENDS_WITHIN_S, _stop)
        wait.daemon = True
        wait.start()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in END_SIGNALS}
    try:
        yield
    except BaseException:
        if ends.is_set():  # whatever Prefect made of it
            _stop()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _take_sigterm(*_: Any) -> None:
    """Answer SIGTERM as Ctrl-C, which Prefect leaves to us: it takes SIGTERM when a flow begins.

    No closure, as it goes to a cluster's workers with the flow.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))


def _stop() -> NoReturn:
    """End the process as a kill would, which costs the shard in the making and nothing else."""
    print(STOPPED, file=sys.stderr, flush=True)
    os._exit(1)


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


def _on_dask(flow: Any, address: str | None, folder: Path) -> Any:
    """The flow on a Dask cluster, of this machine where there is no address, with its files in `folder`."""
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise UsageError(
            f"--runner dask: expected the packages of a cluster, found none ({error}); "
            "pip install 'prefect-dask' 'distributed'"
        ) from None

    for name in (
        "distributed",
        *(name for name in logging.root.manager.loggerDict if "distributed." in name),
    ):
        logging.getLogger(name).setLevel(logging.ERROR)  # it tells of every connection that ends

    if address:
        task_runner = DaskTaskRunner(address=address)
    else:
        from cutline.flows.orchestration.local_cluster import local_cluster

        workers = max(2, (os.cpu_count() or 1) // CORES_PER_WORKER)
        task_runner = DaskTaskRunner(
            cluster_class=local_cluster,  # type: ignore[arg-type]  # it takes the arguments below
            cluster_kwargs={"workers": workers, "folder": folder},
        )
    return flow.with_options(task_runner=task_runner)
