"""Latency of a live camera, measured with a file: its images come at their own rate, whether they are used or not.

The age of a pose is the time from the arrival of its image until the pose is published to the first observer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from relocalizer.errors import SequenceError, TrajectoryError
from slam.config.schema import InputConfig, SlamConfig
from slam.evaluation.metrics import evaluate
from slam.evaluation.trajectory import Trajectory
from slam.events import Event, FrameProcessed
from slam.input.frame_source import ALL_IMAGES, FrameSource
from slam.input.live_stream import LiveStream, with_live_mapping
from slam.input.rectification import GivenCamera, Rectifier
from slam.run import run_verdict, runner
from slam.run.run_statistics import RunStatistics
from slam.system import Slam

PERCENTILES = {"p50": 50, "p95": 95, "p99": 99, "max": 100}


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveLatency:
    """How a camera would have been followed.

    Attributes:
        fps: images per second, on average.
        images: number of images that came; frames: of those, the ones that were used.
        tracked: number of frames with a live pose.
        dropped: number of images that came while another one was processed and were overtaken by a newer one.
        dropped_tracking: of those, the ones after the first pose.
        late: number of images that were read from the file more than one interval too late, as no camera would be.
        age_ms: median, p95, p99 and maximum of the age of the live poses, milliseconds; empty without one.
        ate: root mean square error of the final positions after a Sim(3) alignment, in units of the ground truth;
            None without ground truth.
        ate_live: the same of the live poses.
        reason: why the result is unusable; empty if it is usable.
    """

    source: str
    fps: float
    images: int
    frames: int
    tracked: int
    keyframes: int
    dropped: int
    dropped_tracking: int
    late: int
    age_ms: dict[str, float]
    ate: float | None
    ate_live: float | None
    interrupted: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class PacedCapture:
    """The images of a file at the times at which a camera would give them; has the methods of cv2.VideoCapture.

    Attributes:
        timestamps_ns: timestamp in the file of every image given so far.
        arrived_ns: when each was given, by the monotonic clock.
        late: number of images that were given more than one interval too late.
    """

    def __init__(self, source: FrameSource, fps: float | None) -> None:
        """`fps`: images per second; None for the times of the file."""
        self._source = source
        self._frames = iter(source)
        self._fps = fps
        self.timestamps_ns: list[int] = []
        self.arrived_ns: list[int] = []
        self.late = 0

    def read(self) -> tuple[bool, Any]:
        """Wait until the next image is due, and return it."""
        frame = next(self._frames, None)
        if frame is None:
            return False, None
        raw = np.ascontiguousarray(frame.image[:, :, ::-1])  # BGR, as OpenCV gives it
        self.timestamps_ns.append(frame.timestamp_ns)
        self._wait()
        self.arrived_ns.append(time.monotonic_ns())
        return True, raw

    def _wait(self) -> None:
        """Wait until the newest image is due, counted from the first one."""
        count, stamps = len(self.arrived_ns), self.timestamps_ns
        if count == 0:
            return
        since_first = round(1e9 * count / self._fps) if self._fps else stamps[-1] - stamps[0]
        left_ns = self.arrived_ns[0] + since_first - time.monotonic_ns()
        interval = since_first / count
        self.late += left_ns < -interval
        if left_ns > 0:
            time.sleep(left_ns * 1e-9)

    def release(self) -> None:
        """Close the file."""
        self._source.close()

    @property
    def fps(self) -> float:
        """Images per second, on average; 0 for fewer than two images."""
        if len(self.arrived_ns) < 2:
            return 0.0
        return 1e9 * (len(self.arrived_ns) - 1) / (self.arrived_ns[-1] - self.arrived_ns[0])


class AgeMeter:
    """An observer that notes how old the image of each live pose is when the pose is there.

    Attributes:
        ages_ms: of each frame with a pose, in order.
        indices: by the timestamp in the live stream, the number of the image in the file, of all frames.
        first_index: index of the first frame with a pose; -1 without one.
    """

    def __init__(self, arrived_ns: Sequence[int]) -> None:
        self._arrived_ns = arrived_ns
        self.ages_ms: list[float] = []
        self.indices: dict[int, int] = {}
        self.first_index = -1

    def __call__(self, event: Event) -> None:
        if not isinstance(event, FrameProcessed):
            return
        index = event.frame.index
        self.indices[event.frame.timestamp_ns] = index
        if event.world_from_cam is not None:
            self.ages_ms.append((time.monotonic_ns() - self._arrived_ns[index]) * 1e-6)
            self.first_index = index if self.first_index < 0 else self.first_index

    def percentiles(self) -> dict[str, float]:
        """Ages below which a percentage of the ages are, milliseconds, by name; empty without a pose."""
        if not self.ages_ms:
            return {}
        return {name: round(float(np.percentile(self.ages_ms, share)), 2) for name, share in PERCENTILES.items()}

    def dropped_since_first_pose(self, images: int) -> int:
        """Of the first `images` images, the number that were not used although there was a pose before."""
        if self.first_index < 0:
            return 0
        return images - self.first_index - sum(index >= self.first_index for index in self.indices.values())


def live_stream(source: FrameSource, fps: float | None) -> tuple[LiveStream, PacedCapture]:
    """A live stream of the images of a file, and the capture that it reads.

    Raises:
        SequenceError: the file is a live stream itself.
    """
    if isinstance(source, LiveStream):
        raise SequenceError(f"{source.name}: --live feeds a file as a camera would; a camera is measured by `slam run`")
    camera = source.camera
    given = GivenCamera(camera, source.description)
    rectifier = Rectifier(camera.width, camera.height, given, InputConfig(max_side_px=max(camera.width, camera.height)))
    capture = PacedCapture(source, fps)
    stream = LiveStream(capture, source.name, f"{source.description}, as a live stream", rectifier, ALL_IMAGES)
    stream.mask = source.mask
    return stream, capture


def measure_live(
    config: SlamConfig, source: FrameSource, fps: float | None, *, on_progress: Callable[[int], None] | None = None
) -> LiveLatency:
    """Run SLAM over a file as over a live camera, and measure how old the poses are.

    Args:
        fps: images per second; None for the times of the file.
        on_progress: called after each frame with the number of frames so far.

    Raises:
        UserError: as `Slam.create` and `runner.run`, and for a source that is a live stream itself.
    """
    truth, (stream, capture) = source.ground_truth, live_stream(source, fps)
    statistics, meter = RunStatistics(), AgeMeter(capture.arrived_ns)
    slam = Slam.create(with_live_mapping(config, stream), observers=[meter, statistics], mask=stream.mask)
    outcome = runner.run(stream, slam, on_progress=on_progress)
    outcome.raise_failure()
    result, images = outcome.result, len(capture.arrived_ns)
    in_file = {stamp: capture.timestamps_ns[index] for stamp, index in meter.indices.items()}
    return LiveLatency(
        source=source.description,
        fps=round(capture.fps, 3),
        images=images,
        frames=outcome.frames,
        tracked=len(meter.ages_ms),
        keyframes=statistics.keyframes,
        dropped=outcome.dropped,
        dropped_tracking=meter.dropped_since_first_pose(images),
        late=capture.late,
        age_ms=meter.percentiles(),
        ate=_error(result.trajectory, in_file, truth),
        ate_live=_error(result.online, in_file, truth),
        interrupted=outcome.interrupted,
        reason=run_verdict.no_result(outcome, statistics),
    )


def _error(live: Trajectory, in_file: Mapping[int, int], truth: Trajectory | None) -> float | None:
    """Root mean square error of the positions after a Sim(3) alignment; None where it cannot be measured.

    Args:
        in_file: by the timestamps of the live stream, those of the file.
    """
    if truth is None or not len(live):
        return None
    stamps = np.array([in_file[stamp] for stamp in live.timestamps_ns.tolist()], np.int64)
    try:
        return round(evaluate(replace(live, timestamps_ns=stamps), truth).ate_sim3.rmse, 6)
    except TrajectoryError:  # too few poses
        return None
