"""Imported before Prefect: a server that Prefect itself starts gets a password too.

A flow that is called from Python, with no server configured, has Prefect start one for as long as it runs.
`cutline` starts its own (`cutline.flows.orchestration.server.start_embedded`), and has then set an address
already.
"""

from __future__ import annotations

import os
import sys

from cutline.flows.orchestration.server import CLIENT_PASSWORD, SERVER_PASSWORD, configured, set_own_password

if "prefect" not in sys.modules and not configured("PREFECT_API_URL"):
    before = {name: os.environ.pop(name, None) for name in (SERVER_PASSWORD, CLIENT_PASSWORD)}
    set_own_password()
    import prefect.main  # noqa: F401 reads its settings from the environment, once

    for name, value in before.items():  # programs that this process starts do not get the password
        del os.environ[name]
        if value is not None:
            os.environ[name] = value
