"""Local features: points that can be found again, and the descriptors to match them by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class LocalFeatures:
    """Points of one picture and their descriptors, strongest first.

    Attributes:
        pixels: (N, 2) float32.
        descriptors: (N, 128) float32, unit rows (RootSIFT).
        scales: (N,) float32, diameter of the described patch in pixels.
    """

    pixels: NDArray[np.float32]
    descriptors: NDArray[np.float32]
    scales: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pixels)
