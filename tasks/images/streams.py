"""What a decoder is given of a photograph: one frame without metadata, and what it will cost.

The checks walk the file's structure, as `cutline.tasks.images.headers` does, and decode nothing. They exist
because the decoders' own limits do not suffice: OpenCV returns uninitialised memory for a damaged animated
PNG, libpng inflates every text chunk, libjpeg visits every block of the picture once per scan, and a few
bytes can declare samples of a gigabyte.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

from cutline.schemas.errors import BadPhoto
from cutline.tasks.images.headers import Header

# Three bytes per pixel at the default ingest.max_pixels: an RGB photograph with 8 bits per sample.
MAX_SAMPLE_BYTES = 300_000_000
# With the interpreter and its libraries the process then stays below 1 GB.
MAX_WORKING_BYTES = 800_000_000
# A progressive photograph of 100 megapixels has 10 scans and 13 million blocks to visit.
_MAX_BLOCK_VISITS = 50_000_000
_MAX_SCANS = 1_000
_MAX_PNG_CHUNKS = 250_000
_MAX_PNG_TEXTS = 200  # compressed ones; other readers inflate them all
_MAX_SEGMENTS = 100_000


class Stream(NamedTuple):
    """What a decoder is given, and the memory that it needs.

    `sample_bytes` is the size of the decoded array, `working_bytes` the largest amount of memory held at
    any time until the photograph is RGB with 8 bits, without the file itself.
    """

    data: bytes
    sample_bytes: int
    working_bytes: int


def stream_of(data: bytes, header: Header, reduction: int) -> Stream:
    """Check a photograph's structure and take out of it what its pixels need.

    `reduction` is the divisor (1, 2, 4 or 8) of a JPEG's sides. Not for TIFF, which
    `cutline.tasks.images.tiff` reads. Raises BadPhoto: truncated, undecodable, too_many_bytes.
    """
    try:
        stream = _STREAMS[header.format](data, header, reduction)
    except (struct.error, IndexError):  # a field lies behind the last byte
        raise BadPhoto(
            "truncated", f"the {header.format} data breaks off after {len(data):,} bytes"
        ) from None
    check_memory(stream, header)
    return stream


def check_memory(stream: Stream, header: Header) -> None:
    """Refuse a photograph whose decoding needs more memory than its pixels justify.

    A photograph with 3 bytes per pixel is never refused here: `ingest.max_pixels` has let it pass.
    Raises BadPhoto: too_many_bytes.
    """
    pixels = header.width * header.height
    samples, working = stream.sample_bytes, stream.working_bytes + len(stream.data)
    most_samples, most_working = max(MAX_SAMPLE_BYTES, 3 * pixels), max(MAX_WORKING_BYTES, 8 * pixels)
    if samples > most_samples or working > most_working:
        what, found, limit = ("samples", samples, most_samples)
        if samples <= most_samples:
            what, found, limit = ("decoder", working, most_working)
        raise BadPhoto(
            "too_many_bytes",
            f"the {what} of {header.width}×{header.height} pixels would take {found:,} bytes of memory, "
            f"over the limit of {limit:,}; scale it down, or save it as RGB with 8 bits per sample",
        )


def _bad(detail: str) -> BadPhoto:
    return BadPhoto("undecodable", detail)


# ---- JPEG ----

_MARKER_IN_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


class _Frame(NamedTuple):
    """A JPEG's frame header: sides in pixels, and (h, v) sampling factors by component id."""

    width: int
    height: int
    sampling: dict[int, tuple[int, int]]

    def blocks(self, component: int | None = None) -> int:
        """Blocks of 8 × 8 samples of one component, or of all."""
        most_h, most_v = (max(factors) for factors in zip(*self.sampling.values(), strict=True))
        mcus = -(-self.width // (8 * most_h)) * -(-self.height // (8 * most_v))
        factors = self.sampling.values() if component is None else [self.sampling[component]]
        return mcus * sum(h * v for h, v in factors)


def _jpeg(data: bytes, header: Header, reduction: int) -> Stream:
    coefficients = 128 * check_jpeg_scans(data)[0]
    shown = header.width * header.height // reduction**2
    return Stream(data, 3 * shown, coefficients + 6 * shown)


def check_jpeg_scans(data: bytes) -> tuple[int, int]:
    """Walk the scans of a JPEG that has several (ITU-T T.81, B.1 and G.1).

    Returns the number of blocks that libjpeg keeps until the last scan (0 for a single scan), and the
    number of blocks that it visits. Raises BadPhoto: undecodable (too many scans for the size, or a
    component that no scan holds), and struct.error where the data is cut off.
    """
    frame_at, at = 0, 2
    for _ in range(_MAX_SEGMENTS):
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
        elif marker == 0xDA:
            if not frame_at:
                raise _bad("the jpeg has a scan before its frame header")
            if data[frame_at + 1] in (0xC0, 0xC1, 0xC9) and data[at + 4] >= data[frame_at + 9]:
                return 0, 0  # one scan holds all components
            frame = _frame(data, frame_at)
            return frame.blocks(), _visits(data, at, frame)
        else:
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                frame_at = at
            at += 2 + max(2, data[at + 2] << 8 | data[at + 3])
    raise _bad(f"the jpeg has over {_MAX_SEGMENTS:,} segments before its first scan")


def _frame(data: bytes, at: int) -> _Frame:
    height, width, count = struct.unpack_from(">HHB", data, at + 5)
    sampling = {}
    for place in range(at + 10, at + 10 + 3 * count, 3):
        sampling[data[place]] = (data[place + 1] >> 4 or 1, data[place + 1] & 15 or 1)
    if not sampling:
        raise _bad("the jpeg's frame header names no component")
    return _Frame(width, height, sampling)


def _visits(data: bytes, at: int, frame: _Frame) -> int:
    """How many blocks the scans from byte `at` on visit."""
    visits = scans = 0
    missing = set(frame.sampling)
    while True:
        marker = data[at + 1]
        if marker == 0xD9:
            break
        length = data[at + 2] << 8 | data[at + 3]
        if marker == 0xDA:
            components = [c for c in data[at + 5 : at + 5 + 2 * data[at + 4] : 2] if c in frame.sampling]
            scans += 1
            visits += sum(map(frame.blocks, components))
            if data[at + 5 + 2 * data[at + 4]] == 0:  # Ss: the scan holds the mean of each block
                missing.difference_update(components)
            if scans > _MAX_SCANS or visits > _MAX_BLOCK_VISITS:
                raise _bad(
                    f"the jpeg has over {scans - 1} scans, too many to decode for its size of "
                    f"{frame.width}×{frame.height}; save it anew with an image editor"
                )
        found = _MARKER_IN_SCAN.search(data, at + 2 + length if 0xC0 <= marker < 0xFF else at + 2)
        if found is None:
            break
        at = found.start()
    if missing:
        raise _bad(f"{len(missing)} of the jpeg's {len(frame.sampling)} components are in none of its scans")
    return visits


# ---- PNG ----

# Grey, RGB, palette, grey and alpha, RGBA: OpenCV gives the fourth one as RGBA.
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 4, 6: 4}
_PNG_CHECKED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IEND"})  # libpng checks those of IDAT


