"""Frame source of a video file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np

from relocalizer.errors import SequenceError
from relocalizer.images import Image, bgr_to_rgb
from slam.config.schema import InputConfig
from slam.evaluation.trajectory import Trajectory
from slam.input.captures import open_capture
from slam.input.frame_source import Selection
from slam.input.rectification import CameraHint, GivenCamera, Rectifier
from slam.map.frames import Frame
from slam.plain_text import plain

GRABBED_FRAMES = 100  # Distance up to which a later frame is reached without seeking, frames; about one GOP of a codec.
NOMINAL_FPS = 30.0  # Frame rate assumed for a video whose header has no plausible one, images per second.


class VideoFile:
    """The images of a video file, upright, with the file's own timestamps.

    Timestamps are those of the container. Where one is missing or does not increase, it is one frame period after the
    previous one. A truncated file is read to its actual end, which is noted in `skipped`.
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
        """Use `open_video` instead.

        Args:
            target: absolute path or address.
            count: number of images by the file's header; None if unknown.
        """
        self._target = target
        self._stated = description
        self._rectifier = rectifier
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
        given, selected = 0, 0
        capture = open_capture(self._target)
        try:
            for index, timestamp_ns in self._grab(capture):
                if not self._selection.takes(index):
                    continue
                selected += 1
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
        if not selected:
            raise SequenceError(f"{self.name}: start {self._selection.start} is beyond the last image of the video")
        if not given:
            raise SequenceError(f"{self.name}: none of {selected} images can be used; the first: {self.skipped[0][1]}")

    @property
    def can_be_reread(self) -> bool:
        """Whether this is a local file with a known number of images."""
        return self.length is not None and "://" not in self._target

    @contextmanager
    def random_access(self) -> Iterator[Callable[[int], Image | None]]:
        """A reader of single images by their position; None if unreadable. Its file is closed at the end."""
        capture = open_capture(self._target)
        following = 0

        def read(position: int) -> Image | None:
            nonlocal following
            index = self._selection.start + position * self._selection.stride
            if not 0 <= index - following <= GRABBED_FRAMES:
                capture.set(cv2.CAP_PROP_POS_FRAMES, index)
                following = index
            while following <= index:
                if not capture.grab():
                    following = -1  # the position is unknown, so the next read seeks
                    return None
                following += 1
            try:
                return self._retrieve(capture, index)
            except SequenceError:  # iteration reports it
                return None

        try:
            yield read
        finally:
            capture.release()

    def with_calibration(self, calibration: GivenCamera) -> VideoFile:
        """The same images read as images of another camera."""
        rectifier = self._rectifier.with_calibration(calibration)
        video = VideoFile(self._target, self.name, self._stated, rectifier, self._count, self._selection)
        video.description = self.description.replace(plain(self._rectifier.note), plain(rectifier.note))
        video.ground_truth = self.ground_truth
        return video

    def _retrieve(self, capture: cv2.VideoCapture, index: int) -> Image:
        ok, image = capture.retrieve()
        if not ok:
            raise SequenceError("cannot be decoded")
        return self._rectifier(bgr_to_rgb(image), f"{self.name}, frame {index}")

    def _grab(self, capture: cv2.VideoCapture) -> Iterator[tuple[int, int]]:
        """(index, timestamp in nanoseconds) of each frame; notes it in `skipped` when the file is truncated."""
        frame_ns = round(1e9 / _frame_rate(capture))
        index, last_ns = 0, -frame_ns
        while capture.grab():
            time_ms = capture.get(cv2.CAP_PROP_POS_MSEC)
            time_ns = round(time_ms * 1e6) if math.isfinite(time_ms) else last_ns
            last_ns = time_ns if time_ns > last_ns else last_ns + frame_ns
            yield index, last_ns
            index += 1
        # For containers without a frame count, it is computed from duration and rate, which may be off by a few frames.
        if self._count is not None and self._count - index > max(1, 0.02 * self._count):
            self.skipped.append((self.name, f"the file ends after {index} of {self._count} images"))

    def close(self) -> None:
        """Do nothing: the file is open only during iteration."""


def open_video(
    target: str, name: str, calibration: CameraHint | None, config: InputConfig, selection: Selection
) -> VideoFile:
    """A reader of a video, given by its absolute path or address.

    Raises:
        SequenceError: the video cannot be opened, none of its images can be decoded, or `start` is beyond its end.
        CameraError: the camera does not match the images.
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
        stated_count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        rate = _frame_rate(capture)
    finally:
        capture.release()
    count = int(stated_count) if 0 < stated_count < 2**53 else None
    height, width = image.shape[:2]
    rectifier = Rectifier(width, height, calibration, config)
    frames = "an unknown number of images" if count is None else f"{count} images"
    return VideoFile(target, name, f"video: {frames} at {rate:.4g} a second", rectifier, count, selection)


def _first_image(capture: cv2.VideoCapture) -> Image | None:
    """The first image that can be decoded, BGR."""
    while capture.grab():
        ok, image = capture.retrieve()
        if ok:
            return np.asarray(image)
    return None


def _frame_rate(capture: cv2.VideoCapture) -> float:
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if math.isfinite(rate) and 0.1 <= rate <= 1000 else NOMINAL_FPS


def without_password(address: str) -> str:
    """An address without the user name and password, for messages."""
    return re.sub(r"://[^/@]*@", "://", address)
