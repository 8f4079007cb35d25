"""The workers of a Dask cluster: whether they are there, and see what a run needs.

Per-photo and per-caption shards go to the workers; a stage of one shard, as training is, stays on
the machine that runs the flow. Only shards to make and records of what was made travel.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import polars as pl

from cutline.schemas.errors import ClusterFailed, CutlineError, UsageError
from cutline.tasks.engine.stage import Shard
from cutline.tasks.storage.packs import files_of
from cutline.tasks.storage.workspace import Workspace

LOCAL, LOCAL_CLUSTER, ADDRESS = "local", "dask", "dask://"
ANSWER_WITHIN_S = 10.0
WORKERS_WITHIN_S = 60.0
ASKED_EVERY_S = 5.0


def scheduler_of(runner: str) -> str | None:
    """The scheduler's address that --runner names; None for this machine. Raises UsageError, ClusterFailed.

    >>> scheduler_of("local"), scheduler_of("dask")
    (None, None)
    """
    if runner in (LOCAL, LOCAL_CLUSTER):
        return None
    parts = urlsplit(runner)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.scheme != "dask" or not host or not port:
        raise UsageError(f"--runner: expected local, dask or dask://HOST:PORT, found '{runner}'")
    try:
        socket.create_connection((host, port), ANSWER_WITHIN_S).close()
    except OSError as error:
        raise ClusterFailed(
            f"--runner {runner}: expected a Dask scheduler, none answered ({error}); start one there with "
            f"`dask scheduler --port {port}`, and workers with `dask worker {host}:{port} --nthreads 1`"
        ) from None
    return f"tcp://{host}:{port}"


def photo_to_see(shard: Shard, workspace: Workspace) -> tuple[str, int | None] | None:
    """A file of the data set that a worker must see to make a shard, and its size; None if it needs none.

    Packs are files of the workspace, and a tar's size is not in the table.
    """
    photos = (
        pl.scan_parquet(workspace.file(shard.sources["rows"]))
        .slice(shard.sources["start"], shard.rows)
        .select("path", "container", "size")
        .collect()
    )
    for path, container, size in photos.iter_rows():
        if container is None:
            return path, size
        if not files_of(container, Path()):
            return container, None
    return None


def look_around(where: str, marker: str, dataset: str, seen: tuple[str, int | None] | None) -> dict[str, Any]:
    """What this worker sees of the workspace and of the data set; runs on the worker."""
    told: dict[str, Any] = {"host": socket.gethostname(), "problem": "", "sees_photos": True}
    try:
        workspace = Workspace(where)
        if not workspace.has(marker):
            told["problem"] = f"sees no workspace at {where}, or another one"
    except CutlineError as error:
        told["problem"] = str(error)
    if seen:
        file, size = Path(dataset) / seen[0], seen[1]
        told["sees_photos"] = file.is_file() and size in (None, file.stat().st_size)
    return told


def check_workers(
    client: Any, workspace: Workspace, dataset: str, seen: tuple[str, int | None] | None
) -> bool:
    """Whether every worker sees the photographs. Raises ClusterFailed where one cannot work at all."""
    wait_for_workers(client)
    asked = (workspace.where, workspace.marker, dataset, seen)
    try:
        answers = client.run(look_around, *asked, on_error="return")
    except Exception as error:  # whatever a worker of another version makes of it
        answers = {"": error}
    for worker, told in answers.items():
        if isinstance(told, BaseException):
            raise ClusterFailed(
                f"worker {worker}: expected Cutline as it is here, found {type(told).__name__}: {told}; "
                "install the same version with its extra `cluster` there"
            )
        if told["problem"]:
            raise ClusterFailed(
                f"worker {worker} on {told['host']} {told['problem']}; a workspace has to lie in a folder "
                "that all machines share under one path, or on a store: --workspace s3://BUCKET/PREFIX, "
                "with the credentials in each worker's environment"
            )
    return all(told["sees_photos"] for told in answers.values())


def wait_for_workers(client: Any) -> int:
    """How many workers there are, at least one. Raises ClusterFailed where none comes."""
    try:
        client.wait_for_workers(1, timeout=WORKERS_WITHIN_S)
    except TimeoutError:
        raise ClusterFailed(
            f"the cluster has no worker, and none came within {WORKERS_WITHIN_S:.0f} s; start some with "
            "`dask worker HOST:PORT --nthreads 1`, and run again: what was made is kept"
        ) from None
    return len(client.scheduler_info()["workers"])


def wait_for(client: Any, is_done: Callable[[float], bool]) -> None:
    """Wait until `is_done(seconds)`, which waits so long at most. Raises ClusterFailed without workers."""
    while not is_done(ASKED_EVERY_S):
        if client.status != "running":
            raise ClusterFailed(
                "the Dask scheduler is gone; start it and its workers, and run again: what was made is kept"
            )
        wait_for_workers(client)
