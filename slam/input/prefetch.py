"""Images that another thread reads: live streams, of which the newest counts, and sources read ahead."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from slam.input.frame_source import FrameSource
from slam.input.live_stream import JOIN_TIMEOUT_S
from slam.map.frames import Frame


class Prefetched:
    """Another source, read ahead by a thread: decoding goes on while the consumer computes.

    Frames, their order and `skipped` at each frame are exactly those of the source, whatever the timing. An
    error of the source comes out where it would have without the thread: after the frames before it.
    """

    def __init__(self, source: FrameSource, frames: int) -> None:
        """Keep at most `frames` >= 1 images ready."""
        self._source = source
        self._most = frames
        self._changed = threading.Condition()
        self._ready: deque[tuple[Frame, int]] = deque()  # with how many had been skipped before it
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

    def close(self) -> None:
        """Stop reading ahead. Does nothing the second time."""
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
                self._learn_skipped(len(self._source.skipped))
                if self._error is not None:
                    raise self._error
                return None
            frame, skipped = self._ready.popleft()
            self._changed.notify_all()
        self._learn_skipped(skipped)
        return frame

    def _learn_skipped(self, count: int) -> None:
        self.skipped.extend(self._source.skipped[len(self.skipped) : count])

    def _read(self) -> None:
        try:
            for frame in self._source:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._ready) < self._most or self._stop)
                    if self._stop:
                        return
                    self._ready.append((frame, len(self._source.skipped)))
                    self._changed.notify_all()
        except BaseException as error:  # whatever it is belongs to the consumer, who has no other way to see it
            self._error = error
        finally:
            self._source.close()
            with self._changed:
                self._over = True
                self._changed.notify_all()
