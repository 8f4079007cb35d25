"""Damaged photographs, and memory whose former content shows."""

from __future__ import annotations

import ctypes
import io
import random
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

_M_PERTURB = -6  # mallopt(3): the byte that new and freed memory is filled with


@contextmanager
def memory_of(byte: int) -> Iterator[None]:
    """Let glibc fill each new block of memory: what a decoder leaves out then shows that byte."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library: old blocks lie about instead
        blocks = [np.full(1 << 14 + n, byte, np.uint8) for n in range(6)]
        del blocks
        yield
        return
    mallopt(_M_PERTURB, byte)
    try:
        yield
    finally:
        mallopt(_M_PERTURB, 0)


def picture(width: int = 61, height: int = 43, mode: str = "RGB") -> Image.Image:
    """A picture whose pixels all differ from their neighbours."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 4 % 256, y * 5 % 256, (x * y) % 251], -1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def encode(image: Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG, their kinds and bodies, as far as they are whole."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunks.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of chunks, each with a right checksum."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def tiff_of(tags: list[tuple[int, str, list[int]]], body: bytes) -> bytes:
    """A TIFF of one page: `body` from byte 8 on, and tags of the types H (16 bits) and I (32 bits)."""
    body += bytes(len(body) % 2)
    entries, values = b"", b""
    values_at = 8 + len(body) + 2 + 12 * len(tags) + 4
    for tag, code, numbers in sorted(tags):
        packed = struct.pack(f"<{len(numbers)}{code}", *numbers)
        place = packed.ljust(4, b"\0")
        if len(packed) > 4:
            place = struct.pack("<I", values_at + len(values))
            values += packed + bytes(len(packed) % 2)
        entries += struct.pack("<HHI", tag, {"H": 3, "I": 4}[code], len(numbers)) + place
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + values


