"""When a run ends more of the map is known than when its frames came: frames that had no pose are looked for once
more, and maps begun apart are joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from relocalizer.images import Camera, decode_image, encode_jpeg
from slam.frame_log import FrameLog
from slam.frames import Frame
from slam.front_end import FrontEnd, NotLocated
from slam.linking import Linker
from slam.mapping import Mapper
from slam.progress import Progress, untold
from slam.recognition import Recognised, Recogniser
from slam.reporter import Reporter

QUALITY = 95  # of the pictures kept, JPEG
MOSTLY_KNOWN = 0.6  # of a keyframe's landmarks; a picture that sees more of them shows little that is not in it
MOST_JOINED = 300  # keyframes, the newest, that are looked for in other segments


class LookingBack:
    """Keeps the frames without a pose while the stream runs, and looks for them in the map when it has ended."""

    def __init__(self, limit: int, log: FrameLog, front_end: FrontEnd, recogniser: Recogniser, tell: Reporter) -> None:
        """Args:
        limit: frames kept at most.
        """
        self._unplaced = Unplaced(limit)
        self._log = log
        self._front_end = front_end
        self._recogniser = recogniser
        self._tell = tell
        self._refused: dict[int, str] = {}  # by frame, why it was not recognised when it was tried last

    def keep(self, frame: Frame) -> None:
        """Remember a frame that has no pose."""
        self._unplaced.keep(frame)

    def place(self, take: Callable[[Recognised, str], None], on_progress: Progress = untold) -> None:
        """Look for the frames that still have no pose; each that is recognised is given to `take` at once.

        With it goes why it should become a keyframe: it shows much that is not in one. Empty when it should not.
        """
        self._log.live = False
        self._unplaced.forget({record.index for record in self._log.records})
        most, looks = 2 * len(self._unplaced), count()

        def look(frame: Frame) -> bool:
            on_progress("looks for frames without a pose", next(looks), most)
            return self._try_again(frame, take)

        self._unplaced.place(look)

    def tell_left(self) -> None:
        """Say of every frame that was looked for in vain why it was not found."""
        for kept in self._unplaced:
            self._tell.never_placed(kept.index, kept.timestamp_ns, self._refused.get(kept.index, "it was not tried"))

    def _try_again(self, frame: Frame, take: Callable[[Recognised, str], None]) -> bool:
        beside = self._log.nearest(frame.timestamp_ns).keyframe_id
        found = self._recogniser.recognise(self._front_end.look_at(frame), beside)
        if isinstance(found, NotLocated):
            self._refused[frame.index] = found.reason
            return False
        self._tell.placed_later(found)
        known = self._recogniser.share_seen(found) > MOSTLY_KNOWN
        take(found, "" if known else f"recognised {len(found.landmarks)} landmarks, looking back")
        return True


def join_segments(mapper: Mapper, recogniser: Recogniser, linker: Linker, *, min_inliers: int) -> bool:
    """Maps begun apart become one where keyframes are recognised by older ones of another; whether any did.

    Args:
        min_inliers: landmarks by which they must be.
    """
    graph = mapper.graph
    before = len(set(graph.segment_of.values()))
    for k in sorted(graph.keyframes)[-MOST_JOINED:]:
        if len(set(graph.segment_of.values())) == 1:
            break
        for place in recogniser.recognise_elsewhere(k, min_inliers=min_inliers):
            linker.join(place.keyframe_id, k, place.found)
    return len(set(graph.segment_of.values())) < before


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

    def __iter__(self) -> Iterator[Kept]:
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
