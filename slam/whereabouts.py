"""Whether the camera is followed, why it is not, and the keyframe it was seen by last."""

from __future__ import annotations

from slam.events import TrackingState

YOUNG = 10  # frames: a map lost sooner after its beginning was begun wrongly, and is begun again at once


class Whereabouts:
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
        self.state = TrackingState.INITIALISING
        self.reason = "waiting for the first frame"
        self.keyframe_id = -1
        self.frames_lost = 0
        self._restart_after = restart_after
        self._began_at = -YOUNG  # index of the frame with which the newest map began
        self._began_wrongly = False
        self._was_found = True  # False from when a run begins in a map until it is found there

    @property
    def has_map(self) -> bool:
        """Whether there is a map to be in, known place or not."""
        return self.state is not TrackingState.INITIALISING

    @property
    def is_lost(self) -> bool:
        return self.state is TrackingState.LOST

    @property
    def is_tracking(self) -> bool:
        return self.state is TrackingState.TRACKING

    @property
    def may_begin_anew(self) -> bool:
        """Whether the camera has been lost for long enough to begin another map."""
        if self._restart_after is None:
            return False
        return self.frames_lost >= (1 if self._began_wrongly else self._restart_after)

    def wait(self, reason: str) -> None:
        """No map can begin yet; a camera that is lost has a reason of its own."""
        if self.state is TrackingState.INITIALISING:
            self.reason = reason

    def look_in_map(self, keyframe_id: int) -> None:
        """The run begins in a map, somewhere: the first guess is this keyframe."""
        self.state, self.reason = TrackingState.LOST, "looking for a place in the map"
        self.keyframe_id, self._was_found = keyframe_id, False

    def begin(self, keyframe_id: int, frame_index: int) -> None:
        """A map begins with this keyframe, while the stream is at this frame."""
        self._began_at, self._began_wrongly = frame_index, False
        self.at(keyframe_id)

    def at(self, keyframe_id: int) -> None:
        """The camera's place is known by this keyframe."""
        self.state, self.keyframe_id = TrackingState.TRACKING, keyframe_id
        self.reason, self.frames_lost, self._was_found = "", 0, True

    def follow(self) -> None:
        """The camera was followed into the next frame."""
        self.reason = ""

    def hold(self, reason: str) -> None:
        """The camera was followed, but not in all that it does."""
        self.reason = reason

    def lose(self, frame_index: int, reason: str) -> None:
        """The first frame without a pose."""
        self._began_wrongly = self._began_wrongly or frame_index - self._began_at < YOUNG
        if frame_index - self._began_at < YOUNG:
            reason = f"the map begun with frame {self._began_at} did not hold: {reason}"
        self.state, self.reason = TrackingState.LOST, reason
        self.frames_lost += 1

    def stay_lost(self, reason: str) -> None:
        """Another frame without a pose; the reason of the first one stands, unless there never was a pose."""
        if not self._was_found:
            self.reason = f"not found in the map: {reason}"
        self.frames_lost += 1
