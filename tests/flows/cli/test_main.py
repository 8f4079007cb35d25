"""The command line as its users type it: outputs, messages, exit codes."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from cutline.flows.cli.main import main
from cutline.flows.commands.caption import common_folder
from cutline.schemas.tables import dtypes_of
from tests import REPOSITORY
from tests.flows.conftest import Ran, cutline, draw, small


def ask(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and all output of a command, in this process."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_with_examples(command: str) -> None:
    code, output = ask(command, "--help")
    assert code == 0
    assert f"cutline {command}" in output.partition("Examples:")[2]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["caption", ".", "--out", "c.csv", "--attention", "a.txt"],
            "--attention 'a.txt': expected a name that ends in .parquet",
        ),
        (
            ["search", "a dog", "--html", "x.txt"],
            "--html 'x.txt': expected a name that ends in .html or .htm",
        ),
    ],
)
def test_a_name_of_another_form_than_what_is_written_is_refused(
    arguments: list[str], expected: str, tmp_path: Path
) -> None:
    code, output = ask(*arguments, "--workspace", tmp_path)
    assert (code, expected in output) == (2, True), output


def test_the_list_of_commands_cuts_no_sentence_off() -> None:
    code, output = ask("--help")
    commands = output.partition("Commands:")[2].strip().splitlines()
    assert code == 0
    assert len(commands) == len(main.commands)
    assert all(line.endswith(".") and not line.endswith("..") for line in commands)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "/no/such/folder"], "expected a folder or a file, found nothing there"),
        (["run", ".", "--set", "images.crop=round"], "'centre', 'pad' or 'squash'"),
        (["run", ".", "--config", "/no/such/file"], "does not exist"),
        (["status"], "Missing argument"),
        (["frobnicate"], "No such command"),
        (
            ["caption", "no.jpg", "--out", "c.csv"],
            "'no.jpg': expected a photograph or a folder, found nothing",
        ),
        (
            ["caption", "https://a.org/b.jpg?w=9", "--out", "c.csv"],
            "'https://a.org/b.jpg?w=9': addresses are not",
        ),
        (["prune", "--workspace", "/no/such/folder"], "found no workspace there"),
        (["prune", "--workspace", "tests"], "found no workspace there"),
        (
            ["serve", ".", "--timezone", "Foo/Bar"],
            "--timezone Foo/Bar: expected a time zone such as Europe/Vienna",
        ),
        (["caption", ".", "--model", ".", "--out", "captions.txt"], "ends in .parquet, .jsonl, .csv, .json"),
        (["caption", ".", "--model", ".", "--out", "captions.csv"], "is no bundle"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_was_expected(arguments: list[str], message: str) -> None:
    code, output = ask(*arguments)
    assert code == 2
    assert message in output


def test_a_folder_without_photographs_or_captions_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing here")
    code, output = ask("run", tmp_path, "--workspace", tmp_path / "w")
    assert code == 2
    assert "looked for" in output
    assert "1 × .md" in output


def test_without_captions_to_learn_from_a_run_names_the_tables_that_it_did_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    draw(folder / "4711.png", 1)
    (folder / "products.csv").write_text("sku;description\n4711;A red ball\n")
    code, output = ask("status", folder, "--workspace", tmp_path / "w")
    assert code == 2
    assert "no training captions" in output
    assert "products.csv was not read" in output


NO_SPACE = "left on the disk of '{where}': free some and run it again; what was made is kept"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), f"no space is {NO_SPACE}"),
        (
            pl.exceptions.ComputeError("parquet: underlying IO error: No space left on device (os error 28)"),
            f"no space is {NO_SPACE}",
        ),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), f"no space of your quota is {NO_SPACE}"),
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS)),
            "'{where}': expected a disk that can be written, found a read-only one; --workspace and --out "
            "name other places",
        ),
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), "{where}/tmp/new/half"),
            "'{where}': expected to be let at it, found no permission; change who may (chmod, chown); "
            "--workspace and --out name other places",
        ),
    ],
)
def test_a_disk_that_cannot_be_written_is_told_of_in_one_line(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_arguments: object) -> None:
        if isinstance(error, OSError) and error.filename:
            error.filename = error.filename.format(where=tmp_path)
        raise error

    monkeypatch.setattr("cutline.flows.commands.run.run", fail)
    code, output = ask("run", "data/sample", "--workspace", tmp_path)
    assert code == 1
    assert output == f"cutline: {told.format(where=tmp_path)}\n"


def test_a_workspace_that_cannot_be_written_is_told_of_before_a_server_is_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "cutline.flows.orchestration.runners.choose_server", lambda _root: pytest.fail("it was looked for")
    )
    code, output = ask("run", "data/sample", "--workspace", "/sys/cutline")  # where nobody may make folders
    assert code == 1
    assert re.fullmatch(r"cutline: '/(sys)?': expected .*, found .*\n", output)


def test_more_rejects_than_the_set_rate_end_with_3(ran: Ran, tmp_path: Path) -> None:
    copy = ran.copy(tmp_path)
    arguments = ["run", copy.dataset, "--workspace", copy.workspace, *small()]
    done = cutline(*arguments, "--set", "ingest.max_reject_rate=0.01", check=False)
    assert done.returncode == 3, done.stderr
    assert "more than ingest.max_reject_rate=1.0%" in done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs that nobody captioned, one twice, one broken."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "sub").mkdir()
    for number, name in enumerate(["000000000139.png", "sub/two.png", "<script>.png"]):
        draw(root / name, 60 + number)
    (root / "copy.png").write_bytes((root / "sub/two.png").read_bytes())
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much of a photograph")
    return root


@pytest.fixture(scope="module")
def captioned(ran: Ran, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The folder captioned once; the other forms of output reuse it."""
    out = tmp_path_factory.mktemp("out")
    return out, json.loads(caption(ran, folder, out, "captions.parquet").stdout)


