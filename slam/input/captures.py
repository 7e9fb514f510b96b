"""Opening of network streams with OpenCV: without output, with a timeout, and for any address."""

from __future__ import annotations

import os
import re
import string
from urllib.parse import quote

import cv2

from relocalizer.images import quiet_opencv

CONNECT_TIMEOUT_MS = 10_000  # Timeout for opening a stream and for reading from it, milliseconds.


def open_capture(address: str) -> cv2.VideoCapture:
    """An FFmpeg capture of an address; check `isOpened()`. OpenCV's own messages on stderr are suppressed."""
    # FFmpeg reads its log level from the environment only when it is first used.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    timeouts = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        CONNECT_TIMEOUT_MS,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        CONNECT_TIMEOUT_MS,
    ]
    with quiet_opencv():
        capture = cv2.VideoCapture(as_utf8(address), cv2.CAP_FFMPEG, timeouts)
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return capture


def as_utf8(address: str) -> str:
    """An address whose bytes that are not UTF-8, on which OpenCV crashes, are percent-encoded."""
    try:
        if address.encode("utf-8") == os.fsencode(address):
            return address
    except UnicodeEncodeError:
        pass
    return quote(os.fsencode(address), safe=string.punctuation)


def without_password(address: str) -> str:
    """An address without the user name and password, for messages."""
    return re.sub(r"://[^/@]*@", "://", address)
