"""The size and the focal length of an image from the header of its file, without decoding it."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags
from PIL import Image as pillow
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from relocalizer.heif_images import START_BYTES, enable_heif, is_heif

FOCAL_LENGTHS_MM = (10.0, 150.0)  # range of plausible focal lengths for 35 mm film, millimeters
# What Pillow raises for damaged headers; its decoder of AVIF raises RuntimeError.
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, RuntimeError, struct.error)
TURNED = (5, 6, 7, 8)  # Exif orientations that swap width and height (TIFF 6.0, tag 274)
ROTATED = (1, 3, 6, 8)  # those that a camera writes: the image is turned by 0, 180, 90 and 270 degrees, not mirrored


def image_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of the upright image that `read_image` returns; None when the header does not contain it."""
    if not os.path.isfile(path):  # opening a pipe would block until there is a writer
        return None
    try:
        with _opened(path) as image:
            return _upright_size(image)
    except _DAMAGED:
        return None


def orientation(path: Path) -> int | None:
    """The orientation tag that `read_image` applies, one of `ROTATED`; None without one."""
    if not os.path.isfile(path):
        return None
    try:
        with _opened(path) as image:
            _, value = _stored_size(image)
    except _DAMAGED:
        return None
    return value if value in ROTATED else None


def size_of_encoded(data: bytes) -> tuple[int, int] | None:
    """(width, height) of the upright image in the bytes of a file, as `image_size`; None when the header lacks it."""
    try:
        with _opened_bytes(data) as image:
            return _upright_size(image)
    except _DAMAGED:
        return None


def focal_length_35mm(path: Path) -> float | None:
    """The focal length for 35 mm film in the Exif block of an image, millimeters; None without a plausible one."""
    if not os.path.isfile(path):
        return None
    try:
        with _opened(path) as image:
            exif = pillow.Exif()
            exif.load(image.info.get("exif", b""))
            value = float(exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm, 0.0))
    except _DAMAGED:
        return None
    return value if FOCAL_LENGTHS_MM[0] <= value <= FOCAL_LENGTHS_MM[1] else None


@contextmanager
def _opened(path: Path) -> Iterator[pillow.Image]:
    """An image whose header alone has been read. Raises OSError, among others, when it cannot be."""
    with path.open("rb") as file:
        start = file.read(START_BYTES)
    if is_heif(start) and (problem := enable_heif(start)):
        raise OSError(problem)
    with _of_any_size(), pillow.open(path) as image:
        yield image


@contextmanager
def _opened_bytes(data: bytes) -> Iterator[pillow.Image]:
    """As `_opened`, of the bytes of a file."""
    if is_heif(data[:START_BYTES]) and (problem := enable_heif(data[:START_BYTES])):
        raise OSError(problem)
    with _of_any_size(), pillow.open(io.BytesIO(data)) as image:
        yield image


@contextmanager
def _of_any_size() -> Iterator[None]:
    """Lift Pillow's size limit, which guards against decoding too large images; here nothing is decoded."""
    limit = pillow.MAX_IMAGE_PIXELS
    pillow.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        pillow.MAX_IMAGE_PIXELS = limit


def _upright_size(image: pillow.Image) -> tuple[int, int]:
    """The size after applying the orientation tag."""
    (width, height), value = _stored_size(image)
    return (height, width) if value in TURNED else (width, height)


def _stored_size(image: pillow.Image) -> tuple[tuple[int, int], int | None]:
    """The size as it is stored, and the orientation tag; None without one.

    The tag is read only from the Exif block, as in OpenCV; Pillow would also read XMP, and decode a PNG for that.
    """
    if isinstance(image, TiffImageFile):  # depending on Pillow's version, `size` is upright or not
        tags = image.tag_v2
        return (int(tags[IMAGEWIDTH]), int(tags[IMAGELENGTH])), tags.get(ExifTags.Base.Orientation)
    exif = pillow.Exif()
    exif.load(image.info.get("exif", b""))
    return image.size, exif.get(ExifTags.Base.Orientation)
