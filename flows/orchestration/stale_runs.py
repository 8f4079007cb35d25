"""Flow runs whose process is gone: `kill -9`, a crash or a power cut leaves them Running at the server.

Each run names its process in a tag, and every run, and `cutline serve` again and again, ends those
whose process of this machine is not there any more. Runs of a machine that is lost for good send no
heartbeat: the server itself ends them (deployment/lost-runs.yaml).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.context import FlowRunContext
from prefect.states import Crashed

from cutline.tasks.runtime.processes import is_alive, started

UNFINISHED = [StateType.RUNNING, StateType.CANCELLING]
TAG = "process:"
STARTS_WITHIN = timedelta(minutes=5)


def claim_run() -> None:
    """Tag the present flow run with this process, and end the runs whose process is gone."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    with get_client(sync_client=True) as client:
        others = [tag for tag in context.flow_run.tags if not tag.startswith(TAG)]
        client.update_flow_run(context.flow_run.id, tags=[*others, tag_of_this_process()])
        end_stale_runs(client)


def tag_of_this_process() -> str:
    """Machine, number and start of this process; the start tells it from a later one of that number."""
    return f"{TAG}{socket.gethostname()}:{os.getpid()}:{started(os.getpid())}"


def end_stale_runs(client: SyncPrefectClient) -> list[str]:
    """Force runs of dead processes of this machine to Crashed; the names of those runs.

    Runs that whoever serves them was about to start, and did not in STARTS_WITHIN, are lost too: they
    have no process yet to ask for, and keep the runs after them waiting.
    """
    lost = [run for run in _runs(client, UNFINISHED) if is_lost(run.tags)]
    for run in lost:
        _crash(
            client, run, "Its process was killed; what it made is kept, and the next run goes on from there."
        )
    never = [run for run in _runs(client, [StateType.PENDING]) if is_never_started(run)]
    for run in never:
        _crash(client, run, "What was about to start it was killed; the next run does its work.")
    return [run.name for run in [*lost, *never]]


def _runs(client: SyncPrefectClient, types: list[StateType]) -> list[FlowRun]:
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=types))
    return client.read_flow_runs(flow_run_filter=FlowRunFilter(state=state))


def is_never_started(run: FlowRun) -> bool:
    """Whether a run that `cutline serve` is to start waits longer than any start takes."""
    is_served = run.deployment_id is not None and run.work_pool_name is None
    return bool(is_served and run.state and datetime.now(UTC) - run.state.timestamp > STARTS_WITHIN)


def is_lost(tags: Sequence[str]) -> bool:
    """Whether the tags name a process of this machine that is not there any more."""
    for tag in tags:
        host, _, process = tag.removeprefix(TAG).rpartition(":")[0].rpartition(":")
        start = tag.rpartition(":")[2]
        if tag.startswith(TAG) and host == socket.gethostname() and process.isdigit():
            return not is_alive(int(process), start)
    return False


def _crash(client: SyncPrefectClient, run: FlowRun, message: str) -> None:
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    unfinished = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=UNFINISHED)))
    for task_run in client.read_task_runs(flow_run_filter=of_run, task_run_filter=unfinished):
        client.set_task_run_state(task_run.id, Crashed(message=message), force=True)
    client.set_flow_run_state(run.id, Crashed(message=message), force=True)