def caption(ran: Ran, folder: Path, out: Path, name: str, *arguments: str | Path):
    return cutline(
        "caption", folder, "--model", ran.record["bundle"], "--out", out / name,
        "--workspace", out / "workspace", "--json", "--set", "ingest.max_reject_rate=0.5", *arguments,
    )  # fmt: skip


def test_every_file_of_a_folder_is_captioned_copies_too(captioned: tuple[Path, dict]) -> None:
    out, record = captioned
    frame = pl.read_parquet(out / "captions.parquet")
    assert frame["path"].to_list() == ["000000000139.png", "<script>.png", "copy.png", "sub/two.png"]
    assert frame["photo_id"].n_unique() == 3
    assert record["captions"] == str(out / "captions.parquet")
    assert [stage["name"] for stage in record["stages"]] == [
        "ingest", "images", "image_features", "predictions", "index", "caption_index"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv", "captions.json"])
def test_other_forms_hold_the_same_captions_and_make_nothing(
    ran: Ran, folder: Path, captioned: tuple[Path, dict], name: str
) -> None:
    out, _ = captioned
    record = json.loads(caption(ran, folder, out, name).stdout)
    assert ran.made(record) == {}
    expected = pl.read_parquet(out / "captions.parquet")
    if name.endswith(".jsonl"):
        rows = [json.loads(line) for line in (out / name).read_text().splitlines()]
        assert [(row["path"], row["caption"]) for row in rows] == expected.select("path", "caption").rows()
    elif name.endswith(".csv"):
        assert pl.read_csv(out / name).select("path", "caption").equals(expected.select("path", "caption"))
    else:
        rows = json.loads((out / name).read_text())
        assert [row["caption"] for row in rows] == expected["caption"].to_list()
        assert [row["image_id"] for row in rows] == [139, "<script>.png", "copy.png", "sub/two.png"]


def test_what_could_not_be_captioned_is_listed_and_not_trained_on(captioned: tuple[Path, dict]) -> None:
    out, _ = captioned
    code, output = ask("rejects", "--workspace", out / "workspace")
    assert (code, "broken.jpg" in output) == (0, True)
    code, output = ask("rejects", "--retry", "--workspace", out / "workspace")
    assert code == 2
    assert "call `cutline caption` again" in output


def test_photographs_are_found_in_whatever_way_they_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "sub")
    names = [Path("two.png"), Path("../000000000139.png"), Path("../sub/../copy.png")]
    expected = folder, ["000000000139.png", "copy.png", "sub/two.png"]
    assert common_folder(names) == expected
    link = folder.with_name("link")
    link.symlink_to(folder / "sub", target_is_directory=True)
    assert common_folder([link / "two.png", *names[1:]]) == expected


