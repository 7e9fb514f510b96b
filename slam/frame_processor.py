"""Processing of one frame: tracking, initialization, keyframe insertion with loop closing, and relocalization."""

from __future__ import annotations

from relocalizer.geometry import Similarity
from slam.components.modules import Modules
from slam.config.schema import SlamConfig
from slam.map.frames import Frame, FrameObservation, InitialPair, Keyframe, PoseNotFound, TrackedPose
from slam.relocalization.frame_relocalizer import RelocalizedFrame
from slam.relocalization.localization_mode import LocalizationMode
from slam.result import FrameResult
from slam.stopwatch import Stopwatch
from slam.tracking.initializer import NotInitialized, localize_initial_frames
from slam.tracking.rotation_only import POSITION_HELD
from slam.tracking.tracking_state import TrackingStateMachine


class FrameProcessor:
    """Takes every frame through the modules of the system, in the order of the tracking state.

    The counterpart of ORB-SLAM's tracking thread; keyframes are inserted and loops closed before the next frame.

    Attributes:
        state: the tracking state, which decides what is done with the next frame.
    """

    def __init__(self, config: SlamConfig, modules: Modules, *, localize_only: bool) -> None:
        """Args:
        localize_only: never change the map; frames only get poses in it.
        """
        self._config = config
        self._map = modules.map
        self._log = modules.log
        self._images = modules.images
        self._events = modules.events
        self._frame_tracker = modules.frame_tracker
        self._initializer = modules.initializer
        self._rotation_only = modules.rotation_only
        self._reference_keyframes = modules.reference_keyframes
        self._mapper = modules.mapper
        self._odometry_edges = modules.odometry_edges
        self._loop_detector = modules.loop_detector
        self._loop_closer = modules.loop_closer
        self._relocalizer = modules.relocalizer
        self._deferred = modules.deferred
        self._watch = Stopwatch()
        restart_after = None if localize_only else config.tracking.restart_after
        self.state = TrackingStateMachine(restart_after=restart_after)
        self._localization_mode = (
            LocalizationMode(self._frame_tracker, self.state, self._relocalize) if localize_only else None
        )

    def process(self, frame: Frame) -> FrameResult:
        """Process the next frame, publish its events, and return its pose."""
        self._watch = Stopwatch()
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
        self._events.frame_processed(frame, self.state, self._frame_tracker, self._watch.stage_ms)
        return FrameResult(
            frame_index=frame.index,
            timestamp_ns=frame.timestamp_ns,
            state=self.state.state,
            reason=self.state.reason,
            world_from_cam=self._frame_tracker.pose if self.state.is_tracking else None,
            keyframe_id=self.state.keyframe_id,
        )

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
        with self._watch("map"):
            a, b = self._mapper.begin_segment(pair)
            self._images.store(a.id, pair.first.frame.image)
            self._images.store(b.id, pair.second.frame.image)
        self.state.map_initialized(a.id, pair.second.frame.index)
        self._events.initialized(pair, a.id, b.id)
        self._events.keyframe_added(a, "first of the first pair", pair.first.frame.image)
        self._loop_detector.add(a.id)
        for frame, found in localize_initial_frames(pair, self._frame_tracker, graph.world_from_keyframe[a.id].rigid):
            self._log.add(frame, found.world_from_cam, found.landmarks, a.id, graph)
        self._activate_keyframe(pair.second.frame, b, "second of the first pair")

    # --- tracking -------------------------------------------------------------------------------------

    def _track(self, frame: Frame) -> None:
        """Track the frame by KLT; if that fails, relocalize it, or track its rotation; otherwise tracking is lost."""
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
        elif reason := self._frame_tracker.reason_to_keep(frame, self.state.keyframe_id):
            if self._follow_known_view(frame):
                return
            with self._watch("features"):
                observation = self._frame_tracker.extract(frame)
            self._insert_keyframe(observation, reason)
            return
        self._record_frame(frame)

    def _follow_known_view(self, frame: Frame) -> bool:
        """Continue from an older keyframe of the same view instead of inserting another; whether there is one."""
        with self._watch("known view"):
            view = self._reference_keyframes.find(frame, self.state.keyframe_id)
        if view is None:
            return False
        self.state.set_tracking(view.keyframe_id)
        self._frame_tracker.reset_to(view.found.world_from_cam, view.tracks)
        self._record_frame(frame)
        return True

    def _record_frame(self, frame: Frame) -> None:
        """Record the frame's pose relative to its reference keyframe."""
        tracked = self._frame_tracker.current
        self._log.add(frame, tracked.world_from_cam, tracked.landmarks, self.state.keyframe_id, self._map.graph)

    # --- keyframes ------------------------------------------------------------------------------------

    def _insert_keyframe(self, observation: FrameObservation, reason: str) -> None:
        """Insert the frame as a keyframe: landmarks, odometry edges to covisible keyframes, local bundle adjustment."""
        graph, active = self._map.graph, self.state.keyframe_id
        pose = Similarity.from_rigid(
            self._frame_tracker.current.world_from_cam, graph.world_from_keyframe[active].scale
        )
        with self._watch("map"):
            keyframe = self._mapper.insert(observation, self._frame_tracker.tracks, pose, graph.segment_of[active])
            self._images.store(keyframe.id, observation.frame.image)
        with self._watch("predictor"):
            self._odometry_edges.relate_to_covisible(keyframe.id)
        with self._watch("refine"):
            self._mapper.adjustment.local_bundle_adjustment(keyframe.id)
        self._activate_keyframe(observation.frame, keyframe, reason)

    def _activate_keyframe(self, frame: Frame, keyframe: Keyframe, reason: str) -> None:
        """Add a new keyframe's edges, close its loops, and continue tracking from its updated pose."""
        slam_map, k = self._map, keyframe.id
        self._events.keyframe_added(keyframe, reason, frame.image)
        with self._watch("link"):
            self._odometry_edges.check_parallax(k, 0.5 * self._config.landmarks.min_parallax_deg)
            self._odometry_edges.add_odometry_edges(k, self._config.bundle_adjustment.window)
            closed = self._loop_closer.close_loops(k)
            self._loop_detector.add(k)
        if closed:
            with self._watch("refine"):
                self._mapper.adjustment.local_bundle_adjustment(k)
        self.state.set_tracking(k)
        self._frame_tracker.reset_to(slam_map.graph.world_from_keyframe[k].rigid, slam_map.landmarks.observed[k])
        self._record_frame(frame)
        self._events.landmarks_updated_after_keyframe(k, frame.index)

    # --- tracking failure -----------------------------------------------------------------------------

    def _relocalize(self, frame: Frame) -> RelocalizedFrame | PoseNotFound:
        """Relocalize the frame in the map; only in some frames during rotation-only tracking."""
        if not self._rotation_only.should_relocalize:
            return PoseNotFound("no place is looked for in this frame of a turn")
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
        self.continue_from(found, f"recognized {len(found.landmarks)} landmarks ({why.reason})")

    def continue_from(self, found: RelocalizedFrame, reason: str) -> None:
        """Continue from a relocalized frame; insert it as a keyframe if there is a reason and the map may grow."""
        self.state.set_tracking(found.keyframe_id)
        self._frame_tracker.reset_to(found.world_from_cam, found.tracks)
        if self._localization_mode is not None:
            self._localization_mode.set_baseline()
        elif reason:
            self._insert_keyframe(found.observation, reason)
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
