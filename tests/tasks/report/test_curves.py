"""The picture and the CSV of a training."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib
import polars as pl
import pytest

from cutline.schemas.tables import check
from cutline.tasks.report.curves import (
    CIDER,
    DARK,
    DEV,
    GRID,
    PAPER,
    TRAIN,
    draw_curve,
    draw_joint_embedding_curve,
)
from tests.support.colours import contrast

SVG = "{http://www.w3.org/2000/svg}"


def a_curve(**columns: list) -> pl.DataFrame:
    values = {
        "epoch": [1, 2, 3, 4],
        "train_loss": [4.0, 3.0, 2.5, 2.25],
        "dev_loss": [4.2, 3.4, None, 3.3],
        "dev_cider": [None, 0.1, 0.3, 0.2],
        "best": [False, False, True, False],
    } | columns
    dtypes = {"epoch": pl.Int32, "train_loss": pl.Float64, "dev_loss": pl.Float64, "dev_cider": pl.Float64}
    return check(pl.DataFrame(values, schema_overrides=dtypes), "curve")


def line_points(svg: str, color: str) -> list[tuple[float, float]]:
    """The corners of the line that is drawn in `color`, in the SVG's units (y grows downward)."""
    paths = [
        re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))
        for path in ET.fromstring(svg).iter(f"{SVG}path")
        if f"stroke: {color}" in path.get("style", "") and "clip-path" in path.attrib
    ]
    return [(float(x), float(y)) for x, y in paths[0]]


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter(f"{SVG}text")]


def test_losses_are_drawn_to_scale_and_missing_values_left_out():
    svg = draw_curve(a_curve(), "fusion")
    train, dev = line_points(svg, TRAIN), line_points(svg, DEV)
    x, y = [point[0] for point in train], [point[1] for point in train]
    assert len(train) == 4
    assert x[1] - x[0] == pytest.approx(x[3] - x[2])
    # 4 → 3 is twice 3 → 2.5 and four times 2.5 → 2.25, downward
    assert y[1] - y[0] == pytest.approx(2 * (y[2] - y[1]), rel=1e-4)
    assert y[1] - y[0] == pytest.approx(4 * (y[3] - y[2]), rel=1e-4)
    assert y[1] > y[0]
    assert [point[0] for point in dev] == pytest.approx([x[0], x[1], x[3]])


def test_dev_cider_has_a_panel_of_its_own_only_where_it_was_measured():
    with_cider = draw_curve(a_curve(), "fusion")
    assert "dev CIDEr" in texts(with_cider)
    heights = [y for _, y in line_points(with_cider, CIDER)]
    assert len(heights) == 3
    assert heights[1] == min(heights), "0.3 stands highest"
    without = draw_curve(a_curve(dev_cider=[None] * 4), "language model")
    assert "dev CIDEr" not in texts(without)
    assert CIDER not in re.sub(r"<style>.*?</style>", "", without)


def test_the_recall_of_the_matching_is_drawn_below_its_loss_to_scale():
    curve = pl.DataFrame(
        {
            "epoch": [0, 1, 2],
            "train_loss": [None, 0.5, 0.25],
            "dev_recall": [0.2, 0.4, 0.3],
            "best": [False, True, False],
        },
        schema_overrides={"epoch": pl.Int32},
    )
    svg = draw_joint_embedding_curve(check(curve, "joint_embedding_curve"), "Matching")
    losses, recalls = line_points(svg, TRAIN), line_points(svg, CIDER)
    assert (len(losses), len(recalls)) == (2, 3)
    heights = [-y for _, y in recalls]
    assert (heights[1] - heights[0]) / (heights[2] - heights[0]) == pytest.approx(2, rel=1e-3)
    assert losses[0][0] == pytest.approx(recalls[1][0])  # the same epoch above the same
    assert "prefers-color-scheme" in svg


def test_the_epoch_that_was_kept_is_marked():
    assert "kept: epoch 3" in texts(draw_curve(a_curve(), "fusion"))
    assert not [
        text for text in texts(draw_curve(a_curve(best=[False] * 4), "fusion")) if text.startswith("kept")
    ]


def test_infinite_and_nan_losses_are_left_out():
    curve = a_curve(train_loss=[4.0, 3.0, 2.0, 1.0]).with_columns(
        train_loss=pl.Series([4.0, float("inf"), float("nan"), 1.0])
    )
    assert len(line_points(draw_curve(curve, "fusion"), TRAIN)) == 2


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_training_that_has_hardly_begun_can_be_drawn(epochs):
    svg = draw_curve(a_curve().head(epochs), "fusion")
    assert ("no epoch yet" in texts(svg)) == (epochs == 0)
    ticks = [text for text in texts(svg) if re.fullmatch(r"0\.9\d*|1\.0\d+", text)]
    assert not ticks, "there is no epoch 0.95"


@pytest.mark.parametrize(
    "title", [r"$\frac{", "<script>alert(1)</script>", "a & b", "\x00\x1b\ufffe\udcff", "日本 كلب"]
)
def test_any_title_is_drawn_as_text(title):
    svg = draw_curve(a_curve(), title)
    root = ET.fromstring(svg.encode())
    assert not list(root.iter(f"{SVG}script"))
    if title.isprintable():
        assert title in texts(svg)


def test_a_very_long_title_is_cut():
    assert max(map(len, texts(draw_curve(a_curve(), "x" * 5000)))) <= 60


def test_the_same_curve_gives_the_same_bytes_in_any_process_and_style():
    here = draw_curve(a_curve(), "fusion")
    script = (
        "import sys, io, polars as pl\n"
        "from cutline.tasks.report.curves import draw_curve\n"
        "curve = pl.read_csv(io.StringIO(sys.stdin.read()), schema_overrides={'epoch': pl.Int32})\n"
        "sys.stdout.write(draw_curve(curve, 'fusion'))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", script],
        input=a_curve().write_csv(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout == here
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "lines.linewidth": 9}):
        assert draw_curve(a_curve(), "fusion") == here
        assert matplotlib.rcParams["font.size"] == 30, "the caller's style is left as it was"


def test_the_picture_loads_nothing():
    svg = draw_curve(a_curve(), "fusion")
    links = [
        value for element in ET.fromstring(svg).iter() for key, value in element.items() if "href" in key
    ]
    assert links
    assert all(link.startswith("#") for link in links)
    assert "@import" not in svg
    assert not re.search(r"url\((?!#)", svg)


def test_lines_and_letters_stand_out_on_light_and_on_dark_paper():
    for light, dark in DARK.items():
        if light not in (PAPER, GRID):
            assert contrast(light, PAPER) >= 4.5
            assert contrast(dark, DARK[PAPER]) >= 4.5


def test_every_colour_of_the_picture_has_a_dark_one():
    svg = draw_curve(a_curve(), "fusion")
    inline = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"#[0-9a-f]{6}\b(?=[;\"])", inline))
    assert {TRAIN, DEV, CIDER, PAPER} <= used <= set(DARK)
    rules = re.search(r"<style>@media screen and \(prefers-color-scheme: dark\)\{(.*)\}</style>", svg)
    assert rules
    assert all(f'[style*="stroke: {light}"]{{stroke:{dark} ' in rules[1] for light, dark in DARK.items())