def test_captions_are_as_short_and_as_many_as_asked_with_where_the_model_looked(
    ran: Ran, folder: Path, captioned: tuple[Path, dict]
) -> None:
    out, _ = captioned
    record = json.loads(
        caption(
            ran, folder, out, "few.parquet", "--max-words", "2", "--alternatives", "4",
            "--attention", out / "attention.parquet", "--set", "predictions.cider_weight=0",
        ).stdout
    )  # fmt: skip
    assert ran.made(record)["predictions"] >= 1
    frame = pl.read_parquet(out / "few.parquet")
    assert frame["caption"].str.split(" ").list.len().max() <= 2
    assert frame["alternatives"].list.len().to_list() == [4] * 4
    scores = frame["alternatives"].list.eval(pl.element().struct.field("score"))
    assert all(some.to_list() == sorted(some, reverse=True) for some in scores)
    looked = pl.read_parquet(out / "attention.parquet").join(frame.unique("photo_id"), on="photo_id")
    assert looked.height == 3
    for words, weights, said in looked.select("words", "weights", "caption").iter_rows():
        assert " ".join(words) == said
        assert len(weights) == len(words)


def test_where_no_photograph_can_be_used_no_file_of_yesterday_stands_for_todays(
    ran: Ran, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.jpg").write_bytes((folder / "broken.jpg").read_bytes())
    attention = tmp_path / "attention.parquet"
    attention.write_bytes(b"yesterday's")
    told = ("--set", "ingest.max_reject_rate=1", "--attention", attention)
    done = caption(ran, tmp_path / "photos", tmp_path, "captions.parquet", *told)
    assert sum(stage["rejected"] for stage in json.loads(done.stdout)["stages"]) == 1
    assert pl.read_parquet(tmp_path / "captions.parquet").height == 0
    looked = pl.read_parquet(attention)
    assert looked.height == 0
    assert looked.schema == dtypes_of("attention", regions=9)


def test_single_files_are_captioned_alone(ran: Ran, folder: Path, captioned: tuple[Path, dict]) -> None:
    out, _ = captioned
    done = cutline(
        "caption", folder / "sub/two.png", folder / "000000000139.png", "--model", ran.record["bundle"],
        "--out", out / "two.csv", "--workspace", out / "workspace",
    )  # fmt: skip
    assert "rows" not in done.stdout
    assert f"model: {Path(ran.record['bundle']).name}" in done.stderr.splitlines()
    few, all_ = pl.read_csv(out / "two.csv"), pl.read_parquet(out / "captions.parquet")
    assert few["path"].to_list() == ["000000000139.png", "sub/two.png"]
    assert few["caption"].to_list() == all_.filter(pl.col("path").is_in(few["path"]))["caption"].to_list()


def test_a_bundle_refuses_photographs_prepared_in_another_way(ran: Ran, folder: Path, tmp_path: Path) -> None:
    code, output = ask(
        "caption",
        folder,
        "--model",
        ran.record["bundle"],
        "--out",
        tmp_path / "c.csv",
        "--set",
        "images.crop=pad",
    )
    assert code == 2
    assert "the bundle was trained with its own" in output


def test_predictions_are_scored_against_references(tmp_path: Path) -> None:
    captions = {"a": "a dog runs on the beach", "b": "two children play with a red ball"}
    (tmp_path / "said.jsonl").write_text(
        "\n".join(json.dumps({"path": f"{name}.jpg", "caption": text}) for name, text in captions.items())
    )
    (tmp_path / "known.jsonl").write_text(
        "\n".join(json.dumps({"path": f"{name}.jpg", "captions": [text]}) for name, text in captions.items())
    )
    code, output = ask("evaluate", tmp_path / "said.jsonl", tmp_path / "known.jsonl", "--json")
    assert code == 0
    assert json.loads(output)["Bleu_4"] == pytest.approx(1, abs=1e-6)


def test_photographs_that_the_model_learned_from_are_told_of_unless_a_split_is_chosen(
    ran: Ran, tmp_path: Path
) -> None:
    references = ran.dataset / "Flickr8k.token.txt"
    result = CliRunner().invoke(main, ["evaluate", ran.record["captions"], str(references)])
    assert "20 of 30 photographs are of the train split" in result.stderr
    assert "--split test scores the others" in result.stderr
    result = CliRunner().invoke(
        main, ["evaluate", ran.record["captions"], str(references), "--split", "test", "--json"]
    )
    assert "train split" not in result.stderr
    scores = json.loads(result.stdout)
    assert scores == pytest.approx({name: ran.record["scores"][name] for name in scores})


def test_rejects_are_listed_by_reason(ran: Ran) -> None:
    code, output = ask("rejects", ran.dataset, "--workspace", ran.workspace)
    assert code == 0
    assert output.splitlines()[0] == f"rejects of {ran.record['run']} on {ran.dataset}"
    for reason in ("truncated", "empty_caption", "missing_photo"):
        assert reason in output


def test_a_retry_reads_rejects_again_and_takes_the_rest_over(ran: Ran, tmp_path: Path) -> None:
    copy = ran.copy(tmp_path)
    copy.run()
    broken = copy.dataset / "images" / "broken.png"
    times = broken.stat()
    _, small_picture = cv2.imencode(".png", np.full((8, 8, 3), 9, np.uint8))
    # Mended, and nobody noticed: the same size and time.
    broken.write_bytes(small_picture.tobytes().ljust(times.st_size, b"\0"))
    os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert broken.stat().st_size == times.st_size
    assert copy.made(copy.run()) == {}
    done = cutline("rejects", copy.dataset, "--retry", "--workspace", copy.workspace, "--json")
    record = json.loads(done.stdout)
    assert "truncated" not in pl.read_parquet(record["rejects"])["reason"].to_list()
    assert pl.read_parquet(record["captions"]).height == 32


def test_prune_shows_then_removes_what_no_run_refers_to(ran: Ran, tmp_path: Path) -> None:
    copy = ran.copy(tmp_path)
    first = copy.run()
    stray = copy.workspace / "shards" / "images" / f"{'0' * 32}.images.parquet"
    stray.write_bytes(b"x" * 1000)
    result = CliRunner().invoke(main, ["prune", "--workspace", str(copy.workspace)], input="n\n")
    assert "shards/images" in result.output
    assert re.search(r" 1 file +0\.0 MB", result.output)
    assert stray.exists()
    code, output = ask("prune", "--yes", "--workspace", copy.workspace)
    assert (code, stray.exists()) == (0, False)
    assert "removed 1 file" in output
    assert copy.made(copy.run()) == {}
    assert copy.run()["run"] == first["run"]


def test_ctrl_c_ends_the_dashboard_as_what_was_asked_for(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "cutline.flows",
        "dashboard",
        "--port",
        "0",
        "--workspace",
        str(tmp_path),
    ]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        urllib.request.urlopen(process.stdout.readline().split()[-4], timeout=20).read()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "")
    finally:
        process.kill()
    assert process.returncode == 0
