"""One photograph as a file: its bytes, its name by content, and what its header says.

The header is read by walking the file's own structure. Pillow could tell the size as well, but its
WebP reader takes memory for the whole canvas on opening, its guard against bombs is a setting of the
whole process, and whether the file is complete is seen from the structure only.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from cutline.schemas.errors import BadPhoto

# A photograph has some thousand chunks; a file made of millions of them only wants to cost time.
_MAX_CHUNKS = 2_000_000

_EXIF_ORIENTATION = 274


@dataclass(frozen=True)
class Header:
    """What a photograph declares: `width` and `height` in pixels after `orientation` is applied.

    `format` is one of `FORMATS`, `orientation` EXIF's 1 to 8 (1: stored as it is shown).
    """

    width: int
    height: int
    format: str
    orientation: int = 1


# ---- header ----


class _Outline(NamedTuple):
    """Width and height as stored, EXIF orientation, and whether the file's structure is whole."""

    width: int
    height: int
    orientation: int
    complete: bool


def read_header(data: bytes, max_pixels: int) -> Header:
    """Read size, format and orientation without decoding a pixel or taking memory for one.

    The format is told by the content. Raises BadPhoto: empty_file, not_an_image,
    too_many_pixels (over `max_pixels`), truncated (the structure ends before its end mark).
    """
    if not data:
        raise BadPhoto("empty_file", "the file holds no bytes")
    format_ = _format_of(data)
    if format_ is None:
        raise BadPhoto("not_an_image", f"expected {', '.join(FORMATS)}; {_what_else(data)}")
    try:
        width, height, orientation, complete = FORMATS[format_](data)
    except (struct.error, OverflowError):  # a field lies behind the last byte
        raise BadPhoto("truncated", f"the {format_} header is cut off after {len(data):,} bytes") from None
    if width < 1 or height < 1:
        raise BadPhoto("not_an_image", f"the {format_} header declares {width}×{height} pixels")
    if width * height > max_pixels:
        raise BadPhoto(
            "too_many_pixels",
            f"{width}×{height} = {width * height:,} pixels is over max_pixels={max_pixels:,}; "
            "raise ingest.max_pixels or drop the file",
        )
    if not complete:
        raise BadPhoto("truncated", f"the {format_} data breaks off after {len(data):,} bytes")
    if orientation >= 5:  # stored lying on its side
        width, height = height, width
    return Header(width, height, format_, orientation)


def _format_of(data: bytes) -> str | None:
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    # Two letters are a weak sign: the size of the second header is the proof.
    if data[:2] == b"BM" and data[15:18] == b"\0\0\0" and data[14] in (12, 40, 52, 56, 64, 108, 124):
        return "bmp"
    return None


def _what_else(data: bytes) -> str:
    """What a file is whose format is not read, and what to do about it."""
    start = data[:512]
    if start[4:8] == b"ftyp":  # ISO base media: the brands say what for
        brands = start[8 : max(16, min(64, int.from_bytes(start[:4], "big")))]
        names = (name for brand, name in _BRANDS.items() if brand in brands)
        name = next(names, "a video or another ISO media file")
    else:
        names = (name for magic, name in _OTHER_FORMATS.items() if start.startswith(magic))
        name = next(names, "SVG" if b"<svg" in start else "")
    if not name:
        return f"the bytes begin with {data[:8]!r}"
    return f"found {name}, which is not read: convert it to JPEG or PNG, or drop the file"


_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"crx ": "CR3, a camera's raw file",
    b"hei": "HEIC (HEIF)",
    b"hev": "HEIC (HEIF)",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
}
_OTHER_FORMATS = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS": "PSD (Photoshop)",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\0\0\1\0": "ICO",
    b"v/1\1": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"DDS ": "DDS",
    b"qoif": "QOI",
    b"gimp xcf": "XCF (GIMP)",
    b"II\xbc\1": "JPEG XR",
    b"FUJIFILM": "RAF, a camera's raw file",
    b"IIRO": "ORF, a camera's raw file",
    b"IIU\0": "RW2, a camera's raw file",
    b"P4": "PNM",
    b"P5": "PNM",
    b"P6": "PNM",
}


def _refuse(detail: str) -> BadPhoto:
    return BadPhoto("not_an_image", detail)


def _read_jpeg(data: bytes) -> _Outline:
    """Markers up to the first scan (ITU-T T.81, B.1); then the end mark, which no scan can contain."""
    width = height = 0
    orientation = 1
    at = 2
    for _ in range(_MAX_CHUNKS):
        lead, marker = struct.unpack_from("BB", data, at)
        if lead != 0xFF:
            raise _refuse(f"byte {at:,} of the jpeg should begin a marker")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # these have no length
            at += 2
            continue
        if marker == 0xD9:
            raise _refuse("the jpeg ends before its first scan")
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == 0xDA:
            # Looked for from behind, where it mostly is: a search through megabytes takes milliseconds.
            return _Outline(width, height, orientation, data.rfind(b"\xff\xd9", at + 2 + length) >= 0)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
        elif marker == 0xE1 and orientation == 1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[at + 10 : at + 2 + length])
        at += 2 + max(length, 2)
    raise _refuse(f"the jpeg has over {_MAX_CHUNKS:,} segments before its first scan")


def _read_png(data: bytes) -> _Outline:
    """Chunks from IHDR to IEND (PNG, third edition, 5.3)."""
    _, kind, width, height = struct.unpack_from(">I4sII", data, 8)
    if kind != b"IHDR":
        raise _refuse(f"the png begins with the chunk {kind!r}, not IHDR")
    orientation = 1
    at = 8
    for _ in range(_MAX_CHUNKS):
        if at + 12 > len(data):
            return _Outline(width, height, orientation, complete=False)
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return _Outline(width, height, orientation, complete=True)
        if kind == b"eXIf":
            orientation = _exif_orientation(data[at + 8 : at + 8 + length])
        at += 12 + length
    raise _refuse(f"the png has over {_MAX_CHUNKS:,} chunks")


