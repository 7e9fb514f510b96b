"""Corner tracks: the same point followed from image to image (KLT), and where to start new ones.

A track is an id and a pixel. Tracks know nothing of depth or pose; `slam.map.landmarks` gives them a place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Tracks:
    """Points of one image: ids (N,) int64 and pixels (N, 2) float32."""

    ids: NDArray[np.int64]
    pixels: Pixels

    @staticmethod
    def none() -> Tracks:
        return Tracks(np.zeros(0, np.int64), np.zeros((0, 2), np.float32))

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, keep: NDArray[np.bool_]) -> Tracks:
        return Tracks(self.ids[keep], self.pixels[keep])

    def joined(self, other: Tracks) -> Tracks:
        return Tracks(np.concatenate([self.ids, other.ids]), np.concatenate([self.pixels, other.pixels]))

    def with_new(self, other: Tracks) -> Tracks:
        """These, and of the others those whose name and whose very pixel none of these has."""
        taken = np.isin(other.ids, self.ids) | np.isin(other.pixels @ (1, 1j), self.pixels @ (1, 1j))
        return self.joined(other.where(~taken))
