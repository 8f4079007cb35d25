"""Draw `examples.png`: what the pretrained model says of four freely licensed photographs.

    python data/pretrained/draw_examples.py

The photographs are scikit-image's (a development dependency): an astronaut (NASA, public domain), a man
with a camera, a cat and a cup of coffee (all three CC0). The captions are those that `cutline caption`
writes, as they come.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl
import skimage
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
PHOTOS = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png")
WIDTH, HEIGHT, GAP, TEXT = 300, 230, 20, 96  # pixels of a photograph, between two, and below them
INK, PALE = "#1a1a1a", "#666666"


def caption(folder: Path) -> pl.DataFrame:
    """The captions of the photographs in `folder`, by the command that the README shows."""
    out = folder / "captions.parquet"
    command = ("caption", folder, "--out", out, "--workspace", folder / "workspace")
    flows = [sys.executable, "-m", "cutline.flows", *map(str, command)]
    subprocess.run(flows, cwd=HERE.parents[1], check=True)  # noqa: S603 - our own command, our own paths
    return pl.read_parquet(out)


def draw(folder: Path, captions: pl.DataFrame) -> Image.Image:
    """The photographs side by side, each with its caption and its distance beneath."""
    page = Image.new("RGB", (len(PHOTOS) * (WIDTH + GAP) + GAP, HEIGHT + TEXT + 2 * GAP), "white")
    pen = ImageDraw.Draw(page)
    words, small = ImageFont.load_default(17), ImageFont.load_default(14)
    rows = {row["path"]: row for row in captions.iter_rows(named=True)}
    for place, name in enumerate(PHOTOS):
        with Image.open(folder / name) as photo:
            picture = photo.convert("RGB")
        picture.thumbnail((WIDTH, HEIGHT))
        left = GAP + place * (WIDTH + GAP)
        page.paste(picture, (left, GAP + HEIGHT - picture.height))
        top = 2 * GAP + HEIGHT
        for line in lines_of(rows[name]["caption"], words):
            pen.text((left, top), line, INK, words)
            top += 22
        far = ": a guess" if rows[name]["distance"] > 1 else ""
        pen.text((left, top + 4), f"distance {rows[name]['distance']:.2f}{far}", PALE, small)
    return page


def lines_of(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """`text` in lines that are no wider than a photograph."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > WIDTH:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for photo in PHOTOS:
            shutil.copyfile(Path(skimage.__file__).parent / "data" / photo, folder / photo)
        draw(folder, caption(folder)).save(HERE / "examples.png", optimize=True)


if __name__ == "__main__":
    main()
