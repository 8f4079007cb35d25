"""Crops a photograph to a square and resizes it."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from cutline.schemas.settings import ImagesSettings
from cutline.tasks.images.headers import Header

PAD_GREY = 128
# Linear interpolation blurs where fewer pixels than so many become one, along a side.
_BLURRED_BELOW = 1.9
_INTERPOLATIONS = {
    "area": cv2.INTER_AREA,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}


# ---- crop and resize ----


class _Part(NamedTuple):
    """A rectangle of an image, in its pixels or fractions of them; pixel i reaches from i to i + 1."""

    left: float
    top: float
    width: float
    height: float


def crop_to_square(
    image_rgb: np.ndarray, settings: ImagesSettings, header: Header | None = None, reduction: int = 1
) -> np.ndarray:
    """Make (H, W, 3) uint8 a square of (side_px, side_px, 3) uint8.

    `centre` cuts the longer side equally at both ends, `pad` adds grey where the shorter one is
    wanting, `squash` changes the aspect. `area` is used along a side that shrinks, `cubic` along one
    that grows. An image that is 1 / `reduction` of a photograph is cut where the photograph, whose
    `header` says its size, would be, if that is within a pixel.
    """
    header = header or Header(image_rgb.shape[1], image_rgb.shape[0], "raw")
    side, width, height = settings.side_px, header.width, header.height
    part = _Part(0, 0, width, height)
    if settings.crop == "centre":
        cut = min(width, height)
        part = _Part((width - cut) // 2, (height - cut) // 2, cut, cut)
    part = _reduced(part, image_rgb, header, reduction)
    if settings.crop != "pad":
        return _resize(image_rgb, part, side, side, settings.interpolation)
    longer = max(height, width)
    inner_height, inner_width = (max(1, round(side * edge / longer)) for edge in (height, width))
    top, left = (side - inner_height) // 2, (side - inner_width) // 2
    square = np.full((side, side, 3), PAD_GREY, np.uint8)
    inner = _resize(image_rgb, part, inner_height, inner_width, settings.interpolation)
    square[top : top + inner_height, left : left + inner_width] = inner
    return square


def _reduced(part: _Part, image: np.ndarray, header: Header, reduction: int) -> _Part:
    """Where a part of the photograph lies in its reduced image.

    libjpeg rounds the sides up, with a last row and column that lie partly outside; turning the image
    may have made them the first.
    """
    left, top, width, height = (edge / reduction for edge in part)
    if header.orientation in (2, 3, 6, 7):
        left += image.shape[1] - header.width / reduction
    if header.orientation in (3, 4, 7, 8):
        top += image.shape[0] - header.height / reduction
    return _Part(left, top, width, height)


def _resize(image: np.ndarray, part: _Part, height: int, width: int, interpolation: str) -> np.ndarray:
    """A part of (H, W, 3) as (height, width, 3)."""
    if all(edge == int(edge) for edge in part):
        left, top, part_width, part_height = map(int, part)
        image = image[top : top + part_height, left : left + part_width]
    else:
        image = _between_pixels(image, part, height, width)
        # Linear interpolation has blurred what the square can show; to halve by `cubic` sharpens it again.
        if interpolation == "area" and max(part.width / width, part.height / height) < _BLURRED_BELOW:
            interpolation = "cubic"
    if interpolation != "area":
        return cv2.resize(image, (width, height), interpolation=_INTERPOLATIONS[interpolation])
    # OpenCV's `area` turns into nearest neighbours along a side that grows: shrink first, then grow.
    shrunk = min(image.shape[1], width), min(image.shape[0], height)
    image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def _between_pixels(image: np.ndarray, part: _Part, height: int, width: int) -> np.ndarray:
    """A part that begins or ends within a pixel, as a multiple of (height, width, 3).

    Its edges cannot be rounded: that would be a shift that shows. OpenCV is quick at linear
    interpolation, and then at the mean of 2 × 2 pixels and more.
    """
    across, down = max(2, round(part.width / width)), max(2, round(part.height / height))
    step_x, step_y = part.width / (width * across), part.height / (height * down)
    # From a pixel of what comes out to the place in `image` where its centre lies.
    places = np.array([[step_x, 0, part.left + (step_x - 1) / 2], [0, step_y, part.top + (step_y - 1) / 2]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = width * across, height * down
    return cv2.warpAffine(image, places, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
