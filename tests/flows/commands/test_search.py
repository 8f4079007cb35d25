"""`cutline search`, as its users type it: on a run, and on a folder that was only captioned."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from cutline.flows.cli.main import main
from cutline.flows.commands.search import search
from tests.flows.conftest import Ran, cutline, draw, small


def found_by(workspace: Path, text: str = "", photo: Path | None = None, top: int = 12, **more: Any) -> dict:
    """What --json prints; in this process, so that TensorFlow is loaded once."""
    return search(text, photo, top, workspace=workspace, **more)


def outputs(ran: Ran, stage: str, name: str) -> list[Path]:
    summary = next(one for one in ran.record["stages"] if one["name"] == stage)
    return [ran.workspace / path for path in summary["outputs"] if path.endswith(name)]


@pytest.fixture(scope="module")
def captioned(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder that was only captioned, and its workspace."""
    folder = tmp_path_factory.mktemp("captioned")
    (folder / "pictures").mkdir()
    for number in range(6):
        draw(folder / "pictures" / f"<b>{number}.png", number)
    bundle = folder / "bundle"
    shutil.copytree(ran.record["bundle"], bundle)
    out = folder / "captions.parquet"
    cutline("caption", folder / "pictures", "--model", bundle, "--out", out, "--workspace", folder / "ws")
    return folder / "pictures", folder / "ws"


def test_a_sentence_finds_photographs_with_names_scores_and_captions(ran: Ran) -> None:
    done = cutline("search", "a large red circle", "--top", "4", "--workspace", ran.workspace)
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    written = dict(pl.read_parquet(ran.record["captions"]).select("path", "caption").iter_rows())
    scores = []
    for line in lines:
        score, path, caption = re.split(r" {2}", line.strip(), maxsplit=2)
        assert caption == written[path]
        scores.append(float(score))
    assert scores == sorted(scores, reverse=True)


def test_a_photograph_finds_itself_what_looks_like_it_and_captions(ran: Ran) -> None:
    found = found_by(ran.workspace, photo=ran.dataset / "images" / "photo03.png", top=5)
    assert found["photos"][0]["path"] == "images/photo03.png"
    assert found["photos"][0]["score"] == pytest.approx(1, abs=0.002)
    assert len(found["photos"]) == 5
    texts = [caption["caption"] for caption in found["captions"]]
    assert len(set(texts)) == len(texts) == 5
    assert set(texts) <= set(pl.read_parquet(outputs(ran, "ingest", "captions.parquet"))["text"])


def test_exact_search_is_brute_force_over_the_table_of_vectors(ran: Ran) -> None:
    table = pl.concat(pl.read_parquet(path) for path in outputs(ran, "index", "vectors.parquet"))
    vectors = table["vector"].to_numpy()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    query = ran.dataset / "images" / "photo05.png"
    exact = found_by(ran.workspace, photo=query, top=31, exact=True)["photos"]
    first = table["photo_id"].to_list().index(exact[0]["photo_id"])
    by_hand = vectors @ vectors[first]
    scores = dict(zip(table["photo_id"], by_hand, strict=True))
    assert [photo["score"] for photo in exact] == pytest.approx(sorted(by_hand, reverse=True), abs=0.005)
    assert all(photo["score"] == pytest.approx(scores[photo["photo_id"]], abs=0.005) for photo in exact)


def test_a_folder_that_was_only_captioned_is_searched_by_words_and_by_photograph(
    captioned: tuple[Path, Path],
) -> None:
    pictures, workspace = captioned
    by_words = found_by(workspace, "a red square", top=3)
    assert by_words["dataset"] == str(pictures)
    assert len(by_words["photos"]) == 3
    by_photo = found_by(workspace, photo=pictures / "<b>2.png", dataset=pictures)
    assert by_photo["photos"][0]["path"] == "<b>2.png"
    written = {photo["caption"] for photo in by_photo["photos"]}
    assert {caption["caption"] for caption in by_photo["captions"]} == written


