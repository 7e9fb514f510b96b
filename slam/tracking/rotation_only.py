"""Rotation-only tracking while no landmark is visible: the position is unobservable and stays as it was.

Points without a depth still constrain the rotation. While a pure rotation explains the tracks, translation is
negligible compared with depth; otherwise rotation-only tracking ends.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.geometry import rigid, rotation_matrix, translation_of
from relocalizer.two_view import Matches, estimate_rotation
from slam.config.schema import SlamConfig
from slam.map.frames import Frame
from slam.map.slam_map import SlamMap
from slam.map.tracks import Tracks
from slam.tracking.frame_tracker import FrameTracker
from slam.tracking.keyframe_policy import common_pixels
from slam.tracking.klt import choose_new

MIN_TRACKS = 40  # minimum number of tracks to estimate a rotation from
MIN_INLIER_RATIO = 0.8  # minimum fraction of the tracks that one rotation must explain
INLIER_PX = 1.5  # maximum residual of a track that a rotation explains, pixels
RENEW_RATIO = 0.6  # new tracks start when at most this fraction of the tracks is left
RELOCALIZE_EVERY = 5  # interval between two relocalization attempts during rotation-only tracking, frames
EVENT_COOLDOWN = 30  # minimum interval between two rotation-only stretches that are both announced, frames
POSITION_HELD = "the camera turns where no landmark is known: its position is held"


class RotationOnlyTracker:
    """A stretch of rotation-only tracking: its reference tracks and pose, and its length in frames."""

    def __init__(self, config: SlamConfig, slam_map: SlamMap, frame_tracker: FrameTracker) -> None:
        self._config = config.tracks
        self._map = slam_map
        self._frame_tracker = frame_tracker
        self._tracks = Tracks.none()  # in the reference image, from which rotations are measured
        self._pose = RigidTransform.identity()  # world_from_cam of the reference image
        self._last_index = -EVENT_COOLDOWN
        self.frames = 0

    def stop(self) -> None:
        """End the stretch: the camera has a pose from landmarks again, or is lost."""
        self.frames = 0

    @property
    def should_relocalize(self) -> bool:
        """Whether to try relocalization now: in the first frame of a stretch, then every RELOCALIZE_EVERY frames."""
        return self.frames % RELOCALIZE_EVERY == 0

    def starts_new_stretch(self, index: int) -> bool:
        """Whether frame `index` begins a stretch that is not soon after the last one; then stores `index`."""
        is_new = self.frames == 1 and index - self._last_index > EVENT_COOLDOWN
        self._last_index = index
        return is_new

    def follow(self, frame: Frame) -> bool:
        """Update the orientation from the tracks and keep the position; False when no pure rotation explains them.

        A stretch begins from the tracks and the pose of the previous frame.
        """
        frame_tracker = self._frame_tracker
        if frame_tracker.pose is None:
            return False
        if self.frames == 0:
            self._tracks, self._pose = frame_tracker.previous_tracks, frame_tracker.pose
        pose = self._estimate_rotated_pose(frame, frame_tracker.pose)
        if pose is None:
            return False
        self.frames += 1
        frame_tracker.set_pose(pose)
        self._renew(frame, pose)
        return True

    def _estimate_rotated_pose(self, frame: Frame, last_pose: RigidTransform) -> RigidTransform | None:
        """world_from_cam of the frame, rotated against the reference image; None without a good rotation."""
        start, now = common_pixels(self._tracks, self._frame_tracker.tracks)
        if len(start) < MIN_TRACKS:
            return None
        matches = Matches(start.astype(np.float64), now.astype(np.float64), frame.camera, frame.camera)
        found = estimate_rotation(matches, rotation_matrix(self._pose).T @ rotation_matrix(last_pose), INLIER_PX)
        if float(found.inliers.mean()) < MIN_INLIER_RATIO:
            return None
        return rigid(rotation_matrix(self._pose) @ found.rotation, translation_of(self._pose))

    def _renew(self, frame: Frame, pose: RigidTransform) -> None:
        """Start new tracks when many have left the image; this frame becomes the reference image then."""
        tracks = self._frame_tracker.tracks
        left, _ = common_pixels(self._tracks, tracks)
        if len(left) > RENEW_RATIO * len(self._tracks):
            return
        features, config = self._frame_tracker.extract(frame).features, self._config
        chosen = choose_new(
            features,
            tracks.pixels,
            count=max(0, config.max_tracks - len(tracks)),
            min_distance_px=config.min_distance_px,
            size=(frame.camera.width, frame.camera.height),
        )
        started = self._map.start_tracks(features.pixels[chosen], features.descriptors[chosen], frame.image)
        self._tracks, self._pose = tracks.joined(started), pose
        self._frame_tracker.tracks = self._tracks
