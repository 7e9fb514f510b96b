"""Record of how a loop candidate was examined: the gates that it passed or failed, and the matched points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relocalizer.pose_from_matches import FeatureMatches
from slam.map.frame_measurement import Gate
from slam.map.image_points import MatchedPoints
from slam.map.slam_map import SlamMap


class LoopExamination:
    """Examination of keyframe k at the place of keyframe c. It only records; no decision depends on it.

    Attributes:
        c, k: keyframe ids.
        gates: the tests so far, in order.
    """

    def __init__(self, c: int, k: int) -> None:
        self.c, self.k = c, k
        self.gates: list[Gate] = []
        self._matches = FeatureMatches.none()
        self._inliers = FeatureMatches.none()

    def at_least(self, name: str, value: float, limit: float) -> None:
        """Record a test that a value of at least `limit` passes."""
        self.gates.append(Gate(name=name, value=float(value), limit=float(limit), passed=bool(value >= limit)))

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Record a test that a value of at most `limit` passes."""
        self.gates.append(Gate(name=name, value=float(value), limit=float(limit), passed=bool(value <= limit)))

    def failed(self, name: str) -> None:
        """Record a test that failed without a number."""
        self.gates.append(Gate(name=name, value=np.nan, limit=np.nan, passed=False))

    def matched(self, matches: FeatureMatches) -> None:
        """Record all matches of landmarks of the place with features of keyframe k."""
        self._matches = matches

    def agreed(self, inliers: FeatureMatches) -> None:
        """Record the matches that agree with the pose found."""
        self._inliers = inliers

    def points(self, slam_map: SlamMap) -> MatchedPoints:
        """The matches whose landmark keyframe c itself observes, as pixels in both images."""
        every = self._inliers.with_new(self._matches)
        seen = slam_map.landmarks.observed[self.c]
        order = np.argsort(seen.ids)
        at = np.searchsorted(seen.ids, every.landmark, sorter=order)
        rows = order[np.minimum(at, max(len(order) - 1, 0))] if len(order) else np.zeros(len(every), np.int64)
        known: NDArray[np.bool_] = np.zeros(len(every), bool)
        if len(order):
            known = seen.ids[rows] == every.landmark
        pixels_k = slam_map.graph.keyframes[self.k].features.pixels[every.feature[known]]
        is_inlier = np.arange(len(every)) < len(self._inliers)
        return MatchedPoints(seen.pixels[rows[known]], pixels_k, is_inlier[known]).thinned()