class Page(HTMLParser):
    """The tags and pictures of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.pictures: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.pictures += [value or "" for name, value in attrs if name == "src"]


def test_the_page_shows_thumbnails_and_escapes_what_it_is_given(
    captioned: tuple[Path, Path], tmp_path: Path
) -> None:
    _, workspace = captioned
    page = tmp_path / "pages of today" / "found.html"
    found_by(workspace, "red <script>square", top=4, html=page)
    text = page.read_text(encoding="utf-8")
    read = Page(text)
    assert len(read.pictures) == 4
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in read.pictures)
    assert "script" not in read.tags
    assert "b" not in read.tags  # the photographs are called <b>0.png
    assert "&lt;script&gt;" in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "expected a TEXT or --photo FILE"),
        (["..."], "expected a word to search by"),
        (["there is a"], "stop words only"),
        (["zzqx"], "no training caption has 'zzqx'"),
        (["red", "--photo", "README.md"], "expected a TEXT or --photo FILE"),
        (["--photo", "gone.jpg"], "'gone.jpg': expected a photograph, found nothing there"),
        (["red", "--dataset", "tests"], "expected an index of 'tests'"),
    ],
)
def test_what_cannot_be_searched_by_is_told_in_words(ran: Ran, words: list[str], told: str) -> None:
    done = CliRunner().invoke(main, ["search", *words, "--workspace", str(ran.workspace)])
    assert done.exit_code == 2
    assert told in done.output


def test_a_bundle_of_before_says_that_it_has_to_be_trained_again(ran: Ran, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(ran.record["bundle"], bundle)
    (bundle / "joint_embedding.npz").unlink()
    photo = ran.dataset / "images" / "photo01.png"
    command = [
        "caption",
        photo,
        "--model",
        bundle,
        "--out",
        tmp_path / "a.csv",
        "--workspace",
        tmp_path / "ws",
    ]
    done = CliRunner().invoke(main, list(map(str, command)))
    assert done.exit_code == 1
    assert "joint_embedding.npz" in done.output
    assert "train it again" in done.output


def test_status_tells_of_the_same_photograph_encoded_again_in_another_split(ran: Ran, tmp_path: Path) -> None:
    copy = ran.copy(tmp_path)
    images = copy.dataset / "images"
    picture = cv2.imread(str(images / "photo02.png"))  # of the train split
    cv2.imwrite(str(images / "photo29.png"), cv2.resize(picture, (240, 180)))  # of the test split
    copy.run()
    done = cutline("status", copy.dataset, "--workspace", copy.workspace, *small())
    assert re.search(r"near-duplicates between splits: \d+ pairs? of photographs", done.stderr)
    leaks = pl.read_parquet(
        max((copy.workspace / "shards" / "leaks").glob("*.parquet"), key=lambda p: p.stat().st_mtime_ns)
    )
    pair = leaks.filter(pl.col("name") == "images/photo29.png", pl.col("other_name") == "images/photo02.png")
    assert pair.select("kind", "split", "other_split").rows() == [("photo", "test", "train")]
    assert pair["similarity"][0] > 0.93
    captions = leaks.filter(pl.col("kind") == "caption")
    assert captions.height  # the drawn captions repeat
    assert (captions["name"].str.to_lowercase() == captions["other_name"].str.to_lowercase()).all()


def test_the_report_shows_searches_and_lines_of_the_language_model(ran: Ran) -> None:
    text = Path(ran.record["report"]).read_text(encoding="utf-8")
    section = text.partition('<section id="search">')[2].partition("</section>")[0]
    assert section.count("<h3") == 4
    assert section.count('src="data:image/jpeg;base64,') == 4 * 5  # the test split holds five
    assert section.count("its own</small>") == 4
    assert text.partition('<section id="lines">')[2].partition("</section>")[0].count("<li") == 12
