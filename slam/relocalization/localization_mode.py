"""A map that must not change: frames have their poses in it, and nothing else comes of them."""

from __future__ import annotations

from collections.abc import Callable

from slam.map.frames import Frame, PoseNotFound
from slam.relocalization.frame_relocalizer import RelocalizedFrame
from slam.tracking.frame_tracker import FrameTracker
from slam.tracking.tracking_state import TrackingStateMachine

MIN_LANDMARK_RATIO = 0.6  # of the landmarks recognized; with fewer left to follow, more are looked for


class LocalizationMode:
    """No keyframe brings new landmarks here: when few of those recognized are left, the place is recognized anew."""

    def __init__(
        self,
        frame_tracker: FrameTracker,
        where: TrackingStateMachine,
        relocalize: Callable[[Frame], RelocalizedFrame | PoseNotFound],
    ) -> None:
        self._frame_tracker = frame_tracker
        self._where = where
        self._relocalize = relocalize
        self._min_landmarks = 0

    def set_baseline(self) -> None:
        """A place was recognized: of these landmarks many should be left."""
        self._min_landmarks = round(MIN_LANDMARK_RATIO * len(self._frame_tracker.inlier_tracks))

    def replenish(self, frame: Frame) -> None:
        """Give a frame that has a pose more landmarks to go on with, when it has few."""
        if len(self._frame_tracker.inlier_tracks) >= self._min_landmarks:
            return
        found = self._relocalize(frame)
        if isinstance(found, RelocalizedFrame):
            self._where.set_tracking(found.keyframe_id)
            self._frame_tracker.reset_to(found.world_from_cam, found.tracks)
        self.set_baseline()
