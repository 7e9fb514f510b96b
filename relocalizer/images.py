"""Reading, encoding and resizing of images. OpenCV's BGR is converted here: all other modules use RGB.

When an image is resized or cropped, its camera needs `Camera.resized` or `Camera.cropped`.
Pixel (0, 0) is the center of the top-left pixel.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import SequenceError
from relocalizer.gray_levels import GrayLevels
from relocalizer.heif_images import is_heif, read_heif
from relocalizer.unfetched import pointer_words, why_unfetched

Image = NDArray[np.uint8]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".heic", ".heif", ".avif")

LARGEST_FILE_BYTES = 2**31 - 1  # largest buffer that OpenCV decodes, bytes

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")  # excludes FF 00 (a data byte) and D0-D7 (restart markers)


def read_image(path: Path, levels: GrayLevels | None = None) -> Image:
    """Read an image file as upright RGB (H, W, 3) uint8; gray and RGBA files are converted.

    The orientation tag is applied. Of a file of more than 8 bits per value, `levels` are shown as 0 to 255; without
    them, the range of the image itself.

    Raises:
        SequenceError: the file is missing, not fetched, empty, truncated, too large or not an image.
    """
    return to_rgb(decode_values(_bytes_of(path), str(path)), levels)


def read_values(path: Path) -> NDArray[Any]:
    """The values of an image file, upright: BGR (H, W, 3) or gray (H, W), in the type in which they are stored.

    Raises:
        SequenceError: as `read_image`.
    """
    return decode_values(_bytes_of(path), str(path))


def _bytes_of(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe could block
            raise SequenceError(f"{path}: not a file")
        if status.st_size > LARGEST_FILE_BYTES:
            raise SequenceError(f"{path}: too large for an image ({status.st_size / 1e9:.1f} GB)")
        data = path.read_bytes()
    except OSError as error:
        raise SequenceError(f"{path}: {why_unfetched(path) or f'cannot be read ({error.strerror})'}") from None
    if not data:
        raise SequenceError(f"{path}: an empty file")
    return data


def decode_image(data: bytes, name: str) -> Image:
    """Decode the bytes of an image file to RGB (H, W, 3) uint8; `name` is its name in error messages.

    Raises:
        SequenceError: the data are truncated, too large or not an image.
    """
    return to_rgb(decode_values(data, name))


def decode_values(data: bytes, name: str) -> NDArray[Any]:
    """Decode the bytes of an image file to its values, as `read_values`."""
    if is_cut_off(data):
        raise SequenceError(f"{name}: the image is cut off (copied or downloaded only in part?)")
    if is_heif(data):
        return np.asarray(cv2.cvtColor(read_heif(data, name), cv2.COLOR_RGB2BGR))
    try:
        with quiet_opencv():
            values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise SequenceError(f"{name}: cannot be decoded ({error.err})") from None
    if values is None:
        raise SequenceError(f"{name}: {pointer_words(data) or 'not an image that can be decoded'}")
    return np.asarray(values)


def to_rgb(values: NDArray[Any], levels: GrayLevels | None = None) -> Image:
    """RGB (H, W, 3) uint8 of BGR (H, W, 3) or gray (H, W) values of any type; see `read_image` for `levels`."""
    if values.dtype != np.uint8:
        values = (levels or GrayLevels.of([values])).apply(values)
    code = cv2.COLOR_GRAY2RGB if values.ndim == 2 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(values, code), dtype=np.uint8)


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Suppress OpenCV's own messages about input that it cannot read; our errors report it."""
    levels = cv2.utils.logging
    before = levels.setLogLevel(levels.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        levels.setLogLevel(before)


def encode_jpeg(image: Image, quality: int) -> bytes:
    """Encode an image (H, W, 3) as JPEG, quality 1 to 100, with optimized Huffman codes (a tenth smaller)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"encode_jpeg: cannot encode an image of shape {image.shape}")
    return bytes(data)


def is_cut_off(data: bytes) -> bool:
    """Whether the bytes of a JPEG, PNG or WebP are truncated.

    Some versions of OpenCV decode a truncated file without an error and fill the missing part with gray, which
    a tracker cannot distinguish from a wall. The other formats store their size, and OpenCV rejects truncated files.
    """
    if data.startswith(b"\xff\xd8"):
        return not data.rstrip(b"\0").endswith(b"\xff\xd9") and not _jpeg_has_end(data)
    if data.startswith(_PNG_START):
        return _PNG_END not in data
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return False


def _jpeg_has_end(data: bytes) -> bool:
    """Whether an end marker follows the image's data; phones append videos and thumbnails after it.

    Headers are skipped by their stated length (ITU-T T.81, annex B), because an embedded thumbnail has its own end
    marker.
    """
    position = 2
    while found := _JPEG_MARKER.search(data, position):
        if found[0][-1] == 0xD9:
            return True
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return False


def bgr_to_rgb(image: NDArray[Any]) -> Image:
    """Convert OpenCV's channel order (H, W, 3) to RGB."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def to_gray(image: Image) -> Image:
    """Convert RGB (H, W, 3) to gray (H, W)."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def size_within(width: int, height: int, max_side: int) -> tuple[int, int]:
    """(width, height) reduced proportionally so that the longer side has at most `max_side` pixels."""
    scale = max_side / max(width, height)
    if scale >= 1.0:
        return width, height
    return max(1, round(width * scale)), max(1, round(height * scale))


def shrink(image: Image, width: int, height: int) -> Image:
    """The image (H, W, 3) downsampled to width x height by area averaging; `Camera.resized` gives its camera."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
