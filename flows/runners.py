"""Where the shards of a run are made: on this machine, or on the workers of a Dask cluster."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from flows.server import choose_server, is_loopback
from schemas.errors import UsageError
from schemas.records import RunRecord
from tasks.cluster import LOCAL, scheduler_of
from tasks.workspace import Workspace

CORES_A_WORKER = 4  # of a cluster on this machine; TensorFlow gains little from more
STOPPED = "cutline: stopped; the same command goes on from here"
ENDS_WITHIN_S = 5.0  # of Ctrl-C or SIGTERM
END_SIGNALS = (signal.SIGINT, signal.SIGTERM)
KILL_AT_END_OF_INPUT = 'read -r _; kill -KILL "$0" 2>/dev/null'


def start(flow: str, *args: Any, root: Path, runner: str = LOCAL, **kwargs: Any) -> RunRecord:
    """Call a flow of `flows.prefect_flows` by its name, from a terminal, on a runner.

    `root` is the folder for the embedded server's state. Raises UsageError, ClusterFailed, OSError where
    nothing can be written there.
    """
    address = scheduler_of(runner)  # fails before Prefect is imported, if it must
    Workspace(root).check_writable()  # of what else fails there Prefect says nothing for two minutes
    url = choose_server(root)
    _check_server(runner, address, url)
    with _ended_by_signals():
        from flows import prefect_flows

        embedded = None if url else _start_embedded()
        called = getattr(prefect_flows, flow).with_options(on_running=[_take_sigterm])
        if runner == LOCAL:
            return prefect_flows.from_terminal(called, *args, **kwargs)
        with _on_dask(called, address, embedded, root) as on_dask:
            return prefect_flows.from_terminal(on_dask, *args, **kwargs)


def _start_embedded() -> str:
    """Start Prefect's embedded server, which ends with this process, also where that is killed; its address.

    A terminal sends Ctrl-C to this process and to the server. It must not end the server, at which
    this process then writes down that the run has ended: what is blocked here stays so in its children.
    """
    from prefect.server.api.server import SubprocessASGIServer

    class Embedded(SubprocessASGIServer):
        def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
            process = super()._run_uvicorn_command()
            self.killer = _killer_of(process.pid)  # again where the first had found its port taken
            return process

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        server = Embedded()  # the one of this process, which Prefect takes too
        server.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return server.api_url


def _killer_of(pid: int) -> subprocess.Popen[bytes]:
    """A shell that kills a child of this process once this process is gone, in whatever way.

    It waits for the end of its input, whose other end this process alone holds.
    """
    command = ["/bin/sh", "-c", KILL_AT_END_OF_INPUT, str(pid)]
    return subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603 the command is ours


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
    if "prefect.server.api.server" in sys.modules:
        from prefect.server.api.server import SubprocessASGIServer

        if process := SubprocessASGIServer().server_process:
            process.kill()
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


@contextmanager
def _on_dask(flow: Any, address: str | None, embedded: str | None, root: Path) -> Iterator[Any]:
    """The flow on a Dask cluster, of this machine where there is no address, with one server for all.

    `embedded` is the address of this process's own server: else each worker would start one of its own.
    """
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
        if embedded:
            stack.enter_context(temporary_settings({PREFECT_API_URL: embedded}))
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
