"""Images and the camera that took them. BGR ends here: everything past this file is RGB.

A camera follows its pixels: resizing or cropping an image goes with `Camera.resized` or `Camera.cropped`.
Pixel (0, 0) is the center of the top-left pixel.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import SequenceError
from relocalizer.unfetched import pointer_words, why_unfetched

Image = NDArray[np.uint8]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")

LARGEST_FILE_BYTES = 2**31 - 1  # what OpenCV can be handed
LONGER, LONGER_STEPS = 1.02, 200

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")  # not FF 00 (a data byte) nor D0-D7 (a restart)


def read_image(path: Path) -> Image:
    """An image file as RGB (H, W, 3) uint8, upright; gray, RGBA and 16-bit files become that too.

    A JPEG's orientation tag is applied, so a portrait photo comes out portrait.

    Raises:
        SequenceError: the file is missing, not fetched, empty, truncated, too large or not an image.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would never end, or never begin
            raise SequenceError(f"{path}: not a file")
        if status.st_size > LARGEST_FILE_BYTES:
            raise SequenceError(f"{path}: too large for an image ({status.st_size / 1e9:.1f} GB)")
        data = path.read_bytes()
    except OSError as error:
        raise SequenceError(f"{path}: {why_unfetched(path) or f'cannot be read ({error.strerror})'}") from None
    if not data:
        raise SequenceError(f"{path}: an empty file")
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> Image:
    """The bytes of an image file as RGB (H, W, 3) uint8; `name` stands in the errors.

    Raises:
        SequenceError: truncated, too large or not an image.
    """
    if is_cut_off(data):
        raise SequenceError(f"{name}: the image is cut off (copied or downloaded only in part?)")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise SequenceError(f"{name}: cannot be decoded ({error.err})") from None
    if image is None:
        raise SequenceError(f"{name}: {pointer_words(data) or 'not an image that can be decoded'}")
    return bgr_to_rgb(image)


def encode_jpeg(image: Image, quality: int) -> bytes:
    """An image (H, W, 3) as the bytes of a JPEG file, quality 1 to 100, with codes made for it (a tenth smaller)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"encode_jpeg: cannot encode an image of shape {image.shape}")
    return bytes(data)


def is_cut_off(data: bytes) -> bool:
    """Whether the bytes of a JPEG, PNG or WebP stop before the image does.

    Some versions of OpenCV decode such a file without complaint and fill what is missing with gray, which
    a tracker takes for a wall. The other formats carry their size, and OpenCV refuses them by itself.
    """
    if data.startswith(b"\xff\xd8"):
        return not data.rstrip(b"\0").endswith(b"\xff\xd9") and not _jpeg_has_end(data)
    if data.startswith(_PNG_START):
        return _PNG_END not in data
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return False


def _jpeg_has_end(data: bytes) -> bool:
    """Whether an end marker follows the image's data; phones append films and thumbnails after it.

    Headers are stepped over by their stated length (ITU-T T.81, annex B), as a thumbnail inside has an end
    marker of its own.
    """
    position = 2
    while found := _JPEG_MARKER.search(data, position):
        if found[0][-1] == 0xD9:
            return True
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return False


def bgr_to_rgb(image: NDArray[Any]) -> Image:
    """OpenCV's channel order (H, W, 3) to ours."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def to_gray(image: Image) -> Image:
    """RGB (H, W, 3) to gray (H, W)."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def size_within(width: int, height: int, max_side: int) -> tuple[int, int]:
    """(width, height) shrunk in proportion so that the longer side has at most `max_side` pixels."""
    scale = max_side / max(width, height)
    if scale >= 1.0:
        return width, height
    return max(1, round(width * scale)), max(1, round(height * scale))


def shrink(image: Image, width: int, height: int) -> Image:
    """The image (H, W, 3) averaged down to width x height; `Camera.resized` gives its camera."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
