"""The deployments that `cutline serve` offers at the Prefect server, and when they run."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import yaml
from prefect import serve as serve_deployments
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.events.schemas.automations import AutomationCore
from prefect.flows import Flow
from prefect.schedules import Cron, Interval, Schedule

from cutline.flows.orchestration.flows import caption_new, reprocess, run_dataset
from cutline.flows.orchestration.schedules import NIGHTLY, REPROCESS, TRAIN, no_schedule
from cutline.flows.orchestration.stale_runs import end_stale_runs

FLOWS: dict[str, Flow[..., Any]] = {NIGHTLY: caption_new, TRAIN: run_dataset, REPROCESS: reprocess}
LOST_RUNS = Path(__file__).parents[1] / "deployment" / "lost-runs.yaml"
SECONDS_BETWEEN_LOOKS = 20.0  # for runs whose process was killed

# A run that comes while one of its kind is at work is cancelled, not queued: the next one finds
# all that is new anyway.
ONE_AT_A_TIME = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)


def serve(
    offer: str, parameters: Mapping[str, dict[str, Any]], schedules: Mapping[str, str], timezone: str
) -> None:
    """Offer the deployments and start their runs in processes of their own, until Ctrl-C or SIGTERM.

    `offer` (see `offer_of`) ends their names; `parameters` and `schedules` (see `schedule_of`) are by
    what they run.
    """
    offered = [
        deployment_of(name, offer, parameters.get(name, {}), schedules.get(name), timezone) for name in FLOWS
    ]
    watch_lost_machines()
    threading.Thread(target=_end_lost_runs, daemon=True).start()
    # Prefect's own answer to SIGTERM: the warning says nothing to whoever stops the service.
    warnings.filterwarnings("ignore", message=r"coroutine 'Runner\.astop' was never awaited")
    serve_deployments(*offered, limit=len(offered))


def deployment_of(
    name: str, offer: str, parameters: dict[str, Any], when: str | None, timezone: str
) -> RunnerDeployment:
    """One of the deployments, with its schedule where there is one."""
    deployment = FLOWS[name].to_deployment(
        f"{name}-{offer}",
        parameters=parameters,
        schedule=schedule_of(when, timezone) if when else None,
        concurrency_limit=ONE_AT_A_TIME,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return cast(RunnerDeployment, deployment)  # no coroutine, as nothing here is asynchronous


def schedule_of(when: str, timezone: str) -> Schedule:
    """When a time of `check_time` comes, in the time of `timezone`. Raises UsageError."""
    try:
        if when.strip().isdecimal():
            return Interval(timedelta(seconds=int(when)))
        return Cron(when, timezone=timezone)
    except ValueError as error:
        raise no_schedule(when, error) from None


def watch_lost_machines() -> None:
    """Have the server end runs that send no heartbeat any more; it goes on without us."""
    wanted = AutomationCore.model_validate(yaml.safe_load(LOST_RUNS.read_text(encoding="utf-8")))
    with get_client(sync_client=True) as client:
        for found in client.read_automations_by_name(wanted.name):
            client.delete_automation(found.id)
        client.create_automation(wanted)


def _end_lost_runs() -> None:
    """End runs of killed processes, at once and again and again."""
    while True:
        try:
            with get_client(sync_client=True) as client:
                end_stale_runs(client)
        except Exception:  # a server that is away for a moment; the next look finds them
            logging.getLogger("prefect").debug("lost runs", exc_info=True)
        time.sleep(SECONDS_BETWEEN_LOOKS)
