"""Settings from a YAML file and from assignments on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from schemas.errors import UsageError
from schemas.settings import Settings

Tree = dict[str, dict[str, Any]]


def read_settings(config: Path | None, assignments: Sequence[str]) -> Settings:
    """The defaults, overridden by a YAML file, overridden by assignments. Raises UsageError."""
    return make_settings(merge(read_config(config) if config else {}, parse_assignments(assignments)))


def read_config(path: Path) -> Tree:
    """A YAML file that maps stages to settings. Raises UsageError."""
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: expected YAML, found: {error}") from None
    if read is None:
        return {}
    if not isinstance(read, dict) or not all(isinstance(stage, dict) for stage in read.values()):
        raise UsageError(f"{path}: expected a mapping of stages to settings, such as 'images: {{crop: pad}}'")
    return read


def parse_assignments(assignments: Sequence[str]) -> Tree:
    """["images.crop=pad"] → {"images": {"crop": "pad"}}; values are YAML. Raises UsageError."""
    tree: Tree = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        stage, dot, key = name.partition(".")
        if not (equals and dot and key):
            raise UsageError(f"--set {assignment}: expected STAGE.KEY=VALUE, such as images.crop=pad")
        try:
            tree.setdefault(stage, {})[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {assignment}: {error}") from None
    return tree


def merge(base: Mapping[str, Mapping[str, Any]], over: Mapping[str, Mapping[str, Any]]) -> Tree:
    """Settings of `base` with those of `over` in their place."""
    return {stage: {**base.get(stage, {}), **over.get(stage, {})} for stage in {**base, **over}}


def make_settings(tree: Mapping[str, Mapping[str, Any]]) -> Settings:
    """The settings of a tree; UsageError names what is wrong, and what was perhaps meant."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise UsageError("\n".join(_explain(problem) for problem in error.errors())) from None


def _explain(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"setting {name}: {problem['msg']}, found {problem['input']!r}"
    stages = Settings.model_fields
    stage = str(problem["loc"][0])
    if len(problem["loc"]) == 1:
        known = list(stages)
    else:
        known = [f"{stage}.{key}" for key in stages[stage].annotation.model_fields]  # type: ignore[union-attr]
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return f"setting {name} does not exist; {hint}"
