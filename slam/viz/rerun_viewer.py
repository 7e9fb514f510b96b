"""Rerun viewer of a run: opens the outputs (window, web page, running viewer, file) and isolates their failures.

`slam.viz.rerun_drawing` describes what is drawn.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import rerun as rr

from relocalizer.camera import Camera
from relocalizer.errors import OutputError
from slam.evaluation.trajectory import Trajectory
from slam.events import Event
from slam.viz.recording_output import RecordingOutput, Sink
from slam.viz.view_mode import GRPC_PORT, WEB_PORT, ViewKind, ViewMode
from slam.viz.viewer_process import ViewerNotStarted, end, expect_viewer, free_port, open_window, serve_page


class RerunViewer:
    """An observer that shows a run in Rerun, live, into a file, or both.

    A run does not depend on its viewer: when an output fails (window closed or hanging, disk full), the run and the
    other output continue without it. A warning is logged and `problem` is set, in `close` at the latest.

    Attributes:
        url: address of the page to open, for `view="web"`; empty otherwise. The page is served until `close`.
    """

    def __init__(
        self, *, record: Path | None, view: str, ground_truth: Trajectory | None, title: str, camera: Camera
    ) -> None:
        """Open the file and the viewer.

        Args:
            record: the .rrd file to write; None writes no file.
            view: a form of `slam.viz.view_mode.FORMS`: "spawn" opens a window on this machine, "web" serves a page to
                this machine, "web:HOST" to the network of HOST, "connect:HOST:PORT" sends to a running viewer.
            ground_truth: drawn beside the estimate.
            camera: camera of the sequence, stored among the recording's properties; images are sent with their own.

        Raises:
            OutputError: the file already exists or cannot be written.
            ViewerNotStarted: the viewer cannot be started or reached. ConfigError: `view` has no known form.
        """
        self.url = ""
        self._viewer: subprocess.Popen[bytes] | None = None
        self._closed = False
        mode = ViewMode.parse(view)
        file = None if record is None else _file_sink(record)
        live = self._live_sink(mode)
        self._outputs: list[RecordingOutput] = []
        try:
            for sink in (file, live):
                if sink is not None:
                    output = RecordingOutput(
                        sink, title=title, ground_truth=ground_truth, camera=camera,
                        why=self._why_not if sink is live else str,
                    )  # fmt: skip
                    self._outputs.append(output)
        except OutputError as error:
            if self._viewer is not None:
                end(self._viewer)
            raise OutputError(f"{record}: cannot be written ({error})") from None

    @property
    def problem(self) -> str:
        """Why an output shows nothing any more; empty while all work."""
        return next((output.problem for output in self._outputs if output.problem), "")

    @property
    def recording(self) -> rr.RecordingStream:
        """The stream of the file, or without one that of the live viewer, for data of one's own.

        Raises:
            ValueError: there is neither.
        """
        if not self._outputs:
            raise ValueError("RerunViewer.recording: neither a file nor a view was asked for")
        return self._outputs[0].recording

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if not self._closed:
            for output in self._outputs:
                output.show(event)

    def catch_up(self) -> None:
        """Wait for a viewer that is slower than the events, so that a replay shows every image; a run does not wait."""
        for output in self._outputs:
            output.catch_up()

    def close(self) -> None:
        """Flush pending data and end the file with its footer; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            for output in self._outputs:
                output.close()
        finally:
            if self.url and self._viewer is not None:  # A window stays open; the page has no data any more.
                end(self._viewer)

    # --- sinks ----------------------------------------------------------------------------------------

    def _live_sink(self, mode: ViewMode) -> Sink | None:
        match mode.kind:
            case ViewKind.CONNECT:
                expect_viewer(mode)
                return rr.GrpcSink(mode.uri)
            case ViewKind.SPAWN:
                port = free_port(GRPC_PORT)
                self._viewer = open_window(port)
                return rr.GrpcSink(ViewMode(ViewKind.SPAWN, port=port).uri)
            case ViewKind.WEB:
                return self._serve(mode.host)
            case ViewKind.NONE:
                return None

    def _serve(self, host: str) -> rr.GrpcServerSink:
        """Serve the page and its data on the interface of a host."""
        port, web_port = free_port(GRPC_PORT, host), free_port(WEB_PORT, host)
        seen_as = socket.gethostname() if host == "0.0.0.0" else host  # as a browser elsewhere reaches it
        uri = ViewMode(ViewKind.WEB, seen_as, port).uri
        self._viewer = serve_page(uri, web_port, host)
        self.url = f"http://{seen_as}:{web_port}/?url={quote(uri, safe='')}"
        return rr.GrpcServerSink(host, port)

    def _why_not(self) -> str:
        is_closed = self._viewer is not None and self._viewer.poll() is not None
        return "the viewer was closed" if is_closed else ""


def open_if_possible(
    say: Callable[[str], None],
    *,
    record: Path | None,
    view: str,
    ground_truth: Trajectory | None,
    title: str,
    camera: Camera,
) -> RerunViewer:
    """As `RerunViewer`, but for a run that continues without a viewer that cannot be started, which `say` reports.

    Raises:
        OutputError: the file already exists or cannot be written. ConfigError: `view` has no known form.
    """
    try:
        return RerunViewer(record=record, view=view, ground_truth=ground_truth, title=title, camera=camera)
    except ViewerNotStarted as error:
        say(f"{error}; the run continues without a viewer")
    return RerunViewer(record=record, view=ViewKind.NONE, ground_truth=ground_truth, title=title, camera=camera)


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
