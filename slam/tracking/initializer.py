"""The first pair: two images far enough apart that points between them have a depth.

Until there is one nothing is claimed: the initializer says what it waits for, and keeps the tracks of the frames
in between, so that they get their poses once the map exists.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.features import match_features
from relocalizer.geometry import FloatArray, rigid
from relocalizer.guided_matching import match_along_lines
from relocalizer.image_static import share_of_image, standing_still
from relocalizer.interfaces import CONFIDENT, NoEstimate, PairEstimate, PosePredictor
from relocalizer.predictors.geometric_predictor import relate_matches
from relocalizer.triangulation import triangulate
from relocalizer.two_view import Matches, estimate_rotation
from slam.config.schema import SlamConfig
from slam.map.frames import Frame, FrameObservation, InitialPair, TrackedPose
from slam.map.landmarks import LandmarkMap
from slam.map.tracks import Tracks
from slam.predictor_checks import relate
from slam.tracking.camera_at_rest import Rest
from slam.tracking.frame_tracker import FrameTracker
from slam.tracking.keyframe_policy import common_pixels
from slam.tracking.overlay import LEAST

RETRY_GROWTH = 1.15  # the next attempt waits until the tracks have moved this much further
MATCH_RATIO = 0.85
LINE_RATIO, LINE_SIMILARITY = 0.8, 0.8  # of descriptors matched along epipolar lines
# Of the image, that a turn of the camera alone may explain: so much has no depth yet, and what is left may be a thing
# that moves by itself. Pairs that began maps of real sequences had 2 to 54 %.
MOST_TURNED = 0.65
MAX_BETWEEN = 1000  # frames remembered between the two of the pair; of more, every second one


@dataclass(frozen=True, slots=True)
class NotInitialized:
    """No pair yet; `reason` says what is missing."""

    reason: str


@dataclass(slots=True, eq=False)
class ReferenceFrame:
    """An image that may become the first of the pair, and the frames since that its points were followed through."""

    seen: FrameObservation
    use_track_geometry: bool = False
    between: list[tuple[Frame, Tracks]] = field(default_factory=list)

    def remember(self, frame: Frame, tracks: Tracks) -> None:
        self.between.append((frame.without_image(), tracks))
        if len(self.between) > MAX_BETWEEN:
            self.between = self.between[::2]


class Initializer:
    """Holds reference frames and tries later frames against them, until a pair carries a map.

    One reference is followed by its tracks. Where those break, the new image is matched to it and to the ones before
    it, and becomes the next reference when that gives no pair.
    """

    def __init__(
        self,
        config: SlamConfig,
        landmarks: LandmarkMap,
        frame_tracker: FrameTracker,
        predictor: PosePredictor,
    ) -> None:
        self._config = config.initialization
        self._geometric = config.predictor.geometric
        self._noise_px = 1.5 * config.tracks.noise_px
        self._landmarks = landmarks
        self._frame_tracker = frame_tracker
        self._predictor = predictor
        self._references: deque[ReferenceFrame] = deque(
            maxlen=self._config.references
        )  # the one that is followed is first
        self._next_try_px = 0.0
        self._rest = Rest(self._config.min_parallax_px)

    def restart(self) -> None:
        """Forget the references; the next frame is the new one."""
        self._references.clear()
        self._rest = Rest(self._config.min_parallax_px)

    def process(self, frame: Frame) -> InitialPair | NotInitialized:
        """Try the current frame, whose tracks the front end holds, against the reference."""
        if not self._references:
            return self._begin(self._frame_tracker.extract(frame))
        followed = self._references[0]
        before, _ = common_pixels(followed.seen.tracks, self._frame_tracker.tracks)
        if len(before) < self._config.min_landmarks:
            return self._try_descriptors(frame)
        outcome = self._try_tracks(followed, frame)
        if isinstance(outcome, NotInitialized):
            followed.remember(frame, self._frame_tracker.tracks)
        return outcome

    def _begin(self, observation: FrameObservation) -> NotInitialized:
        """Take this frame as the reference that is followed."""
        features = observation.features
        tracks = self._landmarks.start(features.pixels, features.descriptors, observation.frame.image)
        witnesses = self._frame_tracker.tracks.where(self._rest.is_witness(self._frame_tracker.tracks.ids))
        self._frame_tracker.tracks = tracks = tracks.joined(witnesses)
        self._references.appendleft(ReferenceFrame(replace(observation, tracks=tracks)))
        self._next_try_px = self._config.min_parallax_px
        return NotInitialized(f"{len(features)} points to follow")

    def _try_tracks(self, first: ReferenceFrame, frame: Frame) -> InitialPair | NotInitialized:
        resting = self._leave_out_what_is_no_world(first.seen.tracks, frame)
        if resting is not None:
            return resting
        before, now = common_pixels(first.seen.tracks, self._frame_tracker.tracks)
        moved = float(np.median(np.linalg.norm(now - before, axis=1))) if len(now) else 0.0
        if moved < self._next_try_px:
            return NotInitialized(f"tracks moved {moved:.1f} px, {self._next_try_px:.1f} needed")
        self._next_try_px = RETRY_GROWTH * moved
        return self._try(first, self._frame_tracker.extract(frame))

    def _leave_out_what_is_no_world(self, first: Tracks, frame: Frame) -> NotInitialized | None:
        """Drop tracks that stand still while the world moves, or that move while it rests; why to wait, if it rests."""
        frame_tracker = self._frame_tracker
        ids = np.intersect1d(first.ids, frame_tracker.tracks.ids, assume_unique=True)
        before, now = common_pixels(first, frame_tracker.tracks)
        crossing = self._rest.crossing(ids, before, now, frame.camera)
        if crossing is not None:
            frame_tracker.leave_out(ids[crossing])
            return NotInitialized(self._rest.reason) if self._rest.reason else None
        still = standing_still(Matches(before.astype(np.float64), now.astype(np.float64), frame.camera, frame.camera))
        if still.sum() >= LEAST:
            frame_tracker.leave_out_overlay(now[still])
            frame_tracker.leave_out(ids[still])
        return None

    def _try_descriptors(self, frame: Frame) -> InitialPair | NotInitialized:
        """Where the step was too wide to follow, points of the references are recognized by their descriptors."""
        observation = self._frame_tracker.extract(frame)
        reasons = []
        for reference in self._references:
            outcome = self._try_reference(reference, observation)
            if isinstance(outcome, InitialPair):
                return outcome
            reasons.append(outcome.reason)
        self._begin(observation)
        return NotInitialized(f"tracks broke: {reasons[0]}")

    def _try_reference(self, first: ReferenceFrame, observation: FrameObservation) -> InitialPair | NotInitialized:
        features = observation.features
        pairs = match_features(first.seen.features, features, ratio=MATCH_RATIO)
        pairs = pairs[~self._is_overlay(first.seen, observation, pairs)]
        tracks = Tracks(first.seen.tracks.ids[pairs[:, 0]], features.pixels[pairs[:, 1]])
        needed = min(self._config.min_confirming, self._config.min_landmarks)
        if len(tracks) < needed:
            return NotInitialized(f"{len(tracks)} points recognized, {needed} needed")
        return self._try(first, replace(observation, tracks=tracks), by_descriptors=True)

    def _is_overlay(
        self, first: FrameObservation, second: FrameObservation, pairs: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Which matches (N, 2) stand still in the image while the others move; no points are begun there."""
        before = first.features.pixels[pairs[:, 0]].astype(np.float64)
        now = second.features.pixels[pairs[:, 1]].astype(np.float64)
        still = standing_still(Matches(before, now, first.frame.camera, second.frame.camera))
        if still.any():
            self._frame_tracker.leave_out_overlay(second.features.pixels[pairs[still, 1]])
        return still

    def _try(
        self, first: ReferenceFrame, second: FrameObservation, *, by_descriptors: bool = False
    ) -> InitialPair | NotInitialized:
        """Relate the reference to a frame, and see whether their common tracks give enough landmarks."""
        if first.use_track_geometry:
            return self._validate(first, second, self._relate_tracks(first.seen, second), by_descriptors)
        encoded = [observation.encoded(self._predictor) for observation in (first.seen, second)]
        estimate = relate(self._predictor, *encoded)
        outcome = self._validate(first, second, estimate, by_descriptors)
        if isinstance(outcome, NotInitialized) and _is_of_a_network(estimate):
            # It may be off by degrees, while tracks tell a pose to a fraction of one: where they disagree, they decide,
            # and a network that takes long to answer need not be asked again.
            first.use_track_geometry = True
            outcome = self._validate(first, second, self._relate_tracks(first.seen, second), by_descriptors)
        return outcome

    def _relate_tracks(self, first: FrameObservation, second: FrameObservation) -> PairEstimate | NoEstimate:
        """The pose of the pair from the tracks that both frames see, and nothing else."""
        before, now = common_pixels(first.tracks, second.tracks)
        pixels = before.astype(np.float64), now.astype(np.float64)
        return relate_matches(Matches(*pixels, first.frame.camera, second.frame.camera), self._geometric)

    def _validate(
        self, first: ReferenceFrame, second: FrameObservation, estimate: PairEstimate | NoEstimate, by_descriptors: bool
    ) -> InitialPair | NotInitialized:
        if isinstance(estimate, NoEstimate):
            return NotInitialized(estimate.reason)
        if estimate.i_from_j_direction is None:
            return NotInitialized(estimate.direction_unknown)
        if by_descriptors and estimate.confidence >= CONFIDENT:
            second = _seen_along_lines(first.seen, second, estimate.i_from_j_rotation, estimate.i_from_j_direction)
        return self._triangulate_pair(first, second, estimate, estimate.i_from_j_direction)

    def _triangulate_pair(
        self, first: ReferenceFrame, second: FrameObservation, estimate: PairEstimate, direction: FloatArray
    ) -> InitialPair | NotInitialized:
        config, camera = self._config, first.seen.frame.camera
        before, now = common_pixels(first.seen.tracks, second.tracks)
        result = triangulate(
            camera.normalized(before),
            second.frame.camera.normalized(now),
            rigid(estimate.i_from_j_rotation, direction),
            noise=self._noise_px / camera.mean_focal,
            min_parallax_rad=float(np.radians(config.min_landmark_parallax_deg)),
        )
        good, needed = int(result.good.sum()), self._needed(estimate)
        if good < needed:
            return NotInitialized(f"{good} of {len(before)} tracks agree with a first pair, {needed} needed")
        parallax = float(np.degrees(np.median(result.parallax_rad[result.good])))
        if parallax < config.min_parallax_deg:
            return NotInitialized(f"parallax {parallax:.2f} deg, {config.min_parallax_deg:g} needed")
        turning = self._waits_while_turning(first.seen, second, estimate.i_from_j_rotation)
        if turning is not None:
            return turning
        length = 1.0 / float(np.median(result.points_i[result.good, 2]))
        pose = rigid(estimate.i_from_j_rotation, length * direction)
        seen = self._frame_tracker.without_overlay(first.seen)
        return InitialPair(seen, self._frame_tracker.without_overlay(second), estimate, pose, parallax, first.between)

    def _waits_while_turning(
        self, first: FrameObservation, second: FrameObservation, rotation: FloatArray
    ) -> NotInitialized | None:
        """Why to wait when a turn of the camera explains most of the image; what moves far against it is dropped."""
        ids = np.intersect1d(first.tracks.ids, second.tracks.ids, assume_unique=True)
        before, now = common_pixels(first.tracks, second.tracks)
        pair = Matches(before.astype(np.float64), now.astype(np.float64), first.frame.camera, second.frame.camera)
        turn = estimate_rotation(pair, rotation, self._geometric.epipolar_px)
        turned = share_of_image(now, turn.inliers, second.frame.camera)
        if turned <= MOST_TURNED:
            return None
        self._frame_tracker.leave_out(ids[turn.residual_px >= self._config.min_parallax_px])
        return NotInitialized(
            f"the camera stands still or only turns: that explains {turned:.0%} of the image, at most "
            f"{MOST_TURNED:.0%} allowed, and what else moves may be something that crosses it"
        )

    def _needed(self, estimate: PairEstimate) -> int:
        """Landmarks that the pair must give: fewer where its pose rests on matches that leave little doubt."""
        config = self._config
        sure = estimate.confidence >= CONFIDENT and estimate.inliers >= config.min_confirming
        return min(config.min_confirming, config.min_landmarks) if sure else config.min_landmarks


