"""Viewer processes: starts and ends Rerun's native window and its web viewer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from relocalizer.errors import UserError
from slam.viz.view_mode import LOOPBACK as HOST
from slam.viz.view_mode import ViewMode

START_S = 20.0  # Timeout for a viewer to start, seconds.
CONNECT_S = 3.0  # Timeout for a viewer that runs already to answer, seconds.


class ViewerNotStarted(UserError):
    """A viewer that cannot be started or reached; a run can continue without it."""


def free_port(wanted: int, host: str = HOST) -> int:
    """The wanted port if it is free, otherwise any free port. Raises ViewerNotStarted when there is none."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ViewerNotStarted(f"--view: no free port on {host}; use --record FILE.rrd and look later")


def expect_viewer(mode: ViewMode) -> None:
    """Check that a viewer answers. Raises ViewerNotStarted if not: Rerun itself would wait for it at every call."""
    try:
        socket.create_connection((mode.host, mode.port), timeout=CONNECT_S).close()
    except OSError as error:
        at = f"{mode.host}:{mode.port}"
        raise ViewerNotStarted(
            f"--view connect:{at}: no viewer answers there ({error}); start one with rerun --port {mode.port}"
        ) from None


def open_window(port: int) -> subprocess.Popen[bytes]:
    """Start Rerun's native viewer, listening on `port`. It stays open after the run.

    Raises:
        ViewerNotStarted: there is no display, or the viewer does not start.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ViewerNotStarted(
            "--view spawn: there is no screen (DISPLAY and WAYLAND_DISPLAY are not set); "
            "use --view web, or --record FILE.rrd and look later"
        )
    options = ["--port", str(port), "--bind", HOST, "--hide-welcome-screen", "--expect-data-soon"]
    return _started([executable(), *options], port, "spawn")


def serve_page(uri: str, web_port: int, host: str = HOST) -> subprocess.Popen[bytes]:
    """Serve the web viewer, which reads from `uri`, on `web_port`. The caller ends it with the run.

    Raises:
        ViewerNotStarted: the viewer does not start.
    """
    options = ["--serve-web", uri, "--bind", host, "--web-viewer-port", str(web_port)]
    return _started([executable(), *options], web_port, "web")


def _started(command: list[str], port: int, view: str) -> subprocess.Popen[bytes]:
    """Start a process and wait until it listens on its port.

    It gets its own session, so that Ctrl-C ends the run and not the viewer.
    """
    null = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return process
        time.sleep(0.05)
    code = process.poll()
    end(process)
    how = f"did not answer within {START_S:.0f} s" if code is None else f"ended at once with code {code}"
    raise ViewerNotStarted(f"--view {view}: the Rerun viewer {how}; use --record FILE.rrd and look later")


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process; kill it if it does not exit within 5 seconds."""
    process.terminate()
    try:
        process.wait(timeout=5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def executable() -> str:
    """Path of the viewer installed with rerun-sdk, which is not on PATH unless the environment is activated.

    Raises:
        ViewerNotStarted: it is not installed.
    """
    spec = find_spec("rerun_cli")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for name in ("Rerun.app/Contents/MacOS/Rerun", "rerun"):
            path = Path(folder) / name
            if path.is_file():
                return str(path)
    raise ViewerNotStarted("--view: the Rerun viewer is not installed; pip install --force-reinstall rerun-sdk")
