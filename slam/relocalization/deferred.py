"""When a run ends more of the map is known than when its frames came: frames that had no pose are looked for once
more, and maps begun apart are joined."""

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

QUALITY = 95  # of the images kept, JPEG
MOSTLY_KNOWN = 0.6  # of a keyframe's landmarks; an image that sees more of them shows little that is not in it


class DeferredRelocalizer:
    """Keeps the frames without a pose while the stream runs, and looks for them in the map when it has ended."""

    def __init__(
        self,
        limit: int,
        log: FrameLog,
        frame_tracker: FrameTracker,
        relocalizer: FrameRelocalizer,
        publish: Callable[[Event], None],
    ) -> None:
        """Args:
        limit: frames kept at most.
        """
        self._unlocalized = UnlocalizedFrames(limit)
        self._log = log
        self._frame_tracker = frame_tracker
        self._relocalizer = relocalizer
        self._publish = publish
        self._refused: dict[int, str] = {}  # by frame, why it was not recognized when it was tried last

    def keep(self, frame: Frame) -> None:
        """Remember a frame that has no pose."""
        self._unlocalized.keep(frame)

    def relocalize_all(
        self, take: Callable[[RelocalizedFrame, str], None], on_progress: Progress = no_progress
    ) -> None:
        """Look for the frames that still have no pose; each that is recognized is given to `take` at once.

        With it goes why it should become a keyframe: it shows much that is not in one. Empty when it should not.
        """
        self._log.live = False
        self._unlocalized.forget({record.index for record in self._log.records})
        most, looks = 2 * len(self._unlocalized), count()

        def look(frame: Frame) -> bool:
            on_progress("looks for frames without a pose", next(looks), most)
            return self._retry(frame, take)

        self._unlocalized.relocalize_all(look)

    def report_failures(self) -> None:
        """Say of every frame that was looked for in vain why it was not found."""
        for kept in self._unlocalized:
            reason = self._refused.get(kept.index, "it was not tried")
            self._publish(FrameNotLocalized(frame_index=kept.index, timestamp_ns=kept.timestamp_ns, reason=reason))

    def _retry(self, frame: Frame, take: Callable[[RelocalizedFrame, str], None]) -> bool:
        beside = self._log.nearest(frame.timestamp_ns).keyframe_id
        found = self._relocalizer.relocalize(self._frame_tracker.extract_from(frame), beside)
        if isinstance(found, PoseNotFound):
            self._refused[frame.index] = found.reason
            return False
        self._publish(
            FrameLocalizedLater(
                frame_index=frame.index,
                timestamp_ns=frame.timestamp_ns,
                keyframe_id=found.keyframe_id,
                inliers=len(found.landmarks),
            )
        )
        known = self._relocalizer.observed_ratio(found) > MOSTLY_KNOWN
        take(found, "" if known else f"recognized {len(found.landmarks)} landmarks, looking back")
        return True


@dataclass(frozen=True, slots=True, eq=False)
class StoredFrame:
    """A frame as little as it takes to look for it again."""

    index: int
    timestamp_ns: int
    jpeg: bytes
    camera: Camera

    def frame(self) -> Frame:
        """The frame, its image decoded."""
        image = decode_image(self.jpeg, f"frame {self.index}")
        return Frame(index=self.index, timestamp_ns=self.timestamp_ns, image=image, camera=self.camera)


class UnlocalizedFrames:
    """At most `limit` frames without a pose, evenly over all there were, and when to try which of them again."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: list[StoredFrame] = []
        self._every = 1
        self._seen = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[StoredFrame]:
        return iter(self._kept)

    def keep(self, frame: Frame) -> None:
        """Remember a frame that has pixels; when there are too many, every second one is let go."""
        if self._limit == 0 or frame.image.size == 0:
            return
        self._seen += 1
        if (self._seen - 1) % self._every:
            return
        if len(self._kept) == self._limit:
            self._kept = self._kept[::2]
            self._every *= 2
            if (self._seen - 1) % self._every:
                return
        self._kept.append(StoredFrame(frame.index, frame.timestamp_ns, encode_jpeg(frame.image, QUALITY), frame.camera))

    def forget(self, indices: set[int]) -> None:
        """Let go of frames, by index, that have got a pose after all."""
        self._kept = [kept for kept in self._kept if kept.index not in indices]

    def relocalize_all(self, retry: Callable[[Frame], bool]) -> int:
        """Try every frame, forwards and then backwards, for as long as that places some; how many were placed.

        A frame that is placed may be what its neighbor is recognized by: forwards the one after it is tried next, then
        backwards the one before. No frame is tried more than twice on the average, so that the cost is bounded.
        """
        tries, placed, backwards, idle = 2 * len(self._kept), 0, False, 0
        while self._kept and tries > 0 and idle < 2:
            found = []
            for kept in reversed(self._kept) if backwards else list(self._kept):
                tries -= 1
                if tries >= 0 and retry(kept.frame()):
                    found.append(kept.index)
            self.forget(set(found))
            placed += len(found)
            idle = 0 if found else idle + 1
            backwards = not backwards
        return placed
