"""Deferred relocalization: at the end of a run, frames without a pose are relocalized in the larger map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from relocalizer.camera import Camera
from relocalizer.images import decode_image, encode_jpeg
from slam.events import Event, FrameLocalizedLater, FrameNotLocalized
from slam.map.frame_log import FrameLog
from slam.map.frames import Frame, PoseNotFound
from slam.progress import Progress, no_progress
from slam.relocalization.frame_relocalizer import FrameRelocalizer, RelocalizedFrame
from slam.tracking.frame_tracker import FrameTracker

QUALITY = 95  # JPEG quality of the stored images
# Fraction of a keyframe's landmarks above which a frame that observes them adds little to the map.
COVERED_RATIO = 0.6


class DeferredRelocalizer:
    """Stores frames without a pose during the run, and relocalizes them in the map at its end."""

    def __init__(
        self,
        limit: int,
        log: FrameLog,
        frame_tracker: FrameTracker,
        relocalizer: FrameRelocalizer,
        publish: Callable[[Event], None],
    ) -> None:
        """Args:
        limit: maximum number of stored frames.
        """
        self._unlocalized = UnlocalizedFrames(limit)
        self._log = log
        self._frame_tracker = frame_tracker
        self._relocalizer = relocalizer
        self._publish = publish
        self._failures: dict[int, str] = {}  # by frame index, the reason of the last failed attempt

    def keep(self, frame: Frame) -> None:
        """Store a frame without a pose."""
        self._unlocalized.keep(frame)

    def relocalize_all(
        self, on_found: Callable[[RelocalizedFrame, str], None], on_progress: Progress = no_progress
    ) -> None:
        """Relocalize the frames that still have no pose, and call `on_found` at once with each that succeeds.

        The second argument is the reason to insert it as a keyframe, or "" when its view is already covered.
        """
        self._log.live = False
        self._unlocalized.forget({record.index for record in self._log.records})
        max_attempts, attempts = 2 * len(self._unlocalized), count()

        def retry(frame: Frame) -> bool:
            on_progress("relocalizing frames without a pose", next(attempts), max_attempts)
            return self._retry(frame, on_found)

        self._unlocalized.relocalize_all(retry)

    def report_failures(self) -> None:
        """Publish, for every frame that was not relocalized, the reason why."""
        for stored in self._unlocalized:
            reason = self._failures.get(stored.index, "it was not tried")
            self._publish(FrameNotLocalized(frame_index=stored.index, timestamp_ns=stored.timestamp_ns, reason=reason))

    def _retry(self, frame: Frame, on_found: Callable[[RelocalizedFrame, str], None]) -> bool:
        nearest = self._log.nearest(frame.timestamp_ns).keyframe_id
        found = self._relocalizer.relocalize(self._frame_tracker.extract_from(frame), nearest)
        if isinstance(found, PoseNotFound):
            self._failures[frame.index] = found.reason
            return False
        self._publish(
            FrameLocalizedLater(
                frame_index=frame.index,
                timestamp_ns=frame.timestamp_ns,
                keyframe_id=found.keyframe_id,
                inliers=len(found.landmarks),
            )
        )
        is_covered = self._relocalizer.observed_ratio(found) > COVERED_RATIO
        on_found(found, "" if is_covered else f"relocalized later with {len(found.landmarks)} landmarks")
        return True


@dataclass(frozen=True, slots=True, eq=False)
class StoredFrame:
    """A frame in compressed form, to be relocalized later."""

    index: int
    timestamp_ns: int
    jpeg: bytes
    camera: Camera
    name: str = ""

    @classmethod
    def of(cls, frame: Frame) -> StoredFrame:
        """A frame with pixels, compressed."""
        jpeg = encode_jpeg(frame.image, QUALITY)
        return cls(frame.index, frame.timestamp_ns, jpeg, frame.camera, frame.name)

    def frame(self) -> Frame:
        """The frame with its image decoded."""
        image = decode_image(self.jpeg, f"frame {self.index}")
        return Frame(index=self.index, timestamp_ns=self.timestamp_ns, image=image, camera=self.camera, name=self.name)


class UnlocalizedFrames:
    """At most `limit` frames without a pose, spread evenly over all such frames, and the order of retrying them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._stored: list[StoredFrame] = []
        self._every = 1  # of the frames offered, every n-th is stored
        self._offered = 0

    def __len__(self) -> int:
        return len(self._stored)

    def __iter__(self) -> Iterator[StoredFrame]:
        return iter(self._stored)

    def keep(self, frame: Frame) -> None:
        """Store a frame with pixels; at the limit, drop every second stored frame."""
        if self._limit == 0 or frame.image.size == 0:
            return
        self._offered += 1
        if (self._offered - 1) % self._every:
            return
        if len(self._stored) == self._limit:
            self._stored = self._stored[::2]
            self._every *= 2
            if (self._offered - 1) % self._every:
                return
        self._stored.append(StoredFrame.of(frame))

    def forget(self, indices: set[int]) -> None:
        """Drop the frames with these indices, which have a pose now."""
        self._stored = [stored for stored in self._stored if stored.index not in indices]

    def relocalize_all(self, retry: Callable[[Frame], bool]) -> int:
        """Retry all frames, alternately forwards and backwards, while this succeeds; returns the number of successes.

        A relocalized frame may help to relocalize its neighbor, which comes next: the following one in a forward pass,
        the preceding one in a backward pass. A frame is retried only if another one was relocalized since its last
        attempt, because it would fail again. The number of attempts is at most twice the number of frames.
        """
        attempts_left, localized, backwards = 2 * len(self._stored), 0, False
        last_attempt: dict[int, int] = {}  # by frame index, the number of successes before it
        while attempts_left > 0 and any(last_attempt.get(stored.index) != localized for stored in self._stored):
            found = []
            for stored in reversed(self._stored) if backwards else self._stored:
                if attempts_left == 0 or last_attempt.get(stored.index) == localized:
                    continue
                attempts_left -= 1
                last_attempt[stored.index] = localized
                if retry(stored.frame()):
                    found.append(stored.index)
                    localized += 1
            self.forget(set(found))
            backwards = not backwards
        return localized
