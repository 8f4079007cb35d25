"""From the bytes of a photograph to an RGB square: OpenCV decodes, crops and resizes.

Alpha is blended on white, as a browser's page shows it. 16-bit samples are scaled to 8 bits. Of an
animation the first frame is taken (of a PNG its default image), of a TIFF the first page. Samples that
have no agreed white (float, 32-bit, signed) are refused. Colour profiles are ignored, and so is the one
transparent grey that a PNG may name.

A photograph whose data does not hold all of its pixels is refused: decoders differ in what they put in
the missing ones, and some put nothing there.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl

from cutline.schemas.errors import BadPhoto
from cutline.schemas.settings import ImagesSettings
from cutline.schemas.tables import dtypes_of
from cutline.tasks.images.crop import crop_to_square
from cutline.tasks.images.files import photo_id, read_bytes
from cutline.tasks.images.headers import Header, read_header
from cutline.tasks.images.streams import MAX_WORKING_BYTES, check_memory, stream_of
from cutline.tasks.images.tiff import (
    ASSOCIATED_ALPHA,
    CMYK,
    RGB,
    WHITE_IS_ZERO,
    Tiff,
    decode_with_pillow,
    read_tiff,
)
from cutline.tasks.storage.tables import bytes_column

# A reduced photograph is still this much larger than the square that is cut from it. Against decoding
# at full scale and area resampling, photographs then keep a PSNR of 40 dB and more.
_LEAST_SURPLUS = 1.5
_REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}
_MAX_THREADS = 8  # each holds a decoded photograph
_SMALL_BYTES = 16_000_000  # photographs that need less memory are decoded without asking for it
_BAND_PIXELS = 1_000_000  # alpha is blended in bands of rows of about this size
# What libjpeg writes where entropy-coded data is damaged or missing (jerror.h): it then goes on with
# grey, or with whatever the damaged bits stand for.
_DAMAGE = (
    b"premature end",
    b"Premature end",
    b"bad Huffman code",
    b"bad arithmetic code",
    b"instead of RST",
    b"Bad code word",  # libtiff, in the data of a fax
    b"Premature EO",
)

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


# ---- decode ----


def decode(data: bytes, side_px: int, max_pixels: int = 100_000_000) -> np.ndarray:
    """Decode a photograph to RGB, (H, W, 3) uint8, the way up that its EXIF orientation says.

    A JPEG whose shorter side is at least 3 `side_px` is decoded at 1/2, 1/4 or 1/8 of its scale
    (libjpeg's scaled inverse DCT), such that the shorter side keeps 1.5 `side_px`. Other formats keep
    their size. Raises BadPhoto: what `read_header` raises, and undecodable.
    """
    return np.ascontiguousarray(_decode(data, read_header(data, max_pixels), side_px))


def _decode(data: bytes, header: Header, side_px: int) -> np.ndarray:
    reduction = _reduction(header, side_px)
    tiff = read_tiff(data, header) if header.format == "tiff" else None
    if tiff is None:
        stream = stream_of(data, header, reduction)
    else:
        stream = tiff.stream
        check_memory(stream, header)
    with _memory.held(stream.working_bytes):
        if tiff is not None:
            image_rgb = _decode_tiff(tiff, header)
        elif header.format == "jpeg":
            image_rgb = _decode_jpeg(data, _REDUCED[reduction] | cv2.IMREAD_IGNORE_ORIENTATION)
        else:  # as stored: with its alpha, and with 16 bits where it has them
            image_rgb = _as_rgb(_imdecode(stream.data, cv2.IMREAD_UNCHANGED))
        image_rgb = _orient(image_rgb, header.orientation)
    expected = (-(-header.height // reduction), -(-header.width // reduction), 3)
    if image_rgb.shape != expected:
        raise BadPhoto("undecodable", f"the header promises {expected}, the data holds {image_rgb.shape}")
    return image_rgb


def _decode_jpeg(data: bytes, flags: int) -> np.ndarray:
    """Decode a JPEG as libjpeg does, and refuse it where libjpeg says that its data is damaged."""
    image_bgr, said = _c_stderr.heard(lambda: _opencv(data, flags))
    if any(damage in said for damage in _DAMAGE):
        raise BadPhoto("undecodable", f"libjpeg: {said.decode('ascii', 'replace').strip()}")
    return cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)


def _decode_tiff(tiff: Tiff, header: Header) -> np.ndarray:
    """Decode the first page of a TIFF, the way up that it is stored."""
    if tiff.bits <= 8 or tiff.photometric == CMYK:
        image_rgb, said = _c_stderr.heard(lambda: decode_with_pillow(tiff, _on_white))
        if any(damage in said for damage in _DAMAGE):
            raise BadPhoto("undecodable", f"libtiff: {said[:200].decode('ascii', 'replace').strip()}")
        return image_rgb
    is_grey = tiff.photometric <= 1 and tiff.samples == 1
    if not is_grey and not (tiff.photometric == RGB and tiff.samples in (3, 4)):
        raise BadPhoto(
            "undecodable",
            f"expected grey, RGB, RGBA or CMYK at {tiff.bits} bits per sample, found {tiff.samples} "
            f"samples of photometric interpretation {tiff.photometric}; save the tiff with 8 bits per sample",
        )
    stored = _imdecode(tiff.stream.data, cv2.IMREAD_UNCHANGED)
    if stored.ndim == 3 and stored.shape[2] == 4 and tiff.alpha == 0:
        stored = np.ascontiguousarray(stored[:, :, :3])
    if tiff.photometric == WHITE_IS_ZERO:
        stored = cv2.bitwise_not(stored)
    return _as_rgb(stored, is_multiplied=tiff.alpha == ASSOCIATED_ALPHA)


def _reduction(header: Header, side_px: int) -> int:
    """By how much to divide the sides of a photograph while decoding it: 1, 2, 4 or 8."""
    if header.format != "jpeg":
        return 1
    surplus = min(header.width, header.height) / (side_px * _LEAST_SURPLUS)
    return next((divisor for divisor in _REDUCED if divisor <= surplus), 1)


def _imdecode(data: bytes, flags: int) -> np.ndarray:
    with _c_stderr.silent():
        return _opencv(data, flags)


def _opencv(data: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # all that OpenCV raises: a broken assertion, memory that cannot be had
        raise BadPhoto("undecodable", f"OpenCV: {error.err or error.func or 'no reason given'}") from None
    if image is None:
        raise BadPhoto("undecodable", "OpenCV cannot decode the data behind the header")
    return image


def _as_rgb(stored: np.ndarray, *, is_multiplied: bool = False) -> np.ndarray:
    """OpenCV's grey, BGR or BGRA of 8 or 16 bits as RGB of 8 bits, on white where it has alpha."""
    if stored.dtype == np.uint16:
        stored = cv2.convertScaleAbs(stored, alpha=255 / 65535)
    if stored.dtype != np.uint8:
        raise BadPhoto("undecodable", f"expected samples of 8 or 16 bits without sign, found {stored.dtype}")
    if stored.ndim == 2:
        return cv2.cvtColor(stored, cv2.COLOR_GRAY2RGB)
    if stored.shape[2] == 4:
        return _on_white(cv2.cvtColor(stored, cv2.COLOR_BGRA2RGB), stored[:, :, 3], is_multiplied)
    return cv2.cvtColor(stored, cv2.COLOR_BGR2RGB)


def _on_white(image_rgb: np.ndarray, alpha: np.ndarray, is_multiplied: bool = False) -> np.ndarray:
    """Blend into `image_rgb` itself: colour · alpha + white · (1 − alpha), in 8 bits to spare memory."""
    if alpha.min(initial=255) == 255:
        return image_rgb
    rows = max(1, _BAND_PIXELS // max(1, image_rgb.shape[1]))
    for top in range(0, len(image_rgb), rows):
        band = image_rgb[top : top + rows]
        alphas = cv2.merge([alpha[top : top + rows]] * 3)
        if is_multiplied:
            cv2.add(band, cv2.bitwise_not(alphas), dst=band)
        else:
            ink = cv2.bitwise_not(band)
            cv2.multiply(ink, alphas, dst=ink, scale=1 / 255)
            cv2.bitwise_not(ink, dst=band)
    return image_rgb


def _orient(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W, 3) as EXIF's orientation 1 to 8 asks; a view, not a copy."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def square_of(data: bytes, settings: ImagesSettings, max_pixels: int = 100_000_000) -> np.ndarray:
    """Decode a photograph and make it a square: (side_px, side_px, 3) uint8, RGB.

    A JPEG is decoded at a reduced scale where `decode` does so. Raises BadPhoto as `decode` does.
    """
    return _square_of(data, read_header(data, max_pixels), settings)


def _square_of(data: bytes, header: Header, settings: ImagesSettings) -> np.ndarray:
    image_rgb = _decode(data, header, settings.side_px)
    return crop_to_square(image_rgb, settings, header, _reduction(header, settings.side_px))


# ---- a table of photographs ----


def make_images(
    photos: pl.DataFrame, dataset: Path, settings: ImagesSettings, advance: Callable[[int], None]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Decode, crop and resize the photographs of `photos`, rows of the table of that name.

    Returns a table `images` (photo_id, square of side_px · side_px · 3 bytes), in the order of
    `photos`, and a table `rejects` with the photographs that could not be used; a file whose bytes
    are no longer those of its photo_id is rejected as changed. What comes out does not depend on
    how many threads there are. `advance` is called with 1 after each photograph.
    """
    squares = np.empty((photos.height, settings.side_px * settings.side_px * 3), np.uint8)
    usable = np.zeros(photos.height, np.bool_)
    rejects = []

    def fill(index: int, photo: dict[str, Any]) -> None:
        squares[index] = _make_square(photo, dataset, settings).reshape(-1)

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as threads:
        rows = list(photos.iter_rows(named=True))
        for index, filled in enumerate([threads.submit(fill, *row) for row in enumerate(rows)]):
            try:
                filled.result()
                usable[index] = True
            except BadPhoto as bad:
                rejects.append(("images", "photo", rows[index]["path"], bad.reason, bad.detail))
            advance(1)
    if rejects:
        squares = squares[usable]
    photo_ids = photos["photo_id"].filter(pl.Series(usable))
    images = pl.DataFrame([photo_ids, bytes_column("square", squares)])
    return images, pl.DataFrame(rejects, schema=dtypes_of("rejects"), orient="row")


def _make_square(photo: dict[str, Any], dataset: Path, settings: ImagesSettings) -> np.ndarray:
    """One row of `photos` as (side_px, side_px, 3) uint8."""
    data = read_bytes(dataset, photo["path"], photo["container"], photo["offset"], photo["size"])
    if photo_id(data) != photo["photo_id"]:
        raise BadPhoto("changed", "the bytes are not those that ingest found; run ingest again")
    header = read_header(data, photo["width"] * photo["height"])
    return _square_of(data, header, settings)


# ---- memory ----


class _Memory:
    """Memory for photographs being decoded, which threads wait for where it is short."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held_bytes = 0
        self._changed = threading.Condition()

    def held(self, needed_bytes: int) -> AbstractContextManager[None]:
        """Hold memory; what needs more than there is waits until nobody else holds any."""
        return nullcontext() if needed_bytes < _SMALL_BYTES else self._held(needed_bytes)

    @contextmanager
    def _held(self, needed_bytes: int) -> Iterator[None]:
        with self._changed:
            while self._held_bytes and self._held_bytes + needed_bytes > self._most_bytes:
                self._changed.wait()
            self._held_bytes += needed_bytes
        try:
            yield
        finally:
            with self._changed:
                self._held_bytes -= needed_bytes
                self._changed.notify_all()


_memory = _Memory(MAX_WORKING_BYTES)


# ---- what the decoders print ----


class _CStderr:
    """C's `stderr`, which can be pointed at a buffer; Python's sys.stderr does not go through it.

    libjpeg and libpng, which OpenCV carries, write what they find wrong to it, without the name of
    the file, and OpenCV has no switch for that, nor another way to learn of it. Where the C library
    does not let its `stderr` be moved (other than glibc), the lines are printed and not heard.
    """

    _BUFFER_BYTES = 1 << 16
    _UNBUFFERED = 2  # _IONBF of stdio.h

    def __init__(self) -> None:
        self._idle = threading.Condition()
        self._calls = 0
        self._waiting = 0
        self._stream: ctypes.c_void_p | None = None
        self._saved: int | None = None
        self._text = ctypes.create_string_buffer(self._BUFFER_BYTES)
        c_library = ctypes.CDLL(None)
        try:
            stream = ctypes.c_void_p.in_dll(c_library, "stderr")
            fmemopen, setvbuf, self._rewind = c_library.fmemopen, c_library.setvbuf, c_library.rewind
        except (ValueError, AttributeError):  # no such name
            return
        fmemopen.restype = ctypes.c_void_p
        self._rewind.argtypes = [ctypes.c_void_p]
        setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
        self._buffer = fmemopen(self._text, ctypes.c_size_t(self._BUFFER_BYTES), b"w")
        if self._buffer and setvbuf(self._buffer, None, self._UNBUFFERED, 0) == 0:
            self._stream = stream

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Silence for all threads until the last one of those that asked for it is done."""
        with self._idle:
            while self._waiting:  # those that want to hear a call alone go first
                self._idle.wait()
            if self._calls == 0:
                self._divert()
            self._calls += 1
        try:
            yield
        finally:
            with self._idle:
                self._calls -= 1
                if self._calls == 0:
                    self._restore()
                    self._idle.notify_all()

    def heard(self, call: Callable[[], np.ndarray]) -> tuple[np.ndarray, bytes]:
        """The result of a call, and what it wrote; it is called again, alone, where others may have written.

        What is no damage is not worth a second call.
        """
        with self.silent():
            result = call()
            said = self._text.value if self._text[0] != b"\0" else b""
        is_full = len(said) > self._BUFFER_BYTES // 2
        if not is_full and not any(damage in said for damage in _DAMAGE):
            return result, b""
        with self._idle:
            self._waiting += 1
            while self._calls:
                self._idle.wait()
            self._divert()
            try:
                return call(), self._text.value
            finally:
                self._restore()
                self._waiting -= 1
                self._idle.notify_all()

    def _divert(self) -> None:
        if self._stream is not None:
            self._saved, self._stream.value = self._stream.value, self._buffer

    def _restore(self) -> None:
        if self._stream is None:
            return
        self._stream.value = self._saved
        if self._text[0] != b"\0":
            ctypes.memset(self._text, 0, self._BUFFER_BYTES)
            self._rewind(self._buffer)


_c_stderr = _CStderr()