def _png(data: bytes, header: Header, _: int) -> Stream:
    """The chunks that pixels are made of: the others are never inflated, and the frames of an animation
    never seen. What is left of an animated PNG is its default image."""
    parts, has_alphas, kept_from, at, texts = [], False, 0, 8, 0
    for _ in range(_MAX_PNG_CHUNKS):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind in _PNG_CHECKED:
            (checksum,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(data[at + 4 : end - 4]) != checksum:
                raise _bad(f"the checksum of the png's chunk {kind.decode()} is wrong")
        if kind == b"tRNS":
            has_alphas = True
        elif kind[0] & 0x20:  # ancillary
            parts.append(data[kept_from:at])
            kept_from = end
        texts += kind in (b"zTXt", b"iTXt", b"iCCP")
        if texts > _MAX_PNG_TEXTS:
            raise _bad(
                f"the png has over {_MAX_PNG_TEXTS} compressed texts and profiles; save it without them"
            )
        at = end
        if kind == b"IEND":
            break
    else:
        raise _bad(f"the png has over {_MAX_PNG_CHUNKS:,} chunks")
    stream = b"".join([*parts, data[kept_from:at]]) if parts else data
    depth, colour = data[24], data[25]
    channels = 4 if has_alphas and colour != 0 else _PNG_CHANNELS.get(colour, 4)
    return _of_samples(stream, header, channels, 2 if depth == 16 else 1)


def _of_samples(data: bytes, header: Header, channels: int, depth_bytes: int, more: int = 0) -> Stream:
    """A stream that is decoded to `channels`; `more` bytes per pixel are held by the decoder itself."""
    pixels = header.width * header.height
    decoded = channels * depth_bytes
    # To 8 bits while the samples are held, then to RGB.
    as_8_bits = decoded + (channels if depth_bytes > 1 else 0)
    return Stream(data, decoded * pixels, max(decoded + more, as_8_bits, channels + 3) * pixels)


# ---- GIF ----


def _gif(data: bytes, header: Header, _: int) -> Stream:
    """The first frame: comments and further frames are left out, a trailer that is missing is added."""
    at = screen = 13 + _gif_colours(data[10])
    control = b""
    while data[at] == 0x21:
        start, at = at, _gif_sub_blocks_end(data, at + 2)
        if data[start + 1] == 0xF9:
            control = data[start:at]
    if data[at] != 0x2C:
        raise _bad("the gif holds no frame")
    end = _gif_sub_blocks_end(data, at + 11 + _gif_colours(data[at + 9]))
    return _of_samples(data[:screen] + control + data[at:end] + b";", header, 4, 1, more=5)


def _gif_colours(flags: int) -> int:
    """Bytes of the colour table that `flags` announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _gif_sub_blocks_end(data: bytes, at: int) -> int:
    while length := data[at]:
        at += 1 + length
    return at + 1


# ---- WebP ----


def _webp(data: bytes, header: Header, _: int) -> Stream:
    """The first frame, without profile and metadata (RFC 9649)."""
    if data[12:16] != b"VP8X":
        has_alpha = data[12:16] == b"VP8L" and bool(data[24] & 0x10)
        return _webp_stream(data, header, has_alpha, data[12:16] == b"VP8L")
    flags = data[20]
    wanted = {b"ANIM", b"ANMF"} if flags & 0x02 else {b"ALPH", b"VP8 ", b"VP8L"}
    parts, at = [b"VP8X", data[16:20], bytes([flags & 0x12]), data[21:30]], 30
    is_lossless = False
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length + length % 2
        if kind in wanted:
            parts.append(data[at:end])
            is_lossless |= kind != b"VP8 " and kind != b"ANIM"
        if kind in (b"ANMF", b"VP8 ", b"VP8L"):
            break
        at = end
    body = b"WEBP" + b"".join(parts)
    stream = b"RIFF" + struct.pack("<I", len(body)) + body
    return _webp_stream(stream, header, bool(flags & 0x12), is_lossless, is_animation=bool(flags & 0x02))


def _webp_stream(
    data: bytes, header: Header, has_alpha: bool, is_lossless: bool, is_animation: bool = False
) -> Stream:
    """libwebp keeps a lossless picture as 4 bytes per pixel, and two canvases of an animation."""
    more = 4 * is_lossless + 8 * is_animation
    return _of_samples(data, header, 4 if has_alpha else 3, 1, more)


# ---- BMP ----


def _bmp(data: bytes, header: Header, _: int) -> Stream:
    (bits,) = struct.unpack_from("<H", data, 24 if data[14] == 12 else 28)
    return _of_samples(data, header, 4 if bits == 32 else 3, 1)


_STREAMS: dict[str, Callable[[bytes, Header, int], Stream]] = {
    "jpeg": _jpeg,
    "png": _png,
    "gif": _gif,
    "webp": _webp,
    "bmp": _bmp,
}
