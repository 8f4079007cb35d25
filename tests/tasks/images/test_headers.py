"""A photograph's bytes and header, compared with what Pillow says of the same bytes."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cutline.schemas.errors import BadPhoto
from cutline.schemas.tables import REASONS
from cutline.tasks.images.files import photo_id, read_bytes
from cutline.tasks.images.headers import read_header

MAX_PIXELS = 100_000_000

# Every way of writing that a format has and that changes where its header or its end lies.
WAYS: dict[str, tuple[str, dict]] = {
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "jpeg with thumbnail-like comment": ("JPEG", {"comment": b"\xff\xd8 a picture \xff\xd9"}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "webp with profile": ("WEBP", {"icc_profile": b"not a profile"}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "lzw tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "bigtiff": ("TIFF", {"big_tiff": True}),
}
TURNABLE = [way for way, (format_, _) in WAYS.items() if format_ in ("JPEG", "PNG", "WEBP", "TIFF")]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, way: str, orientation: int | None = None, **more: object) -> bytes:
    format_, options = WAYS[way]
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
        more["exif"] = exif
    file = io.BytesIO()
    image.save(file, format_, **options, **more)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def huge_files() -> dict[str, bytes]:
    """Files of some hundred bytes that declare 60,000×60,000 pixels, or what their format can declare."""
    side = 60_000
    jpeg = bytearray(encode(noise(8, 8), "jpeg"))
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, side, side)
    gif = bytearray(encode(noise(8, 8), "gif"))
    struct.pack_into("<HH", gif, 6, side, side)
    webp = bytearray(encode(noise(8, 8), "webp with profile"))
    webp[24:30] = (16_383).to_bytes(3, "little") * 2
    bmp = bytearray(encode(noise(8, 8), "bmp"))
    struct.pack_into("<ii", bmp, 18, side, side)
    tiff = bytearray(encode(noise(8, 8), "tiff"))
    (directory,) = struct.unpack_from("<I", tiff, 4)
    for entry in range(directory + 2, directory + 26, 12):
        if struct.unpack_from("<H", tiff, entry)[0] in (256, 257):
            struct.pack_into("<HII", tiff, entry + 2, 4, 1, side)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return {"jpeg": bytes(jpeg), "png": png, "gif": bytes(gif), "webp": bytes(webp)} | {
        "bmp": bytes(bmp),
        "tiff": bytes(tiff),
    }


def reason_of(data: bytes, max_pixels: int = MAX_PIXELS) -> str | None:
    try:
        read_header(data, max_pixels)
    except BadPhoto as bad:
        return bad.reason if bad.reason in REASONS and bad.detail else "no such reason"
    return None


# ---- bytes ----


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(b"secret")
    root = tmp_path / "dataset"
    (root / "folder").mkdir(parents=True)
    (root / "a").write_bytes(b"hello")
    (root / "none").write_bytes(b"")
    (root / "pack.tar").write_bytes(b"0123456789")
    (root / "folder" / "inner").symlink_to("../a")
    (root / "out").symlink_to("../secret")
    (root / "away").symlink_to("..")
    (root / "dangling").symlink_to("nothing")
    (root / "circle").symlink_to("circle")
    os.mkfifo(root / "pipe")
    return root


@pytest.mark.parametrize(
    ("path", "container", "offset", "size", "expected"),
    [
        ("a", None, None, 5, b"hello"),
        ("folder/inner", None, None, 5, b"hello"),
        ("folder/../a", None, None, 5, b"hello"),
        ("m.jpg", "pack.tar", 2, 3, b"234"),
        ("m.jpg", "pack.tar", 7, 3, b"789"),
    ],
)
def test_the_bytes_of_a_file_a_link_inside_the_data_set_and_a_part_of_a_container(
    dataset: Path, path: str, container: str | None, offset: int | None, size: int, expected: bytes
) -> None:
    assert read_bytes(dataset, path, container, offset, size) == expected


def test_a_container_of_cutlines_own_may_lie_outside_the_data_set(dataset: Path) -> None:
    pack = dataset.parent / "secret"
    assert read_bytes(dataset, "row 3", str(pack), 1, 2) == b"ec"


@pytest.mark.parametrize(
    ("path", "container", "offset", "size", "reason"),
    [
        ("gone", None, None, 5, "vanished"),
        ("a/b", None, None, 5, "vanished"),
        ("dangling", None, None, 5, "vanished"),
        ("m.jpg", "gone.tar", 0, 5, "vanished"),
        ("none", None, None, 0, "empty_file"),
        ("none", None, None, 5, "empty_file"),
        ("m.jpg", "pack.tar", 3, 0, "empty_file"),
        ("a", None, None, 4, "changed"),
        ("a", None, None, 6, "changed"),
        ("m.jpg", "pack.tar", 8, 3, "truncated"),
        ("m.jpg", "pack.tar", 99, 3, "truncated"),
        ("m.jpg", "pack.tar", 0, 10**15, "truncated"),
        ("m.jpg", "pack.tar", -1, 3, "unreadable"),
        ("folder", None, None, 5, "unreadable"),
        ("pipe", None, None, 5, "unreadable"),
        ("m.jpg", "pipe", 0, 5, "unreadable"),
        ("circle", None, None, 5, "unreadable"),
        ("nul\0byte", None, None, 5, "unreadable"),
        ("x" * 5000, None, None, 5, "unreadable"),
        ("\ud800", None, None, 5, "unreadable"),
        ("out", None, None, 6, "outside_dataset"),
        ("away/secret", None, None, 6, "outside_dataset"),
        ("../secret", None, None, 6, "outside_dataset"),
        ("../gone", None, None, 6, "outside_dataset"),
        ("/dev/zero", None, None, 6, "outside_dataset"),
        ("m.jpg", "../secret", 0, 6, "outside_dataset"),
        ("m.jpg", "out", 0, 6, "outside_dataset"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(
    dataset: Path, path: str, container: str | None, offset: int | None, size: int, reason: str
) -> None:
    with pytest.raises(BadPhoto) as bad:
        read_bytes(dataset, path, container, offset, size)
    assert bad.value.reason == reason
    assert reason in REASONS
    bad.value.detail.encode()  # goes into a table, which holds UTF-8 only


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(dataset: Path) -> None:
    (dataset / "a").chmod(0)
    with pytest.raises(BadPhoto, match="unreadable"):
        read_bytes(dataset, "a", None, None, 5)


def test_a_data_set_reached_through_a_link_is_no_way_out(dataset: Path) -> None:
    link = dataset.parent / "link"
    link.symlink_to(dataset)
    assert read_bytes(link, "a", None, None, 5) == b"hello"


def test_the_name_of_a_photograph_is_128_bits_of_blake2b() -> None:
    # From `printf '' | b2sum -l 128` and `printf abc | b2sum -l 128` of GNU coreutils.
    assert photo_id(b"") == "cae66941d9efbd404e4d88758ea67670"
    assert photo_id(b"abc") == "cf4ab791c62b8d2b2109c90275287816"


# ---- header ----


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=15)
@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_size_and_format_are_those_that_pillow_finds(way: str, width: int, height: int) -> None:
    header = read_header(encode(Image.new("RGB", (width, height)), way), MAX_PIXELS)
    assert (header.width, header.height, header.orientation) == (width, height, 1)
    assert header.format == WAYS[way][0].lower()


@pytest.mark.parametrize("way", TURNABLE)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_photograph_turned_upright(way: str, orientation: int) -> None:
    data = encode(noise(31, 17), way, orientation)
    header = read_header(data, MAX_PIXELS)
    assert (header.width, header.height) == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size
    assert header.orientation == orientation


def test_an_orientation_after_the_pixels_of_a_png_counts() -> None:
    data = encode(noise(31, 17), "png", 6)
    at = data.index(b"eXIf") - 4
    (length,) = struct.unpack_from(">I", data, at)
    exif = data[at : at + 12 + length]
    end = data.index(b"IEND") - 4
    moved = data[:at] + data[at + len(exif) : end] + exif + data[end:]
    assert read_header(moved, MAX_PIXELS).width == 17


@pytest.mark.parametrize("orientation", [0, 9, 60_000])
def test_an_orientation_that_exif_does_not_know_is_none(orientation: int) -> None:
    header = read_header(encode(noise(31, 17), "jpeg", orientation), MAX_PIXELS)
    assert (header.width, header.height, header.orientation) == (31, 17, 1)


@pytest.mark.parametrize("way", WAYS)
def test_a_file_cut_anywhere_is_refused(way: str) -> None:
    data = encode(noise(23, 19), way)
    # libtiff ends its files with the values of the last tags, which say nothing of size or pixels.
    whole_from = len(data) - {"lzw tiff": 32, "gif": 1}.get(way, 0)  # browsers show a GIF without its trailer
    assert reason_of(b"") == "empty_file"
    for length in range(1, whole_from):  # the first few bytes may not tell the format yet
        assert reason_of(data[:length]) in ({"truncated", "not_an_image"} if length < 18 else {"truncated"})
    assert reason_of(data) is None


def test_a_jpeg_cut_after_its_embedded_thumbnail_is_truncated() -> None:
    thumbnail = encode(noise(16, 16), "jpeg")
    body = b"JFXX\0\x10" + thumbnail
    photo = encode(noise(64, 64), "jpeg")
    data = photo[:2] + b"\xff\xe0" + struct.pack(">H", len(body) + 2) + body + photo[2:]
    assert read_header(data, MAX_PIXELS).width == 64
    assert reason_of(data[:-200]) == "truncated"


@pytest.mark.parametrize("way", ["jpeg", "progressive jpeg", "png", "gif", "webp", "bmp", "tiff"])
def test_bytes_behind_the_end_do_no_harm(way: str) -> None:
    assert reason_of(encode(noise(23, 19), way) + b"\0 sent from my camera") is None


@pytest.mark.parametrize("way", ["gif", "webp", "png"])
def test_the_frames_of_an_animation_share_one_size(way: str) -> None:
    data = encode(noise(23, 19), way, save_all=True, append_images=[noise(23, 19).rotate(90)] * 3)
    header = read_header(data, MAX_PIXELS)
    assert (header.width, header.height) == (23, 19)
    assert reason_of(data[:-1]) == (None if way == "gif" else "truncated")


@pytest.mark.parametrize(
    "data",
    [
        b"just a caption, saved as a.jpg",
        b"BM is how this text begins, and that is all",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"8BPS\0\1" + bytes(20) + b"\0\3\0\0\0\x09\0\0\0\x09\0\x08\0\3",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"RIFF\x24\0\0\0WEBPABCD" + bytes(30),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", bytes(20)),
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xfe\0\4xx not a marker",
        bytes(1000),
        b"\xff" * 1000,
    ],
)
def test_what_is_no_photograph_is_refused(data: bytes) -> None:
    assert reason_of(data) == "not_an_image"


def test_no_width_or_no_height_is_no_image() -> None:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 5, 8, 2, 0, 0, 0))
    assert reason_of(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IEND", b"")) == "not_an_image"


@pytest.mark.parametrize("format_", ["jpeg", "png", "gif", "webp", "bmp", "tiff"])
@pytest.mark.filterwarnings("error")
def test_a_declared_60000_by_60000_is_refused_without_taking_memory(format_: str) -> None:
    data = huge_files()[format_]
    tracemalloc.start()
    reason = reason_of(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reason == "too_many_pixels"
    assert peak < 100_000


def test_the_limit_of_pixels_is_itself_allowed() -> None:
    data = encode(noise(30, 20), "png")
    assert reason_of(data, 600) is None
    with pytest.raises(BadPhoto, match=r"30×20 = 600 pixels is over max_pixels=599; raise"):
        read_header(data, 599)


def test_no_pixel_is_decoded() -> None:
    data = encode(noise(30, 20), "png")
    at = data.index(b"IDAT") + 4
    broken = data[:at] + bytes(100) + data[at + 100 :]
    assert read_header(broken, MAX_PIXELS) == read_header(data, MAX_PIXELS)
    with pytest.raises(OSError, match=r"broken|unrecognized|truncated"):
        Image.open(io.BytesIO(broken)).load()


SEEDS = [encode(noise(40, 30), way, 6 if way in TURNABLE else None) for way in WAYS]


@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.none() | st.integers(0, 400),
)
def test_changed_bytes_never_raise_anything_but_badphoto(
    seed: bytes, changes: list[tuple[int, int]], cut: int | None
) -> None:
    data = bytearray(seed)
    for at, value in changes:
        data[at] = value
    reason_of(bytes(data[:cut]))


@given(
    start=st.sampled_from(
        [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"MM\0+", b"RIFF....WEBPVP8X", b"BM"]
    ),
    rest=st.binary(max_size=200),
)
def test_any_bytes_behind_a_known_beginning_never_raise_anything_but_badphoto(
    start: bytes, rest: bytes
) -> None:
    reason_of(start + rest)


@pytest.mark.real_data
def test_the_real_photographs_are_read_as_pillow_reads_them(real_data: Path) -> None:
    files = [*real_data.glob("data/flickr8k/images/*"), *real_data.glob("data/coco-mini/train2017/*")]
    assert len(files) == 880
    for file in files:
        data = file.read_bytes()
        with Image.open(file) as image:
            size = ImageOps.exif_transpose(image).size
        header = read_header(data, MAX_PIXELS)
        assert (header.width, header.height, header.format) == (*size, "jpeg")
        assert reason_of(data[: len(data) // 2]) == "truncated"
        assert reason_of(data[:-2]) == "truncated"
