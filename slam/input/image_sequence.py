"""Images in order: how a source of them is opened, and the readers of images and videos.

What leaves here is upright, RGB, of one size, no larger than asked for, and undistorted; `Frame.camera` is
the pinhole camera of exactly that image.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from relocalizer.errors import SequenceError
from relocalizer.images import Image, read_image
from slam.config.schema import InputConfig
from slam.input.dataset_layouts import SequenceIndex
from slam.input.frame_source import Selection
from slam.input.image_sizes import ImageSizes, first_readable
from slam.input.rectification import CameraHint, GivenCamera, Rectifier
from slam.map.frames import Frame
from slam.plain_text import plain


class ImageSequence:
    """The images of a table, read one by one.

    Those that cannot be read, or are of another size than most, are skipped and counted.
    """

    def __init__(self, index: SequenceIndex, frames: range, rectifier: Rectifier, sizes: ImageSizes) -> None:
        """Take images `frames` of `index`, of these `sizes`; `open_images` is the way to get one."""
        self._index = index
        self._frames = frames
        self._optics = rectifier
        self._others = sizes.others(sizes.most_common)
        self.name = plain(index.name)
        self.description = plain("; ".join([index.description, rectifier.note, *sizes.notes(sizes.most_common)]))
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
            yield Frame(index=k, timestamp_ns=int(self._index.timestamps_ns[k]), image=image, camera=self.camera)

    def _read(self, path: Path) -> Image:
        if path in self._others:  # perhaps huge, and not to be decoded for being thrown away
            self._optics.expect(*self._others[path], str(path))
        return self._optics(read_image(path), str(path))

    def close(self) -> None:
        """Nothing is held open between images."""


def open_images(
    index: SequenceIndex, calibration: CameraHint | None, config: InputConfig, selection: Selection
) -> ImageSequence:
    """A reader of a table's images; a camera that was given counts before the table's own, and that before a map's.

    Raises:
        SequenceError: none of the selected images can be read, or none of their sizes is that of most.
        CameraError: the camera is not of these images.
    """
    frames = selection.of(len(index.image_paths), index.name)
    if not isinstance(calibration, GivenCamera) and index.camera is not None:
        calibration = GivenCamera(index.camera, index.camera_source, index.ignored)
    sizes = ImageSizes.of([index.image_paths[k] for k in frames])
    height, width = first_readable(sizes.alike(sizes.of_more_than_half(index.name))).shape[:2]
    return ImageSequence(index, frames, Rectifier(width, height, calibration, config), sizes)
