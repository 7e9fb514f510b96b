"""State of tracking with its reason, and the reference keyframe of the current frame."""

from __future__ import annotations

from slam.map.tracking_status import TrackingState

# Age of a map below which its loss means a wrong initialization, after which a new map may start at once, frames.
MIN_MAP_AGE_FRAMES = 10


class TrackingStateMachine:
    """The state of tracking. Every transition is a method, so that state, reason and keyframe stay consistent.

    Attributes:
        reason: why tracking is not fully successful, a sentence; empty while it is.
        keyframe_id: reference keyframe of the current frame; -1 before there is one.
        frames_lost: number of successive frames for which the camera has been lost.
    """

    def __init__(self, *, restart_after: int | None) -> None:
        """Args:
        restart_after: number of lost frames before a new map may start; None to forbid a new map.
        """
        self.state = TrackingState.INITIALIZING
        self.reason = "waiting for the first frame"
        self.keyframe_id = -1
        self.frames_lost = 0
        self._restart_after = restart_after
        self._began_at = -MIN_MAP_AGE_FRAMES  # index of the frame that initialized the newest map
        self._initialization_failed = False
        self._was_found = True  # False while a run that starts in a map has not been relocalized in it

    @property
    def has_map(self) -> bool:
        """Whether there is a map, with or without a current pose in it."""
        return self.state is not TrackingState.INITIALIZING

    @property
    def is_lost(self) -> bool:
        return self.state is TrackingState.LOST

    @property
    def is_tracking(self) -> bool:
        return self.state is TrackingState.TRACKING

    @property
    def may_start_new_map(self) -> bool:
        """Whether the camera has been lost for long enough to start another map."""
        if self._restart_after is None:
            return False
        return self.frames_lost >= (1 if self._initialization_failed else self._restart_after)

    def set_waiting(self, reason: str) -> None:
        """The map cannot be initialized yet; a lost camera keeps the reason of its loss."""
        if self.state is TrackingState.INITIALIZING:
            self.reason = reason

    def set_lost_in_map(self, keyframe_id: int) -> None:
        """The run starts in a map at an unknown pose; relocalization tries this keyframe first."""
        self.state, self.reason = TrackingState.LOST, "searching the map for a place"
        self.keyframe_id, self._was_found = keyframe_id, False

    def map_initialized(self, keyframe_id: int, frame_index: int) -> None:
        """A map was initialized at frame `frame_index`; `keyframe_id` is its first keyframe."""
        self._began_at, self._initialization_failed = frame_index, False
        self.set_tracking(keyframe_id)

    def set_tracking(self, keyframe_id: int) -> None:
        """The camera has a pose; this is its reference keyframe."""
        self.state, self.keyframe_id = TrackingState.TRACKING, keyframe_id
        self.reason, self.frames_lost, self._was_found = "", 0, True

    def set_tracked(self) -> None:
        """The next frame was tracked."""
        self.reason = ""

    def set_rotation_only(self, reason: str) -> None:
        """The next frame was tracked in orientation only."""
        self.reason = reason

    def set_lost(self, frame_index: int, reason: str) -> None:
        """The first frame without a pose: tracking is lost."""
        self._initialization_failed = self._initialization_failed or frame_index - self._began_at < MIN_MAP_AGE_FRAMES
        if frame_index - self._began_at < MIN_MAP_AGE_FRAMES:
            reason = f"the map initialized at frame {self._began_at} did not hold: {reason}"
        self.state, self.reason = TrackingState.LOST, reason
        self.frames_lost += 1

    def still_lost(self, reason: str) -> None:
        """Another frame without a pose; the first reason stays, unless the run was never found in its map."""
        if not self._was_found:
            self.reason = f"not found in the map: {reason}"
        self.frames_lost += 1
