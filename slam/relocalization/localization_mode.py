"""Localization mode: frames are tracked in a fixed map, which gets no keyframes and no landmarks."""

from __future__ import annotations

from collections.abc import Callable

from slam.map.frames import Frame, PoseNotFound
from slam.relocalization.frame_relocalizer import RelocalizedFrame
from slam.tracking.frame_tracker import FrameTracker
from slam.tracking.tracking_state import TrackingStateMachine

MIN_LANDMARK_RATIO = 0.6  # fraction of the matched landmarks below which the frame is relocalized for more


class LocalizationMode:
    """Relocalizes the frame when few landmarks are left, since no keyframe adds new ones."""

    def __init__(
        self,
        frame_tracker: FrameTracker,
        state: TrackingStateMachine,
        relocalize: Callable[[Frame], RelocalizedFrame | PoseNotFound],
    ) -> None:
        self._frame_tracker = frame_tracker
        self._state = state
        self._relocalize = relocalize
        self._min_landmarks = 0

    def set_baseline(self) -> None:
        """After relocalization: count the landmarks, of which MIN_LANDMARK_RATIO should stay tracked."""
        self._min_landmarks = round(MIN_LANDMARK_RATIO * len(self._frame_tracker.inlier_tracks))

    def replenish(self, frame: Frame) -> None:
        """Relocalize a frame with a pose when it has few landmarks, to track more of them."""
        if len(self._frame_tracker.inlier_tracks) >= self._min_landmarks:
            return
        found = self._relocalize(frame)
        if isinstance(found, RelocalizedFrame):
            self._state.set_tracking(found.keyframe_id)
            self._frame_tracker.reset_to(found.world_from_cam, found.tracks)
        self.set_baseline()
