"""Frames that had no pose when they came, kept to be looked for once more in the map of the whole run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relocalizer.images import Camera, decode_image, encode_jpeg
from slam.frames import Frame

QUALITY = 95  # of the pictures kept, JPEG


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A frame as little as it takes to look for it again."""

    index: int
    timestamp_ns: int
    jpeg: bytes
    camera: Camera

    def frame(self) -> Frame:
        """The frame, its picture decoded."""
        image = decode_image(self.jpeg, f"frame {self.index}")
        return Frame(index=self.index, timestamp_ns=self.timestamp_ns, image=image, camera=self.camera)


class Unplaced:
    """At most `limit` frames without a pose, evenly over all there were, and when to try which of them again."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: list[Kept] = []
        self._every = 1
        self._seen = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, frame: Frame) -> None:
        """Remember a frame; when there are too many, every second one is let go."""
        if self._limit == 0:
            return
        self._seen += 1
        if (self._seen - 1) % self._every:
            return
        if len(self._kept) == self._limit:
            self._kept = self._kept[::2]
            self._every *= 2
            if (self._seen - 1) % self._every:
                return
        self._kept.append(Kept(frame.index, frame.timestamp_ns, encode_jpeg(frame.image, QUALITY), frame.camera))

    def forget(self, indices: set[int]) -> None:
        """Let go of frames, by index, that have got a pose after all."""
        self._kept = [kept for kept in self._kept if kept.index not in indices]

    def place(self, try_again: Callable[[Frame], bool]) -> int:
        """Try every frame, forwards and then backwards, for as long as that places some; how many were placed.

        A frame that is placed may be what its neighbour is recognised by: forwards the one after it is tried next, then
        backwards the one before. No frame is tried more than twice on the average, so that the cost is bounded.
        """
        tries, placed, backwards, idle = 2 * len(self._kept), 0, False, 0
        while self._kept and tries > 0 and idle < 2:
            found = []
            for kept in reversed(self._kept) if backwards else list(self._kept):
                tries -= 1
                if tries >= 0 and try_again(kept.frame()):
                    found.append(kept.index)
            self.forget(set(found))
            placed += len(found)
            idle = 0 if found else idle + 1
            backwards = not backwards
        return placed
