"""`cutline generate` as its users type it: lines, captions of a photograph, what is copied, perplexity."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from cutline.flows.cli.main import main
from cutline.flows.commands.generate import real_captions
from cutline.tasks.bundles.bundle import PRETRAINED, load_bundle
from cutline.tasks.storage.tables import empty_table
from cutline.tasks.storage.workspace import bundle_at
from cutline.tasks.text.tokenizer import tokenize
from tests.flows.conftest import Ran, cutline, draw
from tests.support.datasets import an_id
from tests.support.histories import Written


def generate(*arguments: str | Path | int, code: int = 0) -> Result:
    """Run the command in this process; its exit code must be `code`."""
    result = CliRunner().invoke(main, ["generate", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def found(*arguments: str | Path | int) -> dict[str, Any]:
    return json.loads(generate(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def model(ran: Ran) -> list[str]:
    return ["--model", ran.record["bundle"], "--workspace", str(ran.workspace)]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "new.png"
    draw(path, 61)
    return path


def test_lines_are_printed_one_each_and_are_the_same_next_time(ran: Ran, model: list[str]) -> None:
    arguments = ["A small", "--count", 5, "--temperature", ".8", "--top-p", ".9", "--seed", 1]
    lines = generate(*arguments, *model).stdout.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("a small ") and "<" not in line for line in lines)
    # Another process, and the bundle found by itself.
    again = cutline("generate", *map(str, arguments), "--workspace", ran.workspace)
    assert again.stdout.splitlines() == lines
    assert f"model: {Path(ran.record['bundle']).name}" in again.stderr.splitlines()
    assert generate("A small", "--count", 2, *arguments[3:], *model).stdout.splitlines() == lines[:2]


def test_without_a_text_it_begins_anew(model: list[str]) -> None:
    record = found("--count", 3, "--max-tokens", 4, *model)
    assert record["text"] == ""
    for line in record["lines"]:
        assert 1 <= len(line["tokens"]) <= 4
        assert line["log_probability"] < line["score"] < 0


def test_words_that_the_model_does_not_know_are_told(model: list[str]) -> None:
    result = generate("a Zeppelin", *model)
    assert "does not know 'zeppelin'" in result.stderr
    assert result.stdout.startswith("a zeppelin ")
    assert found("a Zeppelin", *model)["unknown_words"] == ["zeppelin"]


def test_captions_of_a_photograph_come_with_the_real_ones_nearest_to_them(
    ran: Ran, model: list[str], photo: Path
) -> None:
    record = found("--photo", photo, "--count", 4, "--retrieve", 2, *model)
    texts = [
        line.partition("\t")[2] for line in (ran.dataset / "Flickr8k.token.txt").read_text().splitlines()
    ]
    assert len({line["text"] for line in record["lines"]}) > 1
    for line in record["lines"]:
        assert len(line["nearest"]) == 2
        assert {near["caption"] for near in line["nearest"]} <= set(texts)
    other = photo.with_name("other.png")
    draw(other, 4)
    elsewhere = found("--photo", other, "--count", 4, *model)
    assert [line["score"] for line in elsewhere["lines"]] != [line["score"] for line in record["lines"]]


def test_copies_are_marked(tmp_path: Path, ran: Ran, model: list[str]) -> None:
    lines = [line["text"] for line in found("a", "--count", 2, "--seed", 9, *model)["lines"]]
    captions = tmp_path / "captions.jsonl"
    captions.write_text(
        json.dumps({"path": "a.jpg", "captions": [f"{lines[0].capitalize()} !", "nothing alike"]})
    )
    result = generate("a", "--count", 2, "--seed", 9, "--captions", captions, "--retrieve", 1, *model)
    printed = result.stdout.splitlines()
    assert printed[0] == lines[0]
    assert printed[1].split() == ["copy", *lines[0].capitalize().split(), "!"]
    assert ("copy" in printed[3]) == (lines[1] == lines[0])
    # A data set that was run serves as well as a file; three captions where no number is said.
    nearest = found("a", "--captions", ran.dataset, *model, "--retrieve")["lines"][0]["nearest"]
    assert len(nearest) == 3


def test_the_perplexity_of_a_text_is_printed_and_what_it_counts_is_told(
    tmp_path: Path, model: list[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A small red square on a grey wall .\n\nThere is a zeppelin\n")
    result = generate("--perplexity", text, *model)
    record = found("--perplexity", text, *model)
    assert float(result.stdout) == pytest.approx(record["perplexity"], abs=0.01)
    assert "2 captions, 14 tokens with their ends, of which 1 (7.1%) are <unk>: zeppelin" in result.stderr
    assert (record["tokens"], record["unknown"], record["without_words"]) == (14, 1, 1)
    likely, unlikely = tmp_path / "likely.txt", tmp_path / "unlikely.txt"
    likely.write_text("A small red square on a grey wall .")
    unlikely.write_text("wall grey a on square red small a")
    perplexities = [found("--perplexity", file, *model)["perplexity"] for file in (likely, unlikely)]
    assert perplexities[0] < perplexities[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--temperature", "-1"], "temperature: expected a number of at least 0"),
        (["a", "--top-p", "nan"], "top-p: expected a number above 0"),
        (["...!"], "text: expected a word"),
        (["a", "--perplexity", __file__], "leave TEXT and --photo out"),
        (["a", "--captions", __file__], "add --retrieve"),
        (["a", "--captions", __file__, "--retrieve", "1"], "expected captions as"),
        (["a", "--set", "ingest.max_pixels=5"], "add --photo"),
        (["a", "--count", "0"], "x>=1"),
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_2_and_says_what_was_expected(
    arguments: list[str], message: str, model: list[str]
) -> None:
    assert message in generate(*arguments, *model, code=2).output


def test_a_bundle_that_was_moved_asks_where_the_captions_are(ran: Ran, tmp_path: Path) -> None:
    shutil.copytree(ran.record["bundle"], tmp_path / "bundle")
    result = generate(
        "a", "--model", tmp_path / "bundle", "--retrieve", 1, "--workspace", ran.workspace, code=2
    )  # fmt: skip
    assert "--captions" in result.output


def test_the_run_of_a_bundle_is_found_without_fetching_the_bundles_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUTLINE_CACHE", str(tmp_path / "cache"))
    where = f"memory://{tmp_path.name}"
    written = Written(Path(where), tmp_path)
    for number, text in enumerate(["a caption of the first run", "a caption of the second run"]):
        captions = pl.DataFrame(
            {
                "caption_id": [an_id(number)],
                "photo_id": [None],
                "missing_photo": [None],
                "text": [text],
                "split": ["train"],
            },
            schema=empty_table("captions").schema,
        )
        key = written.shard("ingest", an_id(10 + number), {"captions": captions})
        written.run(f"2026010{number + 1}-000000-000001", {"ingest": [key]})
    store = written.workspace
    assert store.store
    for number, run in enumerate(reversed(list(store.runs()))):
        store.write_run(run.model_copy(update={"bundle": f"{where}/bundles/trained-{number}"}))
        store.store.write(f"bundles/trained-{number}/bundle.json", b"{}")
    first = bundle_at(f"{where}/bundles/trained-0")
    assert list(real_captions(None, first, Path(where))) == ["a caption of the first run"]
    assert [path.name for path in first.parent.iterdir()] == ["trained-0"]


def test_where_nothing_was_trained_the_model_in_the_box_writes(tmp_path: Path) -> None:
    line = generate("a dog", "--temperature", 0, "--workspace", tmp_path / "empty").stdout.strip()
    assert line.startswith("a dog ")
    known = set(load_bundle(PRETRAINED).vocabulary["token"])
    assert set(tokenize(line)) <= known


def test_a_file_that_is_no_photograph_is_named(model: list[str]) -> None:
    result = generate("--photo", __file__, *model, code=1)
    assert f"photograph '{__file__}'" in result.output


def test_a_photograph_cannot_be_prepared_in_another_way_than_the_bundles(
    model: list[str], photo: Path
) -> None:
    result = generate("--photo", photo, "--set", "images.crop=pad", *model, code=2)
    assert "the bundle was trained with its own" in result.output
