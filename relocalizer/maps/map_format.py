"""Map file format: a manifest, tables of arrays, and the keyframes' images. docs/map-format.md describes it.

Saving is atomic. Loading checks sizes before allocating, checksums before parsing, and ranges before use.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image as PillowImage

from relocalizer.errors import MapError, SequenceError
from relocalizer.features import DESCRIPTOR_SIZE
from relocalizer.images import Image, decode_image, encode_jpeg
from relocalizer.maps.reference_map import ReferenceMap

FORMAT, VERSION = "reloc3r-slam map", 1
MANIFEST, IMAGES = "manifest.json", "images"
JPEG_QUALITY = 80

MAX_MANIFEST_BYTES = 64 << 20
MAX_CAMERAS = MAX_SESSIONS = 100_000
MAX_NAME = 4096  # maximum length of the name of an image file, as of a path
MAX_SIDE, MAX_PIXELS = 16_384, 1 << 26
IMAGE_NAME = re.compile(r"images/[0-9]{6,12}\.jpg")

MAKE_ANEW = "copy the map again, or make it anew with slam run"

# Every array of every table: its type on disk and its shape, as numbers and names of the manifest's counts.
SCHEMA: dict[str, dict[str, tuple[str, tuple[str | int, ...]]]] = {
    "keyframes": {
        "ids": ("<i8", ("keyframes",)),
        "frame_indices": ("<i8", ("keyframes",)),
        "timestamps_ns": ("<i8", ("keyframes",)),
        "camera": ("<i8", ("keyframes",)),
        "segment": ("<i8", ("keyframes",)),
        "rotations": ("<f8", ("keyframes", 3, 3)),
        "translations": ("<f8", ("keyframes", 3)),
        "scales": ("<f8", ("keyframes",)),
        "descriptors": ("<f4", ("keyframes", "descriptor_size")),
    },
    "features": {
        "offsets": ("<i8", ("keyframes + 1",)),
        "pixels": ("<f4", ("features", 2)),
        "scales": ("<f4", ("features",)),
        "descriptors": ("|u1", ("features", DESCRIPTOR_SIZE)),
        "landmark": ("<i8", ("features",)),
    },
    "observations": {
        "offsets": ("<i8", ("keyframes + 1",)),
        "landmark": ("<i8", ("observations",)),
        "pixels": ("<f4", ("observations", 2)),
    },
    "landmarks": {
        "ids": ("<i8", ("landmarks",)),
        "anchor": ("<i8", ("landmarks",)),
        "points_in_anchor": ("<f8", ("landmarks", 3)),
        "inverse_depth_sigma": ("<f8", ("landmarks",)),
        "descriptors": ("|u1", ("landmarks", DESCRIPTOR_SIZE)),
        "colors": ("|u1", ("landmarks", 3)),
    },
    "edges": {
        "i": ("<i8", ("edges",)),
        "j": ("<i8", ("edges",)),
        "rotations": ("<f8", ("edges", 3, 3)),
        "translations": ("<f8", ("edges", 3)),
        "scales": ("<f8", ("edges",)),
        "sigmas": ("<f8", ("edges", 7)),
        "is_loop": ("|b1", ("edges",)),
        "inliers": ("<i8", ("edges",)),
        "shares": ("<f8", ("edges",)),
        "weights": ("<f8", ("edges",)),
    },
    "frames": {
        "indices": ("<i8", ("frames",)),
        "timestamps_ns": ("<i8", ("frames",)),
        "keyframe": ("<i8", ("frames",)),
        "rotations": ("<f8", ("frames", 3, 3)),
        "translations": ("<f8", ("frames", 3)),
    },
}
COUNTS = ("keyframes", "descriptor_size", "features", "observations", "landmarks", "edges", "frames")


def image_name(keyframe_id: int) -> str:
    """Path of a keyframe's image relative to the map folder."""
    return f"{IMAGES}/{keyframe_id:06d}.jpg"


class JpegImages:
    """Keyframe images stored as JPEG: `images(row)` is RGB, `images.jpeg(row)` the bytes of the file."""

    def __init__(self, jpeg: Callable[[int], bytes], sizes: Sequence[tuple[int, int]]) -> None:
        """`jpeg(row)` reads the bytes, `sizes` are the expected (width, height) of the images."""
        self.jpeg, self._sizes = jpeg, sizes

    def __call__(self, row: int) -> Image:
        """Decode an image.

        Raises:
            MapError: the bytes are not a JPEG image, or its size differs from its camera's.
        """
        data, name = self.jpeg(row), f"image {row} of the map"
        width, height = self._sizes[row]
        try:
            with PillowImage.open(io.BytesIO(data), formats=["JPEG"]) as header:  # reads only the header
                size = header.size
            if size != (width, height):
                raise MapError(f"{name}: expected {width}x{height} pixels, got {size[0]}x{size[1]}; {MAKE_ANEW}")
            return decode_image(data, name)
        except (SequenceError, OSError, ValueError, SyntaxError, PillowImage.DecompressionBombError) as error:
            reason = error if isinstance(error, SequenceError) else f"{name}: not a JPEG image"
            raise MapError(f"{reason}; {MAKE_ANEW}") from None


def jpeg_of(reference_map: ReferenceMap, row: int) -> bytes:
    """A keyframe's image as a JPEG file, unchanged if it is stored as one, because re-encoding loses quality."""
    if isinstance(reference_map.image, JpegImages):
        return reference_map.image.jpeg(row)
    return encode_jpeg(reference_map.image(row), JPEG_QUALITY)


def counts_of(m: ReferenceMap) -> dict[str, int]:
    """Number of rows of each table, and length of a place descriptor."""
    return {
        "keyframes": len(m.keyframes),
        "descriptor_size": int(m.keyframes.descriptors.shape[1]),
        "features": len(m.features.pixels),
        "observations": len(m.observations.pixels),
        "landmarks": len(m.landmarks),
        "edges": len(m.edges.i),
        "frames": len(m.frames.indices),
    }


def checksum_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest without its `checksum`, as JSON with sorted keys and no spaces."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
