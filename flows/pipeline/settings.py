"""Settings from a YAML file, from assignments on the command line, and from a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cutline.flows.pipeline.safe_yaml import MAX_BYTES, load_yaml
from cutline.schemas.errors import UsageError
from cutline.schemas.records import RunRecord
from cutline.schemas.settings import Settings
from cutline.tasks.bundles.bundle import Bundle, FeatureOrigin
from cutline.tasks.features.cnn import weights_digest
from cutline.tasks.ingest.layouts.registry import check_layout
from cutline.tasks.runtime.formatting import clip

Tree = dict[str, dict[str, Any]]

# What a text that is no YAML raises: also a number of 5,000 digits, 1,000 brackets.
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
MOST_EXPLAINED = 10  # mistakes that are named one by one
# Stages whose settings may differ from those that a bundle was trained with.
CHANGEABLE = ("ingest", "predictions", "image_features")


def read_settings(config: Path | None, assignments: Sequence[str]) -> Settings:
    """The defaults, overridden by a YAML file, overridden by assignments. Raises UsageError."""
    tree = merge(read_config(config) if config else {}, parse_assignments(assignments))
    return _wide_enough(make_settings(tree), tree)


def read_config(path: Path) -> Tree:
    """A YAML file that maps stages to settings. Raises UsageError."""
    try:
        with path.open(encoding="utf-8") as file:
            read = load_yaml(file.read(MAX_BYTES + 1))
    except NOT_YAML as error:
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
            tree.setdefault(stage, {})[key] = load_yaml(value)
        except NOT_YAML as error:
            raise UsageError(f"--set {clip(assignment, 80)}: {error}") from None
    return tree


def merge(base: Mapping[str, Mapping[str, Any]], over: Mapping[str, Mapping[str, Any]]) -> Tree:
    """Settings of `base` with those of `over` in their place."""
    return {stage: {**base.get(stage, {}), **over.get(stage, {})} for stage in {**base, **over}}


def make_settings(tree: Mapping[str, Mapping[str, Any]]) -> Settings:
    """The settings of a tree; UsageError names what is wrong, and what was perhaps meant."""
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        problems = error.errors()
        lines = [_explain(problem) for problem in problems[:MOST_EXPLAINED]]
        if len(problems) > MOST_EXPLAINED:
            lines.append(f"and {len(problems) - MOST_EXPLAINED:,} more such")
        raise UsageError("\n".join(lines)) from None
    check_layout(settings.ingest.layout)
    return settings


def settings_of_run(run: RunRecord) -> Settings:
    """The settings that a run was made with. Raises UsageError where they are another version's."""
    try:
        return make_settings(run.settings)
    except UsageError as error:
        raise UsageError(
            f"run {run.run} was made by another version of Cutline, which has other settings; "
            f"`cutline run` its data set again ({error})"
        ) from None


def settings_with(bundle: Bundle, tree: Tree) -> Settings:
    """The settings that a bundle was trained with, and `tree` where that changes no feature.

    The beam is as wide as there are alternatives, where `tree` names no beam.
    Raises UsageError for a stage that captioning does not have, and for more alternatives than the beam
    that is asked for; StaleModel for features that the bundle was not trained on.
    """
    foreign = [stage for stage in tree if stage in Settings.model_fields and stage not in CHANGEABLE]
    if foreign:
        raise UsageError(
            f"setting {foreign[0]}: the bundle was trained with its own; "
            f"here {', '.join(CHANGEABLE)} can be set"
        )
    trained = bundle.description
    of_bundle: Tree = {
        "images": trained.features.images.model_dump(),
        "image_features": {"network": trained.features.network},
        "language_model": trained.language_model.model_dump(),
        "fusion": trained.fusion.model_dump(),
        "predictions": trained.predictions.model_dump(),
    }
    settings = _wide_enough(make_settings(merge(of_bundle, tree)), tree)
    caption = settings.predictions
    if "beam" not in tree.get("predictions", {}) and caption.alternatives > caption.beam:
        wider = caption.model_copy(update={"beam": caption.alternatives})
        settings = settings.model_copy(update={"predictions": wider})
    ours = weights_digest(settings.image_features)
    bundle.check_features(
        FeatureOrigin.of(settings.images, settings.image_features, ours, trained.features.channels)
    )
    return settings


def _wide_enough(settings: Settings, tree: Mapping[str, Mapping[str, Any]]) -> Settings:
    """The settings; UsageError where `tree` asks for more alternatives than for a beam."""
    caption = settings.predictions
    if {"beam", "alternatives"} <= tree.get("predictions", {}).keys() and caption.alternatives > caption.beam:
        raise UsageError(
            f"predictions.alternatives={caption.alternatives}: expected at most the beam, which was asked "
            f"to be {caption.beam}; widen predictions.beam, or ask for fewer"
        )
    return settings


def _explain(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"setting {clip(name, 80)}: {problem['msg']}, found {clip(repr(problem['input']), 200)}"
    stages = Settings.model_fields
    stage = str(problem["loc"][0])
    if len(problem["loc"]) == 1:
        known = list(stages)
    else:
        known = [f"{stage}.{key}" for key in stages[stage].annotation.model_fields]  # type: ignore[union-attr]
    close = get_close_matches(name[:80], known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return f"setting {clip(name, 80)} does not exist; {hint}"
