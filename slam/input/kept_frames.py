"""Frame source of a part of another one: the other frames are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from relocalizer.images import Image
from slam.input.frame_source import RereadableSource
from slam.input.rectification import GivenCamera
from slam.map.frames import Frame


@dataclass(frozen=True, slots=True)
class Kept:
    """Consecutive images of a source, by the positions of the first and the last one."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __contains__(self, position: object) -> bool:
        return isinstance(position, int) and self.first <= position <= self.last

    def __str__(self) -> str:
        return f"{self.first} to {self.last}"


class KeptFrames:
    """The frames of some parts of a source of stored images; their indices and timestamps are those of the source."""

    def __init__(self, source: RereadableSource, kept: Sequence[Kept]) -> None:
        """Args:
        kept: the parts, in order of time and without overlap.
        """
        self._source, self._kept = source, tuple(kept)
        self.name = source.name
        self.description = source.description
        self.camera, self.calibration, self.mask = source.camera, source.calibration, source.mask
        self.length: int | None = sum(len(part) for part in kept)
        self.ground_truth = source.ground_truth
        self.skipped = source.skipped  # the same list, which the source fills while it is read
        self.dropped = source.dropped

    def __iter__(self) -> Iterator[Frame]:
        for position, frame in enumerate(self._source):
            if position > self._kept[-1].last:
                break
            if any(position in part for part in self._kept):
                yield frame

    @property
    def can_be_reread(self) -> bool:
        return self._source.can_be_reread

    @contextmanager
    def random_access(self) -> Iterator[Callable[[int], Image | None]]:
        """A reader of single images by their position among the frames that are kept."""
        positions = [position for part in self._kept for position in range(part.first, part.last + 1)]
        with self._source.random_access() as read:
            yield lambda position: read(positions[position])

    def with_calibration(self, calibration: GivenCamera) -> KeptFrames:
        """The same frames read as images of another camera."""
        source = self._source.with_calibration(calibration)
        if not isinstance(source, RereadableSource):
            raise TypeError(f"{self.name}: the images of this source cannot be read twice")
        return KeptFrames(source, self._kept)

    def close(self) -> None:
        self._source.close()
