"""The overlay: graphics drawn over the image, or objects fixed to the camera, detected from static tracks.

A track that stays at its pixel while its surroundings move is not a point of the scene (`relocalizer.image_static`).
Such tracks are followed here, separately from the scene's tracks, so that no new points start on them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures
from relocalizer.image_static import STILL_PX, standing_still
from relocalizer.images import Image
from relocalizer.two_view import Matches
from slam.map.tracks import Pixels, Tracks, among
from slam.tracking.keyframe_policy import common_pixels

# A look is a comparison of the current tracks with those of the look before the last.
STEP_PX = 8.0  # minimum median motion of the moving tracks between two looks, pixels
MIN_MOVING = 15  # minimum number of moving tracks for a look
NEEDED_LOOKS = 2  # number of looks in which a track must be static to belong to the overlay
LEAST = 4  # minimum number of static tracks; fewer may lie where the optical flow happens to be zero
MIN_LEFT_RATIO = 0.3  # minimum fraction of a look's tracks that is still followed; with fewer, a new look replaces it
MOVED_PX = 3.0  # minimum motion of an overlay point that drifted off with the scene, pixels
WINDOW_PX = 11  # size of the KLT window of an overlay point: small, for thin lines with scene on both sides, pixels
FADING = 12  # number of looks for which the position of a lost overlay point is kept, for text that changes
MIN_INLIERS = 20  # minimum number of pose inliers to decide from them alone whether the camera moves
MIN_MOVING_RATIO = 0.3  # minimum fraction of the pose inliers that move when the camera moves


@dataclass(slots=True, eq=False)
class Points:
    """Points of the overlay: their pixels at detection, their current pixels, and the looks left once lost."""

    found: Pixels
    now: Pixels
    left: NDArray[np.int64]  # (N,) remaining looks; FADING while the point is followed

    @staticmethod
    def none() -> Points:
        return Points(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros(0, np.int64))

    def where(self, keep: NDArray[np.bool_]) -> Points:
        return Points(self.found[keep], self.now[keep], self.left[keep])


class Overlay:
    """Detects the points of the overlay and follows them."""

    def __init__(self, radius_px: float) -> None:
        """`radius_px`: maximum distance at which an overlay point lies in the window of a tracked point, pixels."""
        self._radius_px = radius_px
        self._looks: deque[Tracks] = deque(maxlen=2)
        self._suspects: dict[int, int] = {}  # by track id, the number of looks in which it was static
        self._points = Points.none()

    @property
    def count(self) -> int:
        """Number of overlay points that are currently followed."""
        return int((self._points.left == FADING).sum())

    def follow(self, before: Image, after: Image) -> None:
        """Follow the overlay points; points that are lost or drift off with the scene fade from then on."""
        points = self._points
        alive = np.flatnonzero(points.left == FADING)
        if len(alive) == 0:
            return
        now, ok = _follow_static(before, after, points.now[alive])
        ok &= np.linalg.norm(now - points.found[alive], axis=1) < MOVED_PX
        points.now[alive[ok]] = now[ok]
        points.left[alive[~ok]] -= 1

    def look(self, tracks: Tracks, inliers: Tracks, camera: Camera) -> NDArray[np.int64]:
        """Ids of the tracks found to be overlay; they are followed here from now on.

        Args:
            inliers: tracks of the previous frame that are inliers of its pose; none without a map.
        """
        if not self._looks:
            self._looks.append(tracks)
        before, now = common_pixels(self._looks[-1], tracks)
        moved = np.linalg.norm(now - before, axis=1)
        moved = moved[moved >= STILL_PX]
        if len(moved) >= MIN_MOVING and float(np.median(moved)) >= STEP_PX:
            ids = self._find(self._looks[0], tracks, inliers, camera)
            self._looks.append(tracks)
            return ids
        if len(before) < MIN_LEFT_RATIO * len(self._looks[-1]):
            self._looks.append(tracks)
        return np.zeros(0, np.int64)

    def add(self, pixels: Pixels) -> None:
        """Add pixels (N, 2) of the newest image to the overlay; they are followed here from now on."""
        points, followed = self._points, np.full(len(pixels), FADING, np.int64)
        self._points = Points(
            np.concatenate([points.found, pixels]),
            np.concatenate([points.now, pixels]),
            np.concatenate([points.left, followed]),
        )

    def cleared(self, features: LocalFeatures) -> LocalFeatures:
        """The features that do not lie on the overlay."""
        return self.clearing()(features)

    def clearing(self) -> Callable[[LocalFeatures], LocalFeatures]:
        """`cleared` for the overlay as it is now, whatever is found later."""
        return partial(_without_points, self._points.found, self._radius_px)

    def _find(self, earlier: Tracks, tracks: Tracks, inliers: Tracks, camera: Camera) -> NDArray[np.int64]:
        """Ids of the tracks that were static in enough looks, including this one."""
        before, now = common_pixels(earlier, tracks)
        if _camera_rests(earlier, tracks, inliers):
            return np.zeros(0, np.int64)
        self._fade()
        common = np.intersect1d(earlier.ids, tracks.ids, assume_unique=True)
        still = standing_still(Matches(before.astype(np.float64), now.astype(np.float64), camera, camera))
        stayed = common[np.linalg.norm(now - before, axis=1) < MOVED_PX]
        looks = {k: self._suspects[k] for k in stayed.tolist() if k in self._suspects}
        self._suspects = looks | {k: looks.get(k, 0) + 1 for k in common[still].tolist()}
        found = np.array([k for k, looks in self._suspects.items() if looks >= NEEDED_LOOKS], np.int64)
        if len(found) < LEAST and self.count == 0:
            return np.zeros(0, np.int64)
        for k in found.tolist():
            del self._suspects[k]
        self.add(tracks.where(np.isin(tracks.ids, found)).pixels)
        return np.sort(found)

    def _fade(self) -> None:
        """Count a look for the positions of lost points, and forget those without looks left."""
        self._points.left[self._points.left < FADING] -= 1
        self._points = self._points.where(self._points.left > 0)


def _without_points(overlay: Pixels, radius_px: float, features: LocalFeatures) -> LocalFeatures:
    """The features farther than `radius_px` from all points (N, 2) of the overlay."""
    if len(overlay) == 0 or len(features) == 0:
        return features
    distance, _ = cKDTree(overlay).query(features.pixels)
    return features.where(distance > radius_px)


def _follow_static(before: Image, after: Image, pixels: Pixels) -> tuple[Pixels, NDArray[np.bool_]]:
    """Pixels (N, 2) in the next image of points that hardly move, and a mask (N,) of those found.

    Without a pyramid: on its upper levels, a thin line or a narrow strip drifts off with the moving scene around it.
    """
    now, status, _ = cv2.calcOpticalFlowPyrLK(
        before,
        after,
        pixels.reshape(-1, 1, 2),
        pixels.reshape(-1, 1, 2).copy(),
        winSize=(WINDOW_PX, WINDOW_PX),
        maxLevel=0,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    return np.asarray(now, np.float32).reshape(-1, 2), np.asarray(status).ravel() == 1


def _camera_rests(earlier: Tracks, tracks: Tracks, inliers: Tracks) -> bool:
    """Whether the pose inliers are static: then the motion in the image is that of other objects."""
    before, now = common_pixels(earlier, tracks.where(among(tracks.ids, inliers.ids)))
    moved = np.linalg.norm(now - before, axis=1) >= MOVED_PX
    return len(moved) >= MIN_INLIERS and float(moved.mean()) < MIN_MOVING_RATIO
