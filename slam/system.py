"""The SLAM system: tracking, keyframe insertion, relocalization, loop closing, and the final refinement."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from relocalizer.errors import MapError
from relocalizer.images import Image, decode_image, encode_jpeg
from relocalizer.maps.map_format import JPEG_QUALITY
from relocalizer.maps.reference_map import ReferenceMap, provenance_of
from slam.components.modules import build_modules
from slam.config.schema import SlamConfig
from slam.event_publisher import DroppedObserver
from slam.events import Event, Observer, ScaleSet
from slam.frame_processor import FrameProcessor
from slam.loop_closing.segment_joining import join_segments
from slam.map.frames import Frame
from slam.map.keyframe_images import KeyframeImages, MemoryImages
from slam.mapping.global_refinement import refine_map, run_cost_s
from slam.photos.photo_processor import PhotoProcessor
from slam.progress import Progress, no_progress
from slam.result import FrameResult, SlamResult, collect_result
from slam.sessions.metric_scale import ScaleReference, in_meters
from slam.sessions.stored_map import PriorMap, in_units_of_prior_map, restore, run_to_reference_map

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
        modules = build_modules(config, components, observers, MemoryImages() if images is None else images)
        self._config = config
        self._predictor = components.predictor
        self._localize_only = localize_only
        self._map = modules.map
        self._mapper = modules.mapper
        self._log = modules.log
        self._images = modules.images
        self._events = modules.events
        self._frame_tracker = modules.frame_tracker
        self._relocalizer = modules.relocalizer
        self._deferred = modules.deferred
        self._loop_closer = modules.loop_closer
        self._photo_processor: PhotoProcessor | None = None
        if config.input.unordered and not localize_only:
            self._photo_processor = PhotoProcessor(config, modules, components.predictor)
        self._frame_processor = FrameProcessor(config, modules, localize_only=localize_only)
        self._prior_map = PriorMap()
        if start_map is not None:
            self._prior_map = restore(start_map, modules.map, components.predictor, components.retriever)
        if self._prior_map.keyframe_ids:
            self._frame_processor.state.set_lost_in_map(self._prior_map.last_id)
        self._result: SlamResult | None = None

    # --- one frame -------------------------------------------------------------------------------------

    def step(self, frame: Frame) -> FrameResult:
        """Process the next frame, publish its events to the observers, and return its pose.

        Raises:
            RuntimeError: the run is finished.
        """
        if self._result is not None:
            raise RuntimeError("Slam.step: the run is finished; make a new Slam, which can start in the saved map")
        return (self._photo_processor or self._frame_processor).process(frame)

    def finish(self, *, interrupted: bool = False, on_progress: Progress = no_progress) -> SlamResult:
        """Refine the whole map, update all frame poses, and return the result; later calls return the same result.

        Args:
            on_progress: called with (name of the task, steps done, maximum number of steps).
        """
        if self._result is not None:
            return self._result
        self._frame_processor.take_up_keyframe()
        if self._photo_processor is not None:
            self._photo_processor.map_photos(on_progress)
        if self._log.records:
            self._relocalize_deferred(on_progress)
            if not self._localize_only:
                self._complete_map(on_progress)
            self._deferred.report_failures()
        return self._conclude(interrupted=interrupted)

    def abort(self) -> SlamResult:
        """End the run after an exception or an interruption, without further computation."""
        if self._result is not None:
            return self._result
        self.remove_incomplete()
        return self._conclude(interrupted=True, measure=False)

    def remove_incomplete(self) -> None:
        """Remove the incomplete keyframe that an exception in `step` left; everything before it is complete.

        A keyframe that another thread is inserting is waited for and kept; if that fails, its exception is raised,
        and a second call removes it.
        """
        self._frame_processor.background.complete()
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

    def _conclude(self, *, interrupted: bool, measure: bool = True) -> SlamResult:
        result = collect_result(self._map, self._log, since=self._prior_map.last_id + 1, measure=measure)
        self._result = result = in_units_of_prior_map(result)
        self._events.landmarks_updated(self._log.last_index)
        self._events.run_finished(result, interrupted=interrupted)
        return result

    @property
    def dropped_observers(self) -> list[DroppedObserver]:
        """Observers that raised an exception and receive no more events."""
        return self._events.dropped

    def saved_map(self) -> ReferenceMap:
        """The current map, including the map in which the run started, in the format of a saved map.

        A keyframe that another thread is inserting is waited for and part of it, the frames since are not.
        """
        self._frame_processor.background.wait()
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
        self._result = in_meters(self._result, self._map, reference, ground_truth, self._keyframe_image)
        units = self._result.units
        assert units.meters_per_unit is not None
        self._events.publish(ScaleSet(meters_per_unit=units.meters_per_unit, source=units.source))
        return self._result

    def _keyframe_image(self, keyframe_id: int) -> Image:
        """The undistorted image of a keyframe, of this run or of the map in which it started."""
        return decode_image(self._prior_map.image(keyframe_id, self._jpeg), f"keyframe {keyframe_id}")

    def _jpeg(self, keyframe_id: int) -> bytes:
        """JPEG image of a keyframe of this run, undistorted with the estimated lens correction."""
        jpeg, lens = self._images.jpeg(keyframe_id), self._map.lens_of(keyframe_id)
        if not lens.has_distortion:
            return jpeg
        return encode_jpeg(lens.undistort_image(decode_image(jpeg, f"keyframe {keyframe_id}")), JPEG_QUALITY)

    # --- final steps ----------------------------------------------------------------------------------

    def _relocalize_deferred(self, on_progress: Progress) -> None:
        processor = self._photo_processor or self._frame_processor
        self._deferred.relocalize_all(processor.continue_from, on_progress)

    def _complete_map(self, on_progress: Progress) -> None:
        """Join segments, refine the whole map in rounds, and update the pose of every frame in the refined map."""
        mapper, log, prior_keyframes = self._mapper, self._log, self._prior_map.keyframe_ids
        min_inliers = self._config.loop_closing.min_inliers
        candidates_of = None if self._photo_processor is None else self._photo_processor.overlapping
        if join_segments(
            self._map, self._relocalizer, self._loop_closer, min_inliers=min_inliers, candidates_of=candidates_of
        ):
            self._relocalize_deferred(on_progress)
        rounds = refine_map(
            mapper,
            self._config.bundle_adjustment,
            budget_s=run_cost_s(frames=len(log), keyframes=len(mapper.map.graph.keyframes) - len(prior_keyframes)),
            may_calibrate=not prior_keyframes,
            notify=partial(self._events.graph_optimized, log.last_index),
            on_round=partial(on_progress, "rounds of the final bundle adjustment"),
        )
        if rounds:
            log.undistort(self._map.lens_of)
            log.refit(self._map.graph, self._frame_tracker.refit)
