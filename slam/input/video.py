"""Images in order: how a source of them is opened, and the readers of images and videos.

What leaves here is upright, RGB, of one size, no larger than asked for, and undistorted; `Frame.camera` is
the pinhole camera of exactly that image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import cv2
import numpy as np

from relocalizer.errors import SequenceError
from relocalizer.images import Image, bgr_to_rgb
from slam.config.schema import InputConfig
from slam.evaluation.trajectory import Trajectory
from slam.input.captures import open_capture
from slam.input.frame_source import Selection
from slam.input.rectification import CameraHint, Rectifier
from slam.map.frames import Frame
from slam.plain_text import plain

NOMINAL_FPS = 30.0  # of a video whose header gives no sensible rate


class VideoFile:
    """The images of a video file, upright, with the file's own timestamps.

    Timestamps are those of the container, and where it has none or repeats one, a frame's length after the
    last. A file that ends before its header says is played as far as it goes, and `skipped` says so.
    """

    def __init__(
        self,
        target: str,
        name: str,
        description: str,
        rectifier: Rectifier,
        count: int | None,
        selection: Selection,
    ) -> None:
        """`open_video` is the way to get one."""
        self._target = target
        self._optics = rectifier
        self._count = count
        self._selection = selection
        self.name = plain(name)
        self.description = plain(f"{description}; {rectifier.note}")
        self.camera, self.calibration, self.mask = rectifier.camera, rectifier.calibration, rectifier.mask
        self.length = None if count is None else len(selection.of(count, name))
        self.ground_truth: Trajectory | None = None
        self.skipped: list[tuple[str, str]] = []
        self.dropped = 0

    def __iter__(self) -> Iterator[Frame]:
        self.skipped.clear()
        given, chosen = 0, 0
        capture = open_capture(self._target)
        try:
            for index, timestamp_ns in self._grab(capture):
                if not self._selection.takes(index):
                    continue
                chosen += 1
                try:
                    image = self._retrieve(capture, index)
                except SequenceError as error:
                    self.skipped.append((f"{self.name} frame {index}", str(error)))
                    continue
                yield Frame(index=index, timestamp_ns=timestamp_ns, image=image, camera=self.camera)
                given += 1
                if given == self._selection.max_frames:
                    return
        finally:
            capture.release()
        if not chosen:
            raise SequenceError(f"{self.name}: start {self._selection.start} is beyond the last image of the video")
        if not given:
            raise SequenceError(f"{self.name}: none of {chosen} images can be used; the first: {self.skipped[0][1]}")

    def _retrieve(self, capture: cv2.VideoCapture, index: int) -> Image:
        ok, image = capture.retrieve()
        if not ok:
            raise SequenceError("cannot be decoded")
        return self._optics(bgr_to_rgb(image), f"{self.name}, frame {index}")

    def _grab(self, capture: cv2.VideoCapture) -> Iterator[tuple[int, int]]:
        """(number, nanoseconds) of each frame to the end; notes an end that comes too early."""
        frame_ns = round(1e9 / _frame_rate(capture))
        index, last_ns = 0, -frame_ns
        while capture.grab():
            time_ms = capture.get(cv2.CAP_PROP_POS_MSEC)
            time_ns = round(time_ms * 1e6) if math.isfinite(time_ms) else last_ns
            last_ns = time_ns if time_ns > last_ns else last_ns + frame_ns
            yield index, last_ns
            index += 1
        # Containers without a frame count get theirs from duration and rate, which is a frame or so off.
        if self._count is not None and self._count - index > max(1, 0.02 * self._count):
            self.skipped.append((self.name, f"the file ends after {index} of {self._count} images"))

    def close(self) -> None:
        """The file is open only while it is being read."""


def open_video(
    target: str, name: str, calibration: CameraHint | None, config: InputConfig, selection: Selection
) -> VideoFile:
    """A reader of a video, by absolute path or address.

    Raises:
        SequenceError: it cannot be opened, no image in it decodes, or `start` is beyond its end.
        CameraError: the camera is not of these images.
    """
    shown = without_password(target)
    capture = open_capture(target)
    try:
        if not capture.isOpened():
            raise SequenceError(
                f"{shown}: the video cannot be opened (cut off, damaged, or no video); does a player play it?"
            )
        image = _first_image(capture)
        if image is None:
            raise SequenceError(f"{shown}: no image in this video can be decoded")
        said = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        rate = _frame_rate(capture)
    finally:
        capture.release()
    count = int(said) if 0 < said < 2**53 else None
    height, width = image.shape[:2]
    rectifier = Rectifier(width, height, calibration, config)
    frames = "an unknown number of images" if count is None else f"{count} images"
    return VideoFile(target, name, f"video: {frames} at {rate:.4g} a second", rectifier, count, selection)


def _first_image(capture: cv2.VideoCapture) -> Image | None:
    """The first image that decodes, in OpenCV's colors."""
    while capture.grab():
        ok, image = capture.retrieve()
        if ok:
            return np.asarray(image)
    return None


def _frame_rate(capture: cv2.VideoCapture) -> float:
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if math.isfinite(rate) and 0.1 <= rate <= 1000 else NOMINAL_FPS


def without_password(address: str) -> str:
    return re.sub(r"://[^/@]*@", "://", address)
