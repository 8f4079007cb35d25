"""The curve of a training: a picture and a CSV, from one row an epoch."""

from __future__ import annotations

import io
import unicodedata
import warnings
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Light colour → the one that takes its place on a dark page. Keys are what matplotlib writes in the SVG.
DARK = {
    "#ffffff": "#15161a",  # paper
    "#26272b": "#e6e3dc",  # ink
    "#66676d": "#a5a39c",  # axes
    "#dddbd5": "#34363c",  # grid
    "#39638f": "#8ab4e6",  # training loss
    "#a8261d": "#ff8d7e",  # dev loss
    "#17705f": "#63ccb3",  # dev CIDEr
}
PAPER, INK, AXES, GRID, TRAIN, DEV, CIDER = DARK

STYLE = {
    "svg.hashsalt": "cutline",  # else the ids in the SVG differ from run to run
    "svg.fonttype": "none",  # text stays text: small, sharp, and readable by a screen reader
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "font.size": 10.0,
    "text.parse_math": False,  # a title may hold a `$`
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": AXES,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": AXES,
    "ytick.color": AXES,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.0,
}


def draw_curve(curve: pl.DataFrame, title: str) -> str:
    """Draw a `curve` table as SVG: training and dev loss, below dev CIDEr; the epoch that was kept is marked.

    Values that are null or not finite are left out, and so is a panel without any. The picture
    changes its colours where the reader prefers dark. The same curve gives the same text.
    """
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with_cider = not _points(curve, "dev_cider").is_empty()
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        # The viewer's fonts draw the title, so it does not matter which letters matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(4.8, 4.2 if with_cider else 2.9), facecolor=PAPER, layout="constrained")
        FigureCanvasSVG(figure)
        figure.suptitle(_printable(title), x=0.01, ha="left", fontsize=12, fontweight="bold")
        if with_cider:
            losses, cider = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 2]})
            _draw_cider(cider, curve)
            cider.set_xlabel("epoch")
        else:
            losses = figure.subplots()
            losses.set_xlabel("epoch")
        _draw_losses(losses, curve)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _with_dark_colours(target.getvalue())


def draw_joint_embedding_curve(curve: pl.DataFrame, title: str) -> str:
    """As `draw_curve`, of a `matching_curve` table: training loss, below it the dev split's recall."""
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(4.8, 4.2), facecolor=PAPER, layout="constrained")
        FigureCanvasSVG(figure)
        figure.suptitle(_printable(title), x=0.01, ha="left", fontsize=12, fontweight="bold")
        panels = figure.subplots(2, 1, sharex=True)
        lines = [("train_loss", "training loss", TRAIN, "o"), ("dev_recall", "dev recall", CIDER, "D")]
        for axes, (column, label, colour, marker) in zip(panels, lines, strict=True):
            axes.set_facecolor(PAPER)
            axes.set_ylabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
            points = _points(curve, column)
            axes.plot(points["epoch"], points[column], color=colour, marker=marker)
            _mark_kept(axes, curve)
        panels[1].set_xlabel("epoch")
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _with_dark_colours(target.getvalue())


def _draw_losses(axes: Axes, curve: pl.DataFrame) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_facecolor(PAPER)
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    if curve.is_empty():
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no epoch yet", transform=axes.transAxes, ha="center", color=AXES)
        return
    train, dev = _points(curve, "train_loss"), _points(curve, "dev_loss")
    axes.plot(train["epoch"], train["train_loss"], color=TRAIN, marker="o", label="training")
    if not dev.is_empty():
        axes.plot(dev["epoch"], dev["dev_loss"], color=DEV, marker="s", linestyle="--", label="dev")
    _mark_kept(axes, curve)
    columns = len(axes.get_legend_handles_labels()[0])
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, borderaxespad=0.2)


def _draw_cider(axes: Axes, curve: pl.DataFrame) -> None:
    axes.set_facecolor(PAPER)
    axes.set_ylabel("dev CIDEr")
    _mark_kept(axes, curve)
    points = _points(curve, "dev_cider")
    axes.plot(points["epoch"], points["dev_cider"], color=CIDER, marker="D")


def _mark_kept(axes: Axes, curve: pl.DataFrame) -> None:
    for epoch in curve.filter("best")["epoch"].head(1):
        axes.axvline(epoch, color=INK, linewidth=1.0, linestyle=":", label=f"kept: epoch {epoch}")


def _points(curve: pl.DataFrame, column: str) -> pl.DataFrame:
    return curve.select("epoch", column).filter(pl.col(column).is_finite()).sort("epoch")


def _printable(title: str) -> str:
    """The first 60 letters of `title`, those that no XML may hold (controls, lone surrogates) replaced."""
    letters = title if len(title) <= 60 else title[:59] + "…"
    return "".join(
        "�" if unicodedata.category(letter) in {"Cc", "Cs"} or letter in "\ufffe\uffff" else letter
        for letter in letters
    )


def _with_dark_colours(svg: str) -> str:
    """Add rules that change the colours where the reader prefers dark.

    They match matplotlib's own inline styles, so a viewer that knows no CSS still shows the light drawing.
    """
    swaps = "".join(
        f'[style*="{property_}: {light}"]{{{property_}:{dark} !important}}'
        for light, dark in DARK.items()
        for property_ in ("fill", "stroke")
    )
    rules = f"<style>@media screen and (prefers-color-scheme: dark){{{swaps}}}</style>"
    return svg.replace("<defs>", f"{rules}\n <defs>", 1)
