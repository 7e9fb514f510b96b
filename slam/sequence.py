"""Pictures in order: what a source promises, and the readers of pictures, videos and live streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from relocalizer.images import Camera
from slam.frames import Frame
from slam.trajectory import Trajectory


class FrameSource(Protocol):
    """A stream of frames, read once from the front.

    Attributes:
        name: short, for titles and folder names.
        description: one line that says what was recognised ("TUM RGB-D layout: 613 pictures, ground truth found").
        camera: the pinhole camera of every frame it will give (after undistortion).
        length: frames to come, None for a live stream.
        ground_truth: when the source has it.
        skipped: pictures that could not be read so far, as (name, reason).
        dropped: live frames that were overtaken by newer ones so far.
    """

    name: str
    description: str
    camera: Camera
    length: int | None
    ground_truth: Trajectory | None
    skipped: list[tuple[str, str]]
    dropped: int

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None: ...
