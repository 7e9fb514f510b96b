"""From a configuration to a `Slam`, and from a source to a finished run: wiring, the loop, timing, Ctrl-C."""

from __future__ import annotations

import resource
import signal
import sys
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
from slam.progress import Progress, no_progress

if TYPE_CHECKING:
    from slam.evaluation.trajectory import Trajectory
    from slam.input.frame_source import FrameSource
    from slam.map.frames import Frame
    from slam.result import SlamResult
    from slam.system import Slam

# A closed terminal sends SIGHUP; Windows, where nothing of this runs, has none.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """Something that went wrong in a run and took only itself along: what was being done, and the exception."""

    doing: str
    error: Exception

    @property
    def is_internal(self) -> bool:
        """Whether this is a bug, not something a person can fix."""
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
    """What a run gave.

    Attributes:
        expected_ns: (N,) timestamps of all frames that went in, tracked or not.
        wall_s: from the first image to the finished map, reading included.
        read_ms: time spent waiting for each image.
        step_ms: time the system took for each frame.
        finish_s: the last refinement of the whole map.
        peak_memory_mb: of this process.
        failures: what went wrong on the way and only took itself along, the first one first.
        last_frame_index: of the last frame that went in, -1 when none did.
        skipped: images that could not be read, as (name, reason).
        dropped: live images that came faster than they could be used.
        anchor_problem: why lengths that were to be meters are map units all the same; empty when nothing is wrong.
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
        """Raise what ended the run before its time, for who has no use for half a run."""
        if self.failures:
            raise self.failures[0].error


class StopRequest:
    """Ctrl-C (or SIGTERM, SIGHUP) as a wish: granted between frames, so that the map is never caught half-written.

    Attributes:
        asked: whether it was asked for.
        busy: whether it has to wait; when it has not, or when it is asked for again, KeyboardInterrupt is raised.
    """

    def __init__(self) -> None:
        self.asked = False
        self.busy = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.asked or not self.busy:  # waiting for an image, or asked twice: do not make anybody wait
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def listening(stop: StopRequest) -> Iterator[None]:
    """Signals that ask a process to end go to `stop`. Only in the main thread; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup wants it
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_until_told() -> None:
    """Until Ctrl-C, SIGTERM or SIGHUP."""
    with suppress(KeyboardInterrupt), listening(StopRequest()):
        threading.Event().wait()


def run(
    source: FrameSource,
    slam: Slam,
    *,
    on_progress: Callable[[int], None] | None = None,
    on_finishing: Progress = no_progress,
) -> RunOutcome:
    """Every frame of the source through the system, then the last optimization.

    Ctrl-C (SIGTERM, SIGHUP) ends the run after the frame at hand; what was made until then is finished and given. So it
    is after an exception, in a frame, in the source or in the last refinement: `RunOutcome.failures` holds it.

    Args:
        on_progress: called after each frame with the number of frames so far.
        on_finishing: called with (what, how many are done, of how many at most) while the map is finished.

    Raises:
        SequenceError: the source gave fewer than two frames.
    """
    return _Run(source, slam, on_progress).outcome(on_finishing)


class _Run:
    """One pass over a source: its frames through the system, what they took, and what broke it off."""

    def __init__(self, source: FrameSource, slam: Slam, on_progress: Callable[[int], None] | None) -> None:
        self._source, self._slam, self._on_progress = source, slam, on_progress
        self._stop = StopRequest()
        self._stamps: list[int] = []
        self._read_ms: list[float] = []
        self._step_ms: list[float] = []
        self._last_index = -1
        self._failures: list[Failure] = []
        self._is_cut_off = False  # in the middle of a frame, which has left the map half made

    def outcome(self, on_finishing: Progress) -> RunOutcome:
        started = time.perf_counter()
        with listening(self._stop):
            self._feed()
            _publish_losses(self._source, self._slam)
            if len(self._stamps) < 2 and not self._stop.asked and not self._failures:
                raise SequenceError(_too_few(self._source, len(self._stamps)))
            before = time.perf_counter()
            result = self._finish(on_finishing)
            finish_s = time.perf_counter() - before
        return RunOutcome(
            result=result,
            interrupted=self._stop.asked,
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
        """Every frame through the system, until the end, a wish to stop or an exception."""
        doing = "opening the source"
        try:
            for frame, waited_ms in _timed(self._source):
                doing = f"frame {frame.index}"
                self._step(frame, waited_ms)
                if self._stop.asked:
                    break
                doing = f"reading the frame after {frame.index}"
        except KeyboardInterrupt:
            self._stop.asked, self._is_cut_off = True, self._stop.busy
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
        """The finished map; as it stands when an exception or a second wish to stop leaves no other."""
        self._stop.busy = True  # one more Ctrl-C while finishing is a wish to stop at once
        try:
            if self._is_cut_off:
                self._slam.remove_incomplete()
            if not (self._is_cut_off and self._stop.asked):  # asked twice: nobody wants to wait
                interrupted = self._stop.asked or bool(self._failures)
                return self._slam.finish(interrupted=interrupted, on_progress=on_finishing)
        except KeyboardInterrupt:
            self._stop.asked = True
        except Exception as error:
            self._failures.append(Failure("the last refinement", error))
        return self._slam.abort()


def with_metric_scale(outcome: RunOutcome, slam: Slam, scale_from: str, ground_truth: Trajectory | None) -> RunOutcome:
    """The outcome in meters, when `scale_from` says how; in map units and with the reason when that cannot be done.

    The map of `slam`, whose outcome it is, is stretched with it.

    Raises:
        ConfigError: `scale_from` is none of the forms that `slam.sessions.metric_scale` knows.
    """
    from slam.sessions.metric_scale import ScaleError, parse_scale_reference

    reference = parse_scale_reference(scale_from)
    if reference is None:
        return outcome
    try:
        return replace(outcome, result=slam.make_metric(reference, ground_truth))
    except ScaleError as error:  # an hour of video is not thrown away for it
        return replace(outcome, scale_problem=str(error))


def _timed(source: FrameSource) -> Iterator[tuple[Frame, float]]:
    frames = iter(source)
    while True:
        before = time.perf_counter()
        frame = next(frames, None)
        if frame is None:
            return
        yield frame, (time.perf_counter() - before) * 1e3


def _publish_losses(source: FrameSource, slam: Slam) -> None:
    if source.skipped:
        name, reason = source.skipped[0]
        slam.publish(FramesSkipped(count=len(source.skipped), reason=f"{name}: {reason}"))
    if source.dropped:
        slam.publish(FramesSkipped(count=source.dropped, reason="came faster than they could be used"))


def _too_few(source: FrameSource, count: int) -> str:
    unreadable = f" ({len(source.skipped)} could not be read)" if source.skipped else ""
    return (
        f"{source.name}: {count or 'no'} usable {'image' if count == 1 else 'images'}{unreadable}; "
        "SLAM needs at least two, taken from different places"
    )


def peak_memory_mb() -> float:
    """Peak resident memory of this process so far, megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, kilobytes elsewhere