def localize_initial_frames(
    pair: InitialPair, frame_tracker: FrameTracker, world_from_first: RigidTransform
) -> Iterator[tuple[Frame, TrackedPose]]:
    """The first frame and those between the two, now that there is a map for their tracks.

    Frames that do not fit it are left out. `world_from_first` is where the refined map has the first.
    """
    yield pair.first.frame, TrackedPose(world_from_first, pair.first.tracks)
    pose = world_from_first
    for frame, tracks in pair.between:
        found = frame_tracker.estimate_from(frame, tracks, pose)
        if isinstance(found, TrackedPose):
            pose = found.world_from_cam
            yield frame, found


def _seen_along_lines(
    first: FrameObservation, second: FrameObservation, rotation: FloatArray, direction: FloatArray
) -> FrameObservation:
    """The second frame with more of the first's points: those that were not to be told apart without a pose."""
    pairs = match_along_lines(
        first.features,
        second.features,
        first.frame.camera,
        second.frame.camera,
        rotation,
        direction,
        ratio=LINE_RATIO,
        min_similarity=LINE_SIMILARITY,
    )
    more = Tracks(first.tracks.ids[pairs[:, 0]], second.features.pixels[pairs[:, 1]])
    return replace(second, tracks=second.tracks.with_new(more))


def _is_of_a_network(estimate: PairEstimate | NoEstimate) -> bool:
    """Whether it is a whole pose that rests on no matches."""
    return isinstance(estimate, PairEstimate) and estimate.i_from_j_direction is not None and estimate.inliers == 0
