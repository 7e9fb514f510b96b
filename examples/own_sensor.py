"""Logs the data of another sensor into the recording of a run: an observer draws it beside everything else.

python examples/own_sensor.py sequences/room_loop room.rrd

Both are called with every event, in their order, so that the data appear on the same timelines. Replace
`simulated_gyroscope` by a reader of your own sensor that answers for the time of a frame.
"""

import sys
from pathlib import Path

import numpy as np
import rerun as rr

from slam import Slam, SlamConfig, open_source
from slam.events import Event, FrameProcessed
from slam.viz.rerun_viewer import RerunViewer


class GyroscopeLog:
    """An observer that logs the angular velocity that a sensor measured at the time of every frame."""

    def __init__(self, recording: rr.RecordingStream) -> None:
        self._recording = recording
        self._first_ns: int | None = None
        recording.log("sensors/gyroscope", rr.SeriesLines(names=["x", "y", "z"]), static=True)

    def __call__(self, event: Event) -> None:
        if not isinstance(event, FrameProcessed):
            return
        frame = event.frame
        self._first_ns = frame.timestamp_ns if self._first_ns is None else self._first_ns
        # The same timelines as the rest of the recording: the frame's index, and seconds since the first frame.
        self._recording.set_time("frame", sequence=frame.index)
        self._recording.set_time("time", duration=(frame.timestamp_ns - self._first_ns) * 1e-9)
        self._recording.log("sensors/gyroscope", rr.Scalars(simulated_gyroscope(frame.timestamp_ns)))


def simulated_gyroscope(timestamp_ns: int) -> np.ndarray:
    """Angular velocity (3,) at a time, radians per second; a reader of a real sensor would stand here."""
    t = timestamp_ns * 1e-9
    return np.array([0.1 * np.sin(3 * t), 0.5 + 0.2 * np.cos(t), 0.05 * np.sin(7 * t)])


def main(source: str, record: Path, max_frames: int | None = None) -> None:
    frames = open_source(source, max_frames=max_frames)
    viewer = RerunViewer(record=record, view="none", ground_truth=None, title=frames.name, camera=frames.camera)
    slam = Slam.create(SlamConfig(), observers=[viewer, GyroscopeLog(viewer.recording)])
    try:
        for frame in frames:
            slam.step(frame)
        slam.finish()
    finally:
        viewer.close()
    print(f"wrote {record}; open it with: rerun {record}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
