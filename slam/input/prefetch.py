"""Frame source that reads another one ahead in a thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from relocalizer.images import Image
from slam.input.frame_source import FrameSource, RereadableSource
from slam.input.live_stream import JOIN_TIMEOUT_S
from slam.input.rectification import GivenCamera
from slam.map.frames import Frame


class Prefetched:
    """Another source, read ahead by a thread: images are decoded while the consumer computes.

    Frames, their order and `skipped` at each frame equal those of the source, independent of timing. An error of the
    source is raised after the frames before it, as without the thread.
    """

    def __init__(self, source: FrameSource, frames: int) -> None:
        """Buffer at most `frames` >= 1 images."""
        self._source = source
        self._capacity = frames
        self._changed = threading.Condition()
        self._ready: deque[tuple[Frame, int]] = deque()  # Frames and the number of images skipped before each.
        self._error: BaseException | None = None
        self._over = False
        self._stop = False
        self._reader: threading.Thread | None = None
        self.name = source.name
        self.description = source.description
        self.camera, self.calibration, self.mask = source.camera, source.calibration, source.mask
        self.length = source.length
        self.ground_truth = source.ground_truth
        self.skipped: list[tuple[str, str]] = []
        self.dropped = 0

    def __iter__(self) -> Iterator[Frame]:
        if self._reader is None and not self._stop:
            self._reader = threading.Thread(target=self._read, name=f"read {self.name}", daemon=True)
            self._reader.start()
        try:
            while (frame := self._take()) is not None:
                yield frame
        finally:
            self.close()

    @property
    def can_be_reread(self) -> bool:
        return isinstance(self._source, RereadableSource) and self._source.can_be_reread

    def random_access(self) -> AbstractContextManager[Callable[[int], Image | None]]:
        """A reader of single images by their position, as that of the source."""
        return self._rereadable().random_access()

    def with_calibration(self, calibration: GivenCamera) -> Prefetched:
        """The same images read ahead as images of another camera."""
        return Prefetched(self._rereadable().with_calibration(calibration), self._capacity)

    def _rereadable(self) -> RereadableSource:
        if not isinstance(self._source, RereadableSource):
            raise TypeError(f"{self.name}: the images of this source cannot be read twice")
        return self._source

    def close(self) -> None:
        """Stop reading ahead. A second call does nothing."""
        with self._changed:
            self._stop = True
            self._ready.clear()
            self._changed.notify_all()
        if self._reader is None:
            self._source.close()
        else:
            self._reader.join(JOIN_TIMEOUT_S)

    def _take(self) -> Frame | None:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._over or self._stop)
            if self._stop:
                return None
            if not self._ready:
                self._update_skipped(len(self._source.skipped))
                if self._error is not None:
                    raise self._error
                return None
            frame, skipped = self._ready.popleft()
            self._changed.notify_all()
        self._update_skipped(skipped)
        return frame

    def _update_skipped(self, count: int) -> None:
        self.skipped.extend(self._source.skipped[len(self.skipped) : count])

    def _read(self) -> None:
        try:
            for frame in self._source:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._ready) < self._capacity or self._stop)
                    if self._stop:
                        return
                    self._ready.append((frame, len(self._source.skipped)))
                    self._changed.notify_all()
        except BaseException as error:  # Any error is raised again in the consumer.
            self._error = error
        finally:
            self._source.close()
            with self._changed:
                self._over = True
                self._changed.notify_all()
