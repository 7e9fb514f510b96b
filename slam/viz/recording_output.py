"""One output of the viewer: a recording stream into a file or to a running viewer, with all that is drawn in it.

Rerun keeps some 100 MB for a sink that takes nothing, and then every call waits for it: a viewer that hangs would hang
the run. So what goes to a viewer is drawn by a thread of its own, from a queue with an end.
"""

from __future__ import annotations

import ctypes
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import rerun as rr

from relocalizer.camera import Camera
from relocalizer.errors import OutputError
from slam.evaluation.trajectory import Trajectory
from slam.events import Event, FrameProcessed
from slam.plain_text import plain
from slam.viz.layout import blueprint
from slam.viz.rerun_drawing import Drawing
from slam.viz.viewer_process import START_S

logger = logging.getLogger(__name__)

Sink = rr.FileSink | rr.GrpcSink | rr.GrpcServerSink

FILE_FLUSH_S = 8.0  # interval between two writes to a file: larger pieces take less space, and a killed run loses more
# Rows of an entity that are written at once, even before that. A row that waits takes kilobytes whatever is in it, some
# 80 kB for all rows of a frame, so without this bound a fast run would let the memory grow by hundreds of megabytes.
FILE_ROWS = 128
FULL = 64  # number of waiting events from which frames are sent without their image
POLL_S = 0.005  # interval at which `catch_up` counts the waiting events
MOST_WAITING = 4_000  # number of waiting events at which a viewer is given up


class RecordingOutput:
    """Draws events into one sink until it fails; then it says so once, and ignores all further events.

    Attributes:
        problem: why nothing is drawn any more; empty while the sink works.
    """

    def __init__(
        self, sink: Sink, *, title: str, ground_truth: Trajectory | None, camera: Camera, why: Callable[[], str] = str
    ) -> None:
        """Open the sink and draw what is static.

        Args:
            ground_truth, camera: as for `Drawing`.
            why: a better reason for a failure than that of Rerun, or an empty string.

        Raises:
            OutputError: the sink cannot be written.
        """
        self.problem = ""
        self._why = why
        is_file = isinstance(sink, rr.FileSink)
        self._recording = _opened(sink, FILE_FLUSH_S if is_file else None)
        self._recording.send_recording_name(plain(title))
        self._drawing = Drawing(self._recording, ground_truth=ground_truth, camera=camera)
        self._waiting: queue.Queue[Event | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._is_blocked = False  # whether the sink did not take the rest in time
        if not is_file:
            self._thread = threading.Thread(target=self._draw_all, name="rerun", daemon=True)
            self._thread.start()

    @property
    def recording(self) -> rr.RecordingStream:
        """The stream, for data of one's own."""
        return self._recording

    def show(self, event: Event) -> None:
        """Draw an event, or queue it for the thread."""
        if self.problem:
            return
        if self._thread is None:
            self._draw(event)
            return
        waiting = self._waiting.qsize()
        if waiting > MOST_WAITING:
            self._give_up(RuntimeError(f"the viewer is too slow, {waiting} events wait for it"))
            return
        if waiting > FULL and isinstance(event, FrameProcessed):
            event = replace(event, frame=event.frame.without_image(), points=None)
        self._waiting.put(event)

    def catch_up(self) -> None:
        """Wait until few events are waiting, so that the next ones are drawn whole: for a source that can wait.

        A viewer that takes nothing for `START_S` is given up.
        """
        before, since = -1, time.monotonic()
        while (waiting := self._waiting.qsize()) > FULL // 2 and not self.problem:
            if waiting != before:
                before, since = waiting, time.monotonic()
            elif time.monotonic() - since > START_S:
                self._give_up(RuntimeError("the viewer takes no more data"))
            time.sleep(POLL_S)

    def close(self) -> None:
        """Send what is left and end the stream; a viewer that takes nothing is left behind after `START_S`."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(START_S)
            if self._thread.is_alive():
                self._give_up(RuntimeError("the viewer takes no more data"))
                self._leave_behind()
                return
        ended = threading.Thread(target=self._end, name="rerun-end", daemon=True)
        ended.start()
        ended.join(2.0 * START_S)
        if ended.is_alive() or self._is_blocked:
            self._give_up(RuntimeError("the rest of the recording could not be written"))
            self._leave_behind()

    def _end(self) -> None:
        """Flush and disconnect; the flush of a sink that is stuck may not return in spite of its timeout."""
        try:
            self._recording.flush(timeout_sec=START_S)
        except Exception as error:  # the stream is ended all the same
            self._is_blocked = "timed out" in str(error)
            self._give_up(error)
        if not self._is_blocked:
            self._recording.disconnect()

    def _leave_behind(self) -> None:
        """Do not wait for a sink that is stuck: neither when the stream is freed, nor when the process exits."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._recording))
        rr.unregister_shutdown()

    def _draw_all(self) -> None:
        """Draw events of the queue until its end; after a failure they are dropped."""
        while (event := self._waiting.get()) is not None:
            if not self.problem:
                self._draw(event)

    def _draw(self, event: Event) -> None:
        try:
            self._drawing.show(event)
        except Exception as error:  # The run continues without a viewer after any error.
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if self.problem:
            return
        self.problem = self._why() or " ".join(str(error).split())
        is_rerun = isinstance(error, RuntimeError)  # Raised by Rerun when a sink cannot be written to.
        logger.warning("Rerun shows no more of this run: %s", self.problem, exc_info=None if is_rerun else error)


def _opened(sink: Sink, flush_s: float | None) -> rr.RecordingStream:
    """A stream into a sink. Raises OutputError if it cannot be written."""
    batcher = rr.ChunkBatcherConfig.DEFAULT()
    if flush_s is not None:
        batcher.flush_tick = flush_s
        batcher.flush_num_rows = FILE_ROWS
    recording = rr.RecordingStream("reloc3r-slam", batcher_config=batcher)
    try:
        recording.set_sinks(sink, default_blueprint=blueprint())
    except RuntimeError as error:
        recording.disconnect()
        raise OutputError(" ".join(str(error).split())) from None
    return recording
