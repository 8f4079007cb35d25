"""The report page, read as a browser's parser reads it."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
from PIL import Image

from cutline.schemas.settings import ImagesSettings, ReportSettings, Settings, TokensSettings
from cutline.schemas.tables import REASONS, check, dtypes_of
from cutline.tasks.report.html import ABOUT_DISTANCES, ABOUT_SCORES
from cutline.tasks.report.report import (
    Counts,
    GalleryItem,
    ReportInput,
    SearchExample,
    heat_map,
    thumbnail,
    write_report,
)
from cutline.tasks.runtime.formatting import COLLAPSE, QUALITY

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """The tags, attributes and text of a page; fails where a tag is not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.style = ""
        self.sections: dict[str, str] = {"": ""}
        self._open: list[str] = []
        self._section = ""
        self.source = path.read_bytes().decode()
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.sections[self._section] = ""
        self.sections[self._section] += " "
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
            return
        self.texts.append(data)
        self.sections[self._section] += data

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def section(self, name: str) -> str:
        return " ".join(self.sections[name].split())

    def all(self, tag: str, attribute: str) -> list[str]:
        return [
            attributes[attribute] for name, attributes in self.tags if name == tag and attribute in attributes
        ]


def scores(**by_split: dict[str, float]) -> pl.DataFrame:
    rows = [(split, metric, value) for split, values in by_split.items() for metric, value in values.items()]
    schema = {"split": pl.String, "metric": pl.String, "value": pl.Float64}
    return check(pl.DataFrame(rows, schema=schema, orient="row"), "scores")


def rejects(*rows: tuple[str, str, str]) -> pl.DataFrame:
    """A rejects table from (name, reason, detail)."""
    full = [("ingest", "file", *row) for row in rows]
    return check(pl.DataFrame(full, schema=dtypes_of("rejects"), orient="row"), "rejects")


