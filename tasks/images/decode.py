"""From the bytes of a photograph to an RGB square: OpenCV decodes, crops and resizes.

Alpha is blended on white, as a browser's page shows it. 16-bit samples are scaled to 8 bits. Of an
animation the first frame is taken, of a TIFF the first page. Samples that have no agreed white (float,
32-bit, signed) are refused. Colour profiles are ignored, and so is what OpenCV does not hand out: the
alpha of a grey TIFF, and the one transparent grey that a PNG may name.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
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
from cutline.tasks.images.headers import Header, is_cmyk_tiff, read_header
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
# Photographs that take more than this once decoded are decoded one at a time.
_LARGE_PIXELS = 16_000_000
_one_large_photo = threading.Lock()
_MAX_THREADS = 8  # each holds a decoded photograph

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
    if header.format == "jpeg":
        flags = _REDUCED[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    else:  # as stored: with its alpha, and with 16 bits where it has them
        flags = cv2.IMREAD_UNCHANGED
    pixels = header.width * header.height // reduction**2
    with _one_large_photo if pixels > _LARGE_PIXELS else nullcontext():
        stored = _imdecode(data, flags)
        if header.format == "tiff" and stored.shape[2:] == (4,) and is_cmyk_tiff(data):
            stored = _imdecode(data, cv2.IMREAD_COLOR)
        # libtiff hands out 8-bit colours multiplied by their alpha.
        image_rgb = _as_rgb(stored, is_multiplied=header.format == "tiff" and stored.dtype == np.uint8)
        if header.format != "tiff":  # OpenCV has turned these already
            image_rgb = _orient(image_rgb, header.orientation)
    expected = (-(-header.height // reduction), -(-header.width // reduction), 3)
    if image_rgb.shape != expected:
        raise BadPhoto("undecodable", f"the header promises {expected}, the data holds {image_rgb.shape}")
    return image_rgb


def _reduction(header: Header, side_px: int) -> int:
    """By how much to divide the sides of a photograph while decoding it: 1, 2, 4 or 8."""
    if header.format != "jpeg":
        return 1
    surplus = min(header.width, header.height) / (side_px * _LEAST_SURPLUS)
    return next((divisor for divisor in _REDUCED if divisor <= surplus), 1)


def _imdecode(data: bytes, flags: int) -> np.ndarray:
    try:
        with _c_stderr.silent():
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # all that OpenCV raises: a broken assertion, memory that cannot be had
        raise BadPhoto("undecodable", f"OpenCV: {error.err or error.func or 'no reason given'}") from None
    if image is None:
        raise BadPhoto("undecodable", "OpenCV cannot decode the data behind the header")
    return image


def _as_rgb(stored: np.ndarray, *, is_multiplied: bool) -> np.ndarray:
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


def _on_white(image_rgb: np.ndarray, alpha: np.ndarray, is_multiplied: bool) -> np.ndarray:
    """colour · alpha + white · (1 − alpha), in 8 bits all the way to spare memory."""
    if alpha.min(initial=255) == 255:
        return image_rgb
    alphas = cv2.merge([alpha] * 3)
    if is_multiplied:
        return cv2.add(image_rgb, cv2.bitwise_not(alphas))
    ink = cv2.bitwise_not(image_rgb)
    cv2.multiply(ink, alphas, dst=ink, scale=1 / 255)
    return cv2.bitwise_not(ink)


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


# ---- quiet ----


class _CStderr:
    """C's `stderr`, which can be pointed at nothing; Python's sys.stderr does not go through it.

    libjpeg and libpng, which OpenCV carries, write what they find wrong to it, without the name of
    the file, and OpenCV has no switch for that. Where the C library does not let its `stderr` be
    moved (other than glibc), the lines are printed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._silent_calls = 0
        self._stream: ctypes.c_void_p | None = None
        self._saved: int | None = None
        c_library = ctypes.CDLL(None)
        try:
            stream = ctypes.c_void_p.in_dll(c_library, "stderr")
            fopen = c_library.fopen
        except (ValueError, AttributeError):  # no such name
            return
        fopen.restype = ctypes.c_void_p
        self._nothing = fopen(os.devnull.encode(), b"w")
        if self._nothing:
            self._stream = stream

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Silence for all threads until the last one of those that asked for it is done."""
        with self._lock:
            if self._silent_calls == 0 and self._stream is not None:
                self._saved, self._stream.value = self._stream.value, self._nothing
            self._silent_calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._silent_calls -= 1
                if self._silent_calls == 0 and self._stream is not None:
                    self._stream.value = self._saved


_c_stderr = _CStderr()
