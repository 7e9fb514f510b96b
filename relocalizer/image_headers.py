"""The size of an image from the head of its file, without decoding it."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags
from PIL import Image as pillow
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

TURNED = (5, 6, 7, 8)  # orientations by which width and height change places (TIFF 6.0, tag 274)


def image_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of an image file as `read_image` gives it, upright; None where its head does not say."""
    if not os.path.isfile(path):  # opening a pipe would wait for who writes to it
        return None
    try:
        with _of_any_size(), pillow.open(path) as image:
            return _upright_size(image)
    # What Pillow raises for heads that are damaged.
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, struct.error):
        return None


@contextmanager
def _of_any_size() -> Iterator[None]:
    """Pillow refuses to open what would not fit into memory; here nothing is decoded."""
    limit = pillow.MAX_IMAGE_PIXELS
    pillow.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        pillow.MAX_IMAGE_PIXELS = limit


def _upright_size(image: pillow.Image) -> tuple[int, int]:
    """The tag is read from the Exif block alone, as OpenCV does; Pillow would look into XMP and decode a PNG for it."""
    if isinstance(image, TiffImageFile):  # whether `size` is upright depends on Pillow's version
        tags = image.tag_v2
        width, height, orientation = int(tags[IMAGEWIDTH]), int(tags[IMAGELENGTH]), tags.get(ExifTags.Base.Orientation)
    else:
        exif = pillow.Exif()
        exif.load(image.info.get("exif", b""))
        (width, height), orientation = image.size, exif.get(ExifTags.Base.Orientation)
    return (height, width) if orientation in TURNED else (width, height)
