"""The frame loop: all frames of a source through the system, with timing, interruption and failures."""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np

from relocalizer.errors import SequenceError, UserError
from slam.events import FramesSkipped
from slam.process_memory import peak_memory_mb
from slam.progress import Progress, no_progress
from slam.run.live_threads import shared_by_tracking_and_mapping

if TYPE_CHECKING:
    from slam.evaluation.trajectory import Trajectory
    from slam.input.frame_source import FrameSource
    from slam.map.frames import Frame
    from slam.result import SlamResult
    from slam.system import Slam

# SIGHUP is sent by a closed terminal; Windows has none.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """An isolated failure in a run: the step that failed, and its exception."""

    doing: str
    error: Exception

    @property
    def is_internal(self) -> bool:
        """Whether this is a bug, not an error that the user can fix."""
        return not isinstance(self.error, UserError)

    @property
    def sentence(self) -> str:
        text = " ".join(str(self.error).split())
        if not self.is_internal:
            return text
        kind = type(self.error).__name__
        return f"{self.doing}: {kind}: {text}" if text else f"{self.doing}: {kind}"

    @property
    def traceback(self) -> str:
        return "".join(traceback.format_exception(self.error))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RunOutcome:
    """Outcome of a run.

    Attributes:
        expected_ns: (N,) timestamps of all processed frames, tracked or not, nanoseconds.
        wall_s: wall time from the first image to the finished map, including reading, seconds.
        read_ms: waiting time for each image, milliseconds.
        step_ms: processing time of each frame, milliseconds.
        finish_s: time of the final refinement of the whole map, seconds.
        peak_memory_mb: peak memory of this process, megabytes.
        failures: isolated failures during the run, in order.
        last_frame_index: index of the last processed frame, -1 without one.
        skipped: images that could not be read, as (name, reason).
        dropped: number of live images that arrived faster than they could be processed.
        scale_problem: reason why a requested metric scale was not applied; empty without a problem.
    """

    result: SlamResult
    interrupted: bool
    frames: int
    expected_ns: np.ndarray[tuple[int], np.dtype[np.int64]]
    wall_s: float
    read_ms: list[float]
    step_ms: list[float]
    finish_s: float
    peak_memory_mb: float
    skipped: list[tuple[str, str]]
    dropped: int
    scale_problem: str = ""
    failures: tuple[Failure, ...] = ()
    last_frame_index: int = -1

    def raise_failure(self) -> None:
        """Raise the exception that ended the run early, for callers that need a complete run."""
        if self.failures:
            raise self.failures[0].error


