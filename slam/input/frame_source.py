"""The interface of frame sources, and the selection of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from relocalizer.camera import Camera
from relocalizer.errors import SequenceError
from relocalizer.images import Image
from slam.evaluation.trajectory import Trajectory
from slam.input.mask import Mask
from slam.input.rectification import GivenCamera
from slam.map.frames import Frame


class FrameSource(Protocol):
    """A stream of frames, read once from the beginning.

    Attributes:
        name: short name for titles and folder names, plain text.
        description: one line of plain text stating what was recognized ("TUM RGB-D layout: 613 images, ...").
        camera: the pinhole camera of every frame (after undistortion).
        calibration: the camera of the original images, before they are shrunk and undistorted; given or assumed.
        mask: (H, W), valid for every frame, 0 where the image is to be ignored; None if the whole image is used.
        length: number of frames, None if unknown, as for a live stream. A damaged file may give fewer.
        ground_truth: poses of `camera`, if the source has them.
        skipped: images that could not be read so far, as (name, reason).
        dropped: number of live frames dropped so far because a newer one was available.
    """

    name: str
    description: str
    camera: Camera
    calibration: Camera
    mask: Mask | None
    length: int | None
    ground_truth: Trajectory | None
    skipped: list[tuple[str, str]]
    dropped: int

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None: ...


@runtime_checkable
class RereadableSource(FrameSource, Protocol):
    """A frame source of stored images, which can be read before it is iterated, and with another camera.

    Attributes:
        can_be_reread: whether both work for this source.
    """

    @property
    def can_be_reread(self) -> bool: ...

    def random_access(self) -> AbstractContextManager[Callable[[int], Image | None]]:
        """A reader of single images of `camera` by their position, from 0 to `length` - 1; None if unreadable.

        Ascending positions are read fastest. In a video, a position after a jump may be a few frames off.
        """
        ...

    def with_calibration(self, calibration: GivenCamera) -> FrameSource:
        """The same images read as images of another camera; use it instead of this source."""
        ...


@dataclass(frozen=True, slots=True)
class Selection:
    """Every `stride`-th image from number `start` on, at most `max_frames` of them."""

    start: int = 0
    stride: int = 1
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.start < 0:
            raise SequenceError(f"start: expected 0 or more, got {self.start}")
        if self.stride < 1:
            raise SequenceError(f"stride: expected 1 or more, got {self.stride}")
        if self.max_frames is not None and self.max_frames < 1:
            raise SequenceError(f"max_frames: expected 1 or more, got {self.max_frames}")

    def of(self, count: int, name: str) -> range:
        """Indices of the selected images among `count`. Raises SequenceError when there are none."""
        if self.start >= count:
            raise SequenceError(f"{name}: start {self.start} is beyond its end ({count} images, the first is 0)")
        return range(self.start, count, self.stride)[: self.max_frames]

    def takes(self, index: int) -> bool:
        """Whether image `index` is selected, ignoring `max_frames`."""
        return index >= self.start and (index - self.start) % self.stride == 0


ALL_IMAGES = Selection()
