"""The README says what is so: its tables, its commands, its tree."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from cutline.flows.cli.main import main
from cutline.tasks.ingest.layouts.registry import READERS
from tests import REPOSITORY
from tests.regenerate_readme import README, renewed

TEXT = README.read_text(encoding="utf-8")


def test_the_tables_of_settings_and_columns_are_those_of_the_code() -> None:
    assert renewed(TEXT) == TEXT, "run: python -m tests.regenerate_readme"


COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```console\n(.*?)```", TEXT, flags=re.S)
    for line in re.findall(r"^\$ (.*)$", block, flags=re.M)
]


@pytest.mark.parametrize("command", [line for line in COMMANDS if "cutline" in line.split()[0]])
def test_each_command_line_is_one_that_the_program_takes(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command)[1:]
    name, arguments = words[0], words[1:]
    for file in ("my.yaml", "PREDICTIONS", "REFERENCES"):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    subcommand = main.commands[name]
    subcommand.make_context(name, arguments, parent=click.Context(main))  # parses; runs nothing


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make ")])
def test_each_make_target_exists(command: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    assert re.search(rf"^{command.split()[1]}:", makefile, flags=re.M)


def test_every_command_of_the_program_is_in_the_readme() -> None:
    for name in main.commands:
        assert f"cutline {name}" in TEXT


def test_the_layouts_listed_are_those_that_are_read() -> None:
    table = TEXT.partition("| layout | recognised by |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, flags=re.M)) == set(READERS)


def test_the_files_of_the_annotated_tree_exist() -> None:
    tree = TEXT.partition("## The house")[2].partition("```")[2].partition("```")[0]
    folder = ""
    for name in re.findall(r"^( *[\w./]+)(?= {2,})", tree, flags=re.M):
        if name.startswith(" "):
            path = REPOSITORY / folder / name.strip()
        else:
            folder = name if name.endswith("/") else ""
            path = REPOSITORY / name
        assert path.exists() or name == "data/workspace/", name
