"""Threads of this process while a live stream is followed: the tracking of a frame must not wait for the mapping."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

from slam.input.frame_source import FrameSource
from slam.input.live_stream import LiveStream

# How long a thread may keep Python's lock (GIL) from another one, seconds. With Python's 5 ms a frame, which takes
# the lock again after every call of OpenCV, took three times as long beside a thread of Python code, with this twice.
SWITCH_INTERVAL_S = 1e-3


@contextmanager
def shared_by_tracking_and_mapping(source: FrameSource) -> Iterator[None]:
    """For a live stream, share the processor between tracking and mapping in this block; no effect on other sources.

    OpenCV gets half of its threads: features of a keyframe, which use all of them, would leave none to the tracks.
    What exists already is left out of garbage collections: one that looks at the objects of all modules stops every
    thread for 50 ms.
    """
    if not isinstance(source, LiveStream):
        yield
        return
    interval_s, threads = sys.getswitchinterval(), cv2.getNumThreads()
    sys.setswitchinterval(min(interval_s, SWITCH_INTERVAL_S))
    cv2.setNumThreads(max(1, threads // 2))
    freezes = not gc.get_freeze_count()  # otherwise the program that called us has done so
    if freezes:
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        if freezes:
            gc.unfreeze()
        sys.setswitchinterval(interval_s)
        cv2.setNumThreads(threads)
