"""The recording with its clock, and the colors, that all views of a run share."""

from __future__ import annotations

import rerun as rr

Color = tuple[int, int, int]

LIVE, OPTIMIZED, FINAL = (150, 150, 150), (60, 160, 255), (255, 255, 255)
TRUTH, ODOMETRY, LOOP, REJECTED = (80, 220, 120), (70, 110, 160), (255, 180, 40), (95, 36, 44)
INLIER, OUTLIER, WAITING = (60, 220, 90), (230, 60, 60), (240, 200, 60)


class Canvas:
    """A recording, the time at which entities are logged, and the size of frusta.

    Attributes:
        recording: the stream that all entities are logged to.
        latest: frame index and timestamp (nanoseconds) of the newest frame so far.
        frustum_depth: depth of a keyframe's frustum, map units; 0 until the depth of the scene is known.
    """

    def __init__(self, recording: rr.RecordingStream) -> None:
        self.recording = recording
        self.latest = (0, 0)
        self.frustum_depth = 0.0
        self._first_ns: int | None = None

    def set_time(self, frame_index: int, timestamp_ns: int) -> None:
        """Log what follows at this frame."""
        if self._first_ns is None:
            self._first_ns = timestamp_ns
        self.latest = max(self.latest, (frame_index, timestamp_ns))
        self.recording.set_time("frame", sequence=frame_index)
        self.recording.set_time("time", duration=(timestamp_ns - self._first_ns) * 1e-9)

    def set_frame(self, frame_index: int) -> None:
        """Log what follows at this frame, whose time is not known."""
        self.recording.set_time("frame", sequence=frame_index)

    def message(self, text: str, level: str) -> None:
        """Log a sentence; `level` is DEBUG, INFO, WARN or ERROR."""
        self.recording.log("log", rr.TextLog(text.encode(errors="backslashreplace").decode(), level=level))


def screen_radius(points: float) -> float:
    """A radius in screen points, independent of the map's size: Rerun encodes such radii as negative numbers."""
    return -points
