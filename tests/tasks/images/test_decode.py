"""Photographs of every kind against Pillow's decoding of the same bytes, and the squares cut from them."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cutline.schemas.errors import BadPhoto
from cutline.schemas.settings import ImagesSettings
from cutline.schemas.tables import REASONS, check, dtypes_of
from cutline.tasks.images.crop import PAD_GREY, crop_to_square
from cutline.tasks.images.decode import decode, make_images, square_of
from cutline.tasks.images.files import photo_id
from cutline.tasks.images.headers import read_header
from cutline.tasks.storage.tables import tensor

SIDE = 224


def scene(width: int = 121, height: int = 90) -> Image.Image:
    """Smooth colours and a few hard edges: no two quarters are alike, in whatever way it is turned."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    rgb = np.stack([255 * x / width, 255 * y / height, 127 + 127 * np.sin(x / 9 + y / 17)], -1)
    rgb[height // 5 : height // 3, width // 5 : width // 2] = (250, 240, 20)
    rgb[height // 2 : height * 3 // 4, width * 2 // 3 :] = (10, 60, 200)
    return Image.fromarray(rgb.astype(np.uint8))


def with_alpha(image: Image.Image) -> Image.Image:
    x = np.linspace(0, 255, image.width).astype(np.uint8)
    image = image.convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(x, (image.height, 1))))
    return image


