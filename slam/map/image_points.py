"""Points in images as they are drawn for a diagnosis: tracked points, and points matched between two images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slam.map.tracks import Pixels

MOST_TRACKED = 300  # maximum number of tracked points that are kept of an image
MOST_MATCHED = 150  # maximum number of matches that are kept of a pair


@dataclass(frozen=True, slots=True, eq=False)
class TrackedPoints:
    """N tracked points of one image.

    Attributes:
        pixels: (N, 2) float32.
        reprojected: (N, 2) float32, projection of the point's landmark at the frame's pose; NaN without a landmark.
        ages: (N,) int64, number of frames that the point has been followed for.
        is_inlier: (N,) bool, whether the landmark agrees with the pose; False without a landmark.
    """

    pixels: Pixels
    reprojected: Pixels
    ages: NDArray[np.int64]
    is_inlier: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def is_landmark(self) -> NDArray[np.bool_]:
        """(N,) whether the point has a landmark."""
        return np.asarray(np.isfinite(self.reprojected).all(axis=1))

    @property
    def residuals_px(self) -> NDArray[np.float32]:
        """(N,) distance of each point from its reprojection, pixels; NaN without a landmark."""
        return np.asarray(np.linalg.norm(self.pixels - self.reprojected, axis=1))

    def thinned(self, most: int = MOST_TRACKED) -> TrackedPoints:
        """At most `most` of the points, evenly chosen."""
        step = max(1, -(-len(self) // most))
        return TrackedPoints(self.pixels[::step], self.reprojected[::step], self.ages[::step], self.is_inlier[::step])


@dataclass(frozen=True, slots=True, eq=False)
class MatchedPoints:
    """N matches between two images: pixels (N, 2) float32 in each, and whether they agree with the estimated pose."""

    pixels_i: Pixels
    pixels_j: Pixels
    is_inlier: NDArray[np.bool_]

    @staticmethod
    def none() -> MatchedPoints:
        return MatchedPoints(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros(0, bool))

    def __len__(self) -> int:
        return len(self.pixels_i)

    def thinned(self, most: int = MOST_MATCHED) -> MatchedPoints:
        """At most `most` of the matches, evenly chosen."""
        step = max(1, -(-len(self) // most))
        return MatchedPoints(self.pixels_i[::step], self.pixels_j[::step], self.is_inlier[::step])
