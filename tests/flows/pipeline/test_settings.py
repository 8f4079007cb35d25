"""Settings come from defaults, a file and the command line, in that order, and mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutline.flows.pipeline.settings import read_settings, settings_with
from cutline.schemas.errors import UsageError
from cutline.schemas.settings import Settings, expanded
from cutline.tasks.bundles.bundle import PRETRAINED, load_bundle
from tests.support.limits import within_limits


def test_without_anything_the_defaults_hold() -> None:
    assert read_settings(None, []) == Settings()


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    config = tmp_path / "cutline.yaml"
    config.write_text("images: {crop: pad, side_px: 128}\nfusion:\n  kind: concat\n")
    settings = read_settings(config, ["images.crop=squash", "predictions.beam=5"])
    assert settings.images.crop == "squash"
    assert settings.images.side_px == 128
    assert settings.fusion.kind == "concat"
    assert settings.predictions.beam == 5


@pytest.mark.parametrize(
    ("asked", "beam"),
    [
        ({"alternatives": 5}, 20),  # as it was trained with
        ({"alternatives": 30}, 30),
        ({"alternatives": 30, "beam": 40}, 40),
        ({"beam": 2}, 2),
    ],
)
def test_the_beam_is_wide_enough_for_the_alternatives_unless_its_width_was_said(
    asked: dict[str, int], beam: int
) -> None:
    assert settings_with(load_bundle(PRETRAINED), {"predictions": asked}).predictions.beam == beam


def test_more_alternatives_than_the_beam_that_was_asked_for_are_refused() -> None:
    with pytest.raises(UsageError, match="alternatives=5: expected at most the beam"):
        settings_with(load_bundle(PRETRAINED), {"predictions": {"beam": 2, "alternatives": 5}})
    with pytest.raises(UsageError, match="alternatives=5: expected at most the beam"):
        read_settings(None, ["predictions.beam=2", "predictions.alternatives=5"])


def test_a_stage_that_does_not_exist_is_told_from_one_that_the_bundle_has_settled() -> None:
    bundle = load_bundle(PRETRAINED)
    with pytest.raises(UsageError, match="predictoins does not exist; did you mean predictions"):
        settings_with(bundle, {"predictoins": {"beam": 3}})
    with pytest.raises(UsageError, match="setting images: the bundle was trained with its own"):
        settings_with(bundle, {"images": {"crop": "pad"}})


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("images.crp=pad", "did you mean images.crop"),
        ("image.crop=pad", "did you mean images"),
        ("images.crop=round", "'centre', 'pad' or 'squash'"),
        ("predictions.beam=many", "predictions.beam"),
        ("predictions.beam=0", "greater than or equal to 1"),
        ("predictions.beam=true", "predictions.beam: .*expected a number, found True"),
        ("fusion.dropout=false", "fusion.dropout: .*expected a number, found False"),
        ("fusion.dropout=no", "fusion.dropout: .*number.*, found 'no'"),
        ("ingest.max_pixels=12:30", "ingest.max_pixels: .*integer.*, found '12:30'"),
        ("images.side_px=0o1", "greater than or equal to 32, found 1"),
        ("images.side_px=!!python/name:os.system", "tag:yaml.org,2002:python/name:os.system"),
        ("images.side_px={a: 1, a: 2}", "'a' comes twice"),
        ("images.side_px={[1]: 2}", "a name before the colon"),
        ("predictions.alternatives=65", "less than or equal to 64"),
        ("fusion.seed=-1", "greater than or equal to 0"),
        ("fusion.learning_rate=.inf", "finite"),
        ("crop=pad", "expected STAGE.KEY=VALUE"),
        ("images.crop", "expected STAGE.KEY=VALUE"),
        (f"ingest.max_pixels={'9' * 5000}", "digits"),
        (f"images.crop={'[' * 2000}", "recursion"),
    ],
)
def test_a_mistake_is_named_with_what_was_expected(assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_settings(None, [assignment])


def test_scalars_are_those_of_yaml_1_2() -> None:
    """YAML 1.1 has octal, sexagesimal and binary numbers, dates, and yes and no for true and false."""
    settings = read_settings(None, ["images.side_px=0224", "fusion.seed=0x1F", "tokens.stopwords=2024-13-45"])
    assert settings.images.side_px == 224
    assert settings.fusion.seed == 31
    assert settings.tokens.stopwords == "2024-13-45"
    assert read_settings(None, ["fusion.learning_rate=1e-4"]).fusion.learning_rate == 1e-4
    assert read_settings(None, ["tokens.stopwords=no"]).tokens.stopwords == "no"


def test_a_merge_takes_what_is_not_said_beside_it(tmp_path: Path) -> None:
    config = tmp_path / "cutline.yaml"
    config.write_text(
        "predictions: {beam: 5, max_tokens: 9, alternatives: 2}\n"
        "fusion: {<<: {epochs: 2, heads: 8}, heads: 2}\n"
        "language_model:\n  <<: [{epochs: 7}, {epochs: 8, patience: 3}]\n"
    )
    settings = read_settings(config, [])
    assert (settings.predictions.beam, settings.predictions.max_tokens) == (5, 9)
    assert (settings.fusion.epochs, settings.fusion.heads) == (2, 2)
    assert (settings.language_model.epochs, settings.language_model.patience) == (7, 3)


def refusal(config: str) -> str:
    """What is wrong with a file of settings; run in a child."""
    try:
        read_settings(Path(config), [])
    except UsageError as error:
        return str(error)
    return ""


def laughs(levels: int, link: str) -> str:
    """Each level holds ten times the one before it: `link` is how an alias is held."""
    lines = ["a0: &a0 {lol: 1}"]
    for level in range(1, levels):
        aliases = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} {link.format(aliases)}")
    return "\n".join(lines)


HOSTILE = {
    "billion laughs": laughs(9, "[{}]"),
    "billion laughs as merges": laughs(9, "{{<<: [{}]}}"),
    "30,000 keys": "images:\n" + "".join(f"  k{i}: 1\n" for i in range(30_000)),
    "900 keys": "images:\n" + "".join(f"  k{i}: 1\n" for i in range(900)),
    "900 stages": "".join(f"k{i}: {{}}\n" for i in range(900)),
    "a list that holds itself": "images: &a [*a]",
    "a mapping that holds itself": "images: &a {crop: *a}",
    "a merge of itself": "images: &a {<<: *a}",
    "60,000 brackets": "[" * 60_000,
    "60,000 braces": "{" * 60_000,
    "60,000 question marks": "? " * 30_000,
    "60,000 hyphens": "- " * 30_000,
    "a long name": "images: {" + "k" * 50_000 + ": 1}",
    "a long value": "images: {crop: " + "k" * 50_000 + "}",
    "a long number": "images: {side_px: " + "9" * 50_000 + "}",
    "many anchors": "images: [" + ", ".join(f"&a{i} 1" for i in range(8_000)) + "]",
    "a megabyte": "images: {crop: pad}\n" + "#" * 2**20,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_settings_cost_little_and_are_refused_in_a_few_words(tmp_path: Path, kind: str) -> None:
    config = tmp_path / "cutline.yaml"
    config.write_text(HOSTILE[kind])
    cost = within_limits("tests.flows.pipeline.test_settings", "refusal", str(config))
    assert 0 < len(cost.result) < 5_000
    assert cost.memory_bytes < 200 * 2**20


def test_a_switch_is_still_one_and_a_whole_number_is_a_share() -> None:
    settings = read_settings(None, ["evaluate.meteor=yes", "fusion.dropout=0"])
    assert (settings.evaluate.meteor, settings.fusion.dropout) == (True, 0.0)


@pytest.mark.parametrize(
    "text", ["[1, 2]", "images: pad", "images: {crop: [", "\xff\xfe", "images: {crop: 2024-13-45}"]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    config = tmp_path / "cutline.yaml"
    config.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError):
        read_settings(config, [])


@pytest.mark.parametrize("setting", ["~/list.txt", "~nobody-of-that-name/list.txt"])
def test_without_a_home_folder_a_path_with_a_tilde_is_a_path_like_another(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    expected = setting.replace("~/", "/home/someone/")
    assert expanded(setting) == Path(expected)


def test_settings_cannot_change_under_a_run() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().images.crop = "pad"  # type: ignore[misc]


def test_a_stage_that_comes_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "cutline.yaml"
    config.write_text("images: {crop: pad}\nimages: {side_px: 64}\n")
    with pytest.raises(UsageError, match="'images' comes twice"):
        read_settings(config, [])