def tiff_of_samples(
    samples: np.ndarray,
    photometric: int = 2,
    extra_samples: list[int] | None = None,
    *,
    deflate: bool = False,
    tile: int = 0,
    orientation: int = 1,
) -> bytes:
    """A TIFF of (H, W, channels) uint8 or uint16, in strips of 16 rows or tiles of `tile` pixels."""
    height, width, channels = samples.shape
    if tile:
        padded = np.zeros((-(-height // tile) * tile, -(-width // tile) * tile, channels), samples.dtype)
        padded[:height, :width] = samples
        places = [(y, x) for y in range(0, height, tile) for x in range(0, width, tile)]
        parts = [padded[y : y + tile, x : x + tile].tobytes() for y, x in places]
    else:
        parts = [samples[y : y + 16].tobytes() for y in range(0, height, 16)]
    if deflate:
        parts = [zlib.compress(part) for part in parts]
    offsets = [8 + sum(map(len, parts[:index])) for index in range(len(parts))]
    counts = [len(part) for part in parts]
    tags = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [samples.dtype.itemsize * 8] * channels),
        (259, "H", [8 if deflate else 1]),
        (262, "H", [photometric]),
        (274, "H", [orientation]),
        (277, "H", [channels]),
    ]
    if tile:
        tags += [(322, "I", [tile]), (323, "I", [tile]), (324, "I", offsets), (325, "I", counts)]
    else:
        tags += [(273, "I", offsets), (278, "I", [16]), (279, "I", counts)]
    if extra_samples:
        tags.append((338, "H", extra_samples))
    return tiff_of(tags, b"".join(parts))


def mutant(seed: bytes, dice: random.Random) -> bytes:
    """A copy of a file with one to three damages: flipped bytes, changed fields, parts gone or doubled."""
    data = bytearray(seed)
    for _ in range(dice.choice((1, 1, 2, 3))):
        at = dice.randrange(len(data))
        damage = dice.randrange(9)
        if damage == 0:
            data[at] ^= 1 << dice.randrange(8)
        elif damage == 1:
            data[at] = dice.choice((0, 1, 127, 128, 255))
        elif damage == 2:  # in the header
            data[dice.randrange(min(len(data), 120))] = dice.randrange(256)
        elif damage == 3:  # a field near the end, where a TIFF has its directory
            data[-1 - dice.randrange(min(len(data), 260))] = dice.randrange(256)
        elif damage == 4:
            data[at : at + 4] = struct.pack(dice.choice("<>") + "I", dice.choice((0, 1, 9, 200, 1 << 31)))
        elif damage == 5:
            data[at : at + dice.randrange(1, 200)] = b""
        elif damage == 6:
            length = dice.randrange(1, 200)
            data[at : at + length] = bytes(length)
        elif damage == 7:
            data[at:at] = data[at : at + dice.randrange(1, 200)]
        else:
            del data[at : -dice.randrange(1, 40)]  # the middle is gone, the end mark is there
        if not data:
            return seed[:1]
    return with_checksums(bytes(data)) if dice.random() < 0.5 else bytes(data)


def with_checksums(data: bytes) -> bytes:
    """A damaged PNG whose checksums are right again, so that its decoder looks at the damage."""
    return png_of(png_chunks(data)) if data.startswith(b"\x89PNG") else data


def seeds() -> dict[str, bytes]:
    """A small file of every kind that is decoded in another way."""
    rgb, second = picture(), picture().rotate(180)
    rgba = rgb.convert("RGBA")
    rgba.putalpha(rgb.convert("L"))
    both = {"save_all": True, "append_images": [second]}
    deep = np.asarray(rgba).astype(np.uint16) * 257
    samples = np.asarray(rgb)
    one_bit = rgb.convert("1")
    rle = _rle_bmp(np.asarray(rgb.convert("L")))
    return {
        "jpeg": encode(rgb, "JPEG"),
        "progressive jpeg": encode(rgb, "JPEG", progressive=True),
        "cmyk jpeg": encode(rgb.convert("CMYK"), "JPEG"),
        "jpeg with restarts": encode(rgb, "JPEG", restart_marker_blocks=3),
        "png": encode(rgb, "PNG"),
        "palette png": encode(rgb.quantize(16), "PNG", transparency=3),
        "rgba png": encode(rgba, "PNG"),
        "apng": encode(rgb, "PNG", **both),
        "rgba apng": encode(rgba, "PNG", save_all=True, append_images=[rgba.rotate(180)]),
        "interlaced png": png_of(_interlaced(samples)),
        "gif": encode(rgb.quantize(64), "GIF"),
        "transparent animated gif": encode(rgb.quantize(64), "GIF", transparency=3, **both),
        "interlaced gif": encode(rgb.quantize(64), "GIF", interlace=1),
        "webp": encode(rgb, "WEBP"),
        "lossy webp with alpha": encode(rgba, "WEBP"),
        "lossless webp": encode(rgba, "WEBP", lossless=True),
        "animated webp": encode(rgba, "WEBP", **both),
        "bmp": encode(rgb, "BMP"),
        "palette bmp": encode(rgb.quantize(16), "BMP"),
        "rle bmp": rle,
        "tiff": encode(rgb, "TIFF"),
        "lzw tiff": encode(rgb, "TIFF", compression="tiff_lzw"),
        "deflated tiff": tiff_of_samples(samples, deflate=True),
        "deflated tiff in tiles": tiff_of_samples(samples, deflate=True, tile=16, orientation=6),
        "tiff in tiles": tiff_of_samples(samples, tile=32, orientation=2),
        "packbits tiff": encode(rgb, "TIFF", compression="packbits"),
        "fax tiff": encode(one_bit, "TIFF", compression="group4"),
        "fax 3 tiff": encode(one_bit, "TIFF", compression="group3"),
        "jpeg in tiff": encode(rgb, "TIFF", compression="jpeg"),
        "rgba tiff": encode(rgba, "TIFF", compression="tiff_lzw"),
        "cmyk tiff": encode(rgb.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "palette tiff": encode(rgb.quantize(16), "TIFF"),
        "16-bit tiff": tiff_of_samples(deep[:, :, :3], deflate=True),
        "16-bit rgba tiff in tiles": tiff_of_samples(deep, extra_samples=[1], deflate=True, tile=16),
        "16-bit lzw tiff": encode(Image.fromarray(deep[:, :, 0]), "TIFF", compression="tiff_lzw"),
        "16-bit uncompressed tiff": tiff_of_samples(deep, extra_samples=[2]),
    }


def _interlaced(samples: np.ndarray) -> list[tuple[bytes, bytes]]:
    """The chunks of an Adam7 PNG of (H, W, 3) uint8, without filters."""
    height, width = samples.shape[:2]
    passes = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    rows = b""
    for top, left, down, across in passes:
        rows += b"".join(b"\0" + row.tobytes() for row in samples[top::down, left::across] if row.size)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    return [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]


def _rle_bmp(grey: np.ndarray) -> bytes:
    """A BMP of RLE8 with runs of one pixel, of (H, W) uint8."""
    height, width = grey.shape
    rows = (b"".join(bytes([1, value]) for value in row.tolist()) for row in grey[::-1])
    body = b"\0\0".join(rows) + b"\0\1"
    palette = b"".join(bytes([value, value, value, 0]) for value in range(256))
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    start = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + palette + body