def encode(image: Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def as_pillow_sees(data: bytes) -> np.ndarray:
    """Pillow's decoding as RGB: turned upright, alpha on white, the first frame."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> int:
    assert ours.shape == theirs.shape
    assert ours.dtype == np.uint8
    return int(np.abs(ours.astype(int) - theirs).max())


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((ours.astype(np.float64) - theirs) ** 2))))


def reason_of(data: bytes) -> str | None:
    try:
        image = decode(data, SIDE, max_pixels=1_000_000)
    except BadPhoto as bad:
        return bad.reason if bad.reason in REASONS and bad.detail else "no such reason"
    return None if image.dtype == np.uint8 and image.ndim == 3 else "no image"


# ---- decode ----

scene_p, scene_1, scene_cmyk = scene().quantize(64), scene().convert("1"), scene().convert("CMYK")
last_frame = scene().rotate(180)
adobe_ycck = bytearray(encode(scene_cmyk, "JPEG", quality=95))
adobe_ycck[adobe_ycck.index(b"Adobe") + 11] = 2  # "the inks are stored as YCCK"

KINDS: dict[str, bytes] = {
    "jpeg": encode(scene(), "JPEG"),
    "progressive jpeg": encode(scene(), "JPEG", progressive=True),
    "jpeg of RGB samples": encode(scene(), "JPEG", keep_rgb=True),
    "grey jpeg": encode(scene().convert("L"), "JPEG"),
    "cmyk jpeg, inverted as Adobe does": encode(scene_cmyk, "JPEG", quality=95),
    "ycck jpeg": bytes(adobe_ycck),
    "png": encode(scene(), "PNG"),
    "grey png": encode(scene().convert("L"), "PNG"),
    "grey and alpha png": encode(with_alpha(scene()).convert("LA"), "PNG"),
    "rgba png": encode(with_alpha(scene()), "PNG"),
    "1-bit png": encode(scene_1, "PNG"),
    "palette png": encode(scene_p, "PNG"),
    "palette png of 2 bits": encode(scene().quantize(4), "PNG", bits=2),
    "palette png, one colour transparent": encode(scene_p, "PNG", transparency=3),
    "palette png with alphas": encode(with_alpha(scene()).quantize(32), "PNG"),
    "gif": encode(scene_p, "GIF"),
    "transparent gif": encode(scene_p, "GIF", transparency=3),
    "animated gif": encode(scene_p, "GIF", save_all=True, append_images=[last_frame.quantize(64)]),
    "webp": encode(scene(), "WEBP"),
    "lossless webp with alpha": encode(with_alpha(scene()), "WEBP", lossless=True),
    "animated webp": encode(scene(), "WEBP", save_all=True, append_images=[last_frame], lossless=True),
    "animated png": encode(scene(), "PNG", save_all=True, append_images=[last_frame]),
    "bmp": encode(scene(), "BMP"),
    "palette bmp": encode(scene_p, "BMP"),
    "1-bit bmp": encode(scene_1, "BMP"),
    "tiff": encode(scene(), "TIFF", compression="tiff_lzw"),
    "tiff of two pages": encode(scene(), "TIFF", save_all=True, append_images=[last_frame]),
    "rgba tiff": encode(with_alpha(scene()), "TIFF"),
    "cmyk tiff": encode(scene_cmyk, "TIFF"),
    "fax tiff": encode(scene_1, "TIFF", compression="group4"),
    "jpeg in tiff": encode(scene(), "TIFF", compression="jpeg"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_photograph_of_any_kind_looks_as_in_pillow(kind: str) -> None:
    assert largest_difference(decode(KINDS[kind], SIDE), as_pillow_sees(KINDS[kind])) <= 1


def test_a_cmyk_photograph_looks_like_what_was_stored_not_like_its_negative() -> None:
    ours = decode(KINDS["cmyk jpeg, inverted as Adobe does"], SIDE)
    assert psnr(ours, np.asarray(scene())) > 30


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format_", "options"),
    [("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"tile": (16, 16)})],
)
def test_exif_orientation_turns_the_photograph_upright(
    format_: str, options: dict[str, Any], orientation: int
) -> None:
    data = encode(scene(), format_, exif=turned(orientation), **options)
    assert largest_difference(decode(data, SIDE), as_pillow_sees(data)) <= 1


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_16_bits_are_scaled_to_8_not_cut_off(format_: str) -> None:
    values = np.linspace(0, 65_535, 400).astype(np.uint16).reshape(20, 20)
    expected = np.rint(values / 257)[..., None].repeat(3, -1)
    assert largest_difference(decode(encode(Image.fromarray(values), format_), SIDE), expected) == 0


@pytest.mark.parametrize("ending", [".png", ".tiff"])
def test_16_bits_of_colour_and_alpha_are_blended_on_white(ending: str) -> None:
    rgba = np.asarray(with_alpha(scene())).astype(np.uint16) * 257
    _, data = cv2.imencode(ending, cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))
    expected = as_pillow_sees(encode(with_alpha(scene()), "PNG"))
    assert largest_difference(decode(data.tobytes(), SIDE), expected) <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_samples_without_an_agreed_white_are_refused(dtype: type) -> None:
    with pytest.raises(BadPhoto, match="undecodable"):
        decode(encode(Image.fromarray(np.ones((9, 9), dtype)), "TIFF"), SIDE)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 300), (300, 1)])
def test_the_smallest_and_the_thinnest_photographs_are_decoded(format_: str, size: tuple[int, int]) -> None:
    data = encode(scene(*size), format_)
    assert largest_difference(decode(data, SIDE), as_pillow_sees(data)) <= 1


def test_bytes_that_are_no_photograph_are_refused_each_with_its_reason() -> None:
    jpeg, png = KINDS["jpeg"], KINDS["png"]
    at = png.index(b"IDAT") + 4
    assert reason_of(b"") == "empty_file"
    assert reason_of(b"a dog runs\n" * 9) == "not_an_image"
    assert reason_of(jpeg[: len(jpeg) // 2]) == "truncated"
    assert reason_of(png[:at] + bytes(100) + png[at + 100 :]) == "undecodable"


@pytest.mark.filterwarnings("error")
def test_60000_by_60000_pixels_in_the_header_are_refused() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(180_001))) + chunk(b"IEND", b"")
    with pytest.raises(BadPhoto, match="too_many_pixels"):
        decode(data, SIDE)


SEEDS = [data for data in KINDS.values() if len(data) < 60_000]


@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    in_header=st.booleans(),
)
def test_changed_bytes_never_raise_anything_but_badphoto(
    seed: bytes, changes: list[tuple[float, int]], in_header: bool
) -> None:
    data = bytearray(seed)
    for place, value in changes:
        data[int(place * (min(len(data), 100) if in_header else len(data)))] = value
    assert reason_of(bytes(data)) not in ("no image", "no such reason")


def test_damaged_photographs_leave_no_line_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    jpeg, png = bytearray(KINDS["jpeg"]), bytearray(KINDS["png"])
    jpeg[-300:-200] = bytes(100)
    png[png.index(b"IDAT") + 9] ^= 255
    said = {}
    for name, damaged in (("jpeg", jpeg), ("png", png)):
        cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_COLOR)
        said[name] = capfd.readouterr().err
    assert "Corrupt JPEG" in said["jpeg"], "OpenCV itself has become quiet: the silencer can go"
    assert "libpng" in said["png"], "OpenCV itself has become quiet: the silencer can go"
    for data in (jpeg, png, KINDS["jpeg"][:400] + b"\xff\xd9"):
        reason_of(bytes(data))
    assert capfd.readouterr().err == ""
    cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert capfd.readouterr().err == said["jpeg"], "C's stderr speaks again afterwards"


# ---- reduced scale ----


def photograph(width: int, height: int) -> np.ndarray:
    """Detail down to what a square of 224 can show, as a photograph has it: 1/f noise and hard edges."""
    random = np.random.default_rng(5)
    total = np.zeros((height, width, 3), np.float32)
    for cells in (4, 9, 20, 45, 100, 220):
        noise = random.normal(0, 160 / cells**0.5, (cells, cells * width // height, 3)).astype(np.float32)
        total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    image = np.clip(total + 128, 0, 255).astype(np.uint8)
    for _ in range(12):
        x, y, size = random.integers(0, width), random.integers(0, height), random.integers(60, height // 4)
        cv2.circle(image, (int(x), int(y)), int(size), random.integers(0, 256, 3).tolist(), -1, cv2.LINE_AA)
    return image


@pytest.mark.parametrize(
    ("width", "height", "orientation", "longest"),
    [
        (4000, 3000, 1, 500),  # 12 megapixels: an eighth has its centre between two pixels
        (4032, 3024, 6, 504),
        (4001, 3003, 1, 501),  # sides that no reduction divides, and each way of turning the rest
        (4005, 3007, 3, 501),
        (3007, 4005, 5, 501),
        (4005, 3007, 7, 501),
        (4601, 3447, 1, 576),
        (9001, 1404, 8, 2251),
        (1400, 1000, 1, 700),
        (1400, 1001, 1, 700),
        (600, 600, 1, 600),
    ],
)
def test_a_large_jpeg_at_reduced_scale_gives_the_square_of_the_full_scale(
    width: int, height: int, orientation: int, longest: int
) -> None:
    data = encode(Image.fromarray(photograph(width, height)), "JPEG", quality=90, exif=turned(orientation))
    reduced = decode(data, SIDE)
    assert max(reduced.shape) <= longest
    assert min(reduced.shape[:2]) >= min(min(width, height), 1.5 * SIDE)
    full = as_pillow_sees(data)
    for crop in ("centre", "pad", "squash"):
        wanted = ImagesSettings(side_px=SIDE, crop=crop)
        assert psnr(square_of(data, wanted), crop_to_square(full, wanted)) >= 40


# ---- crop and resize ----


@pytest.mark.parametrize("crop", ["centre", "pad", "squash"])
@pytest.mark.parametrize("interpolation", ["area", "linear", "cubic", "lanczos"])
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 3), (1, 5000), (5000, 1), (1, 70_000), (223, 224), (225, 224), (500, 333)]
)
def test_every_shape_becomes_a_square_of_its_colour(
    crop: str, interpolation: str, shape: tuple[int, int]
) -> None:
    image = np.full((*shape, 3), (10, 120, 250), np.uint8)
    square = crop_to_square(image, ImagesSettings(crop=crop, interpolation=interpolation))
    assert square.shape == (SIDE, SIDE, 3)
    assert square.dtype == np.uint8
    is_photo, is_grey = ((square == colour).all(-1) for colour in ((10, 120, 250), PAD_GREY))
    assert (is_photo | is_grey).all()
    shorter = round(SIDE * min(shape) / max(shape)) if crop == "pad" else SIDE
    assert is_photo.sum() == SIDE * max(1, shorter)


def test_a_square_of_the_right_size_is_left_as_it_is() -> None:
    image = np.asarray(scene(SIDE, SIDE))
    for crop in ("centre", "pad", "squash"):
        for interpolation in ("area", "linear", "cubic", "lanczos"):
            square = crop_to_square(image, ImagesSettings(crop=crop, interpolation=interpolation))
            assert (square == image).all()


@pytest.mark.parametrize(("width", "height", "left", "top"), [(9, 4, 2, 0), (4, 10, 0, 3), (64, 32, 16, 0)])
def test_centre_cuts_the_longer_side_equally_at_both_ends(
    width: int, height: int, left: int, top: int
) -> None:
    image = np.asarray(scene(width, height))
    cut = min(width, height)
    middle = np.ascontiguousarray(image[top : top + cut, left : left + cut])
    expected = cv2.resize(middle, (32, 32), interpolation=cv2.INTER_CUBIC)
    assert (crop_to_square(image, ImagesSettings(side_px=32)) == expected).all()


def test_pad_keeps_the_whole_photograph_in_the_middle() -> None:
    image = np.zeros((64, 128, 3), np.uint8)
    square = crop_to_square(image, ImagesSettings(side_px=64, crop="pad"))
    assert (square[16:48] == 0).all()
    assert (square[:16] == PAD_GREY).all()
    assert (square[48:] == PAD_GREY).all()


def test_shrinking_by_a_whole_number_with_area_is_the_mean_of_each_block() -> None:
    image = np.asarray(scene(96, 96))
    means = image.reshape(32, 3, 32, 3, 3).mean((1, 3))
    square = crop_to_square(image, ImagesSettings(side_px=32, crop="squash"))
    assert np.abs(square - means).max() <= 0.51


def test_area_does_not_turn_to_blocks_where_a_side_grows() -> None:
    ramp = np.linspace(0, 250, 16).astype(np.uint8)[None, :, None].repeat(512, 0).repeat(3, 2)
    square = crop_to_square(ramp, ImagesSettings(side_px=128, crop="squash"))
    steps = np.diff(square[64, :, 0].astype(int))
    assert (np.abs(steps) <= 4).all(), "a side that grows 8-fold rises in steps of about 2, not of 17"


def test_a_photograph_is_not_changed_by_cutting_it() -> None:
    image = np.asarray(scene()).copy()
    before = image.copy()
    for crop in ("centre", "pad", "squash"):
        crop_to_square(image, ImagesSettings(crop=crop))
    assert (image == before).all()


# ---- a table of photographs ----


def row(root: Path, name: str, data: bytes) -> dict[str, Any]:
    """Write a file, and give its row of the photos table."""
    (root / name).write_bytes(data)
    header = read_header(data, 10**9)
    return {
        "photo_id": photo_id(data),
        "path": name,
        "other_paths": [],
        "source_id": None,
        "other_source_ids": [],
    } | {
        "container": None,
        "offset": None,
        "size": len(data),
        "width": header.width,
        "height": header.height,
        "format": header.format,
        "split": "train",
    }


def photos_of(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return check(pl.DataFrame(rows, schema=dtypes_of("photos")), "photos")


def ignore(_: int) -> None:
    pass


def test_squares_come_in_the_order_of_the_rows_and_are_those_of_each_file(tmp_path: Path) -> None:
    rows = [row(tmp_path, f"{i}.bin", data) for i, data in enumerate(KINDS.values())]
    wanted = ImagesSettings(side_px=64)
    done: list[int] = []
    images, rejects = make_images(photos_of(rows), tmp_path, wanted, done.append)
    check(images, "images", side_px=64)
    assert rejects.is_empty()
    check(rejects, "rejects")
    assert images["photo_id"].to_list() == [row["photo_id"] for row in rows]
    assert sum(done) == len(rows)
    for square, data in zip(tensor(images["square"]), KINDS.values(), strict=True):
        assert (square.reshape(64, 64, 3) == crop_to_square(decode(data, 64), wanted)).all()


def test_each_bad_photograph_costs_one_reject_and_no_other_row(tmp_path: Path) -> None:
    png = KINDS["png"]
    at = png.index(b"IDAT") + 4
    good = {name: row(tmp_path, name, data) for name, data in KINDS.items() if "tiff" in name}
    bad = {
        name: row(tmp_path, name, encode(scene(50 + i, 40), "PNG"))
        for i, name in enumerate(["vanished", "changed", "changed size", "outside_dataset", "unreadable"])
    }
    bad["undecodable"] = row(tmp_path, "undecodable", png[:at] + bytes(100) + png[at + 100 :])
    (tmp_path / "vanished").unlink()
    same_size = bytearray((tmp_path / "changed").read_bytes())
    same_size[-20] ^= 1
    (tmp_path / "changed").write_bytes(same_size)
    (tmp_path / "changed size").write_bytes(png)
    (tmp_path / "outside_dataset").unlink()
    (tmp_path / "outside_dataset").symlink_to("/etc/hostname")
    (tmp_path / "unreadable").unlink()
    (tmp_path / "unreadable").mkdir()
    rows = [row for pair in zip(good.values(), bad.values(), strict=True) for row in pair]
    done: list[int] = []
    images, rejects = make_images(photos_of(rows), tmp_path, ImagesSettings(side_px=32), done.append)
    assert images["photo_id"].to_list() == [row["photo_id"] for row in good.values()]
    check(images, "images", side_px=32)
    check(rejects, "rejects")
    assert rejects.select("name", "reason").rows() == [(name, name.split()[0]) for name in bad]
    assert rejects.select("stage", "kind").unique().rows() == [("images", "photo")]
    assert sum(done) == len(rows)


def test_photographs_inside_a_container_are_cut_out_of_it(tmp_path: Path) -> None:
    one, two = KINDS["jpeg"], KINDS["gif"]
    rows = [row(tmp_path, "one", one), row(tmp_path, "two", two)]
    (tmp_path / "one").unlink()
    (tmp_path / "two").unlink()
    (tmp_path / "shard.tar").write_bytes(b"head" + one + b"between" + two)
    rows[0] |= {"container": "shard.tar", "offset": 4}
    rows[1] |= {"container": str(tmp_path / "shard.tar"), "offset": 4 + len(one) + 7}
    images, rejects = make_images(photos_of(rows), tmp_path, ImagesSettings(side_px=32), ignore)
    assert rejects.is_empty()
    assert images["photo_id"].to_list() == [photo_id(one), photo_id(two)]


def test_the_table_does_not_depend_on_the_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(tmp_path, f"{i}.bin", data) for i, data in enumerate(KINDS.values())]
    tables = []
    for threads in (1, 8):
        monkeypatch.setattr("os.cpu_count", lambda threads=threads: threads)
        tables.append(make_images(photos_of(rows), tmp_path, ImagesSettings(side_px=48), ignore)[0])
    assert tables[0].equals(tables[1])


def test_no_rows_and_no_usable_row_give_empty_tables_of_the_right_form(tmp_path: Path) -> None:
    gone = row(tmp_path, "gone.png", KINDS["png"])
    (tmp_path / "gone.png").unlink()
    for rows in ([], [gone]):
        images, rejects = make_images(photos_of(rows), tmp_path, ImagesSettings(side_px=32), ignore)
        assert images.is_empty()
        check(images, "images", side_px=32)
        assert rejects.height == len(rows)
        check(rejects, "rejects")


@pytest.mark.real_data
def test_all_real_photographs_decode_as_in_pillow_and_become_squares(real_data: Path) -> None:
    root = real_data / "data/flickr8k/images"
    rows = []
    for file in sorted(root.iterdir()):
        data = file.read_bytes()
        header = read_header(data, 10**9)
        assert largest_difference(decode(data, SIDE), as_pillow_sees(data)) <= 1
        rows.append(
            {"photo_id": photo_id(data), "path": file.name, "size": len(data)}
            | {"other_paths": [], "other_source_ids": []}
            | {"width": header.width, "height": header.height, "format": "jpeg", "split": "train"}
        )
    assert len(rows) == 800
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images, rejects = make_images(photos_of(rows), root, ImagesSettings(), ignore)
    assert images.height == 800
    assert rejects.is_empty()
