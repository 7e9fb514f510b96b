"""The overlay: what is drawn over the image or fixed to the camera, found by its tracks, and remembered.

Two tracks tell nothing of one another, but a track that stays where it is in the image while its surroundings move is
no point of the world (`relocalizer.image_static`). Such tracks are followed on here, apart from all others, so that no
new points are begun where they are.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures
from relocalizer.image_static import STILL_PX, standing_still
from relocalizer.images import Image
from relocalizer.two_view import Matches
from slam.map.tracks import Pixels, Tracks
from slam.tracking.keyframe_policy import common_pixels

STEP_PX = 8.0  # median motion of the moving tracks between two looks; each compares with the last but one
MIN_MOVING = 15  # tracks that must move for a look
NEEDED = 2  # looks in which a track must have stood still
LEAST = 4  # such tracks: fewer are where the flow of the image happened to have a zero
LEFT = 0.3  # of the tracks of a look, below which they are no comparison any more
MOVED_PX = 3.0  # a point of the overlay that goes so far has been taken along by something else
WINDOW_PX = 11  # in which a point of the overlay is recognized: thin lines have the world on both sides
FADING = 12  # looks for which a place of the overlay is remembered whose point was lost: text that changes
AGREEING = 20  # tracks that agree with the pose, from which on these alone say whether the camera moves
MOVING = 0.3  # of them that must move


@dataclass(slots=True, eq=False)
class Points:
    """Points of the overlay: where each was found, where it is now, and the looks it is remembered for once lost."""

    found: Pixels
    now: Pixels
    left: NDArray[np.int64]  # (N,) looks; FADING while it is followed

    @staticmethod
    def none() -> Points:
        return Points(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros(0, np.int64))

    def where(self, keep: NDArray[np.bool_]) -> Points:
        return Points(self.found[keep], self.now[keep], self.left[keep])


class Overlay:
    """Owns the points of the overlay, and what it takes to find more of them."""

    def __init__(self, radius_px: float) -> None:
        """`radius_px`: so near to a point of the overlay a tracker may see it."""
        self._radius_px = radius_px
        self._looks: deque[Tracks] = deque(maxlen=2)
        self._suspects: dict[int, int] = {}  # by track, the looks in which it stood still
        self._points = Points.none()

    @property
    def count(self) -> int:
        """Points of the overlay that are followed at the moment."""
        return int((self._points.left == FADING).sum())

    def follow(self, before: Image, after: Image) -> None:
        """Follow the points of the overlay; those that are lost or taken along fade from then on."""
        points = self._points
        alive = np.flatnonzero(points.left == FADING)
        if len(alive) == 0:
            return
        now, ok = _held(before, after, points.now[alive])
        ok &= np.linalg.norm(now - points.found[alive], axis=1) < MOVED_PX
        points.now[alive[ok]] = now[ok]
        points.left[alive[~ok]] -= 1

    def look(self, tracks: Tracks, agreeing: Tracks, camera: Camera) -> NDArray[np.int64]:
        """Ids of tracks that turn out to be overlay; they are followed here from now on.

        Args:
            agreeing: of the frame before, the tracks that agree with its pose; none without a map.
        """
        if not self._looks:
            self._looks.append(tracks)
        before, now = common_pixels(self._looks[-1], tracks)
        moved = np.linalg.norm(now - before, axis=1)
        moved = moved[moved >= STILL_PX]
        if len(moved) >= MIN_MOVING and float(np.median(moved)) >= STEP_PX:
            ids = self._find(self._looks[0], tracks, agreeing, camera)
            self._looks.append(tracks)
            return ids
        if len(before) < LEFT * len(self._looks[-1]):
            self._looks.append(tracks)
        return np.zeros(0, np.int64)

    def add(self, pixels: Pixels) -> None:
        """Points (N, 2) of the newest image are overlay; they are followed here from now on."""
        points, followed = self._points, np.full(len(pixels), FADING, np.int64)
        self._points = Points(
            np.concatenate([points.found, pixels]),
            np.concatenate([points.now, pixels]),
            np.concatenate([points.left, followed]),
        )

    def cleared(self, features: LocalFeatures) -> LocalFeatures:
        """The features that are not on the overlay."""
        if len(self._points.found) == 0 or len(features) == 0:
            return features
        distance, _ = cKDTree(self._points.found).query(features.pixels)
        keep = distance > self._radius_px
        return LocalFeatures(features.pixels[keep], features.descriptors[keep], features.scales[keep])

    def _find(self, earlier: Tracks, tracks: Tracks, agreeing: Tracks, camera: Camera) -> NDArray[np.int64]:
        """Tracks that have stood still in enough looks, this one included."""
        before, now = common_pixels(earlier, tracks)
        if _camera_rests(earlier, tracks, agreeing):
            return np.zeros(0, np.int64)
        self._fade()
        common = np.intersect1d(earlier.ids, tracks.ids, assume_unique=True)
        still = standing_still(Matches(before.astype(np.float64), now.astype(np.float64), camera, camera))
        stayed = common[np.linalg.norm(now - before, axis=1) < MOVED_PX]
        looks = {k: self._suspects[k] for k in stayed.tolist() if k in self._suspects}
        self._suspects = looks | {k: looks.get(k, 0) + 1 for k in common[still].tolist()}
        found = np.array([k for k, looks in self._suspects.items() if looks >= NEEDED], np.int64)
        if len(found) < LEAST and self.count == 0:
            return np.zeros(0, np.int64)
        for k in found.tolist():
            del self._suspects[k]
        self.add(tracks.where(np.isin(tracks.ids, found)).pixels)
        return np.sort(found)

    def _fade(self) -> None:
        """The image has moved on: places whose points were lost are forgotten after a while."""
        self._points.left[self._points.left < FADING] -= 1
        self._points = self._points.where(self._points.left > 0)


def _held(before: Image, after: Image, pixels: Pixels) -> tuple[Pixels, NDArray[np.bool_]]:
    """Where points (N, 2) that hardly move lie in the next image, and which were found.

    Without a pyramid, on whose upper levels the moving world around a thin line or a narrow strip takes it along.
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


def _camera_rests(earlier: Tracks, tracks: Tracks, agreeing: Tracks) -> bool:
    """Whether the tracks that agree with the map stay where they are: then it is something else that moves."""
    before, now = common_pixels(earlier, tracks.where(np.isin(tracks.ids, agreeing.ids)))
    moved = np.linalg.norm(now - before, axis=1) >= MOVED_PX
    return len(moved) >= AGREEING and float(moved.mean()) < MOVING
