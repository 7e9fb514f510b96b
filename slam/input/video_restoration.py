"""Restoration of the stored images of a video to those a player shows: one field, square pixels, upright.

Interlaced video stores two fields, taken half a period apart, in the even and odd rows of each image. Points that move
have two positions in it, which no tracker can follow; therefore the rows of one field are used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.gray_levels import GrayLevels
from relocalizer.images import Image, to_rgb
from slam.input.image_sizes import Size
from slam.input.video_decoding import Values, VideoFacts

# Difference of neighboring rows divided by that of rows two apart, from which two fields were taken at different times.
# Measured on ten sequences: 0.52 to 0.75 in progressive images, 1.2 and more in interlaced ones that move.
COMBED = 1.1
COMBED_SHARE = 0.1  # minimum share of combed images in an interlaced video; while the camera rests nothing is combed


@dataclass(frozen=True, slots=True)
class Restoration:
    """How stored images become upright ones with square pixels.

    Attributes:
        stored_size: (width, height) of the stored images.
        size: (width, height) after stretching, before turning.
        quarter_turns: number of counterclockwise quarter turns.
        is_interlaced: whether only the even rows are used, and the odd ones interpolated.
        levels: range of the values of a deep gray video.
    """

    stored_size: Size
    size: Size
    quarter_turns: int = 0
    is_interlaced: bool = False
    levels: GrayLevels | None = None

    @property
    def upright_size(self) -> Size:
        """(width, height) of the restored images."""
        return self.size[::-1] if self.quarter_turns % 2 else self.size

    @property
    def notes(self) -> list[str]:
        """Remarks for the user."""
        notes = ["interlaced, so every second row is used"] if self.is_interlaced else []
        if self.size != self.stored_size:
            stored = f"{self.stored_size[0]}x{self.stored_size[1]}"
            notes.append(f"pixels that are not square, so stretched from {stored} to {self.size[0]}x{self.size[1]}")
        return [*notes, *([self.levels.note] if self.levels else [])]

    def __call__(self, values: NDArray[Any]) -> Image:
        """The restored RGB image (H, W, 3) of stored values; one of another size than the first is not stretched."""
        image = values if values.dtype == np.uint8 else to_rgb(values, self.levels)
        if self.is_interlaced:
            image = first_field(image)
        if self.size != self.stored_size and image.shape[1::-1] == self.stored_size:
            image = np.asarray(cv2.resize(image, self.size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
        return np.ascontiguousarray(np.rot90(image, self.quarter_turns)) if self.quarter_turns else image


def square_size(facts: VideoFacts) -> Size:
    """(width, height) of the stored images stretched to square pixels, so that none are lost."""
    aspect = facts.pixel_aspect
    if aspect > 1:
        return round(facts.width * aspect), facts.height
    return facts.width, round(facts.height / aspect)


def first_field(image: Image) -> Image:
    """The image (H, W, 3) with its odd rows interpolated from the even ones, so its camera stays the same."""
    restored = image.copy()
    last = image.shape[0] - 1
    above, below = image[0 : last - 1 : 2], image[2::2]
    restored[1:last:2] = cv2.addWeighted(above, 0.5, below, 0.5, 0.0) if len(below) else above
    if last % 2:
        restored[last] = image[last - 1]
    return restored


def is_combed(values: Values) -> bool:
    """Whether the even and the odd rows of an image (H, W, 3) or (H, W) were taken at different times."""
    gray = values if values.ndim == 2 else cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)
    rows = gray.astype(np.int32)
    if len(rows) < 4:
        return False
    neighbors = float(np.abs(np.diff(rows, axis=0))[:-1].mean())
    two_apart = float(np.abs(rows[2:] - rows[:-2]).mean())
    return neighbors > COMBED * two_apart


def are_interlaced(images: Iterable[Values]) -> bool:
    """Whether images of a video are interlaced."""
    combed = [is_combed(image) for image in images]
    return bool(combed) and sum(combed) >= COMBED_SHARE * len(combed)
