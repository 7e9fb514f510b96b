"""Whether the camera is followed, why it is not, and the keyframe it was seen by last."""

from __future__ import annotations

from slam.map.tracking_status import TrackingState

MIN_MAP_AGE_FRAMES = 10  # frames: a map lost sooner after its beginning was begun wrongly, and is begun again at once


class TrackingStateMachine:
    """The state of tracking. Every change of state is a method, so that state, reason and keyframe stay of one mind.

    Attributes:
        reason: why the state is what it is, a sentence; empty while all is well.
        keyframe_id: the keyframe that the current frame hangs off; -1 before there is one.
        frames_lost: for how many frames in a row the camera has been lost.
    """

    def __init__(self, *, restart_after: int | None) -> None:
        """Args:
        restart_after: frames lost before a new map may begin; None when none ever may.
        """
        self.state = TrackingState.INITIALIZING
        self.reason = "waiting for the first frame"
        self.keyframe_id = -1
        self.frames_lost = 0
        self._restart_after = restart_after
        self._began_at = -MIN_MAP_AGE_FRAMES  # index of the frame with which the newest map began
        self._initialization_failed = False
        self._was_found = True  # False from when a run begins in a map until it is found there

    @property
    def has_map(self) -> bool:
        """Whether there is a map to be in, known place or not."""
        return self.state is not TrackingState.INITIALIZING

    @property
    def is_lost(self) -> bool:
        return self.state is TrackingState.LOST

    @property
    def is_tracking(self) -> bool:
        return self.state is TrackingState.TRACKING

    @property
    def may_start_new_map(self) -> bool:
        """Whether the camera has been lost for long enough to begin another map."""
        if self._restart_after is None:
            return False
        return self.frames_lost >= (1 if self._initialization_failed else self._restart_after)

    def set_waiting(self, reason: str) -> None:
        """No map can begin yet; a camera that is lost has a reason of its own."""
        if self.state is TrackingState.INITIALIZING:
            self.reason = reason

    def set_lost_in_map(self, keyframe_id: int) -> None:
        """The run begins in a map, somewhere: the first guess is this keyframe."""
        self.state, self.reason = TrackingState.LOST, "looking for a place in the map"
        self.keyframe_id, self._was_found = keyframe_id, False

    def map_initialized(self, keyframe_id: int, frame_index: int) -> None:
        """A map begins with this keyframe, while the stream is at this frame."""
        self._began_at, self._initialization_failed = frame_index, False
        self.set_tracking(keyframe_id)

    def set_tracking(self, keyframe_id: int) -> None:
        """The camera's place is known by this keyframe."""
        self.state, self.keyframe_id = TrackingState.TRACKING, keyframe_id
        self.reason, self.frames_lost, self._was_found = "", 0, True

    def set_tracked(self) -> None:
        """The camera was followed into the next frame."""
        self.reason = ""

    def set_rotation_only(self, reason: str) -> None:
        """The camera was followed, but not in all that it does."""
        self.reason = reason

    def set_lost(self, frame_index: int, reason: str) -> None:
        """The first frame without a pose."""
        self._initialization_failed = self._initialization_failed or frame_index - self._began_at < MIN_MAP_AGE_FRAMES
        if frame_index - self._began_at < MIN_MAP_AGE_FRAMES:
            reason = f"the map begun with frame {self._began_at} did not hold: {reason}"
        self.state, self.reason = TrackingState.LOST, reason
        self.frames_lost += 1

    def still_lost(self, reason: str) -> None:
        """Another frame without a pose; the reason of the first one stands, unless there never was a pose."""
        if not self._was_found:
            self.reason = f"not found in the map: {reason}"
        self.frames_lost += 1
