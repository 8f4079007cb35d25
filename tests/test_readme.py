"""The READMEs are true: their tables, commands, imports, links and the tree of folders."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from cutline.flows.cli.main import main
from cutline.tasks.ingest.layouts.registry import LAYOUTS
from tests import REPOSITORY
from tests.regenerate_readme import README as GENERATED
from tests.regenerate_readme import renewed

MAIN = (REPOSITORY / "README.md").read_text(encoding="utf-8")
READMES = [
    REPOSITORY / name
    for name in (
        "README.md",
        "data/pretrained/EXPERIMENTS.md",
        "flows/dashboard/README.md",
        "flows/deployment/README.md",
        "schemas/README.md",
        "tasks/README.md",
        "tests/benchmarks/README.md",
    )
]
TEXTS = {readme: readme.read_text(encoding="utf-8") for readme in READMES}
COMMANDS = [
    line.split(" #")[0].strip()
    for text in TEXTS.values()
    for block in re.findall(r"```console\n(.*?)```", text, flags=re.S)
    for line in re.findall(r"^\$ (.*)$", block, flags=re.M)
]


def test_the_readme_is_short_enough_for_a_newcomer() -> None:
    assert len(MAIN.splitlines()) <= 170


def test_the_generated_tables_are_those_of_the_code() -> None:
    text = TEXTS[GENERATED]
    assert renewed(text) == text, "run: python -m tests.regenerate_readme"


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.split()[0] == "cutline"])
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


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("python -m ")])
def test_each_module_that_is_to_be_run_exists(command: str) -> None:
    module = REPOSITORY.joinpath(*command.split()[2].split("."))
    assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()


def test_every_command_of_the_program_is_in_the_readme() -> None:
    for name in main.commands:
        assert f"cutline {name}" in MAIN


def test_the_names_that_the_python_example_imports_exist() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", MAIN, flags=re.S)
    imports = re.findall(r"^(?:from|import) .*$", example, flags=re.M)
    assert imports
    exec("\n".join(imports), {})


def test_the_layouts_listed_are_those_that_are_read() -> None:
    table = MAIN.partition("| layout | recognised by |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, flags=re.M)) == {layout.name for layout in LAYOUTS}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_to_files_and_headings_that_exist(readme: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXTS[readme]):
        path, _, heading = target.partition("#")
        file = readme.parent / path
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.M)
            assert heading in [one.lower().replace(" ", "-") for one in headings], target


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_settings_named_in_the_text_exist(readme: Path) -> None:
    from cutline.schemas.settings import Settings

    known = {
        f"{stage}.{name}"
        for stage, field in Settings.model_fields.items()
        for name in field.annotation.model_fields  # type: ignore[union-attr]
    }
    named = re.findall(
        rf"`(?:--set )?((?:{'|'.join(Settings.model_fields)})\.\w+)(?:=[^`]*)?`", TEXTS[readme]
    )
    assert {name for name in named if not name.endswith((".py", ".md"))} <= known


def test_the_files_of_the_annotated_tree_exist() -> None:
    tree = MAIN.partition("## Layout of the repository")[2].partition("```")[2].partition("```")[0]
    names = re.findall(r"^([\w./]+/)(?= {2,})", tree, flags=re.M)
    assert len(names) == 7
    for name in names:
        assert (REPOSITORY / name).exists() or name == "data/workspace/", name
