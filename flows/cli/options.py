"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cutline.flows import DEFAULT_WORKSPACE
from cutline.flows.cli.errors import WORKSPACE


def examples(*lines: str) -> str:
    """The examples at the end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _set_cache(_ctx: click.Context, _option: click.Parameter, folder: Path | None) -> None:
    if folder:
        os.environ["CUTLINE_CACHE"] = str(folder.absolute())  # workers of this machine read it too


def _set_workspace(context: click.Context, _option: click.Parameter, workspace: Path) -> Path:
    context.meta[WORKSPACE] = workspace
    return workspace


def workspace_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option of every command that reads or writes a workspace, and where a store's cache lies."""
    cache = click.option(
        "--cache",
        type=click.Path(file_okay=False, path_type=Path),
        expose_value=False,
        callback=_set_cache,
        help="Folder for this machine's copies of an object store; also $CUTLINE_CACHE.",
    )
    workspace = click.option(
        "--workspace",
        type=click.Path(file_okay=False, path_type=Path),
        default=DEFAULT_WORKSPACE,
        callback=_set_workspace,
        show_default="data/workspace in the clone",
        help="Folder for everything that is made, or an object store: s3://BUCKET/PREFIX.",
    )
    return workspace(cache(command))


runner_option = click.option(
    "--runner",
    default="local",
    show_default=True,
    metavar="RUNNER",
    help="Where the shards of photographs and captions are made: local, dask (workers of this machine) or "
    "dask://HOST:PORT (a scheduler's). Training stays on this machine.",
)
config_option = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file of settings: a mapping a stage; --set overrides it.",
)
set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="STAGE.KEY=VALUE",
    help="One setting, such as predictions.beam=5.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="The run's record on standard output, all else on standard error."
)
deep_option = click.option(
    "--deep", is_flag=True, help="Read and check every file anew, also those unchanged since the last run."
)
