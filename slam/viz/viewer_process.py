"""The processes that show a recording: Rerun's window, and its page. They are told where to listen, and ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from relocalizer.errors import UserError

HOST = "127.0.0.1"  # nobody else on the network is meant to look
GRPC_PORT, WEB_PORT = 9876, 9090  # Rerun's own; the next free ones when they are taken
START_S = 20.0  # a viewer that does not answer by then will not


def free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UserError(f"--view: no free port on {HOST}; use --record FILE.rrd and look later")


def open_window(port: int) -> subprocess.Popen[bytes]:
    """Rerun's own window, listening for this run; it outlives it."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UserError(
            "--view spawn: there is no screen (DISPLAY and WAYLAND_DISPLAY are not set); "
            "use --view web, or --record FILE.rrd and look later"
        )
    options = ["--port", str(port), "--bind", HOST, "--hide-welcome-screen", "--expect-data-soon"]
    return _started([executable(), *options], port, "spawn")


def serve_page(uri: str, web_port: int) -> subprocess.Popen[bytes]:
    """The viewer as a web page that reads from `uri`; ends with this run."""
    options = ["--serve-web", uri, "--bind", HOST, "--web-viewer-port", str(web_port)]
    return _started([executable(), *options], web_port, "web")


def _started(command: list[str], port: int, view: str) -> subprocess.Popen[bytes]:
    """The process, once it listens on its port. Its own session, so that Ctrl-C ends the run and not the viewer."""
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent, start_new_session=True)
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return process
        time.sleep(0.05)
    code = process.poll()
    end(process)
    how = f"did not answer within {START_S:.0f} s" if code is None else f"ended at once with code {code}"
    raise UserError(f"--view {view}: the Rerun viewer {how}; use --record FILE.rrd and look later")


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def executable() -> str:
    """The viewer that came with the package: it is not on PATH when the environment is not activated."""
    spec = find_spec("rerun_cli")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for name in ("Rerun.app/Contents/MacOS/Rerun", "rerun"):
            path = Path(folder) / name
            if path.is_file():
                return str(path)
    raise UserError("--view: the Rerun viewer is not installed; pip install --force-reinstall rerun-sdk")
