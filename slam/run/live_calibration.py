"""Self-calibration of a live camera: its first images are those of the calibration pass, before the run begins.

A stream cannot be read twice, and the map must not begin with a camera that is corrected later. So the run waits until
the camera has moved far enough, which takes a few seconds. Everything is counted in images, not in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.images import Image, to_gray
from slam.config.schema import SlamConfig
from slam.input.frame_source import FrameSource
from slam.input.live_stream import LiveStream
from slam.input.mask import Mask
from slam.input.rectification import GivenCamera
from slam.map.lens_evidence import LensState
from slam.progress import Progress, no_progress
from slam.run.calibration_pass import CalibrationPass, estimate_camera

# Numbers of views after which the camera is estimated; the first that is known is used, else that of the last.
VIEWS = (18, 60)
VIEW_DISTANCE = 0.03  # minimum displacement of the image between two views, as a fraction of its longer side
MOST_IMAGES = 150  # maximum number of images from the first view to the last one
MOST_STILL_IMAGES = 600  # maximum number of images without any motion before them
SIDE_PX, CORNERS = 320, 150  # longer side of the image in which the displacement is measured; number of its corners
MIN_CORNERS = 30  # minimum number of corners of a view: a covered lens gives none
MIN_TRACKED = 0.3  # minimum share of the corners that are tracked; below it the image is a new view


def calibrate_live(
    stream: LiveStream, config: SlamConfig, *, on_progress: Progress = no_progress
) -> tuple[FrameSource, CalibrationPass]:
    """A live stream with the camera that its first images determine, and how that was found.

    Args:
        stream: a stream whose camera is assumed. Its images up to then are not frames of the run.
        on_progress: called with the number of views so far.
    """
    views = LiveViews(stream)
    for count in VIEWS:
        views.collect(count, on_progress)
        camera, calibration = estimate_camera(views, len(views.images), config.features)
        if calibration.evidence.state is LensState.KNOWN or len(views.images) < count:
            break
    if calibration.zoom is not None:  # the frames of the other focal length have passed
        guess = replace(calibration.evidence, state=LensState.GUESS, reason=str(calibration.zoom.change))
        calibration = replace(calibration, zoom=None, evidence=guess)
    if not calibration.is_used:
        return stream, calibration
    return stream.with_calibration(GivenCamera(camera, calibration.sentence)), calibration


@dataclass
class LiveViews:
    """Images of a live stream between which the image moves.

    Attributes:
        images: the views, of `camera`, in the order in which they came.
    """

    stream: LiveStream
    images: list[Image] = field(default_factory=list)
    _motion: _ImageMotion = field(default_factory=lambda: _ImageMotion())
    _waited: int = 0  # number of images since the first one, or since the first motion

    @property
    def camera(self) -> Camera:
        return self.stream.camera

    @property
    def calibration(self) -> Camera:
        return self.stream.calibration

    @property
    def mask(self) -> Mask | None:
        return self.stream.mask

    @contextmanager
    def random_access(self) -> Iterator[Callable[[int], Image | None]]:
        yield self.images.__getitem__

    def with_calibration(self, calibration: GivenCamera) -> FrameSource:
        """The stream itself with another camera. Raises CameraError if it cannot be that of these images."""
        return self.stream.with_calibration(calibration)

    def collect(self, count: int, on_progress: Progress) -> None:
        """Take images from the stream until there are `count` views, or the images for them are used up."""
        for frame in self.stream.peek():
            self._waited += 1
            if self._motion.is_new_view(to_gray(frame.image)):
                self.images.append(frame.image)
                if len(self.images) <= 2:
                    self._waited = 0
            on_progress("views for the focal length (move the camera sideways)", len(self.images), count)
            if len(self.images) >= count or self._waited >= self._most_images:
                return

    @property
    def _most_images(self) -> int:
        return MOST_IMAGES if len(self.images) > 1 else MOST_STILL_IMAGES


class _ImageMotion:
    """Measures how far the image has moved since the last view, by optical flow of corners in a small image."""

    def __init__(self) -> None:
        self._view: tuple[Image, NDArray[Any]] | None = None  # the small image of the last view, and its corners

    def is_new_view(self, gray: Image) -> bool:
        """Whether an image has moved far enough since the last view, so that it becomes the last view itself."""
        scale = SIDE_PX / max(gray.shape)
        small = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.uint8)
        if self._view is not None and not _has_moved(*self._view, small):
            return False
        corners = cv2.goodFeaturesToTrack(small, CORNERS, 0.01, 7)
        if corners is None or len(corners) < MIN_CORNERS:
            return False
        self._view = small, corners
        return True


def _has_moved(view: Image, corners: NDArray[Any], image: Image) -> bool:
    tracked, found, _ = cv2.calcOpticalFlowPyrLK(view, image, corners, np.empty_like(corners))
    ok = found.ravel() == 1
    if np.mean(ok) < MIN_TRACKED:
        return True
    moved = np.linalg.norm((tracked - corners)[ok].reshape(-1, 2), axis=1)
    return float(np.median(moved)) >= VIEW_DISTANCE * SIDE_PX
