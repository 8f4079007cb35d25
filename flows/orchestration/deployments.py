"""What `cutline serve` was asked for, checked before Prefect is imported."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

from cutline.flows.orchestration.schedules import EVERY_NIGHT, NIGHTLY, REPROCESS, TRAIN, parse_schedules
from cutline.flows.orchestration.server import demand_server, home_of
from cutline.flows.pipeline.run_record import existing
from cutline.schemas.errors import UsageError
from cutline.tasks.bundles.bundle import load_bundle
from cutline.tasks.runtime.processes import lock_on
from cutline.tasks.storage.workspace import Workspace, bundle_at, digest_of

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
    """Serve the deployments until Ctrl-C or SIGTERM.

    Raises UsageError, also where the same photographs are served from the same workspace already.
    """
    when = {NIGHTLY: EVERY_NIGHT, **parse_schedules(schedules)}
    if timezone not in available_timezones():
        raise UsageError(f"--timezone {timezone}: expected a time zone such as Europe/Vienna or UTC")
    photos = existing(photos)
    root = {"workspace": Workspace(workspace).where}
    of_dataset: dict[str, Any] = {**root, "dataset": str(existing(dataset))} if dataset else root
    of_photos: dict[str, Any] = {**root, "photos": str(photos)}
    if model:
        of_photos["model"] = str(load_bundle(bundle_at(model)).folder.absolute())
    for name in (TRAIN, REPROCESS):
        if name in when and not dataset:
            raise UsageError(
                f"--schedule {name}=…: expected --dataset, found none; name what {name} works on"
            )
    for name, value in FOR_SERVED_RUNS.items():
        os.environ.setdefault(name, value)
    with _alone(photos, workspace) as offer:
        demand_server(workspace)
        from cutline.flows.orchestration.serving import serve as serve_deployments

        parameters = {NIGHTLY: of_photos, TRAIN: of_dataset, REPROCESS: of_dataset}
        serve_deployments(offer, parameters, when, timezone)


@contextmanager
def _alone(photos: Path, workspace: Path) -> Iterator[str]:
    """What the deployments are called after, while no other process of this machine offers the same.

    A second one would take over the parameters of the first, and pause its schedules when it ends. Raises
    UsageError.
    """
    where = Workspace(workspace).where
    offer = offer_of(photos, where)

    def refuse(process: str) -> None:
        raise UsageError(
            f"'{photos}': expected photographs that no other `cutline serve` offers from the workspace "
            f"{where}, found {process} doing so; end that one first, or take another folder or --workspace"
        )

    lock = lock_on(home_of(workspace) / f"{offer}.lock", refuse)
    try:
        yield offer
    finally:
        lock.release()


def offer_of(photos: Path, workspace: str) -> str:
    """The part that is a folder's own in the names of its deployments: /a/inbox → inbox-1f2e3d4c.

    Folders of one name, workspaces, and machines that share a server, have deployments of their own.
    """
    readable = re.sub(r"[^\w.-]+", "-", photos.name)[:40]
    return f"{readable}-{digest_of([socket.gethostname(), workspace, str(photos)])[:8]}".strip("-")
