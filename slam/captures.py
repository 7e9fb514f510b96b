"""Videos and streams opened through OpenCV: quietly, within a time, and whatever their file is called."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

CONNECT_TIMEOUT_MS = 10_000


def open_capture(target: str) -> cv2.VideoCapture:
    """A capture through FFmpeg, opened or not; what went wrong is told by us and not on stderr."""
    # FFmpeg takes its log level from here when it is first used, and never again.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    timeouts = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        CONNECT_TIMEOUT_MS,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        CONNECT_TIMEOUT_MS,
    ]
    with quiet_opencv():
        capture = cv2.VideoCapture(target, cv2.CAP_FFMPEG, timeouts)
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return capture


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """OpenCV prints what it could not open, line by line; the error we raise says it once."""
    levels = cv2.utils.logging
    before = levels.setLogLevel(levels.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        levels.setLogLevel(before)
