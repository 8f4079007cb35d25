"""The program of `cutline server`: Prefect's server behind a guard. Its arguments are host and port.

The password and all else come from the environment, which other users of the machine cannot read.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from cutline.flows.orchestration.guard import Guard
from cutline.flows.orchestration.password import read_password


def guarded_app() -> Guard:
    """Prefect's API and page, which answer this server's own addresses and pages alone."""
    from prefect.server.api.server import create_app

    origins = os.environ.get("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "").split(",")
    return Guard(create_app(), origins, _secret_of_workspace())


def _secret_of_workspace() -> str | None:
    """The password where it is the workspace's random one; one of a person's choice could be guessed."""
    password = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    home = os.environ.get("PREFECT_HOME")
    written = read_password(Path(home)) if home else None
    return password if password == written else None


def serve(**where: Any) -> None:
    """Serve until SIGTERM or Ctrl-C; `where` is what uvicorn takes of host and port."""
    import uvicorn

    sockets = where.pop("sockets", None)
    config = uvicorn.Config(
        guarded_app, factory=True, lifespan="on", log_level="error", server_header=False, **where
    )
    uvicorn.Server(config).run(sockets=sockets)


if __name__ == "__main__":
    serve(host=sys.argv[1], port=int(sys.argv[2]))
