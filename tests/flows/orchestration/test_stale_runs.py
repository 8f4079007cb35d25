"""Runs whose process is gone are told from those that are at work."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from prefect.client.schemas.objects import FlowRun
from prefect.states import Pending

from cutline.flows.orchestration.stale_runs import is_lost, is_never_started, tag_of_this_process
from cutline.tasks.runtime.processes import started

HOST = socket.gethostname()


def test_a_run_of_this_very_process_is_not_lost() -> None:
    assert not is_lost(["auto-scheduled", tag_of_this_process()])


def test_a_run_of_a_process_that_ended_is_lost_even_before_its_parent_looks() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    tag = f"process:{HOST}:{process.pid}:{started(process.pid)}"
    assert not is_lost([tag])
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still listed
    assert is_lost([tag])
    process.wait()
    assert is_lost([tag])


def test_a_number_that_another_process_has_now_does_not_stand_for_the_run() -> None:
    assert is_lost([f"process:{HOST}:{os.getpid()}:1"])


def test_runs_of_other_machines_and_runs_without_a_tag_are_left_alone() -> None:
    assert not is_lost(["process:elsewhere:1:1"])
    assert not is_lost([])


def test_a_run_that_was_to_start_long_ago_is_lost_and_one_of_now_or_of_a_worker_is_not() -> None:
    def pending(minutes: int, **run: object) -> bool:
        state = Pending(timestamp=datetime.now(UTC) - timedelta(minutes=minutes))
        return is_never_started(FlowRun(flow_id=uuid4(), state=state, **run))

    assert pending(6, deployment_id=uuid4())
    assert not pending(4, deployment_id=uuid4())
    assert not pending(6, deployment_id=uuid4(), work_pool_name="cutline")
    assert not pending(6)  # started by hand: no deployment waits for it
