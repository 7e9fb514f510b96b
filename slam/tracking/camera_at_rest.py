"""A camera that stands still while something crosses its image: what moves then is no world."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.image_static import MOST, RESTING_PX, resting
from slam.map.tracks import Pixels

ALL = 0.9  # of the image, that stands still when nothing crosses it: its tracks are the witnesses
WITNESSES = 15  # that must be left to say that the camera still stands where it did


class Rest:
    """Judges by most of the image; and, while something covers that, by the tracks that stood still before it came.

    Attributes:
        crossed: points that moved far while the camera stood still, so far.
        share: of the image, that stood still when most of it did last.
    """

    def __init__(self, crossing_px: float) -> None:
        """`crossing_px`: a track that moves so far while the camera stands still is none of the world."""
        self._crossing_px = crossing_px
        self._witnesses = np.zeros(0, np.int64)
        self.crossed = 0
        self.share = 0.0

    def crossing(self, ids: NDArray[np.int64], before: Pixels, now: Pixels, camera: Camera) -> NDArray[np.bool_] | None:
        """Which tracks (N,) move while the camera stands still; None when the camera itself moves."""
        share, moved = resting(before, now, camera)
        self.share = share if share >= MOST else self.share
        if share >= ALL:
            self._witnesses = ids[moved < RESTING_PX]
        elif share < MOST and not self._is_witnessed(ids, before, now, camera):
            return None
        found = np.linalg.norm(now - before, axis=1) >= self._crossing_px
        self.crossed += int(found.sum())
        return np.asarray(found)

    def is_witness(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which tracks stood still before something came that crosses the image; none while nothing does."""
        return np.isin(ids, self._witnesses) & (self.crossed > 0)

    def _is_witnessed(self, ids: NDArray[np.int64], before: Pixels, now: Pixels, camera: Camera) -> bool:
        known = self.is_witness(ids)
        return int(known.sum()) >= WITNESSES and resting(before[known], now[known], camera)[0] >= MOST

    @property
    def reason(self) -> str:
        """Why no map begins; empty while nothing crosses the image."""
        if self.crossed == 0:
            return ""
        return (
            f"the camera does not move ({self.share:.0%} of the image stands still); something crosses the image "
            f"({self.crossed} points that moved by {self._crossing_px:g} px or more)"
        )
