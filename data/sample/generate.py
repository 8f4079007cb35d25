"""Draw the sample data set: scenes of shapes in places, five captions each, in Flickr8k's layout.

    python data/sample/generate.py [--folder data/sample] [--seed 1]

The same seed gives the same captions and the same pictures. What is bad on purpose is listed in
README.md beside this file.
"""

from __future__ import annotations

import argparse
import math
import shutil
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from random import Random

import cv2
import numpy as np

SPLITS = {"train": 200, "dev": 50, "test": 50}
UNLABELLED = 3  # photographs that have no caption
ABSENT = 8  # photographs that have captions and no file
TOKENS = 5
FINER = 3  # drawn so many times larger, then averaged: no jagged edges
SIZES_PX = ((240, 180), (220, 165), (200, 150), (180, 180), (160, 120), (150, 200))  # width, height
JPEG_QUALITY = 88

COLOURS_RGB = {
    "red": (214, 44, 44),
    "blue": (36, 92, 216),
    "green": (38, 150, 72),
    "yellow": (250, 208, 44),
    "purple": (132, 62, 172),
    "white": (246, 246, 246),
    "black": (28, 28, 34),
}
SHAPES = {
    "circle": ("circle", "ball", "circle", "disc"),
    "square": ("square", "box", "square", "block"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
}
COUNTS = {1: ("a",), 2: ("two", "two", "a pair of"), 3: ("three", "three", "a group of three")}
SIZES = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}


@dataclass(frozen=True)
class Place:
    """Where a scene plays: how it is called, what things do there, which colours would vanish in it."""

    phrases: tuple[str, ...]
    verbs: tuple[str, ...]  # third person singular; the plural drops the s
    extras: tuple[str, ...]
    hidden: tuple[str, ...]
    level: float  # height at which things are, as a share of the picture's
    solid: bool  # things stand on it and throw a shadow


PLACES = {
    "sky": Place(
        ("in the blue sky", "in a bright sky", "among the clouds", "high in the sky", "up in the air"),
        ("floats", "hangs", "drifts", "hovers"),
        ("white clouds pass behind", "the day is bright"),
        ("blue", "white"),
        0.5,
        False,
    ),
    "grass": Place(
        ("on the grass", "on green grass", "in a green field", "in a meadow", "on a lawn"),
        ("sits", "lies", "rests", "stands"),
        ("the grass is green", "the sky is pale"),
        ("green",),
        0.66,
        True,
    ),
    "sea": Place(
        ("on the sea", "on the water", "on the waves", "in the ocean", "on blue water"),
        ("floats", "floats", "drifts", "bobs"),
        ("small waves roll by", "the water is blue"),
        ("blue",),
        0.64,
        False,
    ),
    "night": Place(
        ("in the night sky", "in the dark sky", "under the moon", "at night", "in the dark"),
        ("glows", "hangs", "floats", "shines"),
        ("the moon shines", "the sky is dark"),
        ("black", "blue"),
        0.58,
        False,
    ),
    "beach": Place(
        ("on the beach", "on the sand", "on a sandy beach", "on yellow sand", "at the beach"),
        ("sits", "lies", "rests", "stands"),
        ("the sea is behind", "the sand is dry"),
        ("yellow", "white"),
        0.68,
        True,
    ),
    "snow": Place(
        ("in the snow", "on the snow", "on white snow", "in a snowy field", "on snowy ground"),
        ("sits", "lies", "rests", "stands"),
        ("snow falls", "it is winter"),
        ("white",),
        0.66,
        True,
    ),
}
ABOVE, BELOW, BESIDE = ("above", "over"), ("below", "under"), ("beside", "next to", "near")


@dataclass(frozen=True)
class Group:
    """Some equal things."""

    count: int
    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """One group in a place, or a first group `above` or `beside` a second one."""

    place: str
    groups: tuple[Group, ...]
    relation: str | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    generate(arguments.folder, arguments.seed)


