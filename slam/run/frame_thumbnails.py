"""Thumbnails of the frames in which something happened: thumbnails/ in the run folder, for `slam explain --html`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from relocalizer.images import Image, encode_jpeg
from slam.events import Event, FrameProcessed
from slam.map.frame_measurement import FrameMeasurement
from slam.map.tracking_status import TrackingState
from slam.run.files import writing
from slam.run.run_folder import RunFolder

THUMBNAILS = "thumbnails"
MOST = 120  # maximum number of thumbnails of a run, about 15 kB each
WIDTH, JPEG_QUALITY = 320, 70
# Abrupt changes from one frame to the next: fraction of the image, factor of the brightness, factor of the fineness.
CHANGED, GAIN, FINENESS = 0.3, 1.2, 0.7


class FrameThumbnails:
    """An observer that keeps the first frame of every loss, and frames whose image changed abruptly."""

    def __init__(self, folder: RunFolder) -> None:
        """The folder of the thumbnails is made with the first of them."""
        self._folder = folder.path / THUMBNAILS
        self._count = 0
        self._state = TrackingState.INITIALIZING
        self._before: FrameMeasurement | None = None

    def __call__(self, event: Event) -> None:
        if not isinstance(event, FrameProcessed):
            return
        is_lost = event.state is TrackingState.LOST and self._state is not TrackingState.LOST
        if is_lost or _is_abrupt(self._before, event.measurement):
            self._keep(event.frame.index, event.frame.image)
        self._state, self._before = event.state, event.measurement

    def _keep(self, frame_index: int, image: Image) -> None:
        """Write a thumbnail. Raises OutputError if it cannot be written."""
        if self._count >= MOST or not image.size:
            return
        self._count += 1
        height = max(1, round(image.shape[0] * WIDTH / image.shape[1]))
        small = cv2.resize(image, (WIDTH, height), interpolation=cv2.INTER_AREA)
        with writing(self._folder):
            self._folder.mkdir(exist_ok=True)
            thumbnail_path(self._folder.parent, frame_index).write_bytes(
                encode_jpeg(np.asarray(small, np.uint8), JPEG_QUALITY)
            )


def thumbnail_path(folder: Path, frame_index: int) -> Path:
    """The file of a frame's thumbnail in a run folder; most frames have none."""
    return folder / THUMBNAILS / f"{frame_index:06d}.jpg"


def _is_abrupt(before: FrameMeasurement | None, now: FrameMeasurement | None) -> bool:
    if before is None or now is None:
        return False
    gain = np.log(now.gain) if now.gain > 0 else 0.0
    sharper = now.fineness / before.fineness if before.fineness > 0 else 1.0
    return bool(now.changed > CHANGED or abs(gain) > np.log(GAIN) or sharper < FINENESS)
