"""The SLAM system: tracking, keyframe insertion, relocalization, loop closing, and the final refinement."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from relocalizer.errors import MapError
from relocalizer.geometry import Similarity
from relocalizer.images import decode_image, encode_jpeg
from relocalizer.maps.map_format import JPEG_QUALITY
from relocalizer.maps.reference_map import ReferenceMap, provenance_of
from slam.config.schema import SlamConfig
from slam.event_publisher import DroppedObserver, EventPublisher
from slam.events import Event, Observer, ScaleSet
from slam.loop_closing.loop_closer import LoopCloser
from slam.loop_closing.loop_detector import LoopDetector
from slam.loop_closing.loop_verifier import LoopVerifier
from slam.loop_closing.odometry_edges import OdometryEdges
from slam.loop_closing.segment_joining import join_segments
from slam.map.frame_log import FrameLog
from slam.map.frames import Frame, FrameObservation, InitialPair, Keyframe, PoseNotFound, TrackedPose
from slam.map.keyframe_images import KeyframeImages, MemoryImages
from slam.mapping.global_refinement import refine_map
from slam.mapping.mapper import Mapper
from slam.progress import Progress, no_progress
from slam.relocalization.deferred import DeferredRelocalizer
from slam.relocalization.frame_relocalizer import FrameRelocalizer, RelocalizedFrame
from slam.relocalization.localization_mode import LocalizationMode
from slam.result import FrameResult, SlamResult, collect_result
from slam.sessions.metric_scale import ScaleReference, in_meters
from slam.sessions.stored_map import PriorMap, in_units_of_prior_map, restore, run_to_reference_map
from slam.stopwatch import Stopwatch
from slam.tracking.frame_tracker import FrameTracker
from slam.tracking.initializer import Initializer, NotInitialized, localize_initial_frames
from slam.tracking.rotation_only import POSITION_HELD, RotationOnlyTracker
from slam.tracking.tracking_state import TrackingStateMachine

if TYPE_CHECKING:
    from slam.components.assembly import Components
    from slam.evaluation.trajectory import Trajectory
    from slam.input.mask import Mask


class Slam:
    """Monocular SLAM: call `step` with every frame in order, then `finish`."""

    @classmethod
    def create(
        cls,
        config: SlamConfig | None = None,
        *,
        start_map: ReferenceMap | str | Path | None = None,
        localize_only: bool = False,
        observers: Sequence[Observer] = (),
        images: KeyframeImages | None = None,
        mask: Mask | None = None,
    ) -> Slam:
        """The system with the components that `config` selects; with the defaults if it is None.

        Args:
            start_map: a map, or the folder of one; its predictor is used if `config` does not set one.
            mask: (H, W) uint8; no point is detected or followed where it is zero.
            localize_only, observers, images: as for the constructor.

        Raises:
            MapError: the map cannot be read, or the predictor cannot read it.
            UserError: the requested predictor is not available; the message states why.
        """
        from slam.components.assembly import assemble
        from slam.components.predictor_choice import with_predictor_of

        config = SlamConfig() if config is None else config
        if isinstance(start_map, str | Path):
            from relocalizer.maps.map_reader import load_map

            start_map = load_map(Path(start_map))
        if start_map is not None:
            config = with_predictor_of(start_map.provenance, config)
        components = assemble(config, mask=mask)
        return cls(
            config,
            components,
            observers=observers,
            images=images,
            start_map=start_map,
            localize_only=localize_only,
        )

    def __init__(
        self,
        config: SlamConfig,
        components: Components,
        *,
        observers: Sequence[Observer] = (),
        images: KeyframeImages | None = None,
        start_map: ReferenceMap | None = None,
        localize_only: bool = False,
    ) -> None:
        """Args:
            observers: receive every event, in order. An observer that raises is dropped; see `dropped_observers`.
            images: stores the keyframes' images for the saved map; in memory by default.
            start_map: map to continue: the first frames are relocalized in it, and their poses are in its frame.
            localize_only: never change that map; frames only get poses in it.

        Raises:
            MapError: the predictor cannot read the map.
        """
        predictor, retriever = components.predictor, components.retriever
        self._config = config
        self._predictor = predictor
        self._mapper = mapper = Mapper(
            config, predictor, components.adjuster, lambda event: self._events.publish(event)
        )
        self._map = slam_map = mapper.map
        self._prior_map = PriorMap() if start_map is None else restore(start_map, slam_map, predictor, retriever)
        self._log = log = FrameLog()
        self._watch = Stopwatch()
        self._events = EventPublisher(observers, slam_map)
        self._frame_tracker = frame_tracker = FrameTracker(
            config, components.tracker, slam_map.graph, slam_map.landmarks
        )
        self._initializer = Initializer(config, slam_map.landmarks, frame_tracker, predictor)
        self._rotation_only = RotationOnlyTracker(config, slam_map.landmarks, frame_tracker)
        self._relocalizer = FrameRelocalizer(config.relocalization, slam_map, predictor, retriever)
        loops, publish = config.loop_closing, self._events.publish
        self._odometry_edges = OdometryEdges(loops, mapper, predictor, publish, noise_px=config.tracks.noise_px)
        self._loop_detector = LoopDetector(loops, slam_map, retriever)
        verifier = LoopVerifier(loops, slam_map, predictor, publish)
        self._loop_closer = LoopCloser(loops, mapper, self._loop_detector, verifier, components.optimizer, publish)
        self._deferred = DeferredRelocalizer(config.tracking.look_back, log, frame_tracker, self._relocalizer, publish)
        self._state = TrackingStateMachine(restart_after=None if localize_only else config.tracking.restart_after)
        if self._prior_map.keyframe_ids:
            self._state.set_lost_in_map(self._prior_map.last_id)
        self._localization_mode = (
            LocalizationMode(frame_tracker, self._state, self._relocalize) if localize_only else None
        )
        self._images = MemoryImages() if images is None else images
        self._result: SlamResult | None = None

    # --- one frame -------------------------------------------------------------------------------------

    def step(self, frame: Frame) -> FrameResult:
        """Process the next frame, publish its events to the observers, and return its pose.

        Raises:
            RuntimeError: the run is finished.
        """
        if self._result is not None:
            raise RuntimeError("Slam.step: the run is finished; make a new Slam, which can start in the saved map")
        self._watch = Stopwatch()
        with self._watch("tracks"):
            self._frame_tracker.track(frame)
        if self._state.has_map:
            self._track(frame)
        elif self._localization_mode is None:
            self._initialize(frame)
        else:
            self._state.set_waiting("the map has no keyframe to be found by")
        if not self._state.is_tracking:
            with self._watch("keep for later"):
                self._deferred.keep(frame)
        self._events.frame_processed(frame, self._state, self._frame_tracker, self._watch.stage_ms)
        return FrameResult(
            frame_index=frame.index,
            timestamp_ns=frame.timestamp_ns,
            state=self._state.state,
            reason=self._state.reason,
            world_from_cam=self._frame_tracker.pose if self._state.is_tracking else None,
            keyframe_id=self._state.keyframe_id,
        )

    def finish(self, *, interrupted: bool = False, on_progress: Progress = no_progress) -> SlamResult:
        """Refine the whole map, update all frame poses, and return the result; later calls return the same result.

        Args:
            on_progress: called with (name of the task, steps done, maximum number of steps).
        """
        if self._result is not None:
            return self._result
        if self._log.records:
            self._deferred.relocalize_all(self._continue_from, on_progress)
            if self._localization_mode is None:
                self._complete_map(on_progress)
            self._deferred.report_failures()
        return self._conclude(interrupted=interrupted)

    def abort(self) -> SlamResult:
        """End the run after an exception or an interruption, without further computation."""
        if self._result is not None:
            return self._result
        self.remove_incomplete()
        return self._conclude(interrupted=True)

    def remove_incomplete(self) -> None:
        """Remove the incomplete keyframe that an exception in `step` left; everything before it is complete."""
        self._map.remove_incomplete(lambda k: k in self._images or k in self._prior_map.jpeg)
        self._log.keep_frames_of(self._map.graph.keyframes)

    def set_focal_sigma(self, sigma: float) -> None:
        """State how well the assumed focal length of the frames is known: the standard deviation of its logarithm.

        Without it the focal length counts as assumed from the size of the images alone.
        """
        self._map.assumed_focal_sigma = sigma

    def publish(self, event: Event) -> None:
        """Publish an event from outside the system to the observers."""
        self._events.publish(event)

    def _conclude(self, *, interrupted: bool) -> SlamResult:
        result = collect_result(self._map, self._log, since=self._prior_map.last_id + 1)
        self._result = result = in_units_of_prior_map(result)
        self._events.landmarks_updated(self._log.last_index)
        self._events.run_finished(result, interrupted=interrupted)
        return result

    @property
    def dropped_observers(self) -> list[DroppedObserver]:
        """Observers that raised an exception and receive no more events."""
        return self._events.dropped

    def saved_map(self) -> ReferenceMap:
        """The current map, including the map in which the run started, in the format of a saved map."""
        provenance = provenance_of(self._predictor, self._config.features.model_dump())
        return run_to_reference_map(self._map, self._prior_map, self._log.records, provenance, self._jpeg)

    def save_map(self, folder: str | Path) -> None:
        """Write the current map to a folder that does not exist yet, or replace the map in the folder.

        Raises:
            MapError: there is no keyframe to save.
            OutputError: the folder cannot be written; its previous contents are intact.
        """
        from relocalizer.maps.map_writer import save_map

        saved = self.saved_map()
        if not len(saved.keyframes):
            raise MapError(f"{folder}: there is no map to save: no keyframe was made")
        save_map(Path(folder), saved)

    def make_metric(self, reference: ScaleReference, ground_truth: Trajectory | None = None) -> SlamResult:
        """Scale the finished map, and its result, to meters; a map saved from now on is metric too.

        Raises:
            RuntimeError: the run is not finished.
            ScaleError: the reference does not give a scale; nothing was changed.
            ValueError: the map is metric already.
        """
        if self._result is None:
            raise RuntimeError("Slam.make_metric: finish the run first")
        self._result = in_meters(self._result, reference, ground_truth)
        assert self._result.units.meters_per_unit is not None
        self._events.publish(ScaleSet(meters_per_unit=self._result.units.meters_per_unit, source=reference.source))
        return self._result

    def _jpeg(self, keyframe_id: int) -> bytes:
        """JPEG image of a keyframe of this run, undistorted with the estimated lens correction."""
        jpeg, lens = self._images.jpeg(keyframe_id), self._map.lens_of(keyframe_id)
        if not lens.has_distortion:
            return jpeg
        return encode_jpeg(lens.undistort_image(decode_image(jpeg, f"keyframe {keyframe_id}")), JPEG_QUALITY)

    # --- initialization -------------------------------------------------------------------------------

    def _initialize(self, frame: Frame) -> None:
        """Initialize a map if the frame forms an initial pair with an earlier frame; otherwise wait."""
        with self._watch("initialize"):
            outcome = self._initializer.process(frame)
        if isinstance(outcome, NotInitialized):
            self._state.set_waiting(outcome.reason)
        else:
            self._begin_map(outcome)

    def _begin_map(self, pair: InitialPair) -> None:
        """Insert the first two keyframes of a segment with their landmarks, and localize the frames between them."""
        graph = self._map.graph
        with self._watch("map"):
            a, b = self._mapper.begin_segment(pair)
            self._images.store(a.id, pair.first.frame.image)
            self._images.store(b.id, pair.second.frame.image)
        self._state.map_initialized(a.id, pair.second.frame.index)
        self._events.initialized(pair)
        self._events.keyframe_added(a, "first of the first pair", pair.first.frame.image)
        self._loop_detector.add(a.id)
        for frame, found in localize_initial_frames(pair, self._frame_tracker, graph.world_from_keyframe[a.id].rigid):
            self._log.add(frame, found.world_from_cam, found.landmarks, a.id, graph)
        self._activate_keyframe(pair.second.frame, b, "second of the first pair")

    # --- tracking -------------------------------------------------------------------------------------

    def _track(self, frame: Frame) -> None:
        """Track the frame by KLT; if that fails, relocalize it, or track its rotation; otherwise tracking is lost."""
        with self._watch("pose"):
            found = self._frame_tracker.estimate_pose(frame)
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
        self._state.set_tracked()
        self._frame_tracker.accept(found)
        if self._localization_mode is not None:
            self._localization_mode.replenish(frame)
        elif reason := self._frame_tracker.reason_to_keep(frame, self._state.keyframe_id):
            with self._watch("features"):
                observation = self._frame_tracker.extract(frame)
            self._insert_keyframe(observation, reason)
            return
        self._record_frame(frame)

    def _record_frame(self, frame: Frame) -> None:
        """Record the frame's pose relative to its reference keyframe."""
        tracked = self._frame_tracker.current
        self._log.add(frame, tracked.world_from_cam, tracked.landmarks, self._state.keyframe_id, self._map.graph)

    # --- keyframes ------------------------------------------------------------------------------------

    def _insert_keyframe(self, observation: FrameObservation, reason: str) -> None:
        """Insert the frame as a keyframe: landmarks, odometry edges to covisible keyframes, local bundle adjustment."""
        graph, active = self._map.graph, self._state.keyframe_id
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
        self._state.set_tracking(k)
        self._frame_tracker.reset_to(slam_map.graph.world_from_keyframe[k].rigid, slam_map.landmarks.observed[k])
        self._record_frame(frame)
        self._events.landmarks_updated_after_keyframe(k, frame.index)

    # --- tracking failure -----------------------------------------------------------------------------

    def _relocalize(self, frame: Frame) -> RelocalizedFrame | PoseNotFound:
        """Relocalize the frame in the map; only in some frames during rotation-only tracking."""
        if not self._rotation_only.should_relocalize:
            return PoseNotFound("no place is looked for in this frame of a turn")
        with self._watch("recognize"):
            return self._relocalizer.relocalize(self._frame_tracker.extract(frame), self._state.keyframe_id)

    def _relocalized(self, found: RelocalizedFrame, why: PoseNotFound) -> None:
        """A frame was relocalized after tracking failed; it becomes a keyframe at once."""
        if self._state.is_lost:
            self._events.relocalized(found, self._state.frames_lost)
        self._rotation_only.stop()
        self._frame_tracker.reset_motion()
        self._continue_from(found, f"recognized {len(found.landmarks)} landmarks ({why.reason})")

    def _continue_from(self, found: RelocalizedFrame, reason: str) -> None:
        """Continue from a relocalized frame; insert it as a keyframe if there is a reason and the map may grow."""
        self._state.set_tracking(found.keyframe_id)
        self._frame_tracker.reset_to(found.world_from_cam, found.tracks)
        if self._localization_mode is not None:
            self._localization_mode.set_baseline()
        elif reason:
            self._insert_keyframe(found.observation, reason)
            return
        self._record_frame(found.observation.frame)

    def _track_rotation(self, frame: Frame) -> bool:
        """Track the orientation of a camera that only rotates, and keep its position; False for any other motion."""
        if not self._state.is_tracking or not self._rotation_only.follow(frame):
            return False
        self._state.set_rotation_only(POSITION_HELD)
        if self._rotation_only.starts_new_stretch(frame.index):
            self._events.scale_unobservable(frame, POSITION_HELD)
        self._record_frame(frame)
        return True

    def _lose(self, frame: Frame, why: PoseNotFound, recognized: PoseNotFound) -> None:
        """No pose for this frame. After a while a new segment may start, to be joined to the old one by a loop."""
        if self._state.is_lost:
            self._state.still_lost(recognized.reason)
        else:
            self._state.set_lost(frame.index, f"{why.reason}; {recognized.reason}")
            self._frame_tracker.reset_motion()
            self._rotation_only.stop()
            self._initializer.restart()
            self._events.tracking_lost(frame, self._state.reason)
        if self._state.may_start_new_map:
            self._initialize(frame)

    # --- final steps ----------------------------------------------------------------------------------

    def _complete_map(self, on_progress: Progress) -> None:
        """Join segments, refine the whole map in rounds, and update the pose of every frame in the refined map."""
        mapper, log, prior_keyframes = self._mapper, self._log, self._prior_map.keyframe_ids
        min_inliers = self._config.loop_closing.min_inliers
        if join_segments(self._map, self._relocalizer, self._loop_closer, min_inliers=min_inliers):
            self._deferred.relocalize_all(self._continue_from, on_progress)
        rounds = refine_map(
            mapper,
            self._config.bundle_adjustment,
            frames=len(log),
            keyframes=len(mapper.map.graph.keyframes) - len(prior_keyframes),
            may_calibrate=not prior_keyframes,
            notify=partial(self._events.graph_optimized, log.last_index),
            on_round=partial(on_progress, "rounds of the last refinement"),
        )
        if rounds:
            log.undistort(self._map.lens_of)
            log.refit(self._map.graph, self._frame_tracker.refit)