def _read_gif(data: bytes) -> _Outline:
    """Blocks up to the trailer (GIF89a specification, 17 to 27)."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _gif_colours(flags)
    has_frame = in_data = False
    for _ in range(_MAX_CHUNKS):
        block = data[at : at + 1]
        if in_data and block:  # sub-blocks, each led by its length, the last one empty
            at += 1 + block[0]
            in_data = block != b"\0"
        elif block == b"\x21":  # extension: label, sub-blocks
            at, in_data = at + 2, True
        elif block == b"\x2c":  # frame: place and size, colours, code size, sub-blocks
            if at + 11 > len(data):
                return _Outline(width, height, 1, complete=False)
            if not has_frame:
                left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
                # Some writers leave the screen's size at zero; as in Pillow, the frame widens it.
                width, height = max(width, left + frame_width), max(height, top + frame_height)
            at += 11 + _gif_colours(data[at + 9])
            has_frame = in_data = True
        else:  # the trailer, which may be missing; or, behind a whole frame, something that nobody needs
            ends_whole = block != b"" or (at == len(data) and not in_data)
            return _Outline(width, height, 1, complete=block == b"\x3b" or (has_frame and ends_whole))
    raise _refuse(f"the gif has over {_MAX_CHUNKS:,} blocks")


def _gif_colours(flags: int) -> int:
    """Bytes of the colour table that `flags` announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _read_webp(data: bytes) -> _Outline:
    """RIFF chunks; the first one has the size (RFC 9649, 2.3 to 2.7, and RFC 6386, 9.1)."""
    (riff_size,) = struct.unpack_from("<I", data, 4)
    kind = data[12:16]
    if kind == b"VP8X":
        low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", data, 24)
        width, height = 1 + low_w + (high_w << 16), 1 + low_h + (high_h << 16)
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise _refuse(f"the webp begins with the chunk {kind!r}")
    complete = 8 + riff_size <= len(data)
    orientation = 1
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            break
        chunk, length = struct.unpack_from("<4sI", data, at)
        if chunk == b"EXIF":
            orientation = _exif_orientation(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return _Outline(width, height, orientation, complete)


def _read_bmp(data: bytes) -> _Outline:
    """File header and any of the information headers of Windows and OS/2."""
    pixels_at, header_size = struct.unpack_from("<II", data, 10)
    form = "<HHHH" if header_size == 12 else "<iiHH"
    width, height, _, bits = struct.unpack_from(form, data, 18)
    compression = 0 if header_size == 12 else struct.unpack_from("<I", data, 30)[0]
    height = abs(height)  # negative: rows from the top down
    row_bytes = (width * bits + 31) // 32 * 4
    packed = compression not in (0, 3, 6)  # run lengths: how long the data is shows on decoding only
    return _Outline(width, height, 1, complete=packed or pixels_at + row_bytes * height <= len(data))


def _read_tiff(data: bytes) -> _Outline:
    """The first directory (TIFF 6.0, section 2, and BigTIFF)."""
    tags = _tiff_tags(data, {256, 257, _EXIF_ORIENTATION, 273, 279, 324, 325})
    width, height = (tags.get(tag, [0])[0] for tag in (256, 257))
    offsets, counts = tags.get(273) or tags.get(324) or [], tags.get(279) or tags.get(325) or []
    ends = [offset + count for offset, count in zip(offsets, counts, strict=False)]
    return _Outline(width, height, _valid_orientation(tags), complete=max(ends, default=0) <= len(data))


def _exif_orientation(exif: bytes) -> int:
    """The orientation of an EXIF block, 1 where it holds none or is damaged: it is no reason to refuse."""
    exif = exif.removeprefix(b"Exif\0\0")
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        return 1
    try:
        return _valid_orientation(_tiff_tags(exif, {_EXIF_ORIENTATION}))
    except struct.error:
        return 1


def _valid_orientation(tags: dict[int, list[int]]) -> int:
    orientation = tags.get(_EXIF_ORIENTATION, [1])[0]
    return orientation if 1 <= orientation <= 8 else 1


def _tiff_tags(data: bytes, wanted: set[int]) -> dict[int, list[int]]:
    """The whole-number values of the `wanted` tags of the first directory; struct.error where cut off."""
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    word, word_size = ("Q", 8) if big else ("I", 4)
    (at,) = struct.unpack_from(order + word, data, 8 if big else 4)
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    tags: dict[int, list[int]] = {}
    for _ in range(min(entries, 0xFFFF)):
        tag, type_, count = struct.unpack_from(f"{order}HH{word}", data, at)
        code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(type_)
        if tag in wanted and code is not None and count:
            values_at = at + 4 + word_size
            value_size = struct.calcsize(order + code)
            count = min(count, _MAX_CHUNKS)
            if count * value_size > word_size:
                (values_at,) = struct.unpack_from(order + word, data, values_at)
            if values_at + count * value_size > len(data):
                raise struct.error(f"the values of tag {tag} lie behind the end")
            tags.setdefault(tag, list(struct.unpack_from(f"{order}{count}{code}", data, values_at)))
        at += 4 + 2 * word_size
    return tags


# The formats that are read, each with the reader of its header. Vector, page and layer formats are
# not photographs, and some of them would have to be given to other programs.
FORMATS: dict[str, Callable[[bytes], _Outline]] = {
    "jpeg": _read_jpeg,
    "png": _read_png,
    "gif": _read_gif,
    "webp": _read_webp,
    "bmp": _read_bmp,
    "tiff": _read_tiff,
}
