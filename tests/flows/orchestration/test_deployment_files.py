"""The files of flows/deployment fit the flows, and one another."""

from __future__ import annotations

import configparser
import inspect
import os
from pathlib import Path

import yaml

from tests import REPOSITORY

FOLDER = REPOSITORY / "flows" / "deployment"


def read(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def test_the_work_pool_gets_what_serve_offers() -> None:
    from cutline.flows.orchestration import flows
    from cutline.flows.orchestration.serving import FLOWS

    deployments = {deployment["name"]: deployment for deployment in read("prefect.yaml")["deployments"]}
    assert deployments.keys() == FLOWS.keys()
    for name, deployment in deployments.items():
        path, _, function = deployment["entrypoint"].partition(":")
        assert (REPOSITORY / path).samefile(Path(inspect.getfile(flows)))
        flow = getattr(flows, function)
        assert flow is FLOWS[name]
        assert deployment["parameters"].keys() <= flow.parameters.properties.keys()
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}


def test_the_automation_knows_every_state_that_a_flow_ends_in() -> None:
    from prefect.events.schemas.automations import AutomationCore

    from cutline.flows.orchestration.flows import DRY_RUN, NOTHING_NEW

    automation = AutomationCore.model_validate(read("lost-runs.yaml"))
    ends = {"Completed", "Failed", "Cancelled", "Crashed", NOTHING_NEW, DRY_RUN}
    assert {f"prefect.flow-run.{end}" for end in ends} <= automation.trigger.expect


def test_compose_asks_for_a_password_and_listens_on_loopback_alone() -> None:
    services = read("compose.yaml")["services"]
    assert services["server"]["ports"] == ["127.0.0.1:4200:4200"]
    assert not any("ports" in service for name, service in services.items() if name != "server")
    assert "${CUTLINE_PASSWORD:?" in services["server"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"]
    assert (FOLDER.parents[1] / services["server"]["build"]["dockerfile"]).is_file()
    assert os.access(REPOSITORY / services["deploy"]["command"], os.X_OK)
    client = services["worker"]["environment"]["PREFECT_API_URL"]
    names = services["server"]["environment"]["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert client.removesuffix("/api") in names  # the server refuses names that it was not told of


def test_the_units_start_commands_that_there_are() -> None:
    from cutline.flows.cli.main import main

    for unit in FOLDER.glob("*.service"):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.optionxform = str  # type: ignore[assignment]
        parser.read(unit)
        program, command, *_ = parser["Service"]["ExecStart"].split()
        assert program.endswith("/bin/cutline")
        assert command in main.commands
