"""TIFF: the structure is checked, then Pillow or OpenCV decodes the samples.

Pillow decodes samples of up to 8 bits. OpenCV reads those through libtiff's RGBA interface, which fills
a strip or tile that it cannot decode with black, turns each tile in its own place, and takes a fourth
channel of no stated meaning as alpha. OpenCV decodes 16 bits, which Pillow cuts to 8 without rounding.
Both are given the first page only, without its orientation and metadata.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cutline.schemas.errors import BadPhoto
from cutline.tasks.images.headers import Header
from cutline.tasks.images.streams import Stream, check_jpeg_scans

# TIFF 6.0, section 8 and 338: what the samples beyond the colour mean.
ASSOCIATED_ALPHA, UNASSOCIATED_ALPHA = 1, 2
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK, YCBCR = 0, 1, 2, 5, 6

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_COUNTS, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325
_EXTRA_SAMPLES, _SAMPLE_FORMAT = 338, 339
# Further tags without which the samples cannot be decoded: fill order, fax options, predictor, colour
# map, the tables of JPEG, and what YCbCr is made of.
_OTHER_TAGS = frozenset({266, 292, 293, 317, 320, 347, 529, 530, 531, 532})
# Pillow warns where these have several values, and OpenCV takes the first.
_SINGLE_TAGS = frozenset(
    {_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _ROWS_PER_STRIP, _PLANAR}
    | {_TILE_WIDTH, _TILE_HEIGHT, 266, 292, 293, 317, 531}
)
_READ_TAGS = frozenset(
    {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP}
    | {_STRIP_COUNTS, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS}
    | {_EXTRA_SAMPLES, _SAMPLE_FORMAT}
)
_UNCOMPRESSED, _JPEG = 1, 7
_COMPRESSIONS = {
    _UNCOMPRESSED: "none",
    2: "CCITT",
    3: "fax group 3",
    4: "fax group 4",
    5: "LZW",
    _JPEG: "JPEG",
    8: "deflate",
    32946: "deflate",
    32773: "PackBits",
}
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}
_OTHER_TYPE_SIZES = {2: 1, 5: 8, 7: 1, 10: 8, 11: 4, 12: 8, 13: 4, 18: 8}  # text, fractions, bytes, floats
_MAX_SEGMENTS = 1_000_000
_MAX_TAGS = 4_096
_MAX_BLOCK_VISITS = 50_000_000
_BAND_PIXELS = 1_000_000


class Tiff(NamedTuple):
    """The first page of a TIFF: a stream that holds it alone, and what its samples mean.

    `alpha` is ASSOCIATED_ALPHA, UNASSOCIATED_ALPHA, or 0 where no sample is alpha.
    """

    stream: Stream
    bits: int
    samples: int
    photometric: int
    alpha: int


def read_tiff(data: bytes, header: Header) -> Tiff:
    """Check that each strip or tile of the first page is there, and estimate the cost of decoding.

    Raises BadPhoto: truncated (a strip or tile is missing or lies behind the end), undecodable (a kind
    of samples or compression that is not read, or segments that cost far more than the picture needs).
    """
    try:
        tags, stream = _first_page(data)
        return _checked(data, tags, stream, header)
    except (struct.error, IndexError):  # a field lies behind the last byte
        raise BadPhoto("truncated", f"the tiff data breaks off after {len(data):,} bytes") from None


def _bad(detail: str) -> BadPhoto:
    return BadPhoto("undecodable", detail)


def _first_page(data: bytes) -> tuple[dict[int, np.ndarray], bytes]:
    """The whole-number tags of the first page, and a TIFF that holds only the tags that its samples need."""
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    word, count_form, first_at = ("Q", "Q", 8) if big else ("I", "H", 4)
    entry_size = 20 if big else 12
    (at,) = struct.unpack_from(order + word, data, first_at)
    (entries,) = struct.unpack_from(order + count_form, data, at)
    at += struct.calcsize(count_form)
    if entries > _MAX_TAGS:
        raise _bad(f"the tiff's first page has {entries:,} tags, over {_MAX_TAGS:,}")
    tags: dict[int, np.ndarray] = {}
    kept: dict[int, bytes] = {}
    for place in range(at, at + entries * entry_size, entry_size):
        (tag,) = struct.unpack_from(order + "H", data, place)
        if tag not in _READ_TAGS and tag not in _OTHER_TAGS:
            continue
        if tag in kept:
            raise _bad(f"the tiff's first page has the tag {tag} twice")
        kept[tag] = data[place : place + entry_size]
        if len(kept[tag]) < entry_size:
            raise struct.error(f"the entry of tag {tag} is cut off")
        tags[tag] = _values(data, place, order, word)
    directory = struct.pack(order + count_form, len(kept)) + b"".join(kept[tag] for tag in sorted(kept))
    start = len(data) + len(data) % 2
    stream = (
        data[:first_at]
        + struct.pack(order + word, start)
        + data[first_at + struct.calcsize(word) :]
        + bytes(len(data) % 2)
        + directory
        + bytes(struct.calcsize(word))
    )
    return tags, stream


def _values(data: bytes, place: int, order: str, word: str) -> np.ndarray:
    """The whole numbers of the tag whose entry begins at `place`; none where it holds other values."""
    tag, type_, count = struct.unpack_from(f"{order}HH{word}", data, place)
    code = _WHOLE_NUMBERS.get(type_)
    size = struct.calcsize(order + code) if code else _OTHER_TYPE_SIZES.get(type_)
    is_number = code is not None or tag not in _READ_TAGS
    if size is None or not is_number or count == 0 or (count > 1 and tag in _SINGLE_TAGS):
        raise _bad(f"the tiff's tag {tag} has {count:,} values of type {type_}, which that tag cannot have")
    if count > _MAX_SEGMENTS:
        raise _bad(f"the tiff's tag {tag} has {count:,} values, over {_MAX_SEGMENTS:,}")
    at = place + 4 + struct.calcsize(word)
    if count * size > struct.calcsize(word):
        (at,) = struct.unpack_from(order + word, data, at)
    if at + count * size > len(data):
        raise struct.error(f"the values of tag {tag} lie behind the end")
    return np.frombuffer(data, order + code if code else "u1", count, at).astype(np.int64)


def _checked(data: bytes, tags: dict[int, np.ndarray], stream: bytes, header: Header) -> Tiff:
    def number(tag: int, default: int) -> int:
        return int(tags[tag][0]) if tag in tags else default

    samples, photometric = number(_SAMPLES, 1), number(_PHOTOMETRIC, BLACK_IS_ZERO)
    bits, compression = number(_BITS, 1), number(_COMPRESSION, _UNCOMPRESSED)
    if compression not in _COMPRESSIONS:
        known = ", ".join(sorted(set(_COMPRESSIONS.values())))
        raise _bad(f"the tiff's compression is {compression}; expected {known}")
    if not 1 <= samples <= 6 or any(tags.get(_BITS, np.array([1])) != bits) or bits > 16:
        found = tags[_BITS][:8].tolist() if _BITS in tags else 1
        raise _bad(
            f"the tiff has {samples} samples of {found} bits; expected one to six of one size, up to 16 bits"
        )
    if any(tags.get(_SAMPLE_FORMAT, np.array([1])) != 1):
        raise _bad("expected whole numbers without sign as samples, found another sample format")
    decoded = _check_segments(data, tags, header, samples * bits, photometric, number)
    # OpenCV and others write RGBA without the tag; Pillow reads it as this does.
    extra = number(_EXTRA_SAMPLES, UNASSOCIATED_ALPHA if (photometric, samples) == (RGB, 4) else 0)
    pixels = header.width * header.height
    sample_bytes = max(1, samples * -(-bits // 8)) * pixels
    # Pillow keeps 4 bytes per pixel of colour, beside the segment being decoded and the RGB that is made.
    working = (4 if samples > 1 else 1) * pixels + max(decoded, 3 * pixels) + 3 * pixels * (bits == 16)
    if bits == 16:
        working = max(working, (3 * samples + 3) * pixels)
    alpha = extra if extra in (ASSOCIATED_ALPHA, UNASSOCIATED_ALPHA) and samples in (2, 4, 5, 6) else 0
    return Tiff(Stream(stream, sample_bytes, working), bits, samples, photometric, alpha)


def _check_segments(
    data: bytes,
    tags: dict[int, np.ndarray],
    header: Header,
    pixel_bits: int,
    photometric: int,
    number: Callable[[int, int], int],
) -> int:
    """Check that all strips or tiles are there; returns the bytes that the largest is decoded to."""
    width, height = number(_WIDTH, 0), number(_HEIGHT, 0)
    planes = number(_SAMPLES, 1) if number(_PLANAR, 1) == 2 else 1
    bits = pixel_bits // planes
    is_tiled = _TILE_OFFSETS in tags or _TILE_WIDTH in tags
    if is_tiled:
        columns, rows = number(_TILE_WIDTH, 0), number(_TILE_HEIGHT, 0)
    else:
        columns, rows = width, min(number(_ROWS_PER_STRIP, height), height)
    if columns < 1 or rows < 1:
        raise _bad(f"the tiff declares strips or tiles of {columns}×{rows} pixels")
    expected = -(-width // columns) * -(-height // rows) * planes
    size = rows * -(-columns * bits // 8)
    if expected > _MAX_SEGMENTS or expected * size > 4 * width * height * pixel_bits // 8 + 64_000_000:
        raise _bad(
            f"the tiff declares {expected:,} strips or tiles of {columns}×{rows} pixels for a picture of "
            f"{width}×{height}"
        )
    compression = number(_COMPRESSION, _UNCOMPRESSED)
    offsets = tags.get(_TILE_OFFSETS if is_tiled else _STRIP_OFFSETS, np.zeros(0, np.int64))
    counts = tags.get(_TILE_COUNTS if is_tiled else _STRIP_COUNTS, np.zeros(0, np.int64))
    if len(offsets) < expected or len(counts) < expected:
        found = min(len(offsets), len(counts))
        raise BadPhoto("truncated", f"the tiff names {found:,} of its {expected:,} strips or tiles")
    offsets, counts = offsets[:expected], counts[:expected]
    if compression == _UNCOMPRESSED and photometric != YCBCR:
        sizes = np.full(expected, size)
        if not is_tiled and height % rows:  # the last strip of each plane is shorter
            per_plane = expected // planes
            sizes[per_plane - 1 :: per_plane] = height % rows * (size // rows)
        short = counts < sizes
    else:
        short = counts < 1
    missing = int((short | (offsets < 8) | (counts > len(data)) | (offsets > len(data) - counts)).sum())
    if missing:
        raise BadPhoto(
            "truncated", f"{missing:,} of the tiff's {expected:,} strips or tiles are not complete"
        )
    if int(counts.sum()) > 2 * len(data) + 64_000_000:
        raise _bad("the tiff's strips or tiles are many times as long as the file: they overlap")
    if compression == _JPEG:
        _check_jpegs(data, offsets, counts)
    return size


def _check_jpegs(data: bytes, offsets: np.ndarray, counts: np.ndarray) -> None:
    visits = 0
    for offset, count in zip(offsets.tolist(), counts.tolist(), strict=True):
        visits += check_jpeg_scans(data[offset : offset + count])[1]
        if visits > _MAX_BLOCK_VISITS:
            raise _bad("the JPEG strips or tiles of the tiff have too many scans to decode")


# ---- decode ----


def decode_with_pillow(tiff: Tiff, on_white: Callable[..., np.ndarray]) -> np.ndarray:
    """Decode samples of up to 8 bits, or CMYK, to RGB as stored: (height, width, 3) uint8.

    `on_white(rgb, alpha)` blends. Works in bands of rows, since Pillow's own conversions hold several
    copies of the picture. Raises BadPhoto: undecodable.
    """
    from PIL import TiffImagePlugin

    try:
        image = TiffImagePlugin.TiffImageFile(io.BytesIO(tiff.stream.data))
        image.load()
        return _in_bands(image, tiff.alpha != 0, on_white)
    except Exception as error:  # Pillow's parsers raise what they meet: OSError, SyntaxError, KeyError
        raise _bad(f"Pillow: {error}") from None


def _in_bands(image: Any, has_alpha: bool, on_white: Callable[..., np.ndarray]) -> np.ndarray:
    width, height = image.size
    rgb = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        band = image.crop((0, top, width, bottom))
        if has_alpha:
            rgba = np.asarray(band.convert("RGBA"))
            rgb[top:bottom] = on_white(np.ascontiguousarray(rgba[:, :, :3]), rgba[:, :, 3])
        else:
            rgb[top:bottom] = np.asarray(band.convert("RGB"))
    return rgb
