"""The whole of SLAM: a frame comes in, it is followed, located, perhaps kept, linked; at the end all is refined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from relocalizer.geometry import Similarity, rotation_matrix
from relocalizer.images import Image
from relocalizer.interfaces import PosePredictor, Retriever
from relocalizer.reference_map import ReferenceMap, provenance_of
from slam.config import SlamConfig
from slam.events import (
    Initialised,
    Observer,
    Relocalised,
    RunFinished,
    ScaleUnobservable,
    TrackingLost,
    TrackingState,
)
from slam.final_refinement import refine_everything
from slam.frame_log import FrameLog
from slam.frames import Frame, Keyframe, Seen
from slam.front_end import FrontEnd, Located, NotLocated
from slam.initialisation import FirstPair, Initialiser, Waiting
from slam.keyframes import KeyframePolicy
from slam.linking import Linker
from slam.looking_back import Unplaced
from slam.mapping import Mapper
from slam.optimizer import GraphOptimizer
from slam.recognition import Place, Recognised, Recogniser
from slam.refinement import Refiner
from slam.reporter import Reporter
from slam.saved_map import Earlier, map_of, restore
from slam.slam_result import SlamResult, Units, gather
from slam.sparsification import Sparsifier
from slam.stopwatch import Stopwatch
from slam.tracks import PointTracker, Tracks
from slam.turning import Turning

MOST_JOINED = 300  # keyframes, the newest, that are looked for in other segments when the run ends
YOUNG = 10  # frames: a map lost sooner after its beginning was begun wrongly, and is begun again at once
FEW_LEFT = 0.6  # of the landmarks recognised; with fewer left to follow, more are looked for


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
        start_map: ReferenceMap | None = None,
        localize_only: bool = False,
    ) -> None:
        """Args:
            start_map: go on in this map: the first frames are looked for in it, and their poses are in its frame.
            localize_only: never change that map; a frame has a pose in it or none.

        Raises:
            MapError: the predictor cannot read the map.
        """
        self._config = config
        self._predictor = predictor
        self._tracker = tracker
        self._mapper = Mapper(config, predictor, refiner)
        self._tell = Reporter(observers, self._mapper)
        self._linker = Linker(config.linking, self._mapper, predictor, retriever, optimizer, self._tell.emit)
        self._recogniser = Recogniser(config.relocalization, self._mapper, predictor, retriever)
        self._front_end = FrontEnd(config, tracker, self._mapper.graph, self._mapper.landmarks)
        self._initialiser = Initialiser(config, self._mapper.landmarks, self._front_end, predictor, tracker)
        self._turning = Turning(config, self._mapper.landmarks, tracker)
        self._policy = KeyframePolicy(config.keyframes)
        self._log = FrameLog()
        self._unplaced = Unplaced(config.relocalization.look_back)
        self._state, self._reason = TrackingState.INITIALISING, "waiting for the first frame"
        self._segment = 0
        self._active = -1  # id of the keyframe the current frame hangs off
        self._frames_lost = 0
        self._patience = config.relocalization.restart_after  # frames lost before a new segment may begin
        self._began_at = -YOUNG  # index of the frame with which the newest segment began
        self._agreeing = Tracks.none()  # landmarks the current pose rests on
        self._watch = Stopwatch()
        self._earlier: Earlier | None = None
        self._units = "map units" if start_map is None else start_map.provenance.units
        self._localize_only = localize_only
        self._few = 0  # of the landmarks followed; below it more are looked for in a map that must not change
        if start_map is not None:
            self._begin_in(start_map, predictor, retriever)
        self._sparsifier = Sparsifier(
            self._mapper,
            self._log,
            retriever,
            beyond=config.keyframes.thin_beyond,
            kept=self._linker.ends_of_loops,
            since=self._mapper.graph.last_id + 1,
        )

    def _begin_in(self, start_map: ReferenceMap, predictor: PosePredictor, retriever: Retriever) -> None:
        self._earlier = restore(start_map, self._mapper, predictor, retriever)
        if self._earlier.keyframe_ids:
            self._state, self._reason = TrackingState.LOST, "looking for a place in the map"
            self._active = self._mapper.graph.last_id

    # --- the story ------------------------------------------------------------------------------------

    def step(self, frame: Frame) -> None:
        """Take the next frame; what comes of it is told to the observers."""
        self._watch = Stopwatch()
        self._agreeing = Tracks.none()
        gray = self._tracker.gray(frame.image)
        with self._watch("tracks"):
            self._front_end.advance(frame, gray)
        if self._state is TrackingState.INITIALISING:
            self._initialise(frame, gray)
        else:
            self._track(frame, gray)
        if self._state is not TrackingState.TRACKING:
            self._unplaced.keep(frame)
        self._report(frame)

    def finish(self, *, interrupted: bool = False) -> SlamResult:
        """Refine the whole map once more, place every frame in it, and say what came out."""
        if self._log.records:
            self._look_back()
            self._refine_everything()
        since = 1 + max(self._earlier.keyframe_ids, default=-1) if self._earlier else 0
        result = self._in_units_of_start(gather(self._mapper, self._log, since=since))
        self._tell.landmarks(self._log.records[-1].index if self._log.records else -1)
        self._tell.emit(
            RunFinished(
                timestamps_ns=result.trajectory.timestamps_ns,
                frame_indices=result.frame_indices,
                world_from_cam=result.trajectory.world_from_cam,
                interrupted=interrupted,
            )
        )
        return result

    def _in_units_of_start(self, result: SlamResult) -> SlamResult:
        """A path in the metric map that the run began in is in metres."""
        ids = self._earlier.keyframe_ids if self._earlier else ()
        there = {self._mapper.graph.segment_of[k] for k in ids}
        if self._units != "metres" or result.segment not in there or not len(result.trajectory):
            return result
        return replace(result, units=Units("metres", "that of the map the run began in"))

    def saved_map(self, jpeg: Callable[[int], bytes]) -> ReferenceMap:
        """The map as it stands, at rest, the map the run began in included.

        Args:
            jpeg: picture of a keyframe of this run, by its id, as the bytes of a JPEG file.
        """
        earlier = self._earlier or Earlier((), [], {})
        known = earlier.jpeg
        return map_of(
            self._mapper,
            [*earlier.frames, *self._log.records],
            replace(provenance_of(self._predictor, self._config.features.model_dump()), units=self._units),
            lambda k: known[k]() if k in known else jpeg(k),
        )

    # --- before the map -------------------------------------------------------------------------------

    def _initialise(self, frame: Frame, gray: Image) -> None:
        with self._watch("initialise"):
            outcome = self._initialiser.take(frame, gray)
        if isinstance(outcome, Waiting):
            self._reason = outcome.reason if self._state is TrackingState.INITIALISING else self._reason
        else:
            self._begin_map(outcome)

    def _begin_map(self, pair: FirstPair) -> None:
        """The first two keyframes of a segment with their landmarks, and poses for the frames between them."""
        first, second = pair.first, pair.second
        self._segment = 1 + max(self._mapper.graph.segment_of.values(), default=-1)
        start = Similarity.identity()
        with self._watch("map"):
            a = self._mapper.insert(first, first.tracks, start, self._segment)
            b = self._mapper.insert(second, second.tracks, Similarity.from_rigid(pair.first_from_second), self._segment)
            self._mapper.remember_pair(a.id, b.id, pair.estimate)
            self._mapper.refine_window(b.id)
        self._state, self._reason, self._frames_lost = TrackingState.TRACKING, "", 0
        self._began_at, self._patience = second.frame.index, self._config.relocalization.restart_after
        landmarks = len(self._mapper.landmarks.placed_ids())
        indices = (first.frame.index, second.frame.index)
        self._tell.emit(Initialised(frame_indices=indices, landmarks=landmarks, parallax_deg=pair.parallax_deg))
        self._tell.keyframe(a, "first of the first pair", first.frame.image)
        self._log.add(first.frame, start.rigid, first.tracks, a.id, self._mapper.graph)
        self._place_between(pair, a.id)
        self._take_up(second.frame, b, "second of the first pair")

    def _place_between(self, pair: FirstPair, keyframe_id: int) -> None:
        pose = self._mapper.graph.world_from_keyframe[keyframe_id].rigid
        for frame, tracks in pair.between:
            found = self._front_end.fit(frame, tracks, pose)
            if isinstance(found, Located):
                pose = found.world_from_cam
                self._log.add(frame, pose, found.landmarks, keyframe_id, self._mapper.graph)

    # --- with a map -----------------------------------------------------------------------------------

    def _track(self, frame: Frame, gray: Image) -> None:
        with self._watch("pose"):
            found = self._front_end.locate(frame)
        if isinstance(found, Located):
            if self._localize_only:
                self._follow_in_map(frame, gray, found)
            else:
                self._place(frame, gray, found)
            return
        recognised: Recognised | NotLocated = NotLocated("no place is looked for in this frame of a turn")
        if self._turning.is_due_for_a_look:
            with self._watch("recognise"):
                recognised = self._recogniser.recognise(self._see(frame, gray), self._active)
        if isinstance(recognised, Recognised):
            self._resume(recognised, found)
        elif not self._turn(frame, gray):
            self._lose(frame, gray, found, recognised)

    def _place(self, frame: Frame, gray: Image, found: Located) -> None:
        """A frame with a pose: it hangs off the active keyframe, or becomes the next one."""
        self._turning.stop()
        self._reason = ""
        self._front_end.moved_to(found.world_from_cam, landmarks=found.landmarks)
        self._agreeing = found.landmarks
        reason = self._reason_to_keep(frame, gray, found)
        if reason:
            with self._watch("features"):
                seen = self._see(frame, gray)
            self._keep(seen, self._front_end.tracks, reason)
        else:
            self._log.add(frame, found.world_from_cam, found.landmarks, self._active, self._mapper.graph)

    def _follow_in_map(self, frame: Frame, gray: Image, found: Located) -> None:
        """A frame with a pose in a map that must not change: when few landmarks are left, more are recognised."""
        self._turning.stop()
        self._reason = ""
        self._front_end.moved_to(found.world_from_cam, landmarks=found.landmarks)
        self._agreeing = found.landmarks
        if len(found.landmarks) < self._few:
            with self._watch("recognise"):
                again = self._recogniser.recognise(self._see(frame, gray), self._active)
            if isinstance(again, Recognised):
                self._front_end.corrected_to(again.world_from_cam)
                self._take_landmarks(again)
            self._few = round(FEW_LEFT * len(self._agreeing))
        self._hang(frame)

    def _take_landmarks(self, found: Recognised) -> None:
        self._active, self._agreeing = found.keyframe_id, found.landmarks
        self._front_end.tracks = found.tracks
        self._few = round(FEW_LEFT * len(found.landmarks))

    def _hang(self, frame: Frame) -> None:
        """Record the frame's pose with the active keyframe."""
        assert self._front_end.pose is not None
        self._log.add(frame, self._front_end.pose, self._agreeing, self._active, self._mapper.graph)

    def _reason_to_keep(self, frame: Frame, gray: Image, found: Located) -> str:
        active, landmarks = self._mapper.graph.keyframes[self._active], self._mapper.landmarks
        before = landmarks.observed[self._active]
        world_from_keyframe = self._mapper.graph.world_from_keyframe[self._active]
        return self._policy.reason_to_keep(
            seen=found.landmarks,
            in_keyframe=before.where(landmarks.has_place(before.ids)),
            camera=frame.camera,
            keyframe_from_frame_rotation=world_from_keyframe.rotation.T @ rotation_matrix(found.world_from_cam),
            frames_since=frame.index - active.frame_index,
            blurred=self._policy.is_blurred(self._tracker.sharpness(gray)),
        )

    def _keep(self, seen: Seen, tracks: Tracks, reason: str) -> None:
        """The frame becomes a keyframe: landmarks, refinement, links, loops."""
        assert self._front_end.pose is not None  # only a located frame is kept
        scale = self._mapper.graph.world_from_keyframe[self._active].scale
        pose = Similarity.from_rigid(self._front_end.pose, scale)
        with self._watch("map"):
            keyframe = self._mapper.insert(seen, tracks, pose, self._segment)
        with self._watch("predictor"):
            self._linker.relate_to_previous(keyframe.id)
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
            self._segment = mapper.graph.segment_of[k]
        self._sparsifier.thin()
        self._active = k
        pose, tracks = mapper.graph.world_from_keyframe[k].rigid, mapper.landmarks.observed[k]
        if self._front_end.pose is None:
            self._front_end.moved_to(pose)
        else:
            self._front_end.corrected_to(pose)
        self._front_end.tracks = tracks
        self._agreeing = tracks.where(mapper.landmarks.has_place(tracks.ids))
        self._log.add(frame, pose, self._agreeing, k, mapper.graph)
        self._tell.landmarks_after(k, frame.index)

    # --- without landmarks ----------------------------------------------------------------------------

    def _turn(self, frame: Frame, gray: Image) -> bool:
        """Keep the orientation of a camera that only turns, its position held; False when that is not what it does."""
        front_end = self._front_end
        if self._state is not TrackingState.TRACKING or front_end.pose is None:
            return False
        pose = self._turning.follow(frame, front_end.before, front_end.tracks, front_end.pose)
        if isinstance(pose, NotLocated):
            return False
        self._reason = "the camera turns where no landmark is known: its position is held"
        if self._turning.is_news(frame.index):
            self._tell.emit(ScaleUnobservable(frame_index=frame.index, reason=self._reason))
        front_end.moved_to(pose)
        front_end.tracks = self._turning.renew(frame, gray, front_end.tracks, pose)
        self._hang(frame)
        return True

    def _resume(self, found: Recognised, why: NotLocated) -> None:
        """Recognised landmarks place a frame that could not be followed; it becomes a keyframe at once."""
        frame = found.seen.frame
        if self._state is TrackingState.LOST:
            self._tell.emit(
                Relocalised(
                    frame_index=frame.index,
                    timestamp_ns=frame.timestamp_ns,
                    keyframe_id=found.keyframe_id,
                    inliers=len(found.landmarks),
                    frames_lost=self._frames_lost,
                )
            )
        self._state, self._reason, self._frames_lost = TrackingState.TRACKING, "", 0
        self._segment = self._mapper.graph.segment_of[found.keyframe_id]
        self._active = found.keyframe_id
        self._turning.stop()
        self._front_end.forget_motion()
        self._front_end.moved_to(found.world_from_cam)
        if self._localize_only:
            self._take_landmarks(found)
            self._hang(frame)
            return
        self._keep(found.seen, found.tracks, f"recognised {len(found.landmarks)} landmarks ({why.reason})")

    def _lose(self, frame: Frame, gray: Image, why: NotLocated, recognised: NotLocated) -> None:
        """No pose for this frame. After a while a new segment may begin, to be tied to the old one by a loop."""
        if self._state is not TrackingState.LOST:
            self._state = TrackingState.LOST
            self._reason = f"{why.reason}; {recognised.reason}"
            if frame.index - self._began_at < YOUNG:
                self._reason = f"the map begun with frame {self._began_at} did not hold: {self._reason}"
                self._patience = 1
            self._front_end.forget_motion()
            self._turning.stop()
            self._initialiser.restart()
            self._tell.emit(TrackingLost(frame_index=frame.index, timestamp_ns=frame.timestamp_ns, reason=self._reason))
        elif self._earlier is not None and not len(self._log):
            self._reason = f"not found in the map: {recognised.reason}"
        self._frames_lost += 1
        if self._frames_lost >= self._patience and not self._localize_only:
            self._initialise(frame, gray)

    # --- the end --------------------------------------------------------------------------------------

    def _look_back(self) -> None:
        """Frames that had no pose are looked for once more: more of the map is known than when they came."""
        self._log.live = False
        self._front_end.forget_motion()
        self._unplaced.forget({r.index for r in self._log.records})
        self._unplaced.place(self._try_again)
        if not self._localize_only:
            self._join_segments()

    def _join_segments(self) -> None:
        """Maps begun apart become one where a keyframe is recognised by an older one of another."""
        graph = self._mapper.graph
        for k in sorted(graph.keyframes)[-MOST_JOINED:]:
            if len(set(graph.segment_of.values())) == 1:
                return
            place = self._recogniser.recognise_elsewhere(k, min_inliers=self._config.linking.loop_min_inliers)
            if isinstance(place, Place):
                self._linker.join(place.keyframe_id, k, place.found)

    def _try_again(self, frame: Frame) -> bool:
        """Place a frame in the map as it stands; it becomes a keyframe where it shows much that is not in one."""
        seen = Seen(frame, self._tracker.detect(self._tracker.gray(frame.image)), Tracks.none())
        found = self._recogniser.recognise(seen, self._log.nearest(frame.timestamp_ns).keyframe_id)
        if isinstance(found, NotLocated):
            return False
        self._tell.placed_later(found)
        self._active, self._agreeing = found.keyframe_id, found.landmarks
        self._segment = self._mapper.graph.segment_of[found.keyframe_id]
        self._front_end.corrected_to(found.world_from_cam)
        if self._localize_only or self._share_seen(found) > FEW_LEFT:
            self._hang(frame)
        else:
            self._keep(seen, found.tracks, f"recognised {len(found.landmarks)} landmarks, looking back")
        return True

    def _share_seen(self, found: Recognised) -> float:
        """How much of what the keyframe saw, by which it was recognised, a picture sees."""
        landmarks = self._mapper.landmarks
        ids = landmarks.observed[found.keyframe_id].ids
        ids = ids[landmarks.has_place(ids)]
        return float(np.isin(ids, found.landmarks.ids).sum()) / max(len(ids), 1)

    def _refine_everything(self) -> None:
        """Rounds over the whole map, then every frame placed in what came out."""
        if self._localize_only:
            return
        last = self._log.records[-1].index
        rounds = refine_everything(
            self._mapper,
            self._config.refinement,
            frames=len(self._log),
            keyframes=len(self._mapper.graph.keyframes) - len(self._earlier.keyframe_ids if self._earlier else ()),
            tell=lambda before, after, cause: self._tell.graph(last, before, after, cause),
        )
        if rounds:
            self._log.place_again(self._mapper.graph, self._front_end.place_again)

    # --- seeing and telling ---------------------------------------------------------------------------

    def _see(self, frame: Frame, gray: Image) -> Seen:
        return Seen(frame, self._tracker.detect(gray), self._front_end.tracks)

    def _report(self, frame: Frame) -> None:
        self._tell.frame(
            frame,
            state=self._state,
            reason=self._reason,
            pose=self._front_end.pose if self._state is TrackingState.TRACKING else None,
            keyframe_id=self._active,
            tracks=self._front_end.tracks,
            agreeing=self._agreeing,
            stage_ms=self._watch.stage_ms,
        )
