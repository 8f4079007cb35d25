"""Damaged and hostile photographs: a reject, or the same pixels at each decoding."""

from __future__ import annotations

import random
import zlib

import numpy as np
import pytest
from PIL import Image

from cutline.schemas.errors import BadPhoto
from cutline.tasks.images.decode import decode
from tests.support.mutants import (
    chunk,
    encode,
    memory_of,
    mutant,
    picture,
    png_chunks,
    png_of,
    seeds,
    tiff_of_samples,
)

SIDE = 224
SEEDS = seeds()


def decoded(data: bytes, former_content: int) -> np.ndarray | str:
    """The pixels of a photograph, or why it is refused, in memory that held a certain byte before."""
    with memory_of(former_content):
        try:
            return decode(data, SIDE, max_pixels=1_000_000)
        except BadPhoto as bad:
            return bad.reason


@pytest.mark.parametrize("kind", SEEDS)
def test_a_damaged_photograph_is_refused_or_looks_the_same_each_time(kind: str) -> None:
    dice = random.Random(kind)
    for number in range(200):
        data = mutant(SEEDS[kind], dice)
        assert np.array_equal(decoded(data, 0x55), decoded(data, 0xAA)), f"mutant {number} of {kind}"


def test_an_animated_png_that_holds_half_its_rows_is_refused() -> None:
    chunks = png_chunks(SEEDS["apng"])
    rows = zlib.decompress(dict(chunks)[b"IDAT"])
    half = zlib.compress(rows[: len(rows) // 2])
    assert decoded(png_of([(k, half if k == b"IDAT" else body) for k, body in chunks]), 1) == "undecodable"


@pytest.mark.parametrize("kind", ["IHDR", "IDAT", "IEND"])
@pytest.mark.parametrize("seed", ["png", "apng"])
def test_a_wrong_checksum_is_refused(seed: str, kind: str) -> None:
    data = bytearray(SEEDS[seed])
    at = data.index(kind.encode()) - 4
    data[at + 8 + int.from_bytes(data[at : at + 4], "big")] ^= 1
    assert decoded(bytes(data), 1) == "undecodable"


def test_a_jpeg_whose_data_ends_early_is_refused() -> None:
    data = SEEDS["jpeg"]
    assert decoded(data[: len(data) - 300] + b"\xff\xd9", 1) == "undecodable"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("value", [0, 60, 255])
def test_a_fourth_sample_of_no_stated_meaning_is_no_alpha(dtype: type, value: int) -> None:
    rgb = np.asarray(picture())
    scale = np.iinfo(dtype).max // 255
    samples = np.dstack([rgb, np.full(rgb.shape[:2], value, np.uint8)]).astype(dtype) * dtype(scale)
    assert np.array_equal(decoded(tiff_of_samples(samples, extra_samples=[0]), 1), rgb)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_associated_alpha_is_not_multiplied_twice(dtype: type) -> None:
    rgb, alpha = np.asarray(picture()).astype(float), np.full((43, 61, 1), 0.5)
    most = np.iinfo(dtype).max
    samples = np.dstack([rgb / 255 * alpha, alpha]) * most
    found = decoded(tiff_of_samples(np.rint(samples).astype(dtype), extra_samples=[1]), 1)
    assert np.abs(found - (rgb * 0.5 + 255 * 0.5)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_in_tiles_is_turned_like_one_in_strips(dtype: type, orientation: int) -> None:
    samples = np.asarray(picture()).astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    tiles, strips = (
        decoded(tiff_of_samples(samples, tile=tile, orientation=orientation), 1) for tile in (16, 0)
    )
    assert np.array_equal(tiles, strips)
    upright = np.asarray(picture())
    if orientation >= 5:
        upright = upright.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        upright = upright[::-1]
    if orientation in (2, 3, 6, 7):
        upright = upright[:, ::-1]
    assert np.array_equal(tiles, upright)


def test_a_few_bytes_that_declare_a_gigabyte_of_samples_are_refused() -> None:
    webp = encode(Image.new("RGBA", (9990, 9990), (10, 20, 30, 100)), "WEBP", lossless=True)
    cmyk = encode(Image.new("CMYK", (9500, 9500)), "TIFF", compression="tiff_lzw")
    for data in (webp, cmyk):
        with pytest.raises(BadPhoto, match="too_many_bytes"):
            decode(data, SIDE)


def test_a_progressive_jpeg_of_thousands_of_scans_is_refused() -> None:
    data = encode(Image.new("RGB", (800, 800)), "JPEG", progressive=True)
    assert isinstance(decoded(data, 1), np.ndarray)
    last = data.rindex(b"\xff\xda")
    assert decoded(data[:last] + data[last:-2] * 4_000 + b"\xff\xd9", 1) == "undecodable"


def test_nine_hundred_compressed_texts_in_a_png_are_refused() -> None:
    text = (b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000)))
    chunks = png_chunks(SEEDS["png"])
    data = png_of([chunks[0], *[text] * 900, *chunks[1:]])
    assert decoded(data, 1) == "undecodable"
    assert chunk(*text) in data


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
    ],
)
def test_a_format_that_is_not_read_is_named_with_what_to_do(data: bytes, name: str) -> None:
    with pytest.raises(BadPhoto, match=f"not_an_image.*{name}.*convert it to JPEG"):
        decode(data, SIDE)


def test_a_gif_without_its_last_byte_is_decoded() -> None:
    assert np.array_equal(decoded(SEEDS["gif"][:-1], 1), decoded(SEEDS["gif"], 1))