def a_photo(seed: int = 0, side_px: int = 224) -> np.ndarray:
    """A smooth coloured picture with some grain, about as hard to compress as a photograph."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    grain = rng.normal(0, 6, (side_px, side_px, 3))
    return np.clip(
        cv2.resize(coarse, (side_px, side_px), interpolation=cv2.INTER_CUBIC) + grain, 0, 255
    ).astype(np.uint8)


def an_item(caption: str = "a dog runs", **fields: Any) -> GalleryItem:
    alternatives = [{"caption": caption, "score": -0.5}, {"caption": "two dogs play", "score": -0.75}]
    values: dict[str, Any] = {
        "path": "images/1.jpg",
        "split": "test",
        "square": a_photo(),
        "caption": caption,
        "score": -0.5,
        "alternatives": alternatives,
        "references": ["A brown dog runs .", "The dog is running ."],
    } | fields
    return GalleryItem(**values)


CURVE = pl.DataFrame(
    {
        "epoch": [1, 2],
        "train_loss": [4.0, 3.0],
        "dev_loss": [4.5, None],
        "dev_cider": [0.125, 0.25],
        "best": [False, True],
    },
    schema_overrides={"epoch": pl.Int32},
)
STAGE = {
    "name": "images",
    "made": 3,
    "reused": 1,
    "rows_in": 1200,
    "rows_out": 1199,
    "rejected": 1,
    "took_s": 4.25,
    "why": "1 photo added",
}


def a_report(**fields: Any) -> ReportInput:
    values: dict[str, Any] = {
        "dataset": "flickr8k",
        "settings": Settings(),
        "counts": Counts({"train": 6, "test": 2}, {"train": 30, "test": 10}, captioned=2),
        "scores": scores(test={"Bleu_4": 0.1564, "CIDEr": 0.357}, dev={"Bleu_4": 0.2, "CIDEr": 0.4}),
        "curves": {},
        "stages": [STAGE],
        "rejects": rejects(("a.jpg", "truncated", "ends after 10 of 20 bytes")),
        "gallery": [an_item()],
    } | fields
    return ReportInput(**values)


@pytest.fixture
def read(tmp_path):
    """Writes a report and reads it back."""

    def write_and_read(report: ReportInput) -> Page:
        path = tmp_path / "report.html"
        write_report(report, path)
        return Page(path)

    return write_and_read


# ── it holds what it should ─────────────────────────────────────────────────────────────────────────


def test_the_scores_of_the_test_split_are_the_headline(read):
    page = read(a_report())
    assert "0.156 " in page.section("") + " "
    assert "0.357" in page.section("")
    assert "on the test split" in page.section("")
    assert "0.400" not in page.section("")


def test_without_a_test_split_the_headline_is_of_dev_and_says_so(read):
    head = read(a_report(scores=scores(dev={"Bleu_4": 0.2, "CIDEr": 0.4}))).section("")
    assert "0.400" in head
    assert "on the dev split" in head
    assert "No scores" in read(a_report(scores=scores())).section("")


def test_the_score_table_has_every_metric_of_every_split_even_unknown_ones(read):
    by_metric = {f"Bleu_{n}": n / 100 for n in (1, 2, 3, 4)} | {"ROUGE_L": 0.4321, "CIDEr": 1.2345}
    signs = {"vocabulary_used": 1234, "copied": 0.071, "mean_length": 9.25, "an_index_of_mine": 0.5}
    table = read(a_report(scores=scores(dev=by_metric, test=by_metric | signs))).section("scores")
    for label, value in [("BLEU-1", "0.010"), ("BLEU-4", "0.040"), ("ROUGE-L", "0.432"), ("CIDEr", "1.234")]:
        assert re.search(rf"{label} .*? {value} {value}", table), label
    assert "1,234 –" in table, "a count, and nothing measured on dev"
    assert "7.1 %" in table
    assert "9.2 –" in table
    assert "an_index_of_mine 0.500 –" in table


def test_every_metric_that_is_measured_has_a_name_and_a_reading():
    from cutline.tasks.evaluation.caption_metrics import collapse, score

    measured = score({"1": "a dog"}, {"1": ["a dog runs"]}) | collapse({"1": "a dog"}, [["a", "dog"]])
    known = QUALITY | COLLAPSE
    assert measured.keys() <= known.keys()
    assert all(metric.label and metric.reading for metric in known.values())


def test_photographs_and_captions_are_counted_by_split(read):
    counts = Counts({"train": 6000, "unlabelled": 7}, {"train": 30000}, 9, 1234, 7, 3, 2)
    head = read(a_report(counts=counts)).section("")
    assert "train 6,000 30,000" in head
    assert "unlabelled 7 0" in head
    assert "9 photographs captioned" in head
    assert "Captions without a photograph, learned from as text: 1,234." in head
    assert "Duplicates: 3." in head
    assert (
        "The same bytes in two splits: 2 photographs, kept in the split that is farther from training."
        in head
    )


def test_beside_the_scores_stands_what_the_splits_share_by_bytes_and_by_likeness(read):
    head = read(a_report(near_duplicates=1)).section("")
    claim = head.index("which the model never learned from")
    shared = head.index("The same bytes in two splits: 0 photographs.")
    assert claim < shared < head.index("split photographs captions"), "before the table of splits"
    assert "Near-duplicates between splits: 1 pair of photographs, left in both." in head
    assert "Near-duplicates between splits: 0 pairs of photographs." in read(
        a_report(near_duplicates=0)
    ).section("")
    assert "Near-duplicates" not in read(a_report()).text, "nobody looked"


def test_each_curve_is_a_picture_with_its_numbers_beside_it(read):
    page = read(a_report(curves={"language_model": CURVE, "fusion": CURVE}))
    pictures = [
        source for source in page.all("img", "src") if source.startswith("data:image/svg+xml;base64,")
    ]
    assert len(pictures) == 2
    assert b"kept: epoch 2" in base64.b64decode(pictures[0].split(",")[1])
    assert "2 epochs in numbers, kept: epoch 2" in page.section("curves")
    assert "best" not in page.section("curves")
    assert "1 4.000 4.500 0.125" in page.section("curves")
    assert "2 3.000 – 0.250" in page.section("curves")


def test_the_stage_table_says_what_was_made_and_why(read):
    assert "images 3 1 1,200 1,199 1 4.2 1 photo added" in read(a_report()).section("stages")


def test_rejects_are_grouped_by_reason_with_its_meaning_losses_before_notices(read):
    rows = [(f"missing{i}.jpg", "missing_photo", "not there") for i in range(12)]
    rows += [(f"short{i}.jpg", "truncated", f"ends after {i} bytes") for i in range(3)]
    text = read(a_report(rejects=rejects(*rows))).section("rejects")
    assert "could not be used: 3. Notices" in text
    assert "reject rate: 12." in text
    assert 0 < text.index("3 × truncated") < text.index("12 × missing_photo notice")
    for reason in ("truncated", "missing_photo"):
        assert REASONS[reason][1:] in text
    assert "short2.jpg ingest, file: ends after 2 bytes" in text
    assert "missing9.jpg" in text
    assert "missing10.jpg" not in text
    assert text.endswith("and 2 more")


def test_a_rejected_file_that_can_be_shown_is_shown_before_those_that_cannot(read):
    rows = [(f"copy{i}.jpg", "leak", "also in test") for i in range(15)]
    before = read(a_report(rejects=rejects(*rows)))
    page = read(a_report(rejects=rejects(*rows), thumbnails={"copy14.jpg": a_photo(3)}))
    assert len(page.all("img", "src")) == len(before.all("img", "src")) + 1
    text = page.section("rejects")
    assert 0 < text.index("copy14.jpg") < text.index("copy0.jpg")
    assert "copy9.jpg" not in text


def test_the_gallery_shows_captions_beside_references_and_alternatives_with_scores(read):
    text = read(a_report()).section("gallery")
    assert "a dog runs images/1.jpg · test · −0.50" in text
    assert "two dogs play −0.75" in text
    assert "People wrote A brown dog runs . The dog is running ." in text
    assert text.count("a dog runs") == 1, "the caption itself is no alternative to itself"


def test_a_caption_of_a_photograph_unlike_all_that_was_learned_from_is_marked_as_a_guess(read):
    near, far, untold = (an_item(f"caption {i}", distance=d) for i, d in enumerate([1.0, 1.01, None]))
    text = read(a_report(gallery=[near, far, untold])).section("gallery")
    assert "caption 0 images/1.jpg · test · −0.50 · distance 1.00 It also" in text
    assert "caption 1 images/1.jpg · test · −0.50 · distance 1.01 a guess It also" in text
    assert "caption 2 images/1.jpg · test · −0.50 It also" in text
    assert text.count(ABOUT_DISTANCES) == 1
    assert ABOUT_DISTANCES not in read(a_report(gallery=[untold])).text


def test_it_is_told_why_the_caption_may_have_a_lower_score_than_what_was_also_considered(read):
    others = [{"caption": "a dog runs", "score": -1.57}, {"caption": "two dogs", "score": -0.93}]
    text = read(a_report(gallery=[an_item(score=-1.57, alternatives=others)])).section("gallery")
    assert text.index(ABOUT_SCORES) < text.index("−1.57") < text.index("two dogs −0.93")
    assert "the surer" not in text


RETRIEVED = {"R@1": 0.25, "R@5": 0.5, "R@10": 0.75, "median rank": 3.0, "queries": 1234.0}


def test_how_well_search_finds_is_a_table_whose_words_are_not_broken(read):
    rows = [("test", "image to text", metric, value) for metric, value in RETRIEVED.items()]
    schema = {"split": pl.String, "direction": pl.String, "metric": pl.String, "value": pl.Float64}
    page = read(a_report(retrieval=pl.DataFrame(rows, schema=schema, orient="row")))
    assert "test image to text 0.250 0.500 0.750 3.0 1,234" in page.section("search")
    assert "stack retrieval" in page.all("table", "class")
    # The page breaks words anywhere, so a column may be squeezed to a letter where nothing forbids it.
    assert ".retrieval th, .retrieval td { white-space: nowrap }" in page.style


def test_of_what_a_caption_finds_its_own_photograph_is_framed(read):
    found = [(a_photo(1), 0.5, False), (a_photo(2), 0.25, True)]
    page = read(a_report(searches=[SearchExample("a dog", found)], searched=9))
    assert "among 9 photographs; the caption’s own photograph is framed." in page.section("search")
    assert page.all("li", "class").count("own") == 1


def test_lines_of_the_language_model_are_no_part_of_search(read):
    page = read(a_report(lines=["a man in a hat"]))
    assert page.section("lines").startswith("Lines that the language model writes by itself")
    assert "a man in a hat" in page.section("lines")
    assert "a man in a hat" not in page.section("search")
    assert "#lines" in page.all("a", "href")
    assert "#lines" not in read(a_report()).all("a", "href")


def test_for_attention_each_word_has_a_picture(read):
    weights = np.eye(7, dtype=np.float16) / 7
    attention = [("a", weights), ("dog", weights.T), ("runs", np.full((7, 7), 1 / 49, np.float32))]
    without = read(a_report())
    page = read(a_report(gallery=[an_item(attention=attention)]))
    assert len(page.all("img", "src")) == len(without.all("img", "src")) + 3
    assert page.section("gallery").endswith("a dog runs")
    assert "where the model looked" in page.section("gallery")
    assert "where the model looked" not in without.section("gallery")


def test_settings_that_differ_from_their_default_stand_out(read):
    page = read(a_report(settings=Settings(images=ImagesSettings(crop="pad", side_px=96))))
    text = page.section("settings")
    assert "differ from their defaults: 2 of" in text
    assert "images.side_px 96 224" in text
    assert "images.crop pad centre" in text
    assert text.count("images.crop") == 2, "once among those that differ, once among all"
    assert "fusion.heads 4 4" in text
    assert "Every setting has its default." in read(a_report()).section("settings")


def test_a_run_with_nothing_in_it_still_has_a_page(read):
    empty = a_report(
        counts=Counts({}, {}), scores=scores(), curves={}, stages=[], rejects=rejects(), gallery=[]
    )
    page = read(empty)
    assert "Nothing was rejected." in page.text
    assert page.all("img", "src") == []


# ── it is safe ──────────────────────────────────────────────────────────────────────────────────────

HOSTILE = [
    "<script>alert(1)</script>.jpg",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</title></style><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "<!-- ",
    "&lt;b&gt;",
]


def a_report_full_of(text: str) -> ReportInput:
    """A report whose every text is `text`."""
    row = ("ingest", "caption", text, "truncated", text)
    item = an_item(
        text,
        path=text,
        split=text,
        alternatives=[{"caption": text + "2", "score": -1.0}],
        references=[text],
        attention=[(text, np.ones((7, 7)))],
    )
    return a_report(
        dataset=text,
        settings=Settings(tokens=TokensSettings(stopwords=text)),
        counts=Counts({text: 1}, {}),
        scores=scores(test={text: 0.5}),
        curves={text: CURVE.clear()},
        stages=[STAGE | {"name": text, "why": text}],
        rejects=pl.DataFrame([row], schema=dtypes_of("rejects"), orient="row"),
        gallery=[item],
        thumbnails={text: a_photo()},
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_markup_in_any_text_is_shown_and_does_nothing(read, text):
    page, harmless = read(a_report_full_of(text)), read(a_report_full_of("harmless"))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert page.text.count(text) == harmless.text.count("harmless") == 17
    only_data_and_anchors(page)


def only_data_and_anchors(page: Page) -> None:
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name.startswith("on")} | names & {"style", "srcset", "action"}
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "base", "form"}
    assert all(source.startswith("data:image/") for source in page.all("img", "src"))
    assert all(target.startswith("#") for target in page.all("a", "href"))
    assert page.all("link", "href") == ["data:,"]
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_the_page_asks_the_network_for_nothing(read):
    only_data_and_anchors(read(a_report(curves={"fusion": CURVE})))


@pytest.mark.parametrize("lines", [[], ["a line"]])
def test_every_link_leads_to_a_section_of_the_page(read, lines):
    page = read(a_report(lines=lines))
    assert {link.removeprefix("#") for link in page.all("a", "href")} == set(page.all("section", "id"))


def test_the_policy_allows_this_style_and_inlined_pictures_and_nothing_else(read):
    page = read(a_report())
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert set(policy.split("; ")) == {
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    }
    assert page.source.index("Content-Security-Policy") < page.source.index("<style>")


def test_control_characters_and_names_that_are_not_utf8_are_written_out(read):
    path = "a\x00b\x1b[31m\u202e" + b"\xff.jpg".decode("utf-8", "surrogateescape")
    page = read(a_report(gallery=[an_item(path=path)], thumbnails={path: a_photo()}))
    assert r"a\x00b\x1b[31m\u202e\udcff.jpg" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f]", page.source)


def test_text_of_any_direction_is_set_in_its_own(read):
    page = read(
        a_report(
            gallery=[an_item("كلب بني يركض", references=["רץ על הדשא"], attention=[("كلب", np.ones((7, 7)))])]
        )
    )
    assert "كلب بني يركض" in page.text
    assert page.source.count('dir="auto">كلب بني يركض') == 2, "on the front and in the gallery"
    assert 'dir="auto">רץ על הדשא' in page.source
    assert '<ul class="strip" dir="auto">' in page.source


# ── it stays small, and the same ────────────────────────────────────────────────────────────────────


def test_the_gallery_stops_at_the_set_number_and_says_so(read):
    settings = Settings(report=ReportSettings(gallery=2))
    counts = Counts({"train": 40, "test": 5}, {}, captioned=45)
    items = [an_item(f"caption {i}") for i in range(5)]
    text = read(a_report(settings=settings, counts=counts, gallery=items)).section("gallery")
    assert "2 of 5 photographs" in text
    assert "caption 1" in text
    assert "caption 2" not in text


def test_a_page_of_24_photographs_with_attention_stays_under_three_megabytes(tmp_path):
    weights = np.random.default_rng(0).dirichlet(np.ones(49), 20).reshape(20, 7, 7)
    words = [(f"word{i}", weights[i]) for i in range(20)]
    write_report(
        a_report(gallery=[an_item(square=a_photo(i), attention=words) for i in range(24)]),
        tmp_path / "r.html",
    )
    assert (tmp_path / "r.html").stat().st_size < 3_000_000


@pytest.mark.real_data
def test_a_page_of_24_real_photographs_with_attention_stays_under_three_megabytes(tmp_path, real_data):
    weights = np.random.default_rng(0).dirichlet(np.ones(49), 20).reshape(20, 7, 7)
    files = sorted((real_data / "data/coco-mini/train2017").glob("*.jpg"))[:24]
    squares = [
        cv2.resize(cv2.imread(str(file))[..., ::-1], (224, 224), interpolation=cv2.INTER_AREA)
        for file in files
    ]
    words = [(f"word{i}", weights[i]) for i in range(20)]
    gallery = [an_item(square=square, attention=words) for square in squares]
    write_report(a_report(gallery=gallery), tmp_path / "r.html")
    assert len(squares) == 24
    assert (tmp_path / "r.html").stat().st_size < 3_000_000


def test_a_flood_of_long_texts_does_not_make_a_long_page(tmp_path):
    long = "word " * 10_000
    table = pl.DataFrame(
        [("ingest", "caption", long, "caption_too_long", long)], schema=dtypes_of("rejects"), orient="row"
    )
    words = [("w" * 5000, np.ones((7, 7)))] * 1000
    item = an_item(long, path="p" * 5000, references=[long] * 1000, attention=words)
    curve = pl.concat([CURVE] * 2000).with_columns(epoch=pl.int_range(1, 4001, dtype=pl.Int32))
    flood = a_report(
        dataset="d" * 5000,
        rejects=pl.concat([table] * 1000),
        gallery=[item],
        stages=[STAGE | {"why": long}],
        curves={"fusion": curve},
    )
    write_report(flood, tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert len(page.text) < 50_000
    assert "and 990 more" in page.section("rejects")
    assert "and 992 more" in page.section("gallery"), "references"
    assert "and 976 more" in page.section("gallery"), "words"
    assert "and 3,900 more" in page.section("curves")
    assert "(50,000 letters in all)" in page.section("gallery")


def test_the_same_report_gives_the_same_bytes_and_the_input_stays_as_it_was(tmp_path):
    square, weights = a_photo(), np.random.default_rng(0).random((7, 7))
    kept = square.copy(), weights.copy()
    gallery = [an_item(square=square, attention=[("a", weights)])]
    report = a_report(curves={"fusion": CURVE}, gallery=gallery)
    write_report(report, tmp_path / "one.html")
    write_report(report, tmp_path / "two.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    np.testing.assert_array_equal(square, kept[0])
    np.testing.assert_array_equal(weights, kept[1])


# ── its pictures ────────────────────────────────────────────────────────────────────────────────────


def opened(uri: str) -> Image.Image:
    assert uri.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(224, 224, (200, 200)), (50, 100, (100, 50)), (1, 4000, (200, 1)), (900, 300, (67, 200))],
)
def test_a_thumbnail_keeps_the_aspect_and_is_never_enlarged(height, width, expected):
    assert opened(thumbnail(np.zeros((height, width, 3), np.uint8), 200)).size == expected


def test_a_red_photograph_has_a_red_thumbnail(read):
    red = np.zeros((224, 224, 3), np.uint8)
    red[..., 0] = 250
    page = read(
        a_report(settings=Settings(report=ReportSettings(thumbnail_px=64)), gallery=[an_item(square=red)])
    )
    photo = opened(next(source for source in page.all("img", "src") if "jpeg" in source))
    assert photo.size == (64, 64)
    np.testing.assert_allclose(photo.getpixel((32, 32)), (250, 0, 0), atol=6)


def heat_of(picture: np.ndarray) -> np.ndarray:
    """How warm each pixel is, 0 to 1, on a photograph of even grey 100 (dim is 75; red of warm is 161.8)."""
    return (picture[..., 0].astype(float) - 75.0) / (161.8 - 75.0)


GREY = np.full((224, 224, 3), 100, np.uint8)


def test_the_heat_is_the_bilinear_enlargement_of_the_weights():
    weights = np.random.default_rng(1).random((7, 7)).astype(np.float32) ** 6
    full = max(weights.max(), 3 * weights.mean())
    expected = Image.fromarray(weights / full).resize((112, 112), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(heat_of(heat_map(GREY, weights, 112)), np.asarray(expected), atol=0.015)


def test_the_photograph_is_lit_where_the_model_looked():
    weights = np.zeros((7, 7))
    weights[1, 5] = 1.0
    heat = heat_of(heat_map(GREY, weights, 140))
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert (row // 20, column // 20) == (1, 5)
    assert heat.max() > 0.9
    assert abs(heat[100:, :60]).max() < 0.01


def test_even_weights_stay_pale_everywhere():
    heat = heat_of(heat_map(GREY, np.full((14, 10), 1 / 140), 96))
    np.testing.assert_allclose(heat, 1 / 3, atol=0.01)


@pytest.mark.parametrize("weights", [np.zeros((7, 7)), np.full((7, 7), np.nan), np.full((7, 7), -np.inf)])
def test_weights_that_say_nothing_leave_the_photograph_dim(weights):
    np.testing.assert_allclose(heat_of(heat_map(GREY, weights, 96)), 0, atol=0.01)
