"""Orientation while the camera turns away from all landmarks: the position is held, since nothing tells it.

Points without a depth still tell how the camera turned. While a rotation alone explains them the camera cannot have
moved much against their distance, and when it has, this says so and ends.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.geometry import rigid, rotation_matrix, translation_of
from relocalizer.two_view import Matches, find_turn
from slam.config import SlamConfig
from slam.frames import Frame
from slam.front_end import FrontEnd
from slam.keyframes import common_pixels
from slam.landmarks import LandmarkMap
from slam.tracks import Tracks, choose_new

MIN_TRACKS = 40
MIN_SHARE = 0.8  # of the tracks that one rotation must explain
TURN_PX = 1.5
RENEW = 0.6  # when fewer of the tracks are left, new ones are begun
LOOK_EVERY = 5  # frames between two attempts to recognise a place meanwhile
QUIET = 30  # frames after a stretch in which the next one is not announced
HELD = "the camera turns where no landmark is known: its position is held"


class Turning:
    """A stretch of turning: where it began, what is followed since, and for how many frames."""

    def __init__(self, config: SlamConfig, landmarks: LandmarkMap, front_end: FrontEnd) -> None:
        self._config = config.tracks
        self._landmarks = landmarks
        self._front_end = front_end
        self._tracks = Tracks.none()  # in the picture that all is measured from
        self._pose = RigidTransform.identity()  # of that picture
        self._last = -QUIET
        self.frames = 0

    def stop(self) -> None:
        """The camera is located again, or lost."""
        self.frames = 0

    @property
    def is_due_for_a_look(self) -> bool:
        """Whether it is time to try to recognise a place: at once, and then now and again."""
        return self.frames % LOOK_EVERY == 0

    def is_news(self, index: int) -> bool:
        """Whether a stretch begins with frame `index` that follows on no other. Remembers the frame."""
        news = self.frames == 1 and index - self._last > QUIET
        self._last = index
        return news

    def follow(self, frame: Frame) -> bool:
        """Turn the front end's pose as its tracks turned, the position held; False when a turn does not explain them.

        A stretch begins from the last frame's tracks and pose.
        """
        front_end = self._front_end
        if front_end.pose is None:
            return False
        if self.frames == 0:
            self._tracks, self._pose = front_end.before, front_end.pose
        pose = self._turned(frame, front_end.pose)
        if pose is None:
            return False
        self.frames += 1
        front_end.moved_to(pose)
        self._renew(frame, pose)
        return True

    def _turned(self, frame: Frame, last_pose: RigidTransform) -> RigidTransform | None:
        """world_from_cam of a frame whose tracks one rotation explains, since the picture all is measured from."""
        start, seen = common_pixels(self._tracks, self._front_end.tracks)
        if len(start) < MIN_TRACKS:
            return None
        matches = Matches(start.astype(np.float64), seen.astype(np.float64), frame.camera, frame.camera)
        turn = find_turn(matches, rotation_matrix(self._pose).T @ rotation_matrix(last_pose), TURN_PX)
        if float(turn.agrees.mean()) < MIN_SHARE:
            return None
        return rigid(rotation_matrix(self._pose) @ turn.rotation, translation_of(self._pose))

    def _renew(self, frame: Frame, pose: RigidTransform) -> None:
        """Begin new tracks when many have left the picture; all is measured from here then."""
        tracks = self._front_end.tracks
        left, _ = common_pixels(self._tracks, tracks)
        if len(left) > RENEW * len(self._tracks):
            return
        features, config = self._front_end.see(frame).features, self._config
        chosen = choose_new(
            features,
            tracks.pixels,
            count=max(0, config.max_tracks - len(tracks)),
            min_distance_px=config.min_distance_px,
            size=(frame.camera.width, frame.camera.height),
        )
        started = self._landmarks.start(features.pixels[chosen], features.descriptors[chosen], frame.image)
        self._tracks, self._pose = tracks.joined(started), pose
        self._front_end.tracks = self._tracks