def generate(folder: Path, seed: int) -> None:
    """Write images/, Flickr8k.token.txt and the three split lists into `folder`."""
    images = folder / "images"
    if images.exists():
        shutil.rmtree(images)
    images.mkdir(parents=True)

    captions: dict[str, list[str]] = {}
    lists: dict[str, list[str]] = {split: [] for split in SPLITS}
    number = 0
    for split, photos in SPLITS.items():
        for _ in range(photos):
            number += 1
            name = f"scene_{number:04d}.jpg"
            rng = Random(f"{seed}:{name}")
            scene = imagine(rng)
            (images / name).write_bytes(encode(".jpg", draw(scene, rng)))
            captions[name] = describe(scene, rng)
            lists[split].append(name)
    for number in range(1, UNLABELLED + 1):
        rng = Random(f"{seed}:unlabelled:{number}")
        (images / f"unlabelled_{number}.jpg").write_bytes(encode(".jpg", draw(imagine(rng), rng)))
    for number in range(1, ABSENT + 1):
        rng = Random(f"{seed}:absent:{number}")
        captions[f"absent_{number}.jpg"] = describe(imagine(rng), rng)

    add_bad_files(images, captions, lists, Random(f"{seed}:bad"))
    write_texts(folder, captions, lists)


def write_texts(folder: Path, captions: dict[str, list[str]], lists: dict[str, list[str]]) -> None:
    lines = [f"{name}#{i}\t{text}\n" for name in captions for i, text in enumerate(captions[name])]
    (folder / "Flickr8k.token.txt").write_text("".join(lines), encoding="utf-8", newline="\n")
    for split, names in lists.items():
        path = folder / f"Flickr_8k.{split}Images.txt"
        path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="\n")


