"""Detection of a camera at rest: tracks that move meanwhile belong to moving objects, not to the static scene."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.image_static import MOST, RESTING_PX, resting
from slam.map.tracks import Pixels

# Minimum fraction of the image at rest for the scene to be free of moving objects; its tracks become the witnesses.
FULLY_RESTING_RATIO = 0.9
MIN_WITNESSES = 15  # minimum number of witness tracks to decide that the camera is still at rest


class Rest:
    """Detects rest from most of the image; while a moving object covers it, from the tracks at rest before it appeared.

    Attributes:
        crossed: number of tracks so far that moved far while the camera was at rest.
        share: fraction of the image at rest, when most of it was at rest last.
    """

    def __init__(self, crossing_px: float) -> None:
        """`crossing_px`: minimum motion, while the camera is at rest, of a track on a moving object, pixels."""
        self._crossing_px = crossing_px
        self._witnesses = np.zeros(0, np.int64)
        self.crossed = 0
        self.share = 0.0

    def crossing(self, ids: NDArray[np.int64], before: Pixels, now: Pixels, camera: Camera) -> NDArray[np.bool_] | None:
        """Mask (N,) of the tracks that move while the camera is at rest; None when the camera itself moves."""
        share, moved = resting(before, now, camera)
        self.share = share if share >= MOST else self.share
        if share >= FULLY_RESTING_RATIO:
            self._witnesses = ids[moved < RESTING_PX]
        elif share < MOST and not self._is_witnessed(ids, before, now, camera):
            return None
        crossing = np.linalg.norm(now - before, axis=1) >= self._crossing_px
        self.crossed += int(crossing.sum())
        return np.asarray(crossing)

    def is_witness(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Mask of the tracks that were at rest before a moving object appeared; all False while there is none."""
        return np.isin(ids, self._witnesses) & (self.crossed > 0)

    def _is_witnessed(self, ids: NDArray[np.int64], before: Pixels, now: Pixels, camera: Camera) -> bool:
        witness = self.is_witness(ids)
        return int(witness.sum()) >= MIN_WITNESSES and resting(before[witness], now[witness], camera)[0] >= MOST

    @property
    def reason(self) -> str:
        """Why the map is not initialized; empty while no moving object was detected."""
        if self.crossed == 0:
            return ""
        return (
            f"the camera does not move ({self.share:.0%} of the image stands still); something crosses the image "
            f"({self.crossed} points that moved by {self._crossing_px:g} px or more)"
        )
