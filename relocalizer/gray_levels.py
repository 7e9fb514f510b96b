"""Reduction of images of more than 8 bits to 8 bits, by one range of values for all images of a sequence.

Cameras write 10, 12 or 14 significant bits into 16-bit files, and thermal cameras use a small part of their range, so
the upper 8 bits may be nearly constant. A range per image would change the brightness from one image to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (0.1, 99.9)  # range of an image: dead and saturated pixels are ignored
WELL_USED = 0.25  # minimum share of the range of an integer type with which the whole type is shown, as by a viewer


@dataclass(frozen=True, slots=True)
class GrayLevels:
    """The values that are shown as 0 and as 255; values between them are mapped linearly."""

    low: float
    high: float

    @classmethod
    def of(cls, images: Sequence[NDArray[Any]]) -> GrayLevels:
        """The common range of images of one type, any shape; NaN and infinity are ignored."""
        ranges = [np.percentile(values, PERCENTILES) for image in images if (values := image[np.isfinite(image)]).size]
        if not ranges:
            return cls(0.0, 1.0)
        low, high = float(np.min(ranges, axis=0)[0]), float(np.max(ranges, axis=0)[1])
        if np.issubdtype(images[0].dtype, np.integer):
            whole = float(np.iinfo(images[0].dtype).max)
            if low == high or high - low > WELL_USED * whole:
                return cls(0.0, whole)
        return cls(low, high if high > low else low + 1.0)

    def apply(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        """The image reduced to 8 bits; NaN becomes 0."""
        finite = np.nan_to_num(image.astype(np.float32), nan=self.low, posinf=self.high, neginf=self.low)
        scaled = (finite - self.low) * (255.0 / (self.high - self.low))
        return np.asarray(np.rint(np.clip(scaled, 0, 255)), dtype=np.uint8)

    @property
    def note(self) -> str:
        """A remark for the user."""
        return f"more than 8 bits, of which {self.low:.6g} to {self.high:.6g} are used"
