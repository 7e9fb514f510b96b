"""Keyframes inserted in a thread of their own, while the frames after them are tracked in a snapshot of the map."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal

from slam.components.modules import Modules
from slam.events import Event
from slam.keyframe_processor import KeyframeProcessor, NewKeyframe
from slam.map.frames import Frame, ReferenceKeyframe, TrackedPose
from slam.stopwatch import Stopwatch

TAKEN_UP_AFTER = 4  # maximum number of frames after which a keyframe is taken up: the fourth frame uses it
# Fraction of the number of frames between the last two keyframes after which it is taken up at the latest. Where
# keyframes follow each other closely, few landmarks would be left to track the frames between them by.
GAP_FRACTION = 1 / 3


@dataclass(slots=True, eq=False)
class _Job:
    """The insertion of one keyframe, and what waits for its end.

    Attributes:
        before: the reference keyframe of the frames before.
        due_after: number of frames after which the keyframe is taken up, if it is not live.
        frames: the keyframe's own frame and those tracked since, without images, with their poses.
        events: what the insertion published.
        keyframe_id: of the inserted keyframe; None until then.
        error: the exception that ended the insertion.
    """

    new: NewKeyframe
    before: ReferenceKeyframe
    due_after: int
    frames: list[tuple[Frame, TrackedPose]] = field(default_factory=list)
    frames_since: int = 0
    events: list[Event] = field(default_factory=list)
    watch: Stopwatch = field(default_factory=Stopwatch)
    keyframe_id: int | None = None
    error: BaseException | None = None
    ended: threading.Event = field(default_factory=threading.Event)


class BackgroundMapping:
    """Inserts one keyframe at a time in a thread, which alone uses the map until `take_up`.

    Attributes:
        is_live: whether a keyframe is taken up as soon as it is inserted; otherwise after a fixed number of frames,
            so that the same frames give the same bytes on every machine.
    """

    def __init__(
        self, mode: Literal["auto", "off", "fixed", "live"], keyframes: KeyframeProcessor, modules: Modules
    ) -> None:
        """`mode`: the setting `tracking.mapping_thread`; with `off` and `auto` there is no thread."""
        self.is_live = mode == "live"
        self._is_used = mode in ("fixed", "live")
        self._keyframes = keyframes
        self._events = modules.events
        self._log = modules.log
        self._map = modules.map
        self._job: _Job | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a keyframe was started and not taken up yet."""
        return self._job is not None

    @property
    def is_due(self) -> bool:
        """Whether the keyframe is to be taken up now."""
        if self._job is None:
            return False
        return self._job.ended.is_set() if self.is_live else self._job.frames_since >= self._job.due_after

    def frames_to_wait(self, gap: int) -> int:
        """Number of the frame after a keyframe, `gap` frames after the last one, at which the keyframe is taken up.

        0 to insert it in the caller's thread: taken up at the very next frame, it would only be waited for.
        """
        if not self._is_used:
            return 0
        frames = TAKEN_UP_AFTER if self.is_live else min(TAKEN_UP_AFTER, int(GAP_FRACTION * gap))
        return frames if frames > 1 else 0

    def start(self, new: NewKeyframe, active: int, due_after: int) -> None:
        """Begin to insert a keyframe.

        Args:
            active: the reference keyframe of the frames before.
            due_after: number of frames after which it is taken up; a live one is taken up when it is there.
        """
        before = ReferenceKeyframe(active, self._map.graph.world_from_keyframe[active], new.segment)
        self._job = job = _Job(new, before, due_after)
        thread = threading.Thread(target=self._insert, args=(job,), name=f"keyframe of frame {new.frame.index}")
        try:
            thread.start()
        except Exception:  # the system has no thread left: there is nothing to wait for
            self._job = None
            raise

    def record(self, frame: Frame, found: TrackedPose) -> None:
        """Keep the pose of a tracked frame, to be recorded relative to the keyframe."""
        assert self._job is not None
        self._job.frames.append((frame.without_image(), found))

    def count_frame(self) -> None:
        """Count a frame that was processed after the keyframe."""
        if self._job is not None:
            self._job.frames_since += 1

    def wait(self) -> None:
        """Wait for the end of the insertion, and change nothing. Raises the exception that ended it."""
        if self._job is None:
            return
        self._job.ended.wait()
        if self._job.error is not None:
            raise self._job.error

    def take_up(self) -> tuple[int, Stopwatch]:
        """Wait for the insertion, publish its events and record the frames since; the keyframe's id and stage times.

        Raises:
            BaseException: what ended the insertion; the frames are recorded relative to the keyframe before it.
        """
        assert self._job is not None
        # Not Thread.join: interrupted by Ctrl-C, it takes a thread that is running for one that has ended. Interrupted
        # here, everything stays as it is.
        self._job.ended.wait()
        job, self._job = self._job, None
        for event in job.events:
            self._events.publish(event)
        if job.error is not None or job.keyframe_id is None:
            self._record(job.frames, job.before)
            raise job.error or RuntimeError("BackgroundMapping: the keyframe was not inserted")
        k, own = job.keyframe_id, job.new.frame.index
        observed = self._map.landmarks.observed[k]
        landmarks = observed.where(self._map.is_triangulated(observed.ids))
        # As without the thread, the keyframe's own frame is recorded with all landmarks of the keyframe.
        frames = [
            (f, TrackedPose(found.world_from_cam, landmarks) if f.index == own else found) for f, found in job.frames
        ]
        self._record(frames, ReferenceKeyframe(k, job.new.world_from_keyframe, job.before.segment))
        return k, job.watch

    def complete(self) -> None:
        """After the last frame: take up the keyframe that is being inserted, if any. Raises what ended that."""
        if self.is_busy:
            self.take_up()

    def _record(self, frames: list[tuple[Frame, TrackedPose]], reference: ReferenceKeyframe) -> None:
        for frame, found in frames:
            self._log.add_tracked(frame, found, reference)

    def _insert(self, job: _Job) -> None:
        """Body of the thread."""
        try:
            with self._events.collecting(job.events):
                keyframe = self._keyframes.insert(job.new, job.watch)
                self._events.landmarks_updated_after_keyframe(keyframe.id, job.new.frame.index)
            job.keyframe_id = keyframe.id
        except BaseException as error:  # raised again in the thread that takes up the keyframe
            job.error = error
        finally:
            job.ended.set()
