"""Opening of videos and streams with OpenCV: without output, with a timeout, and for any file name."""

from __future__ import annotations

import os
import string
from tempfile import TemporaryDirectory
from urllib.parse import quote

import cv2

from relocalizer.errors import SequenceError
from relocalizer.images import quiet_opencv

CONNECT_TIMEOUT_MS = 10_000  # Timeout for opening a stream and for reading from it, milliseconds.


def open_capture(target: str) -> cv2.VideoCapture:
    """An FFmpeg capture of a file, given by its absolute path, or of an address; check `isOpened()`.

    OpenCV's own messages on stderr are suppressed. OpenCV passes names on as UTF-8, and crashes on a name that is not
    valid UTF-8: such a file is opened through a temporary link, which is removed before this returns.

    Raises:
        SequenceError: the link cannot be created.
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
    """Whether the path's bytes in the file system equal the UTF-8 that OpenCV passes on."""
    try:
        return target.encode("utf-8") == os.fsencode(target)
    except UnicodeEncodeError:
        return False


def _capture(target: str) -> cv2.VideoCapture:
    # FFmpeg reads its log level from the environment only when it is first used.
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
