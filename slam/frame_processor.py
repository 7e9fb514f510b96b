"""Processing of one frame: tracking, initialization, keyframe insertion with loop closing, and relocalization."""

from __future__ import annotations

from collections.abc import Callable

from relocalizer.geometry import Similarity
from slam.background_mapping import BackgroundMapping
from slam.components.modules import Modules
from slam.config.schema import SlamConfig
from slam.keyframe_processor import KeyframeProcessor, NewKeyframe
from slam.map.frames import Frame, FrameObservation, InitialPair, PoseNotFound, TrackedPose
from slam.relocalization.frame_relocalizer import RelocalizedFrame
from slam.relocalization.localization_mode import LocalizationMode
from slam.result import FrameResult
from slam.stopwatch import Stopwatch
from slam.tracking.initializer import NotInitialized, localize_initial_frames
from slam.tracking.rotation_only import POSITION_HELD
from slam.tracking.tracking_state import TrackingStateMachine


class FrameProcessor:
    """Takes every frame through the modules of the system, in the order of the tracking state.

    The counterpart of ORB-SLAM's tracking thread. Keyframes are inserted and loops closed before the next frame, or
    meanwhile in another thread (`BackgroundMapping`); then whatever needs the map takes the keyframe up first.

    Attributes:
        background: insertion of keyframes in another thread.
        state: the tracking state, which decides what is done with the next frame.
    """

    def __init__(self, config: SlamConfig, modules: Modules, *, localize_only: bool) -> None:
        """Args:
        localize_only: never change the map; frames only get poses in it.
        """
        self._config = config
        self._map = modules.map
        self._log = modules.log
        self._events = modules.events
        self._keyframes = KeyframeProcessor(config, modules)
        self._frame_tracker = modules.frame_tracker
        self._initializer = modules.initializer
        self._rotation_only = modules.rotation_only
        self._local_map = modules.local_map
        self._relocalizer = modules.relocalizer
        self._deferred = modules.deferred
        self._watch = Stopwatch()
        self._frames_since_keyframe = 0
        self.background = BackgroundMapping(config.tracking.mapping_thread, self._keyframes, modules)
        restart_after = None if localize_only else config.tracking.restart_after
        self.state = TrackingStateMachine(restart_after=restart_after)
        self._localization_mode = (
            LocalizationMode(self._frame_tracker, self.state, self._relocalize) if localize_only else None
        )

    def process(self, frame: Frame) -> FrameResult:
        """Process the next frame, publish its events, and return its pose."""
        self._watch = Stopwatch()
        self._frames_since_keyframe += 1
        if self.background.is_due:
            self.take_up_keyframe()
        with self._watch("tracks"):
            self._frame_tracker.track(frame)
        if self.state.has_map:
            self._track(frame)
        elif self._localization_mode is None:
            self._initialize(frame)
        else:
            self.state.set_waiting("the map has no keyframe to be found by")
        if not self.state.is_tracking:
            with self._watch("keep for later"):
                self._deferred.keep(frame)
        self.background.count_frame()
        is_kept = self._frames_since_keyframe == 0
        self._events.frame_processed(frame, self.state, self._frame_tracker, self._watch.stage_ms, is_keyframe=is_kept)
        return FrameResult.of(frame, self.state, self._frame_tracker.pose)

    # --- keyframes in another thread ------------------------------------------------------------------

    def take_up_keyframe(self) -> None:
        """Wait for the keyframe that is being inserted, if any, and track from it and in the changed map from now on.

        Raises:
            BaseException: what ended the insertion; tracking uses the map again, as that left it.
        """
        if not self.background.is_busy:
            self._frame_tracker.attach(None)  # after an exception before the insertion began
            return
        k: int | None = None
        try:
            with self._watch("wait for the map"):
                k, watch = self.background.take_up()
        finally:
            if not self.background.is_busy:  # otherwise the wait was interrupted
                self._frame_tracker.attach(k)
        self._watch.add(watch)
        self.state.set_tracking(k)

    # --- initialization -------------------------------------------------------------------------------

    def _initialize(self, frame: Frame) -> None:
        """Initialize a map if the frame forms an initial pair with an earlier frame; otherwise wait."""
        with self._watch("initialize"):
            outcome = self._initializer.process(frame)
        if isinstance(outcome, NotInitialized):
            self.state.set_waiting(outcome.reason)
        else:
            self._begin_map(outcome)

    def _begin_map(self, pair: InitialPair) -> None:
        """Insert the first two keyframes of a segment with their landmarks, and localize the frames between them."""
        graph = self._map.graph
        a, b = self._keyframes.begin_segment(pair, self._watch)
        self.state.map_initialized(a.id, pair.second.frame.index)
        for frame, found in localize_initial_frames(pair, self._frame_tracker, graph.world_from_keyframe[a.id].rigid):
            self._log.add(frame, found.world_from_cam, found.landmarks, a.id, graph)
        self._keyframes.link(pair.second.frame, b, "second of the first pair", self._watch)
        self._continue_from_keyframe(pair.second.frame, b.id)

    # --- tracking -------------------------------------------------------------------------------------

    def _track(self, frame: Frame) -> None:
        """Track the frame by KLT; if that fails, relocalize it, or track its rotation; otherwise tracking is lost."""
        with self._watch("pose"):
            found = self._frame_tracker.estimate_pose(frame, self.state.keyframe_id)
        if isinstance(found, PoseNotFound) and self.background.is_busy:
            self.take_up_keyframe()  # its new landmarks may be enough
            with self._watch("pose"):
                found = self._frame_tracker.estimate_pose(frame, self.state.keyframe_id)
        if isinstance(found, TrackedPose):
            self._follow(frame, found)
            return
        recognized = self._relocalize(frame)
        if isinstance(recognized, RelocalizedFrame):
            self._relocalized(recognized, found)
        elif not self._track_rotation(frame):
            self._lose(frame, found, recognized)

    def _follow(self, frame: Frame, found: TrackedPose) -> None:
        """A tracked frame: it becomes a keyframe, or is recorded relative to its reference keyframe."""
        self._rotation_only.stop()
        self.state.set_tracked()
        self._frame_tracker.accept(found)
        if self._localization_mode is not None:
            self._localization_mode.replenish(frame)
        elif reason := self._reason_to_keep(frame):
            self._keep(self._new_keyframe(frame, self._frame_tracker.extraction(frame), reason))
            return
        self._record_frame(frame)

    def _reason_to_keep(self, frame: Frame) -> str:
        """Why the frame should be inserted as a keyframe now; empty if not, or if the map has this view already.

        Takes up a keyframe that is in the way.
        """
        tracker = self._frame_tracker
        reason = tracker.reason_to_keep(frame, self.state.keyframe_id)
        if reason and self.background.is_busy:
            if self.background.is_live and not self.background.is_due and not tracker.keyframe_policy.is_urgent:
                return ""
            self.take_up_keyframe()
            tracker.refine(frame)
            reason = tracker.reason_to_keep(frame, self.state.keyframe_id)
        if reason:
            with self._watch("known view"):
                return "" if self._local_map.follow(frame, self.state) else reason
        return reason

    def _record_frame(self, frame: Frame) -> None:
        """Record the frame's pose relative to its reference keyframe."""
        tracked = self._frame_tracker.current
        if self.background.is_busy:
            self.background.record(frame, tracked)
        else:
            self._log.add(frame, tracked.world_from_cam, tracked.landmarks, self.state.keyframe_id, self._map.graph)

    # --- keyframes ------------------------------------------------------------------------------------

    def _keep(self, new: NewKeyframe) -> None:
        """Insert a tracked frame as a keyframe, now or in another thread."""
        frames = self.background.frames_to_wait(self._frames_since_keyframe)
        if frames == 0:
            self._insert_keyframe(new)
            return
        self._frame_tracker.detach(new.frame, new.world_from_keyframe)
        self.background.start(new, self.state.keyframe_id, frames)
        self._frames_since_keyframe = 0
        self._record_frame(new.frame)

    def _new_keyframe(self, frame: Frame, observe: Callable[[], FrameObservation], reason: str) -> NewKeyframe:
        graph, active = self._map.graph, self.state.keyframe_id
        pose, scale = self._frame_tracker.current.world_from_cam, graph.world_from_keyframe[active].scale
        return NewKeyframe(
            frame=frame,
            observe=observe,
            tracks=self._frame_tracker.tracks,
            world_from_keyframe=Similarity.from_rigid(pose, scale),
            segment=graph.segment_of[active],
            reason=reason,
        )

    def _insert_keyframe(self, new: NewKeyframe) -> None:
        """Insert a keyframe, and continue tracking from its updated pose."""
        self._continue_from_keyframe(new.frame, self._keyframes.insert(new, self._watch).id)

    def _continue_from_keyframe(self, frame: Frame, k: int) -> None:
        slam_map, self._frames_since_keyframe = self._map, 0
        self.state.set_tracking(k)
        self._frame_tracker.reset_to(slam_map.graph.world_from_keyframe[k].rigid, slam_map.landmarks.observed[k])
        self._record_frame(frame)
        self._events.landmarks_updated_after_keyframe(k, frame.index)

    # --- tracking failure -----------------------------------------------------------------------------

    def _relocalize(self, frame: Frame) -> RelocalizedFrame | PoseNotFound:
        """Relocalize the frame in the map; only in some frames during rotation-only tracking."""
        if not self._rotation_only.should_relocalize:
            return PoseNotFound("no relocalization in this frame of a rotation")
        with self._watch("recognize"):
            found = self._relocalizer.relocalize(self._frame_tracker.extract(frame), self.state.keyframe_id)
        self._events.relocalization_tried(frame, self._relocalizer, found)
        return found

    def _relocalized(self, found: RelocalizedFrame, why: PoseNotFound) -> None:
        """A frame was relocalized after tracking failed; it becomes a keyframe at once."""
        if self.state.is_lost:
            self._events.relocalized(found, self.state.frames_lost)
        self._rotation_only.stop()
        self._frame_tracker.reset_motion()
        self.continue_from(found, f"relocalized with {len(found.landmarks)} landmarks ({why.reason})")

    def continue_from(self, found: RelocalizedFrame, reason: str) -> None:
        """Continue from a relocalized frame; insert it as a keyframe if there is a reason and the map may grow."""
        self.state.set_tracking(found.keyframe_id)
        self._frame_tracker.reset_to(found.world_from_cam, found.tracks)
        if self._localization_mode is not None:
            self._localization_mode.set_baseline()
        elif reason:
            observation = found.observation
            new = self._new_keyframe(observation.frame, lambda: observation, reason)
            # Few landmarks are known to track the next frames by; only a live camera cannot wait for more.
            may_wait = not self.background.is_live or not self._log.live
            (self._insert_keyframe if may_wait else self._keep)(new)
            return
        self._record_frame(found.observation.frame)

    def _track_rotation(self, frame: Frame) -> bool:
        """Track the orientation of a camera that only rotates, and keep its position; False for any other motion."""
        if not self.state.is_tracking or not self._rotation_only.follow(frame):
            return False
        self.state.set_rotation_only(POSITION_HELD)
        if self._rotation_only.starts_new_stretch(frame.index):
            self._events.scale_unobservable(frame, POSITION_HELD)
        self._record_frame(frame)
        return True

    def _lose(self, frame: Frame, why: PoseNotFound, recognized: PoseNotFound) -> None:
        """No pose for this frame. After a while a new segment may start, to be joined to the old one by a loop."""
        if self.state.is_lost:
            self.state.still_lost(recognized.reason)
        else:
            self.state.set_lost(frame.index, f"{why.reason}; {recognized.reason}")
            self._frame_tracker.reset_motion()
            self._rotation_only.stop()
            self._initializer.restart()
            self._events.tracking_lost(frame, self.state.reason)
        if self.state.may_start_new_map:
            self._initialize(frame)
