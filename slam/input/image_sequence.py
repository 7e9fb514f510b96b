"""Frame source of image files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from relocalizer.camera import Camera
from relocalizer.errors import SequenceError
from relocalizer.gray_levels import GrayLevels
from relocalizer.image_headers import focal_length_35mm
from relocalizer.images import Image, read_image
from slam.config.schema import InputConfig
from slam.input.frame_source import Selection
from slam.input.image_sizes import ImageSizes, common_levels, first_readable
from slam.input.rectification import Calibration, CameraHint, GivenCamera, MapCameras, Rectifier
from slam.input.sequence_index import SequenceIndex
from slam.map.frames import Frame
from slam.plain_text import plain

FILM_DIAGONAL_MM = 43.27  # diagonal of an image on 35 mm film, millimeters


class ImageSequence:
    """The images of a `SequenceIndex`, read one by one.

    Images that cannot be read, or whose size is not the most common one, are skipped and listed in `skipped`. Portrait
    and landscape images of one camera have one size: see `ImageSizes.turned_alike`.
    """

    def __init__(
        self,
        index: SequenceIndex,
        frames: range,
        rectifier: Rectifier,
        sizes: ImageSizes,
        levels: GrayLevels | None = None,
    ) -> None:
        """Use `open_images` instead. Reads the images numbered `frames` of `index`, which have these `sizes`.

        `levels` is the range of images of more than 8 bits.
        """
        self._index = index
        self._frames = frames
        self._rectifier = rectifier
        self._sizes = sizes
        self._levels = levels
        self._names = unique_names(index.image_paths)
        self._other_sizes = sizes.others(sizes.most_common)
        self.name = plain(index.name)
        notes = [*sizes.notes(sizes.most_common), *([levels.note] if levels else [])]
        self.description = plain("; ".join([index.description, rectifier.note, *notes]))
        self.camera, self.calibration, self.mask = rectifier.camera, rectifier.calibration, rectifier.mask
        self.length: int | None = len(frames)
        self.ground_truth = index.ground_truth
        self.skipped: list[tuple[str, str]] = []
        self.dropped = 0

    def __iter__(self) -> Iterator[Frame]:
        self.skipped.clear()
        for k in self._frames:
            path = self._index.image_paths[k]
            try:
                image = self._read(path)
            except SequenceError as error:
                self.skipped.append((path.name, str(error)))
                continue
            yield Frame(
                index=k,
                timestamp_ns=int(self._index.timestamps_ns[k]),
                image=image,
                camera=self.camera,
                name=self._names[k],
            )

    @property
    def can_be_reread(self) -> bool:
        return True

    @contextmanager
    def random_access(self) -> Iterator[Callable[[int], Image | None]]:
        """A reader of single images by their position; None if unreadable."""
        yield self._read_at

    def with_calibration(self, calibration: GivenCamera) -> ImageSequence:
        """The same images read as images of another camera."""
        rectifier = self._rectifier.with_calibration(calibration)
        return ImageSequence(self._index, self._frames, rectifier, self._sizes, self._levels)

    def _read_at(self, position: int) -> Image | None:
        try:
            return self._read(self._index.image_paths[self._frames[position]])
        except SequenceError:  # iteration reports it
            return None

    def _read(self, path: Path) -> Image:
        if path in self._other_sizes:  # Rejected before decoding, because it may be huge.
            self._rectifier.expect(*self._other_sizes[path], str(path))
        image = read_image(path, self._levels)
        turned = np.ascontiguousarray(np.rot90(image, self._sizes.quarter_turns.get(path, 0)))
        return self._rectifier(turned, str(path))

    def close(self) -> None:
        """Do nothing: no file is open between two images."""


def unique_names(paths: Sequence[Path]) -> list[str]:
    """The names of files, with as much of their folders as distinguishes them."""
    if len({path.name for path in paths}) == len(paths):
        return [path.name for path in paths]
    folder = os.path.commonpath([path.parent for path in paths])
    return [os.path.relpath(path, folder) for path in paths]


def open_images(
    index: SequenceIndex, calibration: CameraHint | None, config: InputConfig, selection: Selection
) -> ImageSequence:
    """A reader of indexed images. A given camera takes precedence over the index's own, and that over a map's.

    Raises:
        SequenceError: none of the selected images can be read, or no size is that of more than half of them.
        CameraError: the camera does not match the images.
    """
    frames = selection.of(len(index.image_paths), index.name)
    if not isinstance(calibration, Calibration) and index.camera is not None:
        calibration = GivenCamera(index.camera, index.camera_source, index.ignored)
    sizes = ImageSizes.of([index.image_paths[k] for k in frames]).turned_alike()
    alike = [path for path in sizes.alike(sizes.of_more_than_half(index.name)) if path not in sizes.quarter_turns]
    first = first_readable(alike)
    height, width = first.shape[:2]
    if calibration is None or (isinstance(calibration, MapCameras) and calibration.of(width, height) is None):
        calibration = _stated_in(index.image_paths[frames[0]], width, height, config) or calibration
    levels = common_levels(alike, first)
    return ImageSequence(index, frames, Rectifier(width, height, calibration, config), sizes, levels)


def _stated_in(path: Path, width: int, height: int, config: InputConfig) -> GivenCamera | None:
    """An assumed camera with the focal length in the Exif block of an image; None without one.

    The focal length for 35 mm film refers to the image's diagonal (CIPA DCG-001).
    """
    equivalent_mm = focal_length_35mm(path) if config.calibrate_first else None
    if equivalent_mm is None:
        return None
    focal_px = equivalent_mm / FILM_DIAGONAL_MM * math.hypot(width, height)
    camera = replace(Camera.assume(width, height, fov_deg=config.assumed_fov_deg), fx=focal_px, fy=focal_px)
    return GivenCamera(
        camera, f"focal length {focal_px:.0f} px assumed from the Exif data ({equivalent_mm:g} mm for 35 mm film)"
    )
