"""Frame source of a live stream: a thread reads it, and the consumer gets the newest image."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

from numpy.typing import NDArray

from relocalizer.errors import SequenceError
from relocalizer.images import bgr_to_rgb
from slam.config.schema import SlamConfig
from slam.evaluation.trajectory import Trajectory
from slam.input.frame_source import FrameSource, Selection
from slam.input.rectification import GivenCamera, Rectifier
from slam.map.frames import Frame

log = logging.getLogger(__name__)

JOIN_TIMEOUT_S = (
    2.0  # Timeout for the reader thread to end, seconds. One blocked in the driver is abandoned (a daemon).
)


def with_mapping_thread(config: SlamConfig, source: FrameSource) -> SlamConfig:
    """The configuration for a source: for a live stream, `auto` becomes the mapping thread that never makes it wait."""
    if not isinstance(source, LiveStream) or config.tracking.mapping_thread != "auto":
        return config
    return config.model_copy(update={"tracking": config.tracking.model_copy(update={"mapping_thread": "live"})})


class VideoCapture(Protocol):
    """The part of cv2.VideoCapture used by a live stream."""

    def read(self) -> tuple[bool, Any]: ...

    def release(self) -> None: ...


class _NewestImage:
    """A thread that reads a capture continuously, and the newest image that nobody has taken yet.

    Attributes:
        dropped: number of images replaced by a newer one.
    """

    def __init__(self, capture: VideoCapture, name: str, selection: Selection) -> None:
        self._capture, self._name, self._selection = capture, name, selection
        self._clock_offset_ns = time.time_ns() - time.monotonic_ns()
        self._changed = threading.Condition()
        self._newest: tuple[int, int, NDArray[Any]] | None = None
        self._error: BaseException | None = None
        self._over = False
        self._stop = False
        self._reader: threading.Thread | None = None
        self.dropped = 0

    def start(self) -> None:
        """Start reading. A second call does nothing, and so does one after `close`."""
        if self._reader is None and not self._stop:
            self._reader = threading.Thread(target=self._read, name=f"read {self._name}", daemon=True)
            self._reader.start()

    def close(self) -> None:
        """Stop reading and release the capture. A second call does nothing."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        if self._reader is None:
            self._capture.release()
        elif self._reader is not threading.current_thread():
            self._reader.join(JOIN_TIMEOUT_S)

    @property
    def is_taken(self) -> bool:
        """Whether no image waits to be taken."""
        return self._newest is None

    def take(self) -> tuple[int, int, NDArray[Any]] | None:
        """Wait for the newest image, (index, nanoseconds, BGR); None at the end of the stream."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._over or self._stop)
            if self._stop:
                return None
            newest, self._newest = self._newest, None
            if newest is None and self._error is not None:
                raise self._error
            return newest

    def _read(self) -> None:
        """Body of the reader thread, the only user of the capture: releasing it during a read crashes OpenCV."""
        try:
            self._read_to_the_end()
        except BaseException as error:  # Any error is raised again in the consumer.
            self._error = error
        finally:
            self._capture.release()
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _read_to_the_end(self) -> None:
        index, last_ns = 0, 0
        while not self._stop:
            ok, raw = self._capture.read()
            if not ok:
                log.info("%s: the stream ended after %d images", self._name, index)
                return
            last_ns = max(last_ns + 1, time.monotonic_ns() + self._clock_offset_ns)
            if self._selection.takes(index):
                with self._changed:
                    self.dropped += self._newest is not None
                    self._newest = (index, last_ns, raw)
                    self._changed.notify_all()
            index += 1


class LiveStream:
    """A camera or network stream. The consumer gets the newest image; older ones are dropped.

    A thread reads continuously, so that a slow consumer gets a recent image instead of the driver's backlog.
    `Frame.index` counts all images received, `dropped` those replaced by a newer one.
    Timestamps are the wall clock at the opening of the stream plus a monotonic clock.
    """

    def __init__(
        self, capture: VideoCapture, name: str, description: str, rectifier: Rectifier, selection: Selection
    ) -> None:
        """Use `open_source` instead. The stream owns `capture` from now on, and releases it."""
        self._reader = _NewestImage(capture, name, selection)
        self._selection = selection
        self._description = description
        self._set_rectifier(rectifier)
        self.name = name
        self.length: int | None = None
        self.ground_truth: Trajectory | None = None
        self.skipped: list[tuple[str, str]] = []
        self.dropped = 0

    def _set_rectifier(self, rectifier: Rectifier) -> None:
        self._rectifier = rectifier
        self.description = f"{self._description}; {rectifier.note}"
        self.camera, self.calibration, self.mask = rectifier.camera, rectifier.calibration, rectifier.mask

    def with_calibration(self, calibration: GivenCamera) -> LiveStream:
        """The images still to come, read as images of another camera; use it instead of this stream."""
        again = copy.copy(self)
        again._set_rectifier(self._rectifier.with_calibration(calibration))
        return again

    def __iter__(self) -> Iterator[Frame]:
        given = 0
        frames = self.peek()
        try:
            while given != self._selection.max_frames and (frame := next(frames, None)) is not None:
                yield frame
                given += 1
        finally:
            self.close()

    def peek(self) -> Iterator[Frame]:
        """The images that come from now on; the end of this loop does not close the stream."""
        self._reader.start()
        while (newest := self._reader.take()) is not None:
            self.dropped = self._reader.dropped
            index, timestamp_ns, raw = newest
            try:
                image = self._rectifier(bgr_to_rgb(raw), f"{self.name}, image {index}")
            except SequenceError as error:  # The camera's mode has changed and may change back.
                self._skip(f"{self.name} image {index}", error)
                continue
            yield Frame(index=index, timestamp_ns=timestamp_ns, image=image, camera=self.camera)
        self.dropped = self._reader.dropped

    def _skip(self, name: str, error: SequenceError) -> None:
        if not self.skipped:
            log.warning("%s", error)
        self.skipped.append((name, str(error)))

    def close(self) -> None:
        """Stop reading and release the camera. A second call does nothing."""
        self._reader.close()
