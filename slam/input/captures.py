"""Videos and streams opened through OpenCV: quietly, within a time, and whatever their file is called."""

from __future__ import annotations

import os
import string
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from urllib.parse import quote

import cv2

from relocalizer.errors import SequenceError

CONNECT_TIMEOUT_MS = 10_000


def open_capture(target: str) -> cv2.VideoCapture:
    """A capture through FFmpeg of a file, by absolute path, or an address; opened or not.

    What went wrong is told by us and not on stderr. OpenCV hands names on as UTF-8, and crashes on one that is none: a
    file of such a name is opened through a link with a plain one, which is gone again when this returns.

    Raises:
        SequenceError: no such link can be made.
    """
    if _is_utf8(target):
        return _capture(target)
    if not os.path.isabs(target):
        return _capture(quote(os.fsencode(target), safe=string.punctuation))
    try:
        with TemporaryDirectory(prefix="slam-") as folder:
            link = os.path.join(folder, "video")
            os.symlink(target, link)
            return _capture(link)
    except OSError as error:
        raise SequenceError(
            f"{target}: OpenCV takes UTF-8 names alone, and no link with one can be made for it ({error.strerror}); "
            "rename it"
        ) from None


def _is_utf8(target: str) -> bool:
    """Whether the bytes by which the system knows a path are those that OpenCV makes of it."""
    try:
        return target.encode("utf-8") == os.fsencode(target)
    except UnicodeEncodeError:
        return False


def _capture(target: str) -> cv2.VideoCapture:
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
