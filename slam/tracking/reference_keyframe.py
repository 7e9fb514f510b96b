"""Choice of the reference keyframe: a view that the map already has needs no new keyframe.

As in ORB-SLAM, the reference keyframe of a frame is one that shares many landmarks with it, not necessarily the newest.
When a keyframe is due, older keyframes of the same view are searched first: one of them takes the place of the new
keyframe if, relative to it, none would be due. So the map grows with the space that was seen, not with time.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from relocalizer.absolute_pose import rotate_pixels
from relocalizer.geometry import FloatArray, rotation_angle, rotation_matrix
from relocalizer.guided_matching import expected_in
from relocalizer.images import Image, decode_image
from slam.config.schema import SlamConfig
from slam.map.frames import Frame, TrackedPose
from slam.map.keyframe_images import KeyframeImages
from slam.map.slam_map import SlamMap
from slam.map.tracks import Tracks, among
from slam.tracking.frame_pose import ObservedPoints
from slam.tracking.frame_tracker import FrameTracker
from slam.tracking.keyframe_policy import common_pixels, median_parallax_px
from slam.tracking.tracking_state import TrackingStateMachine

COVISIBLE = 12  # number of keyframes considered, those that observe the most landmarks of the frame
# Minimum fraction of the landmarks of a keyframe that the frame tracks already. With fewer, the path has drifted since
# the keyframe or may have; then a new keyframe is inserted, for which the loop is closed.
MIN_SHARED = 0.3
TRIED = 2  # maximum number of keyframes that are searched in the image
CACHED_IMAGES = 16  # number of decoded keyframe images that stay in memory
# A keyframe is the reference again only well within the criteria of a new one: the next frames move on.
MARGIN = 0.75
MIN_VISIBLE = 0.85  # minimum fraction of the landmarks of a keyframe that project into the image, to search for them


@dataclass(frozen=True, slots=True, eq=False)
class KnownView:
    """A frame that shows the view of keyframe `keyframe_id`.

    Attributes:
        found: the pose from its landmarks and those tracked before.
        tracks: the tracks to continue with, those of the keyframe included.
    """

    keyframe_id: int
    found: TrackedPose
    tracks: Tracks


class ReferenceKeyframes:
    """Finds the keyframe that shows the same view as the newest frame."""

    def __init__(self, config: SlamConfig, slam_map: SlamMap, images: KeyframeImages, tracker: FrameTracker) -> None:
        self._config = config
        self._map = slam_map
        self._images = images
        self._frame_tracker = tracker
        self._gray: OrderedDict[int, Image] = OrderedDict()

    def follow(self, frame: Frame, state: TrackingStateMachine) -> bool:
        """Track from an older keyframe of the same view from now on; False, and nothing changes, if there is none."""
        view = self.find(frame, state.keyframe_id)
        if view is None:
            return False
        state.set_tracking(view.keyframe_id)
        self._frame_tracker.reset_to(view.found.world_from_cam, view.tracks)
        return True

    def find(self, frame: Frame, active: int) -> KnownView | None:
        """The view of an older keyframe in the newest frame, whose pose is known; None if it shows a new view."""
        for c in self._similar_views(frame, active)[:TRIED]:
            view = self._search(frame, c)
            if view is not None:
                return view
        return None

    def _similar_views(self, frame: Frame, active: int) -> list[int]:
        """Keyframes from whose pose the frame looks nearly alike, by their landmarks in the image, most first."""
        visible = {c: self._visible(frame, c) for c in self.covisible(active)}
        return sorted((c for c in visible if visible[c]), key=lambda c: (-visible[c], -c))

    def covisible(self, active: int) -> list[int]:
        """Keyframes of the segment of keyframe `active` that observe the most landmarks of the frame, most first."""
        segment_of = self._map.graph.segment_of
        observers = self._map.observers(self._frame_tracker.inlier_tracks.ids, COVISIBLE)
        return [c for c in observers if c in self._images and segment_of[c] == segment_of[active]]

    def _visible(self, frame: Frame, c: int) -> int:
        """Number of landmarks of keyframe c that project into the frame; 0 if the views differ too much."""
        config, tracked = self._config.keyframes, self._frame_tracker.current
        keyframe_from_frame = self._keyframe_from_frame(c)
        if np.degrees(rotation_angle(keyframe_from_frame)) > MARGIN * config.rotation_deg:
            return 0
        tracks = self.landmarks_of(c)
        if among(tracks.ids, tracked.landmarks.ids).sum() < MIN_SHARED * len(tracks):
            return 0
        rows, pixels = expected_in(self._map.points_world(tracks.ids), tracked.world_from_cam, frame.camera)
        if len(rows) < max(MIN_VISIBLE * len(tracks), self._config.tracking.min_inliers):
            return 0
        parallax = median_parallax_px(tracks.pixels[rows], pixels.astype(np.float32), frame.camera, keyframe_from_frame)
        return len(rows) if parallax < MARGIN * config.parallax_px else 0

    def landmarks_of(self, c: int) -> Tracks:
        """The landmarks that keyframe c observes."""
        tracks = self._map.landmarks.observed[c]
        return tracks.where(self._map.is_triangulated(tracks.ids))

    def _keyframe_from_frame(self, c: int) -> FloatArray:
        return self._map.pose_of(c).rotation.T @ rotation_matrix(self._frame_tracker.current.world_from_cam)

    def _search(self, frame: Frame, c: int) -> KnownView | None:
        """Follow the tracks of keyframe c from its image into the frame; None if too few of its landmarks are found."""
        tracker, config = self._frame_tracker, self._config
        tracks = self._map.landmarks.observed[c]
        found = tracker.follow_from(self.gray_of(c), tracks, self._predicted(frame, c, tracks), frame.camera)
        landmarks = found.where(self._map.is_triangulated(found.ids))
        others = tracker.inlier_tracks.where(~among(tracker.inlier_tracks.ids, landmarks.ids))
        joined = landmarks.joined(others)
        observed = ObservedPoints(
            self._map.points_world(joined.ids), joined.pixels, frame.camera, config.tracks.noise_px
        )
        fit, _ = observed.pose_from(tracker.current.world_from_cam)
        seen = joined.where(fit.inliers)
        before, _ = common_pixels(self.landmarks_of(c), seen)
        limit = 1.0 - MARGIN * (1.0 - config.keyframes.min_survival)
        if len(before) < max(limit * len(self.landmarks_of(c)), config.tracking.min_inliers):
            return None
        pose = TrackedPose(fit.world_from_cam, seen)
        kept = found.where(~self._map.is_triangulated(found.ids) | among(found.ids, seen.ids))
        return KnownView(c, pose, kept.joined(tracker.tracks.where(self.is_apart(tracker.tracks, kept))))

    def is_apart(self, tracks: Tracks, kept: Tracks) -> NDArray[np.bool_]:
        """Mask (N,) of the tracks that are not in `kept`, as the same track or point; no more than may be followed."""
        new = ~among(tracks.ids, kept.ids)
        if len(kept) == 0 or len(tracks) == 0:
            return new
        distance, _ = cKDTree(kept.pixels).query(tracks.pixels)
        apart = np.asarray(new & (distance > 0.5 * self._config.tracks.min_distance_px))
        room = max(0, self._config.tracks.max_tracks - len(kept))
        apart[np.flatnonzero(apart)[room:]] = False
        return apart

    def _predicted(self, frame: Frame, c: int, tracks: Tracks) -> NDArray[np.float32]:
        """Predicted pixels (N, 2) of the tracks of keyframe c in the frame; of points without depth by rotation."""
        frame_from_keyframe = self._keyframe_from_frame(c).T
        pixels = rotate_pixels(tracks.pixels, frame.camera, frame_from_keyframe)
        known = np.flatnonzero(self._map.is_triangulated(tracks.ids))
        points, pose = self._map.points_world(tracks.ids[known]), self._frame_tracker.current.world_from_cam
        rows, projected = expected_in(points, pose, frame.camera)
        pixels[known[rows]] = projected
        return pixels

    def gray_of(self, c: int) -> Image:
        """The gray image of keyframe c."""
        if c not in self._gray:
            image = decode_image(self._images.jpeg(c), f"keyframe {c}")
            self._gray[c] = self._frame_tracker.gray(image)
            while len(self._gray) > CACHED_IMAGES:
                self._gray.popitem(last=False)
        self._gray.move_to_end(c)
        return self._gray[c]
