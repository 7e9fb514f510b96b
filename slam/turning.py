"""Orientation while the camera turns away from all landmarks: the position is held, since nothing tells it.

Points without a depth still tell how the camera turned. While a rotation alone explains them the camera cannot have
moved much against their distance, and when it has, this says so and ends.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.geometry import rigid, rotation_matrix, translation_of
from relocalizer.images import Image
from relocalizer.two_view import Matches, find_turn
from slam.config import SlamConfig
from slam.frames import Frame
from slam.front_end import NotLocated
from slam.keyframes import common_pixels
from slam.landmarks import LandmarkMap
from slam.tracks import PointTracker, Tracks, choose_new

MIN_TRACKS = 40
MIN_SHARE = 0.8  # of the tracks that one rotation must explain
TURN_PX = 1.5
RENEW = 0.6  # when fewer of the tracks are left, new ones are begun
LOOK_EVERY = 5  # frames between two attempts to recognise a place meanwhile
QUIET = 30  # frames after a stretch in which the next one is not announced


class Turning:
    """A stretch of turning: where it began, what is followed since, and for how many frames."""

    def __init__(self, config: SlamConfig, landmarks: LandmarkMap, tracker: PointTracker) -> None:
        self._config = config.tracks
        self._landmarks = landmarks
        self._tracker = tracker
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

    def follow(
        self, frame: Frame, before: Tracks, now: Tracks, last_pose: RigidTransform
    ) -> RigidTransform | NotLocated:
        """world_from_cam of a frame whose tracks are `now`, at the position held; or why a turn does not explain them.

        `before` are the tracks in the last frame and `last_pose` is its pose: a stretch begins from there.
        """
        if self.frames == 0:
            self._tracks, self._pose = before, last_pose
        start, seen = common_pixels(self._tracks, now)
        if len(start) < MIN_TRACKS:
            return NotLocated(f"{len(start)} points followed, {MIN_TRACKS} needed to tell a turn")
        matches = Matches(start.astype(np.float64), seen.astype(np.float64), frame.camera, frame.camera)
        turn = find_turn(matches, rotation_matrix(self._pose).T @ rotation_matrix(last_pose), TURN_PX)
        share = float(turn.agrees.mean())
        if share < MIN_SHARE:
            return NotLocated(f"a turn explains {share:.0%} of {len(start)} points, {MIN_SHARE:.0%} needed")
        self.frames += 1
        return rigid(rotation_matrix(self._pose) @ turn.rotation, translation_of(self._pose))

    def renew(self, frame: Frame, gray: Image, tracks: Tracks, pose: RigidTransform) -> Tracks:
        """The frame's tracks to go on with; new ones among them when many have left the picture."""
        left, _ = common_pixels(self._tracks, tracks)
        if len(left) > RENEW * len(self._tracks):
            return tracks
        features, config = self._tracker.detect(gray), self._config
        chosen = choose_new(
            features,
            tracks.pixels,
            count=max(0, config.max_tracks - len(tracks)),
            min_distance_px=config.min_distance_px,
            size=(frame.camera.width, frame.camera.height),
        )
        started = self._landmarks.start(features.pixels[chosen], features.descriptors[chosen], frame.image)
        self._tracks, self._pose = tracks.joined(started), pose
        return self._tracks
