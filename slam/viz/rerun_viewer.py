"""Rerun viewer of a run: opens the sinks (window, web page, file), sets the layout and handles failures.

`slam.viz.rerun_drawing` describes what is drawn.
"""

from __future__ import annotations

import ctypes
import logging
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import rerun as rr

from relocalizer.camera import Camera
from relocalizer.errors import OutputError
from slam.evaluation.trajectory import Trajectory
from slam.events import Event
from slam.plain_text import plain
from slam.viz.layout import blueprint
from slam.viz.rerun_drawing import Drawing
from slam.viz.viewer_process import GRPC_PORT, HOST, START_S, WEB_PORT, end, free_port, open_window, serve_page

logger = logging.getLogger(__name__)

ViewerMode = Literal["none", "spawn", "web"]


class RerunViewer:
    """An observer that shows a run in Rerun, live, into a file, or both.

    A run does not depend on its viewer: when the viewer fails (window closed, disk full), the run continues
    without it. A warning is logged and `problem` is set, in `close` at the latest.

    Attributes:
        url: address of the page to open, for `view="web"`; empty otherwise. The page is served until `close`.
        problem: why nothing is shown any more; empty while the viewer works.
    """

    def __init__(
        self, *, record: Path | None, view: ViewerMode, ground_truth: Trajectory | None, title: str, camera: Camera
    ) -> None:
        """Open the file and the viewer.

        Args:
            record: the .rrd file to write; None writes no file.
            view: "spawn" opens a window on this machine, "web" serves a page on this machine.
            ground_truth: drawn beside the estimate.
            camera: camera of the sequence, stored among the recording's properties; images are sent with their own.

        Raises:
            OutputError: the file already exists or cannot be written.
            UserError: the viewer cannot be started.
        """
        self.url = ""
        self.problem = ""
        self._viewer: subprocess.Popen[bytes] | None = None
        sinks = self._sinks(record, view)
        self._recording = self._connect(sinks, record)
        self._closed = not sinks  # Without a sink, Rerun would buffer everything in memory.
        self._recording.send_recording_name(plain(title))
        self._drawing = Drawing(self._recording, ground_truth=ground_truth, camera=camera)

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if self.problem or self._closed:
            return
        try:
            self._drawing.show(event)
        except Exception as error:  # The run continues without a viewer after any error.
            self._give_up(error)

    def close(self) -> None:
        """Flush pending data and end the file with its footer; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        started, blocked = time.monotonic(), False
        try:
            self._recording.flush(timeout_sec=START_S)
        except Exception as error:
            self._give_up(error)
            blocked = time.monotonic() - started >= START_S
        finally:
            if blocked:
                # A full disk blocks Rerun's writer thread forever, about once in a hundred times. Waiting for it would
                # never end: neither here, nor when the recording is freed (so it is leaked), nor at process exit.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._recording))
                rr.unregister_shutdown()
            else:
                self._recording.disconnect()
            if self.url and self._viewer is not None:  # A window stays open; the page has no data any more.
                end(self._viewer)

    # --- sinks ----------------------------------------------------------------------------------------

    def _sinks(self, record: Path | None, view: ViewerMode) -> list[rr.FileSink | rr.GrpcSink | rr.GrpcServerSink]:
        sinks: list[rr.FileSink | rr.GrpcSink | rr.GrpcServerSink] = []
        if record is not None:
            sinks.append(_file_sink(record))
        if view == "none":
            return sinks
        port = free_port(GRPC_PORT)
        uri = f"rerun+http://{HOST}:{port}/proxy"
        if view == "spawn":
            self._viewer = open_window(port)
            return [*sinks, rr.GrpcSink(uri)]
        web_port = free_port(WEB_PORT)
        self._viewer = serve_page(uri, web_port)
        self.url = f"http://{HOST}:{web_port}/?url={quote(uri, safe='')}"
        return [*sinks, rr.GrpcServerSink(HOST, port)]

    def _connect(
        self, sinks: Sequence[rr.FileSink | rr.GrpcSink | rr.GrpcServerSink], record: Path | None
    ) -> rr.RecordingStream:
        recording = rr.RecordingStream("reloc3r-slam")
        try:
            recording.set_sinks(*sinks, default_blueprint=blueprint())
        except RuntimeError as error:
            recording.disconnect()
            if self._viewer is not None:
                end(self._viewer)
            raise OutputError(f"{record}: cannot be written ({_one_line(error)})") from None
        return recording

    def _give_up(self, error: Exception) -> None:
        is_closed = self._viewer is not None and self._viewer.poll() is not None
        self.problem = "the viewer was closed" if is_closed else _one_line(error)
        is_rerun = isinstance(error, RuntimeError)  # Raised by Rerun when a sink cannot be written to.
        logger.warning("Rerun shows no more of this run: %s", self.problem, exc_info=None if is_rerun else error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _file_sink(record: Path) -> rr.FileSink:
    if record.exists():
        raise OutputError(f"{record}: exists already; give another name, or remove it")
    if not record.parent.is_dir():
        raise OutputError(f"{record}: there is no folder {record.parent}; make it first")
    try:
        str(record).encode()
    except UnicodeEncodeError:
        raise OutputError(f"{record}: Rerun takes UTF-8 names alone; give another name") from None
    return rr.FileSink(record)