class StopRequest:
    """Handler of Ctrl-C (SIGTERM, SIGHUP): a request to stop between two frames, when the map is complete.

    Attributes:
        requested: whether a stop was requested.
        busy: whether the request has to wait. If it is False, or at a second request, KeyboardInterrupt is raised.
    """

    def __init__(self) -> None:
        self.requested = False
        self.busy = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.requested or not self.busy:  # waiting for an image, or requested twice: stop at once
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def listening(stop: StopRequest) -> Iterator[None]:
    """Handle termination signals with `stop` in this block. Only in the main thread; no effect in other threads."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [
        number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
    ]  # keep signals ignored, as nohup does
    before = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for_stop_signal() -> None:
    """Wait until Ctrl-C, SIGTERM or SIGHUP."""
    with suppress(KeyboardInterrupt), listening(StopRequest()):
        threading.Event().wait()


def run(
    source: FrameSource,
    slam: Slam,
    *,
    on_progress: Callable[[int], None] | None = None,
    on_finishing: Progress = no_progress,
) -> RunOutcome:
    """Process every frame of the source, then run the final refinement.

    Ctrl-C (SIGTERM, SIGHUP) ends the run after the current frame; the map so far is finished and returned. The same
    holds after an exception in a frame, in the source or in the final refinement; see `RunOutcome.failures`.

    Args:
        on_progress: called after each frame with the number of frames so far.
        on_finishing: called with (name of the task, steps done, maximum number of steps) while the map is finished.

    Raises:
        SequenceError: the source gave fewer than two frames.
    """
    return _Run(source, slam, on_progress).outcome(on_finishing)


class _Run:
    """One pass over a source: processes its frames, and collects their times and failures."""

    def __init__(self, source: FrameSource, slam: Slam, on_progress: Callable[[int], None] | None) -> None:
        self._source, self._slam, self._on_progress = source, slam, on_progress
        self._stop = StopRequest()
        self._stamps: list[int] = []
        self._read_ms: list[float] = []
        self._step_ms: list[float] = []
        self._last_index = -1
        self._failures: list[Failure] = []
        self._is_cut_off = False  # whether a frame was aborted, which leaves the map incomplete

    def outcome(self, on_finishing: Progress) -> RunOutcome:
        started = time.perf_counter()
        with listening(self._stop):
            with shared_by_tracking_and_mapping(self._source):
                self._feed()
            _publish_skipped(self._source, self._slam)
            if len(self._stamps) < 2 and not self._stop.requested and not self._failures:
                raise SequenceError(_too_few_frames(self._source, len(self._stamps)))
            before = time.perf_counter()
            result = self._finish(on_finishing)
            finish_s = time.perf_counter() - before
        return RunOutcome(
            result=result,
            interrupted=self._stop.requested,
            failures=tuple(self._failures),
            frames=len(self._stamps),
            last_frame_index=self._last_index,
            expected_ns=np.array(self._stamps, dtype=np.int64),
            wall_s=time.perf_counter() - started,
            read_ms=self._read_ms,
            step_ms=self._step_ms,
            finish_s=finish_s,
            peak_memory_mb=peak_memory_mb(),
            skipped=list(self._source.skipped),
            dropped=self._source.dropped,
        )

    def _feed(self) -> None:
        """Process all frames, until the end, a stop request or an exception."""
        doing = "opening the source"
        try:
            for frame, waited_ms in _timed(self._source):
                doing = f"frame {frame.index}"
                self._step(frame, waited_ms)
                if self._stop.requested:
                    break
                doing = f"reading the frame after {frame.index}"
        except KeyboardInterrupt:
            self._stop.requested, self._is_cut_off = True, self._stop.busy
        except Exception as error:
            self._failures.append(Failure(doing, error))
            self._is_cut_off = self._stop.busy
        finally:
            self._source.close()

    def _step(self, frame: Frame, waited_ms: float) -> None:
        self._stop.busy = True
        before = time.perf_counter()
        self._slam.step(frame)
        self._step_ms.append((time.perf_counter() - before) * 1e3)
        self._stop.busy = False
        self._read_ms.append(waited_ms)
        self._stamps.append(frame.timestamp_ns)
        self._last_index = frame.index
        if self._on_progress:
            self._on_progress(len(self._stamps))

    def _finish(self, on_finishing: Progress) -> SlamResult:
        """The finished result; without the final refinement after a second stop request or an exception in it."""
        self._stop.busy = True  # another Ctrl-C while finishing stops at once
        try:
            if self._is_cut_off:
                self._slam.remove_incomplete()
            if not (self._is_cut_off and self._stop.requested):  # requested twice: stop at once
                interrupted = self._stop.requested or bool(self._failures)
                return self._slam.finish(interrupted=interrupted, on_progress=on_finishing)
        except KeyboardInterrupt:
            self._stop.requested = True
        except Exception as error:
            self._failures.append(Failure("the final bundle adjustment", error))
        return self._abort()

    def _abort(self) -> SlamResult:
        """The result without the final refinement; an exception while it is published does not lose it."""
        try:
            return self._slam.abort()
        except Exception as error:
            self._failures.append(Failure("publishing the result", error))
            return self._slam.abort()  # returns the result that was not published; raises if there is none


def with_metric_scale(outcome: RunOutcome, slam: Slam, scale_from: str, ground_truth: Trajectory | None) -> RunOutcome:
    """The outcome scaled to meters if `scale_from` is set; unscaled and with the reason if that fails.

    The map of `slam` is scaled too.

    Raises:
        ConfigError: `scale_from` has none of the forms of `slam.sessions.metric_scale`.
    """
    from slam.sessions.metric_scale import ScaleError, parse_scale_reference

    reference = parse_scale_reference(scale_from)
    if reference is None:
        return outcome
    try:
        return replace(outcome, result=slam.make_metric(reference, ground_truth))
    except ScaleError as error:  # the run is kept: it may have processed an hour of video
        return replace(outcome, scale_problem=str(error))


def _timed(source: FrameSource) -> Iterator[tuple[Frame, float]]:
    frames = iter(source)
    while True:
        before = time.perf_counter()
        frame = next(frames, None)
        if frame is None:
            return
        yield frame, (time.perf_counter() - before) * 1e3


def _publish_skipped(source: FrameSource, slam: Slam) -> None:
    if source.skipped:
        name, reason = source.skipped[0]
        slam.publish(FramesSkipped(count=len(source.skipped), reason=f"{name}: {reason}"))
    if source.dropped:
        slam.publish(FramesSkipped(count=source.dropped, reason="came faster than they could be used"))


def _too_few_frames(source: FrameSource, count: int) -> str:
    unreadable = f" ({len(source.skipped)} could not be read)" if source.skipped else ""
    return (
        f"{source.name}: {count or 'no'} usable {'image' if count == 1 else 'images'}{unreadable}; "
        "SLAM needs at least two, taken from different places"
    )
