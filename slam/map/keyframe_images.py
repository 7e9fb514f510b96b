"""Storage of the keyframe images, in memory or in a folder; only the saved map needs them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Protocol

from relocalizer.images import Image, encode_jpeg
from relocalizer.maps.map_format import JPEG_QUALITY

logger = logging.getLogger(__name__)


class KeyframeImages(Protocol):
    """Storage of the image of every keyframe until the map is saved."""

    def store(self, keyframe_id: int, image: Image) -> None:
        """Store an image, RGB uint8 (H, W, 3)."""
        ...

    def jpeg(self, keyframe_id: int) -> bytes:
        """The image of a keyframe as the bytes of a JPEG file. Raises KeyError for a keyframe that was not stored."""
        ...

    def __contains__(self, keyframe_id: int) -> bool: ...


class MemoryImages:
    """Images as JPEG in memory, about 60 kB per image of 640x480 pixels."""

    def __init__(self) -> None:
        self._jpeg: dict[int, bytes] = {}

    def store(self, keyframe_id: int, image: Image) -> None:
        self._jpeg[keyframe_id] = encode_jpeg(image, JPEG_QUALITY)

    def jpeg(self, keyframe_id: int) -> bytes:
        return self._jpeg[keyframe_id]

    def __contains__(self, keyframe_id: int) -> bool:
        return keyframe_id in self._jpeg


class FolderImages:
    """Images as JPEG files in a folder of their own, so that memory does not grow with the number of keyframes.

    A map cannot be saved without the image of every keyframe, so an image that cannot be written stays in memory.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is created with the first image, and removed by `close`."""
        self._folder = folder
        self._stored: set[int] = set()
        self._in_memory: dict[int, bytes] = {}

    def store(self, keyframe_id: int, image: Image) -> None:
        jpeg = encode_jpeg(image, JPEG_QUALITY)
        try:
            self._folder.mkdir(exist_ok=True)
            self._path(keyframe_id).write_bytes(jpeg)
        except OSError as error:
            if not self._in_memory:
                logger.warning("%s: cannot be written (%s); keyframe images stay in memory", self._folder, error)
            self._in_memory[keyframe_id] = jpeg
        self._stored.add(keyframe_id)

    def jpeg(self, keyframe_id: int) -> bytes:
        """As `KeyframeImages.jpeg`. Raises OSError if the file cannot be read back."""
        if keyframe_id not in self._stored:
            raise KeyError(keyframe_id)
        if keyframe_id in self._in_memory:
            return self._in_memory[keyframe_id]
        return self._path(keyframe_id).read_bytes()

    def __contains__(self, keyframe_id: int) -> bool:
        return keyframe_id in self._stored

    def close(self) -> None:
        """Remove the folder; the saved map has its own copies."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, keyframe_id: int) -> Path:
        return self._folder / f"{keyframe_id:06d}.jpg"