def add_bad_files(
    images: Path, captions: dict[str, list[str]], lists: dict[str, list[str]], rng: Random
) -> None:
    """What real data sets hold too; the reason that each is rejected for stands in README.md."""
    scene = imagine(rng)
    whole = encode(".jpg", draw(scene, rng))
    files = {
        "bad_truncated.jpg": ("train", whole[: len(whole) // 2]),
        "bad_empty.jpg": ("train", b""),
        "bad_text.jpg": ("dev", b"This is a text, whatever its name says.\n"),
        "bad_huge.jpg": ("test", png_that_declares(60_000, 60_000)),
        "png_by_content.jpg": ("train", encode(".png", draw(scene, rng))),  # unusual, and accepted
    }
    for name, (split, data) in files.items():
        (images / name).write_bytes(data)
        captions[name] = describe(scene, rng)
        lists[split].append(name)

    original = lists["train"][0]
    shutil.copyfile(images / original, images / "leak.jpg")
    captions["leak.jpg"] = captions[original]
    lists["test"].append("leak.jpg")

    captions[lists["train"][1]].append("")
    captions[lists["train"][2]].append(" ".join(["A very long caption ."] * 60))


def png_that_declares(width: int, height: int) -> bytes:
    """A few bytes whose header promises a picture of width × height."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


# -- imagining and describing --------------------------------------------------------------------


def imagine(rng: Random) -> Scene:
    place = rng.choice(list(PLACES))
    colours = [colour for colour in COLOURS_RGB if colour not in PLACES[place].hidden]
    shapes = list(SHAPES)
    rng.shuffle(colours)
    rng.shuffle(shapes)
    count, size = rng.choice((1, 1, 2, 3)), rng.choice(list(SIZES))
    first = Group(count, size, colours[0], shapes[0])
    if rng.random() < 0.5:
        return Scene(place, (first,), None)
    relation = rng.choice(("above", "beside"))
    first = Group(min(count, 2), size, colours[0], shapes[0])
    return Scene(place, (first, Group(1, rng.choice(list(SIZES)), colours[1], shapes[1])), relation)


def describe(scene: Scene, rng: Random) -> list[str]:
    """Five different captions, as five people would write them."""
    captions: list[str] = []
    while len(captions) < TOKENS:
        words = one_caption(scene, rng)
        caption = f"{words[0].upper()}{words[1:]} ."
        if caption not in captions:
            captions.append(caption)
    return captions


def one_caption(scene: Scene, rng: Random) -> str:
    place = PLACES[scene.place]
    patterns: tuple[str, ...]
    where, extra = rng.choice(place.phrases), rng.choice(place.extras)
    if scene.relation is None:
        (group,) = scene.groups
        what, does = name_group(group, rng), verb(place, group, rng)
        patterns = (
            *(f"{what} {does} {where}",) * 3,
            f"there {'is' if group.count == 1 else 'are'} {what} {where}",
            f"{where} {does} {what}",
            f"{what} {where}",
            f"{what} {does} {where} and {extra}",
        )
        return rng.choice(patterns)
    first, second = scene.groups
    a, b = name_group(first, rng), name_group(second, rng)
    if scene.relation == "above":
        hangs = verb(place if scene.place == "night" else PLACES["sky"], first, rng)
        patterns = (
            *(f"{a} {hangs} {rng.choice(ABOVE)} {b} {where}",) * 2,
            f"{b} {verb(place, second, rng)} {rng.choice(BELOW)} {a} {where}",
            f"{a} {rng.choice(ABOVE)} {b} {where}",
            f"{where} {a} {hangs} {rng.choice(ABOVE)} {b}",
        )
    else:
        patterns = (
            *(f"{a} {verb(place, first, rng)} {rng.choice(BESIDE)} {b} {where}",) * 2,
            f"{b} {verb(place, second, rng)} {rng.choice(BESIDE)} {a} {where}",
            f"{a} and {b} {plural(rng.choice(place.verbs))} side by side {where}",
            f"{a} and {b} {where}",
        )
    return rng.choice(patterns)


def name_group(group: Group, rng: Random) -> str:
    """Such as "two small red circles"; people leave out a size more often than a colour."""
    words = [rng.choice(COUNTS[group.count])]
    if rng.random() < 0.6:
        words.append(rng.choice(SIZES[group.size]))
    if rng.random() < 0.95:
        words.append(group.colour)
    noun = rng.choice(SHAPES[group.shape])
    words.append(noun if group.count == 1 else f"{noun}es" if noun.endswith("x") else f"{noun}s")
    return " ".join(words)


def verb(place: Place, group: Group, rng: Random) -> str:
    singular = rng.choice(place.verbs)
    return singular if group.count == 1 else plural(singular)


def plural(singular: str) -> str:
    return singular.removesuffix("s")


# -- drawing -------------------------------------------------------------------------------------


def draw(scene: Scene, rng: Random) -> np.ndarray:
    """The scene as BGR, uint8 (height, width, 3)."""
    width, height = rng.choice(SIZES_PX)
    canvas = BACKGROUNDS[scene.place](width * FINER, height * FINER, rng)
    for group, centre, radius in arrange(scene, canvas.shape[1], canvas.shape[0], rng):
        in_the_air = scene.relation == "above" and group is scene.groups[0]
        draw_shape(canvas, group, centre, radius, PLACES[scene.place].solid and not in_the_air, rng)
    return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)


def encode(ending: str, image_bgr: np.ndarray) -> bytes:
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if ending == ".jpg" else []
    done, data = cv2.imencode(ending, image_bgr, quality)
    assert done
    return data.tobytes()


def arrange(
    scene: Scene, width: int, height: int, rng: Random
) -> list[tuple[Group, tuple[float, float], float]]:
    """Each thing with its centre and radius, all within the square that the centre crop keeps."""
    side = min(width, height)
    level = PLACES[scene.place].level
    things: list[tuple[Group, float, float, float]] = []  # group, x, y, radius as shares of the square
    if scene.relation is None:
        (group,) = scene.groups
        radius = {"big": (0.27, 0.19, 0.135), "small": (0.12, 0.11, 0.085)}[group.size][group.count - 1]
        things += [(group, x, level, radius) for x in in_a_row(0.5, radius, group.count)]
    elif scene.relation == "above":
        for group, y in zip(scene.groups, (0.22, level + 0.1), strict=True):
            radius = 0.17 if group.size == "big" else 0.09
            things += [(group, x, y, radius) for x in in_a_row(0.5, radius, group.count)]
    else:
        first, second = scene.groups
        radii = [0.13 if group.size == "big" else 0.075 for group in scene.groups]
        things += [(first, x, level, radii[0]) for x in in_a_row(0.32, radii[0], first.count)]
        right = things[-1][1] + radii[0] + radii[1] + 0.06
        things.append((second, right, level, radii[1]))

    wobble = 0.012
    left_over = 0.5 - (min(x - r for _, x, _, r in things) + max(x + r for _, x, _, r in things)) / 2
    return [
        (
            group,
            (
                width / 2 + side * (x + left_over - 0.5 + rng.uniform(-wobble, wobble)),
                height / 2 + side * (y - 0.5 + rng.uniform(-wobble, wobble)),
            ),
            side * radius * rng.uniform(0.92, 1.03),
        )
        for group, x, y, radius in things
    ]


def in_a_row(centre: float, radius: float, count: int) -> list[float]:
    step = 2.25 * radius
    return [centre + step * (i - (count - 1) / 2) for i in range(count)]


def draw_shape(
    canvas: np.ndarray, group: Group, centre: tuple[float, float], radius: float, shadow: bool, rng: Random
) -> None:
    """A filled outline, lit from the upper left, with a shadow where it stands on something."""
    outline = OUTLINES[group.shape](rng) * radius + np.array(centre)
    polygon = [np.rint(outline * 16).astype(np.int32)]  # sixteenths of a pixel
    colour_bgr = np.clip([c + rng.uniform(-9, 9) for c in reversed(COLOURS_RGB[group.colour])], 0, 255)

    if shadow:
        foot = (round(centre[0] + radius * 0.2), round(float(outline[:, 1].max())))
        shaded = canvas.copy()
        cv2.ellipse(shaded, foot, (round(radius * 0.95), round(radius * 0.2)), 0, 0, 360, (40, 40, 40), -1)
        canvas[:] = cv2.addWeighted(shaded, 0.35, canvas, 0.65, 0)
    mask = np.zeros(canvas.shape[:2], np.uint8)
    cv2.fillPoly(mask, polygon, 255, cv2.LINE_AA, 4)
    rows, columns = np.nonzero(mask)
    light = 1.08 - 0.22 * ((columns - centre[0]) + (rows - centre[1])) / (2 * radius)
    lit = np.clip(colour_bgr * light[:, None], 0, 255)
    share = mask[rows, columns, None] / 255
    canvas[rows, columns] = np.rint(lit * share + canvas[rows, columns] * (1 - share)).astype(np.uint8)
    edge = tuple(float(c) for c in colour_bgr * 0.62)
    cv2.polylines(canvas, polygon, True, edge, max(2, round(radius * 0.05)), cv2.LINE_AA, 4)


def circle(rng: Random) -> np.ndarray:
    angles = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def square(rng: Random) -> np.ndarray:
    return turned(np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.88, rng.uniform(-8, 8))


def triangle(rng: Random) -> np.ndarray:
    return turned(np.array([(0, -1.05), (1.05, 0.85), (-1.05, 0.85)]), rng.uniform(-6, 6))


def star(rng: Random) -> np.ndarray:
    angles = -math.pi / 2 + np.arange(10) * math.pi / 5
    bandwidth = np.where(np.arange(10) % 2 == 0, 1.12, 0.48)
    return turned(
        np.stack([np.cos(angles), np.sin(angles)], axis=1) * bandwidth[:, None], rng.uniform(-12, 12)
    )


def heart(rng: Random) -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 90, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return turned(np.stack([x, y], axis=1) / 16.5, rng.uniform(-8, 8))


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return points @ np.array([[c, s], [-s, c]])


OUTLINES = {"circle": circle, "square": square, "triangle": triangle, "star": star, "heart": heart}


def gradient(
    width: int, height: int, top_rgb: tuple[int, int, int], bottom_rgb: tuple[int, int, int]
) -> np.ndarray:
    share = np.linspace(0, 1, height)[:, None, None]
    colours = (1 - share) * np.array(top_rgb[::-1]) + share * np.array(bottom_rgb[::-1])
    return np.repeat(colours, width, axis=1).astype(np.uint8)


def speckle(
    canvas: np.ndarray, top: int, number: int, size_px: tuple[int, int], colour_rgb: tuple[int, int, int],
    rng: Random,
) -> None:  # fmt: skip
    height, width = canvas.shape[:2]
    for _ in range(number):
        at = (rng.randrange(width), rng.randrange(top, height))
        cv2.circle(canvas, at, rng.randint(*size_px), colour_rgb[::-1], -1, cv2.LINE_AA)


def sky(width: int, height: int, rng: Random) -> np.ndarray:
    canvas = gradient(width, height, (64, 144, 226), (176, 216, 246))
    clouds = canvas.copy()
    for _ in range(rng.randint(3, 5)):
        x, y = rng.randrange(width), rng.randrange(height)
        for _ in range(5):
            at = (x + rng.randint(-width // 10, width // 10), y + rng.randint(-height // 40, height // 40))
            axes = (rng.randint(width // 16, width // 9), rng.randint(height // 24, height // 14))
            cv2.ellipse(clouds, at, axes, 0, 0, 360, (255, 255, 255), -1, cv2.LINE_AA)
    clouds = cv2.GaussianBlur(clouds, (0, 0), width / 120)
    return cv2.addWeighted(clouds, 0.85, canvas, 0.15, 0)


def grass(width: int, height: int, rng: Random) -> np.ndarray:
    horizon = round(height * rng.uniform(0.4, 0.48))
    canvas = np.concatenate(
        [
            gradient(width, horizon, (170, 208, 240), (226, 238, 246)),
            gradient(width, height - horizon, (122, 190, 84), (56, 132, 48)),
        ]
    )
    for _ in range(420):
        x, y = rng.randrange(width), rng.randrange(horizon, height)
        tip = (x + rng.randint(-8, 8), y - rng.randint(8, 26))
        shade = rng.choice(((60, 150, 56), (140, 206, 100), (44, 112, 44)))
        cv2.line(canvas, (x, y), tip, shade[::-1], 2, cv2.LINE_AA)
    return canvas


def sea(width: int, height: int, rng: Random) -> np.ndarray:
    horizon = round(height * rng.uniform(0.34, 0.42))
    canvas = np.concatenate(
        [
            gradient(width, horizon, (196, 224, 244), (248, 238, 220)),
            gradient(width, height - horizon, (40, 116, 176), (14, 66, 128)),
        ]
    )
    for _ in range(46):
        depth = rng.random()  # 0 at the horizon, 1 at our feet
        at = (rng.randrange(width), round(horizon + 6 + depth * (height - horizon - 6)))
        axes = (round(width * (0.02 + 0.05 * depth)), round(height * (0.004 + 0.014 * depth)))
        cv2.ellipse(canvas, at, axes, 0, 200, 340, (250, 226, 190), 2 + round(2 * depth), cv2.LINE_AA)
    return canvas


def night(width: int, height: int, rng: Random) -> np.ndarray:
    canvas = gradient(width, height, (8, 10, 34), (40, 44, 96))
    speckle(canvas, 0, 70, (1, 3), (236, 236, 214), rng)
    radius = min(width, height) // 11
    x, y = round(width * rng.choice((0.16, 0.84))), round(height * 0.16)
    cv2.circle(canvas, (x, y), radius, (206, 240, 250), -1, cv2.LINE_AA)
    cv2.circle(
        canvas, (x + radius // 2, y - radius // 4), round(radius * 0.85), (46, 18, 14), -1, cv2.LINE_AA
    )
    return canvas


def beach(width: int, height: int, rng: Random) -> np.ndarray:
    horizon, shore = round(height * 0.3), round(height * rng.uniform(0.42, 0.47))
    canvas = np.concatenate(
        [
            gradient(width, horizon, (120, 190, 240), (206, 232, 246)),
            gradient(width, shore - horizon, (38, 140, 190), (120, 204, 214)),
            gradient(width, height - shore, (240, 218, 164), (218, 186, 122)),
        ]
    )
    foam = [(x, round(shore + height * 0.012 * math.sin(x / width * 14 + 2))) for x in range(0, width + 8, 8)]
    cv2.polylines(canvas, [np.array(foam, np.int32)], False, (255, 255, 250), 8, cv2.LINE_AA)
    speckle(canvas, shore + 14, 260, (1, 2), (190, 156, 96), rng)
    return canvas


def snow(width: int, height: int, rng: Random) -> np.ndarray:
    canvas = gradient(width, height, (148, 164, 186), (206, 214, 226))
    hills = np.arange(0, width + 8, 8)
    waves = height * (0.42 + 0.03 * np.sin(hills / width * rng.uniform(5, 9) + rng.uniform(0, 6)))
    ground = [*zip(hills.tolist(), waves.astype(int).tolist(), strict=True), (width, height), (0, height)]
    cv2.fillPoly(canvas, [np.array(ground, np.int32)], (252, 248, 244), cv2.LINE_AA)
    speckle(canvas, 0, 130, (2, 6), (255, 255, 255), rng)
    return canvas


BACKGROUNDS = {"sky": sky, "grass": grass, "sea": sea, "night": night, "beach": beach, "snow": snow}


if __name__ == "__main__":
    main()
