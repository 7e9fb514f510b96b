"""Moving objects: groups of tracks that do not fit a static scene. They are followed, but not mapped.

The pose of a frame is fitted to old landmarks that are spread evenly over the image, at the noise that they have.
Around a point of the static scene the residuals of its neighbors cancel out, because the errors of depths and tracks
are independent; those on a moving object have one direction. Points on moving objects are followed from image to image,
and what is surrounded by them belongs to them too, so that no new landmarks begin on the object. They are dropped where
they fit the static scene from one keyframe to the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures
from relocalizer.geometry import FloatArray
from relocalizer.images import Image
from slam.map.frames import STEADY_NOISE_RATIO
from slam.map.tracks import Pixels, Tracks, among
from slam.tracking.static_fit import EpipolarLines, Landmarks, StaticFit
from slam.tracking.tracked_map import TrackedMap

# Number of neighboring points whose residuals are compared, and their maximum distance.
GROUP, GROUP_RADIUS_PX = 13, 60.0
# Minimum median residual of a group that moves: as a multiple of the noise, and in pixels.
MOVING_SIGMAS, MOVING_PX = 1.5, 0.3
# Moving objects are looked for from when, over RECENT frames, this fraction of the points is in groups with a residual
# of CLEAR_SIGMAS and the noise is at most STEADY_NOISE_RATIO of the assumed one: with a rolling shutter or an unknown
# lens, groups of a static scene have common residuals too.
RECENT, CLEAR_SIGMAS, CLEAR_SHARE = 8, 2.5, 0.1
# While none are expected, every frame is tested among the first EARLY ones of a map, when a wrong map is still
# prevented, and then one of RARELY, as a test takes longer than the pose of the frame.
EARLY, RARELY = 60, 4
MOST_KNOWN = 0.5  # fraction of the points that must have a depth then, as the pose rests on these
FRAMES = 2  # number of successive frames in which a point is in such a group before it is taken for moving
MAX_SHARE = 0.5  # fraction of moving points above which the pose, not the points, is taken for wrong
DEPTH_SIGMA_RATIO = 1.5  # ratio of the noise that the depths of new landmarks have to that of a track
MIN_LANDMARKS = 50  # minimum number of landmarks for a test
# A point is part of a moving object when this many of its nearest labeled neighbors are, and stays one with fewer.
NEIGHBORS, NEIGHBOR_RADIUS_PX = 5, 40.0
JOINS, STAYS = 4, 2
# Minimum residual, from one keyframe to the next, of a point that keeps moving: as a multiple of the noise, and in px.
REMAINS_SIGMAS, REMAINS_PX = 4.0, 0.8
SPACING_PX, MERGED_PX = 9.0, 4.0  # distance of new points from others, and distance below which two become one
MAX_CORNERS, CORNER_QUALITY = 1000, 0.01  # maximum number of corners looked at, and their quality relative to the best
FEW_STATIC = 40  # number of static landmarks below which moving points are dropped if they are more: the map is wrong
IMAGE_MOVES_PX, STILL_PX = 1.0, 0.2  # median step of the tracks of an image that moves, and that of one that does not
SEEN = 10  # number of moving points from which a frame counts as one among moving objects


@dataclass(slots=True, eq=False)
class MovingPoints:
    """Followed points of moving objects.

    Attributes:
        now: (N, 2) pixels in the newest frame; in_keyframe: (N, 2) in the reference keyframe, NaN for newer points.
        residual_px: (N,) largest distance from the epipolar line since the reference keyframe; NaN if not measured.
    """

    now: Pixels
    in_keyframe: Pixels
    residual_px: FloatArray

    @staticmethod
    def at(pixels: Pixels) -> MovingPoints:
        """New points at pixels (N, 2) of the newest frame."""
        return MovingPoints(pixels, np.full_like(pixels, np.nan), np.full(len(pixels), np.nan))

    def __len__(self) -> int:
        return len(self.now)

    def where(self, keep: NDArray[np.bool_]) -> MovingPoints:
        return MovingPoints(self.now[keep], self.in_keyframe[keep], self.residual_px[keep])

    def joined(self, other: MovingPoints) -> MovingPoints:
        return MovingPoints(
            np.concatenate([self.now, other.now]),
            np.concatenate([self.in_keyframe, other.in_keyframe]),
            np.concatenate([self.residual_px, other.residual_px]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class LabeledPoints:
    """Points of one frame that are known to move or to be static; `moving` (N,) says which."""

    tree: cKDTree
    moving: NDArray[np.bool_]

    @staticmethod
    def of(moving: Pixels, static: Pixels) -> LabeledPoints:
        return LabeledPoints(
            cKDTree(np.concatenate([moving, static])), np.arange(len(moving) + len(static)) < len(moving)
        )

    def moving_neighbors(self, pixels: Pixels, *, themselves: bool = False) -> NDArray[np.int64]:
        """Number (N,) of moving points among the nearest labeled points of each pixel (N, 2).

        Args:
            themselves: the pixels are labeled points, which are not their own neighbors.
        """
        first = int(themselves)
        _, rows = self.tree.query(pixels, k=NEIGHBORS + first, distance_upper_bound=NEIGHBOR_RADIUS_PX)
        return np.asarray(np.append(self.moving, False)[rows[:, first:]].sum(axis=1))


class GroupsOfNeighbors:
    """Each of N points with its nearest neighbors in the image."""

    def __init__(self, pixels: Pixels) -> None:
        _, self._rows = cKDTree(pixels).query(pixels, k=GROUP, distance_upper_bound=GROUP_RADIUS_PX)
        self._is_large = (self._rows < len(pixels)).sum(axis=1) > GROUP // 2

    def common(self, residuals: FloatArray) -> FloatArray:
        """Length (N,) of the median of the residuals (N, 2) in each group; 0 in a small group."""
        of_group = np.concatenate([residuals, np.full((1, 2), np.nan)])[self._rows[self._is_large]]
        found = np.zeros(len(residuals))
        found[self._is_large] = np.linalg.norm(np.nanmedian(of_group, axis=1), axis=1)
        return found


class MovingObjects:
    """Finds and follows the points of moving objects."""

    def __init__(self, noise_px: float) -> None:
        """`noise_px`: assumed standard deviation of a track, pixels."""
        self._noise_px = noise_px
        self._points = MovingPoints.at(np.zeros((0, 2), np.float32))
        self._counts: dict[int, int] = {}  # by track, the number of successive frames in which its group moved
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)  # share in moving groups, and noise ratio
        self._expected = False  # whether the scene has been found to have moving objects
        self._tracked = 0  # number of frames since the begin or a loss
        self._keyframe = -1  # frame index of the reference keyframe
        self._labels: LabeledPoints | None = None  # None without moving points

    @property
    def pixels(self) -> Pixels:
        """Pixels (N, 2) of the points in the newest frame."""
        return self._points.now

    @property
    def are_seen(self) -> bool:
        """Whether there are moving objects in the newest frame."""
        return len(self._points) >= SEEN

    def share_of(self, tracks: int) -> float:
        """Fraction of all followed points that are on moving objects, beside a number of tracks of the scene."""
        return len(self._points) / max(len(self._points) + tracks, 1)

    def reset(self) -> None:
        """Forget all points, after a loss."""
        self._tracked = 0
        self._points, self._counts, self._labels = MovingPoints.at(np.zeros((0, 2), np.float32)), {}, None

    def follow(self, follow: Callable[[Pixels], tuple[Pixels, NDArray[np.bool_]]], camera: Camera) -> None:
        """Follow the points into the next image; `follow` gives their pixels (N, 2) there and which were found."""
        if len(self._points):
            pixels, found = follow(self._points.now)
            found = found & camera.contains(pixels.astype(np.float64))  # False for NaN
            self._points.now = pixels
            self._points = self._points.where(found)
        self._labels = None

    def find_in(
        self, view: TrackedMap, k: int, tracks: Tracks, camera: Camera, start: RigidTransform
    ) -> NDArray[np.int64]:
        """`find` among the tracks of the newest frame, whose world_from_cam is near `start`.

        Args:
            k: reference keyframe.
        """
        self._tracked += 1
        if not self._expected and self._tracked > EARLY and self._tracked % RARELY:
            return np.zeros(0, np.int64)
        known = view.is_triangulated(tracks.ids)
        landmarks = tracks.where(known)
        if len(landmarks) < MIN_LANDMARKS:
            return np.zeros(0, np.int64)
        points, sigma = view.points_world(landmarks.ids), view.depth_sigma_world(landmarks.ids)
        fit = StaticFit.of(Landmarks(landmarks, points, sigma / DEPTH_SIGMA_RATIO), camera, start, self._noise_px)
        return self.find(fit, EpipolarLines(view.reference(k), camera, fit.world_from_cam), tracks.where(~known))

    def find(self, fit: StaticFit, lines: EpipolarLines, waiting: Tracks) -> NDArray[np.int64]:
        """Ids of tracks found to be on moving objects, which are followed here from now on.

        Args:
            fit: of the tracked landmarks.
            lines: epipolar lines of the reference keyframe's pixels.
            waiting: tracks without a depth.
        """
        others = lines.among(waiting)
        off_line = lines.residuals(others.in_keyframe, others.tracks.pixels)
        tested = fit.landmarks.joined(others.tracks)
        groups = GroupsOfNeighbors(tested.pixels)
        self._judge(groups.common(np.concatenate([fit.across, off_line])), fit)
        found = self._moving_groups(tested, groups.common(np.concatenate([fit.residuals, off_line])), fit)
        if not self._expected:
            return np.zeros(0, np.int64)
        self._refer_to(lines, fit.noise_px)
        self._points = self._points.joined(MovingPoints.at(tested.where(among(tested.ids, found)).pixels))
        fits = np.linalg.norm(off_line, axis=1) < max(REMAINS_SIGMAS * fit.noise_px, REMAINS_PX)
        static = fit.landmarks.where(~among(fit.landmarks.ids, found))
        rest = waiting.where(~among(waiting.ids, found))
        return np.union1d(found, self._spread(static, others.tracks.where(fits), rest))

    def _moving_groups(self, tested: Tracks, common: FloatArray, fit: StaticFit) -> NDArray[np.int64]:
        """Ids of the tracks whose group had a common residual (N,) in enough frames."""
        moves = common > max(MOVING_SIGMAS * fit.noise_px, MOVING_PX)
        if moves.mean() > MAX_SHARE:
            self._counts = {}
            return np.zeros(0, np.int64)
        self._counts = {k: self._counts.get(k, 0) + 1 for k in tested.ids[moves].tolist()}
        return np.array(sorted(k for k, count in self._counts.items() if count >= FRAMES), np.int64)

    def _judge(self, common: FloatArray, fit: StaticFit) -> None:
        """Whether moving objects are looked for, by the common residuals (N,) of all groups of the recent frames.

        Only what no error of the depths explains counts: after a weak initial pair whole surfaces have wrong depths.
        """
        is_rich = len(fit.landmarks) >= MOST_KNOWN * len(common)
        share = float((common > max(CLEAR_SIGMAS * fit.noise_px, MOVING_PX)).mean()) if is_rich else 0.0
        self._recent.append((share, fit.noise_px / fit.assumed_noise_px))
        share, noise = np.mean(self._recent, axis=0).tolist()
        if self._expected:
            self._expected = len(self._points) > 0 or share > 0.5 * CLEAR_SHARE
        else:
            self._expected = len(self._recent) == RECENT and share >= CLEAR_SHARE and noise <= STEADY_NOISE_RATIO

    def _refer_to(self, lines: EpipolarLines, noise_px: float) -> None:
        """Measure how far the points are from static; with a new reference keyframe, drop those that were static."""
        points = self._points
        if lines.frame_index == self._keyframe:
            known = np.isfinite(points.in_keyframe).all(axis=1)
            off_line = np.linalg.norm(lines.residuals(points.in_keyframe[known], points.now[known]), axis=1)
            points.residual_px[known] = np.fmax(points.residual_px[known], off_line)
            return
        static = points.residual_px <= max(REMAINS_SIGMAS * noise_px, REMAINS_PX)  # False for NaN
        self._points = points = points.where(~static)
        points.in_keyframe, points.residual_px = points.now.copy(), np.full(len(points), np.nan)
        self._keyframe = lines.frame_index

    def _spread(self, static: Tracks, fitting: Tracks, waiting: Tracks) -> NDArray[np.int64]:
        """Ids of tracks among moving points, which become such; moving points among static ones are dropped.

        Args:
            static: landmarks; fitting: tracks without a depth that are on their epipolar lines.
        """
        if len(static) < FEW_STATIC and len(self._points) > len(static):
            self.reset()
        if len(self._points) == 0:
            return np.zeros(0, np.int64)
        self._points = self._points.where(_apart(self._points.now))
        moving = self._points.now
        labels = LabeledPoints.of(moving, np.concatenate([static.pixels, fitting.pixels]))
        self._points = self._points.where(labels.moving_neighbors(moving, themselves=True) >= STAYS)
        joining = static.where(labels.moving_neighbors(static.pixels, themselves=True) >= JOINS)
        joining = joining.joined(waiting.where(labels.moving_neighbors(waiting.pixels) >= JOINS))
        self._points = self._points.joined(MovingPoints.at(joining.pixels))
        self._labels = labels
        return joining.ids

    def clearing(self, gray: Image) -> Callable[[LocalFeatures], LocalFeatures]:
        """Removes the features of the newest frame that are on moving objects; new points begin there instead."""
        labels, pixels = self._labels, self._points.now.copy()
        if labels is None or len(pixels) == 0:
            return lambda features: features
        self._fill(labels, gray)

        def cleared(features: LocalFeatures) -> LocalFeatures:
            if len(features) == 0:
                return features
            distance, _ = cKDTree(pixels).query(features.pixels)
            static = labels.moving_neighbors(features.pixels) <= NEIGHBORS // 2
            return features.where(static & (distance > SPACING_PX))

        return cleared

    def _fill(self, labels: LabeledPoints, gray: Image) -> None:
        """Begin new points at corners of a gray image that others have left."""
        corners = cv2.goodFeaturesToTrack(gray, MAX_CORNERS, CORNER_QUALITY, SPACING_PX)
        if corners is None:
            return
        pixels = corners.reshape(-1, 2).astype(np.float32)
        distance, _ = cKDTree(self._points.now).query(pixels)
        inside = (labels.moving_neighbors(pixels) >= JOINS) & (distance > SPACING_PX)
        self._points = self._points.joined(MovingPoints.at(pixels[inside]))


def without_still(tracks: Tracks, before: Tracks) -> Tracks:
    """The tracks without those that stand still in a moving image since `before`, which may be an overlay."""
    _, now, earlier = np.intersect1d(tracks.ids, before.ids, assume_unique=True, return_indices=True)
    step = np.linalg.norm(tracks.pixels[now] - before.pixels[earlier], axis=1)
    if len(step) == 0 or np.median(step) < IMAGE_MOVES_PX:
        return tracks
    keep = np.ones(len(tracks), bool)
    keep[now[step < STILL_PX]] = False
    return tracks.where(keep)


def _apart(pixels: Pixels) -> NDArray[np.bool_]:
    """Mask (N,) of pixels (N, 2) of which no two are nearer to each other than MERGED_PX."""
    keep = np.ones(len(pixels), bool)
    for a, b in sorted(cKDTree(pixels).query_pairs(MERGED_PX)):
        keep[b] &= not keep[a]
    return keep
