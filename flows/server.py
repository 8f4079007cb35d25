"""Which Prefect server a run uses: the one that answers, else Prefect's embedded one.

Prefect reads its settings when it is imported, so this comes first.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:4200/api"
ANSWER_WITHIN_S = 2.0

# For every server and client: stay at home, and record each task run (the recorder of the embedded
# server drops what it has not yet written when a run ends, unless it writes in batches).
ALWAYS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_LOGGING_LEVEL": "WARNING",
}


def choose_server(workspace: Path) -> str | None:
    """Set Prefect up for this process; the address of the server that answered, None if embedded.

    The embedded server keeps its state in the workspace.
    """
    for name, value in ALWAYS.items():
        os.environ.setdefault(name, value)
    configured = os.environ.get("PREFECT_API_URL") or _profile_url()
    for url in [configured] if configured else [DEFAULT_URL]:
        if _answers(url):
            os.environ["PREFECT_API_URL"] = url
            return url
    if configured:
        print(
            f"Prefect: expected a server at {configured}, none answered; this run uses the embedded one",
            file=sys.stderr,
        )
    os.environ.pop("PREFECT_API_URL", None)
    home = workspace.absolute() / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_HOME"] = str(home)
    os.environ["PREFECT_PROFILES_PATH"] = str(home / "profiles.toml")
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
    os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "120"
    return None


def _profile_url() -> str | None:
    """The address in the user's active Prefect profile."""
    home = Path(os.environ.get("PREFECT_HOME", Path.home() / ".prefect"))
    try:
        profiles = tomllib.loads((home / "profiles.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    url = profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    return url if isinstance(url, str) else None


def _answers(url: str) -> bool:
    """Whether a healthy Prefect server of a version that this client speaks to is there."""
    if not url.startswith(("http://", "https://")):
        return False
    try:
        with urllib.request.urlopen(f"{url}/admin/version", timeout=ANSWER_WITHIN_S) as answer:  # noqa: S310
            return str(json.load(answer)).startswith("3.")
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it answers, and wants the key that Prefect's settings hold
    except (OSError, ValueError):
        return False
