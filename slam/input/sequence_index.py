"""The index of a sequence: image files, timestamps, camera and ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from slam.evaluation.trajectory import Trajectory
from slam.input.mask import Rectangle


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SequenceIndex:
    """Images of a sequence with their timestamps, camera and ground truth; the images are not read.

    Attributes:
        name: short name, that of the folder.
        layout: name of the recognized layout, such as "TUM RGB-D".
        image_paths: images in order; missing or damaged ones are found when they are read.
        timestamps_ns: (N,) int64, strictly increasing, one per image.
        camera: calibrated camera, possibly with distortion; None if there is no calibration.
        camera_source: origin of the camera, for messages.
        ignored: rectangles of the images that are to be ignored.
        ground_truth: poses of the same camera, on the clock of `timestamps_ns`.
        notes: further remarks for the user.
        video: the video file, if the images are in one; then `image_paths` is empty.
    """

    name: str
    layout: str
    image_paths: tuple[Path, ...] = ()
    timestamps_ns: NDArray[np.int64]
    camera: Camera | None = None
    camera_source: str = ""
    ignored: tuple[Rectangle, ...] = ()
    ground_truth: Trajectory | None = None
    notes: tuple[str, ...] = ()
    video: Path | None = None

    def __post_init__(self) -> None:
        times = np.array(self.timestamps_ns, dtype=np.int64)
        if times.shape != (len(self.image_paths),):
            raise ValueError(f"SequenceIndex: {times.shape} timestamps for {len(self.image_paths)} images")
        if (np.diff(times) <= 0).any():
            raise ValueError("SequenceIndex.timestamps_ns: must increase")
        times.setflags(write=False)
        object.__setattr__(self, "timestamps_ns", times)

    @property
    def description(self) -> str:
        """One line: the layout, the number of images, the notes and the ground truth."""
        images = self.video.name if self.video else f"{len(self.image_paths)} images"
        truth = f"ground truth found ({len(self.ground_truth)} poses)" if self.ground_truth else "no ground truth"
        return ", ".join([f"{self.layout} layout: {images}", *self.notes, truth])
