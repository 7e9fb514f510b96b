"""Orientation while the camera turns away from all landmarks: the position is held, since nothing tells it.

Points without a depth still tell how the camera turned. While a rotation alone explains them the camera cannot have
moved much against their distance, and when it has, this says so and ends.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.geometry import rigid, rotation_matrix, translation_of
from relocalizer.two_view import Matches, estimate_rotation
from slam.config.schema import SlamConfig
from slam.map.frames import Frame
from slam.map.landmarks import LandmarkMap
from slam.map.tracks import Tracks
from slam.tracking.frame_tracker import FrameTracker
from slam.tracking.keyframe_policy import common_pixels
from slam.tracking.klt import choose_new

MIN_TRACKS = 40
MIN_SHARE = 0.8  # of the tracks that one rotation must explain
TURN_PX = 1.5
RENEW = 0.6  # when fewer of the tracks are left, new ones are begun
RELOCALIZE_EVERY = 5  # frames between two attempts to recognize a place meanwhile
EVENT_COOLDOWN = 30  # frames after a stretch in which the next one is not announced
POSITION_HELD = "the camera turns where no landmark is known: its position is held"


class RotationOnlyTracker:
    """A stretch of turning: where it began, what is followed since, and for how many frames."""

    def __init__(self, config: SlamConfig, landmarks: LandmarkMap, frame_tracker: FrameTracker) -> None:
        self._config = config.tracks
        self._landmarks = landmarks
        self._frame_tracker = frame_tracker
        self._tracks = Tracks.none()  # in the image that all is measured from
        self._pose = RigidTransform.identity()  # of that image
        self._last = -EVENT_COOLDOWN
        self.frames = 0

    def stop(self) -> None:
        """The camera is located again, or lost."""
        self.frames = 0

    @property
    def should_relocalize(self) -> bool:
        """Whether it is time to try to recognize a place: at once, and then now and again."""
        return self.frames % RELOCALIZE_EVERY == 0

    def starts_new_stretch(self, index: int) -> bool:
        """Whether a stretch begins with frame `index` that follows on no other. Remembers the frame."""
        news = self.frames == 1 and index - self._last > EVENT_COOLDOWN
        self._last = index
        return news

    def follow(self, frame: Frame) -> bool:
        """Turn the front end's pose as its tracks turned, the position held; False when a turn does not explain them.

        A stretch begins from the last frame's tracks and pose.
        """
        frame_tracker = self._frame_tracker
        if frame_tracker.pose is None:
            return False
        if self.frames == 0:
            self._tracks, self._pose = frame_tracker.previous_tracks, frame_tracker.pose
        pose = self._turned(frame, frame_tracker.pose)
        if pose is None:
            return False
        self.frames += 1
        frame_tracker.set_pose(pose)
        self._renew(frame, pose)
        return True

    def _turned(self, frame: Frame, last_pose: RigidTransform) -> RigidTransform | None:
        """world_from_cam of a frame whose tracks one rotation explains, since the image all is measured from."""
        start, seen = common_pixels(self._tracks, self._frame_tracker.tracks)
        if len(start) < MIN_TRACKS:
            return None
        matches = Matches(start.astype(np.float64), seen.astype(np.float64), frame.camera, frame.camera)
        turn = estimate_rotation(matches, rotation_matrix(self._pose).T @ rotation_matrix(last_pose), TURN_PX)
        if float(turn.inliers.mean()) < MIN_SHARE:
            return None
        return rigid(rotation_matrix(self._pose) @ turn.rotation, translation_of(self._pose))

    def _renew(self, frame: Frame, pose: RigidTransform) -> None:
        """Begin new tracks when many have left the image; all is measured from here then."""
        tracks = self._frame_tracker.tracks
        left, _ = common_pixels(self._tracks, tracks)
        if len(left) > RENEW * len(self._tracks):
            return
        features, config = self._frame_tracker.extract(frame).features, self._config
        chosen = choose_new(
            features,
            tracks.pixels,
            count=max(0, config.max_tracks - len(tracks)),
            min_distance_px=config.min_distance_px,
            size=(frame.camera.width, frame.camera.height),
        )
        started = self._landmarks.start(features.pixels[chosen], features.descriptors[chosen], frame.image)
        self._tracks, self._pose = tracks.joined(started), pose
        self._frame_tracker.tracks = self._tracks
