"""The whole of SLAM: a frame comes in, it is followed, located, perhaps kept, linked; at the end all is refined."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from relocalizer.geometry import Similarity
from relocalizer.images import decode_image, encode_jpeg
from relocalizer.interfaces import PosePredictor, Retriever
from relocalizer.map_folder import JPEG_QUALITY
from relocalizer.reference_map import ReferenceMap, provenance_of
from slam.config import SlamConfig
from slam.events import Event, Observer
from slam.final_refinement import refine_everything
from slam.following import Following
from slam.frame_log import FrameLog
from slam.frames import Frame, Keyframe, Seen
from slam.front_end import FrontEnd, Located, NotLocated
from slam.initialisation import FirstPair, Initialiser, Waiting, begin_segment, placed
from slam.keyframe_images import KeyframeImages, MemoryImages
from slam.linking import Linker
from slam.looking_back import LookingBack, join_segments
from slam.mapping import Mapper
from slam.optimizer import GraphOptimizer
from slam.progress import Progress, untold
from slam.recognition import Recognised, Recogniser
from slam.refinement import Refiner
from slam.reporter import DroppedObserver, Reporter
from slam.saved_map import Earlier, in_units_of_earlier, map_of_run, restore
from slam.slam_result import SlamResult, gather
from slam.stopwatch import Stopwatch
from slam.tracks import PointTracker
from slam.turning import HELD, Turning
from slam.whereabouts import Whereabouts


class Slam:
    """Monocular SLAM: `step` every frame in order, then `finish`."""

    def __init__(
        self,
        config: SlamConfig,
        *,
        predictor: PosePredictor,
        tracker: PointTracker,
        retriever: Retriever,
        optimizer: GraphOptimizer,
        refiner: Refiner,
        observers: Sequence[Observer] = (),
        images: KeyframeImages | None = None,
        start_map: ReferenceMap | None = None,
        localize_only: bool = False,
    ) -> None:
        """Args:
            observers: are told every event. One that raises is dropped, and `dropped_observers` says which and why.
            images: keeps the keyframes' images for the map that is saved; in memory by default.
            start_map: go on in this map: the first frames are looked for in it, and their poses are in its frame.
            localize_only: never change that map; a frame has a pose in it or none.

        Raises:
            MapError: the predictor cannot read the map.
        """
        self._config = config
        self._predictor = predictor
        self._mapper = mapper = Mapper(config, predictor, refiner, lambda event: self._tell.emit(event))
        self._earlier = Earlier() if start_map is None else restore(start_map, mapper, predictor, retriever)
        self._log = log = FrameLog()
        self._watch = Stopwatch()
        self._tell = Reporter(observers, mapper)
        self._front_end = front_end = FrontEnd(config, tracker, mapper.graph, mapper.landmarks)
        self._initialiser = Initialiser(config, mapper.landmarks, front_end, predictor)
        self._turning = Turning(config, mapper.landmarks, front_end)
        self._recogniser = Recogniser(config.relocalization, mapper, predictor, retriever)
        self._linker = Linker(config.linking, mapper, predictor, retriever, optimizer, self._tell.emit)
        self._looking_back = LookingBack(config.relocalization.look_back, log, front_end, self._recogniser, self._tell)
        self._where = Whereabouts(restart_after=None if localize_only else config.relocalization.restart_after)
        if self._earlier.keyframe_ids:
            self._where.look_in_map(self._earlier.last_id)
        self._following = Following(front_end, self._where, self._recognise) if localize_only else None
        self._images = MemoryImages() if images is None else images
        self._result: SlamResult | None = None

    # --- the story ------------------------------------------------------------------------------------

    def step(self, frame: Frame) -> None:
        """Take the next frame; what comes of it is told to the observers.

        Raises:
            RuntimeError: the run is finished.
        """
        if self._result is not None:
            raise RuntimeError("Slam.step: the run is finished; make a new Slam, which can start in the saved map")
        self._watch = Stopwatch()
        with self._watch("tracks"):
            self._front_end.advance(frame)
        if self._where.has_map:
            self._track(frame)
        elif self._following is None:
            self._initialise(frame)
        else:
            self._where.wait("the map has no keyframe to be found by")
        if not self._where.is_tracking:
            with self._watch("keep for later"):
                self._looking_back.keep(frame)
        self._tell.frame(frame, self._where, self._front_end, self._watch.stage_ms)

    def finish(self, *, interrupted: bool = False, on_progress: Progress = untold) -> SlamResult:
        """Refine the whole map once more, place every frame in it, and say what came out; the same when asked again.

        Args:
            on_progress: called with (what, how many are done, of how many at most) while that takes time.
        """
        if self._result is not None:
            return self._result
        if self._log.records:
            self._looking_back.place(self._take_in, on_progress)
            if self._following is None:
                self._complete_map(on_progress)
            self._looking_back.tell_left()
        return self._conclude(interrupted=interrupted)

    def abort(self) -> SlamResult:
        """End the run where an exception or the user has broken it off: nothing more is computed."""
        if self._result is not None:
            return self._result
        self.remove_incomplete()
        return self._conclude(interrupted=True)

    def remove_incomplete(self) -> None:
        """Take out what an exception in `step` has left half made; everything before it is whole."""
        self._mapper.remove_incomplete(lambda k: k in self._images or k in self._earlier.jpeg)
        self._log.keep_frames_of(self._mapper.graph.keyframes)

    def publish(self, event: Event) -> None:
        """Tell the observers of something that happened outside of the system."""
        self._tell.emit(event)

    def _conclude(self, *, interrupted: bool) -> SlamResult:
        result = gather(self._mapper, self._log, since=self._earlier.last_id + 1)
        self._result = result = in_units_of_earlier(result)
        self._tell.landmarks(self._log.last_index)
        self._tell.finished(result, interrupted=interrupted)
        return result

    @property
    def dropped_observers(self) -> list[DroppedObserver]:
        """Observers that raised and hear no more."""
        return self._tell.dropped

    def saved_map(self) -> ReferenceMap:
        """The map as it stands, at rest, the map the run began in included."""
        provenance = provenance_of(self._predictor, self._config.features.model_dump())
        return map_of_run(self._mapper, self._earlier, self._log.records, provenance, self._jpeg)

    def _jpeg(self, keyframe_id: int) -> bytes:
        """The image of a keyframe of this run as a JPEG file, undistorted by the lens that was found."""
        jpeg, lens = self._images.jpeg(keyframe_id), self._mapper.lens_of(keyframe_id)
        if not lens.bends:
            return jpeg
        return encode_jpeg(lens.picture(decode_image(jpeg, f"keyframe {keyframe_id}")), JPEG_QUALITY)

    # --- before the map -------------------------------------------------------------------------------

    def _initialise(self, frame: Frame) -> None:
        """Begin a map when the frame makes a pair with an earlier one, else wait."""
        with self._watch("initialise"):
            outcome = self._initialiser.take(frame)
        if isinstance(outcome, Waiting):
            self._where.wait(outcome.reason)
        else:
            self._begin_map(outcome)

    def _begin_map(self, pair: FirstPair) -> None:
        """The first two keyframes of a segment with their landmarks, and poses for the frames between them."""
        graph = self._mapper.graph
        with self._watch("map"):
            a, b = begin_segment(pair, self._mapper)
            self._images.store(a.id, pair.first.frame.image)
            self._images.store(b.id, pair.second.frame.image)
        self._where.begin(a.id, pair.second.frame.index)
        self._tell.initialised(pair)
        self._tell.keyframe(a, "first of the first pair", pair.first.frame.image)
        self._linker.remember(a.id)
        for frame, found in placed(pair, self._front_end, graph.world_from_keyframe[a.id].rigid):
            self._log.add(frame, found.world_from_cam, found.landmarks, a.id, graph)
        self._take_up(pair.second.frame, b, "second of the first pair")

    # --- with a map -----------------------------------------------------------------------------------

    def _track(self, frame: Frame) -> None:
        """Follow the camera; where that fails recognise the place, or at least how it turns; else it is lost."""
        with self._watch("pose"):
            found = self._front_end.locate(frame)
        if isinstance(found, Located):
            self._follow(frame, found)
            return
        recognised = self._recognise(frame)
        if isinstance(recognised, Recognised):
            self._resume(recognised, found)
        elif not self._turn(frame):
            self._lose(frame, found, recognised)

    def _follow(self, frame: Frame, found: Located) -> None:
        """A frame with a pose: it hangs off the active keyframe, or becomes the next one."""
        self._turning.stop()
        self._where.follow()
        self._front_end.accept(found)
        if self._following is not None:
            self._following.renew(frame)
        elif reason := self._front_end.reason_to_keep(frame, self._where.keyframe_id):
            with self._watch("features"):
                seen = self._front_end.see(frame)
            self._keep(seen, reason)
            return
        self._hang(frame)

    def _hang(self, frame: Frame) -> None:
        """Remember where the frame is by its keyframe."""
        here = self._front_end.here
        self._log.add(frame, here.world_from_cam, here.landmarks, self._where.keyframe_id, self._mapper.graph)

    # --- a keyframe -----------------------------------------------------------------------------------

    def _keep(self, seen: Seen, reason: str) -> None:
        """The frame becomes a keyframe: landmarks, the relation to the one before, refinement."""
        graph, active = self._mapper.graph, self._where.keyframe_id
        pose = Similarity.from_rigid(self._front_end.here.world_from_cam, graph.world_from_keyframe[active].scale)
        with self._watch("map"):
            keyframe = self._mapper.insert(seen, self._front_end.tracks, pose, graph.segment_of[active])
            self._images.store(keyframe.id, seen.frame.image)
        with self._watch("predictor"):
            self._linker.relate_to_covisible(keyframe.id)
        with self._watch("refine"):
            self._mapper.refine_window(keyframe.id)
        self._take_up(seen.frame, keyframe, reason)

    def _take_up(self, frame: Frame, keyframe: Keyframe, reason: str) -> None:
        """Link a new keyframe, close loops from it, and go on from where that leaves it."""
        mapper, k = self._mapper, keyframe.id
        self._tell.keyframe(keyframe, reason, frame.image)
        with self._watch("link"):
            self._linker.watch_scale(k, 0.5 * self._config.landmarks.min_parallax_deg)
            self._linker.tie_to_neighbours(k, self._config.refinement.window)
            closed = self._linker.close_loops(k)
            self._linker.remember(k)
        if closed:
            with self._watch("refine"):
                mapper.refine_window(k)
        self._where.at(k)
        self._front_end.go_on_from(mapper.graph.world_from_keyframe[k].rigid, mapper.landmarks.observed[k])
        self._hang(frame)
        self._tell.landmarks_after(k, frame.index)

    # --- not followed ---------------------------------------------------------------------------------

    def _recognise(self, frame: Frame) -> Recognised | NotLocated:
        """Look for the frame's place in the map; seldom while the camera turns where nothing is known."""
        if not self._turning.is_due_for_a_look:
            return NotLocated("no place is looked for in this frame of a turn")
        with self._watch("recognise"):
            return self._recogniser.recognise(self._front_end.see(frame), self._where.keyframe_id)

    def _resume(self, found: Recognised, why: NotLocated) -> None:
        """Recognised landmarks place a frame that could not be followed; it becomes a keyframe at once."""
        if self._where.is_lost:
            self._tell.relocalised(found, self._where.frames_lost)
        self._turning.stop()
        self._front_end.forget_motion()
        self._take_in(found, f"recognised {len(found.landmarks)} landmarks ({why.reason})")

    def _take_in(self, found: Recognised, reason: str) -> None:
        """Go on from where a frame was recognised, as a keyframe when there is a reason and the map may grow."""
        self._where.at(found.keyframe_id)
        self._front_end.go_on_from(found.world_from_cam, found.tracks)
        if self._following is not None:
            self._following.count()
        elif reason:
            self._keep(found.seen, reason)
            return
        self._hang(found.seen.frame)

    def _turn(self, frame: Frame) -> bool:
        """Keep the orientation of a camera that only turns, its position held; False when that is not what it does."""
        if not self._where.is_tracking or not self._turning.follow(frame):
            return False
        self._where.hold(HELD)
        if self._turning.is_news(frame.index):
            self._tell.scale_unobservable(frame, HELD)
        self._hang(frame)
        return True

    def _lose(self, frame: Frame, why: NotLocated, recognised: NotLocated) -> None:
        """No pose for this frame. After a while a new segment may begin, to be tied to the old one by a loop."""
        if self._where.is_lost:
            self._where.stay_lost(recognised.reason)
        else:
            self._where.lose(frame.index, f"{why.reason}; {recognised.reason}")
            self._front_end.forget_motion()
            self._turning.stop()
            self._initialiser.restart()
            self._tell.lost(frame, self._where.reason)
        if self._where.may_begin_anew:
            self._initialise(frame)

    # --- the end --------------------------------------------------------------------------------------

    def _complete_map(self, on_progress: Progress) -> None:
        """Join maps begun apart, refine all in rounds, and place every frame in what came out."""
        mapper, log, earlier = self._mapper, self._log, self._earlier
        least = self._config.linking.loop_min_inliers
        if join_segments(mapper, self._recogniser, self._linker, min_inliers=least):
            self._looking_back.place(self._take_in, on_progress)
        rounds = refine_everything(
            mapper,
            self._config.refinement,
            frames=len(log),
            keyframes=len(mapper.graph.keyframes) - len(earlier.keyframe_ids),
            may_calibrate=not earlier.keyframe_ids,
            tell=partial(self._tell.graph, log.last_index),
            on_round=partial(on_progress, "rounds of the last refinement"),
        )
        if rounds:
            log.straighten(mapper.lens_of)
            log.place_again(mapper.graph, self._front_end.place_again)
