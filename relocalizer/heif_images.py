"""HEIC and AVIF images, as phones write them: AVIF is decoded by Pillow itself, HEIC with pillow-heif if installed."""

from __future__ import annotations

import importlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageOps, UnidentifiedImageError, features

from relocalizer.errors import SequenceError

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # ISO/IEC 23008-12, annex B
AVIF_BRANDS = (b"avif", b"avis")
START_BYTES = 32  # number of bytes from the start of a file that determine its format


def is_heif(start: bytes) -> bool:
    """Whether the first bytes of a file are those of a HEIC or AVIF image, rather than of a video."""
    return start[4:8] == b"ftyp" and start[8:12] in (*HEIC_BRANDS, *AVIF_BRANDS)


def enable_heif(start: bytes) -> str:
    """Prepare Pillow for the HEIF format with these first bytes; the problem if it cannot be decoded, else empty."""
    # "mif1" is the general brand, under which either coding may be stored; the compatible brands name it.
    if start[8:12] in AVIF_BRANDS or any(brand in start[16:START_BYTES] for brand in AVIF_BRANDS):
        return (
            "" if features.check("avif") else "an AVIF image, which needs Pillow 11.3 or newer; or convert it to JPEG"
        )
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return "a HEIC image, which needs pillow-heif (pip install pillow-heif); or convert it to JPEG"
    return ""


def read_heif(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode a HEIC or AVIF image to upright RGB (H, W, 3); `name` is its name in error messages.

    Raises:
        SequenceError: the decoder is not installed, or the data are damaged.
    """
    if problem := enable_heif(data[:START_BYTES]):
        raise SequenceError(f"{name}: {problem}")
    try:
        with pillow.open(io.BytesIO(data)) as image:
            upright: Any = ImageOps.exif_transpose(image)
            return np.asarray(upright.convert("RGB"), dtype=np.uint8)
    # RuntimeError is what Pillow's decoder of AVIF raises for damaged data.
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, UnidentifiedImageError) as error:
        raise SequenceError(f"{name}: not an image that can be decoded ({' '.join(str(error).split())})") from None
