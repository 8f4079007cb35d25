"""What `cutline serve` was asked for, checked before Prefect is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

from flows.outcome import existing
from flows.server import demand_server
from schemas.errors import UsageError
from tasks.bundle import load_bundle
from tasks.workspace import Workspace, bundle_at

NIGHTLY, TRAIN, REPROCESS = NAMES = ("nightly-captions", "train", "reprocess")
EVERY_NIGHT = "0 2 * * *"
FOR_SERVED_RUNS = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_LOGGING_LEVEL": "INFO",
}


def serve(
    photos: Path,
    model: Path | None,
    dataset: Path | None,
    schedules: Sequence[str],
    timezone: str,
    workspace: Path,
) -> None:
    """Serve the deployments until Ctrl-C or SIGTERM. Raises UsageError."""
    when = {NIGHTLY: EVERY_NIGHT, **parse_schedules(schedules)}
    if timezone not in available_timezones():
        raise UsageError(f"--timezone {timezone}: expected a time zone such as Europe/Vienna or UTC")
    root = {"workspace": Workspace(workspace).where}
    of_dataset: dict[str, Any] = {**root, "dataset": str(existing(dataset))} if dataset else root
    of_photos: dict[str, Any] = {**root, "photos": str(existing(photos))}
    if model:
        of_photos["model"] = str(load_bundle(bundle_at(model)).folder.absolute())
    for name in (TRAIN, REPROCESS):
        if name in when and not dataset:
            raise UsageError(
                f"--schedule {name}=…: expected --dataset, found none; name what {name} works on"
            )
    for name, value in FOR_SERVED_RUNS.items():
        os.environ.setdefault(name, value)
    demand_server(workspace)
    from flows.serving import serve as serve_deployments

    serve_deployments({NIGHTLY: of_photos, TRAIN: of_dataset, REPROCESS: of_dataset}, when, timezone)


def parse_schedules(schedules: Sequence[str]) -> dict[str, str]:
    """["train=3600"] → {"train": "3600"}. Raises UsageError."""
    found = {}
    for schedule in schedules:
        name, equals, when = schedule.partition("=")
        if name not in NAMES or not equals:
            raise UsageError(
                f"--schedule '{schedule}': expected NAME=WHEN with a name of {', '.join(NAMES)}, "
                "such as 'train=0 4 * * 6' or train=86400"
            )
        found[name] = when
    return found
