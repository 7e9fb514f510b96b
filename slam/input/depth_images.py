"""Depth images of RGB-D data sets, which belong to the images of a sequence; they are used for its scale alone."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.errors import SequenceError
from relocalizer.geometry import FloatArray
from relocalizer.images import read_values
from slam.input.dataset_layouts import index_folder
from slam.input.sequence_index import SequenceIndex
from slam.input.text_rows import nanoseconds_of, path_inside, rows_of

SAME_TIME_NS = 20_000_000  # maximum time between an image and its depth image, nanoseconds
FLAT = 0.05  # largest relative difference of the depths around a point; more is the border of an object
INVALID = (0, 65535)  # stored values without a depth
# Stored values per meter, by the layout of the data set.
PER_METER = {"TUM RGB-D": 5000.0, "timed list": 5000.0, "ICL-NUIM": 5000.0, "7-Scenes": 1000.0, "ScanNet": 1000.0}


@dataclass(frozen=True, slots=True, eq=False)
class DepthImages:
    """The depth images of a sequence, registered to its images.

    Attributes:
        paths: by the number of the image in the sequence.
        per_meter: stored values per meter.
        camera: the camera of the images, with distortion; None if it is not known.
    """

    paths: dict[int, Path]
    per_meter: float
    camera: Camera | None

    def at(self, number: int, directions: FloatArray, camera: Camera) -> FloatArray:
        """Depths (N,) in meters along normalized image coordinates (N, 2); NaN where there is none.

        Args:
            camera: the pinhole camera of the undistorted images, used if that of the stored ones is not known.

        Raises:
            SequenceError: the depth image cannot be read.
        """
        if number not in self.paths:
            return np.full(len(directions), np.nan)
        stored = read_values(self.paths[number])
        if stored.ndim != 2 or stored.dtype != np.uint16:
            raise SequenceError(f"{self.paths[number]}: not a depth image; expected gray values of 16 bits")
        height, width = stored.shape
        pixels = (self.camera or camera).resized(width, height).distorted(directions)
        x, y = np.rint(pixels).astype(np.int64).T
        inside = (x >= 1) & (y >= 1) & (x < width - 1) & (y < height - 1)
        x, y = np.where(inside, x, 1), np.where(inside, y, 1)
        around = np.stack([stored[y + dy, x + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]).astype(np.float64)
        is_good = inside & ~np.isin(around, INVALID).any(axis=0)
        is_good &= np.ptp(around, axis=0) <= FLAT * around.mean(axis=0)
        return np.where(is_good, np.median(around, axis=0) / self.per_meter, np.nan)


def depth_images(folder: Path) -> DepthImages:
    """The depth images of an RGB-D data set: TUM, ICL-NUIM, 7-Scenes or ScanNet.

    Raises:
        SequenceError: the folder cannot be read, or has no depth images.
    """
    index, folder = index_folder(folder), Path(os.path.abspath(folder))
    by_time = index.layout in ("TUM RGB-D", "timed list")
    paths = _listed(folder, index.timestamps_ns) if by_time else _beside(folder, index)
    if not paths:
        raise SequenceError(
            f"{folder}: no depth images; expected depth.txt (TUM RGB-D), depth/ (ICL-NUIM, ScanNet) or "
            "frame-NNNNNN.depth.png (7-Scenes)"
        )
    return DepthImages(paths, PER_METER[index.layout], index.camera)


def _listed(folder: Path, times_ns: NDArray[np.int64]) -> dict[int, Path]:
    """The depth image of depth.txt nearest in time to each image, if it is near."""
    if not (folder / "depth.txt").is_file():
        return {}
    rows = [(nanoseconds_of(place, fields[0]), fields[-1], place) for place, fields in rows_of(folder / "depth.txt")]
    rows.sort()
    known = np.array([time for time, _, _ in rows], dtype=np.int64)
    found = {}
    for number, time_ns in enumerate(times_ns.tolist()):
        after = int(np.searchsorted(known, time_ns))
        nearest = min(
            (k for k in (after - 1, after) if 0 <= k < len(known)), key=lambda k: abs(int(known[k]) - time_ns)
        )
        if abs(int(known[nearest]) - time_ns) <= SAME_TIME_NS:
            found[number] = path_inside(folder, rows[nearest][1], rows[nearest][2])
    return found


def _beside(folder: Path, index: SequenceIndex) -> dict[int, Path]:
    """The depth images that are named as the images are."""
    found = {}
    for number, path in enumerate(index.image_paths):
        depth = folder / "depth" / f"{path.stem}.png"
        if index.layout == "7-Scenes":
            depth = path.with_name(re.sub(r"\.color\.\w+$", ".depth.png", path.name))
        if index.layout in PER_METER and os.path.isfile(depth):
            found[number] = depth
    return found
