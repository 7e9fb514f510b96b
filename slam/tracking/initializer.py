"""Map initialization from two frames with enough parallax to triangulate their common tracks.

Until such a pair is found, the initializer reports what is missing, and keeps the tracks of the frames between the
two, which are localized once the map exists.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.features import match_features
from relocalizer.geometry import FloatArray, rigid
from relocalizer.guided_matching import match_along_lines
from relocalizer.image_static import share_of_image, standing_still
from relocalizer.interfaces import CONFIDENT, NoEstimate, PairEstimate, PosePredictor
from relocalizer.pair_fits import rotations_of
from relocalizer.predictors.geometric_predictor import relate_matches
from relocalizer.triangulation import triangulate
from relocalizer.two_view import Matches, estimate_rotation
from slam.config.schema import SlamConfig
from slam.map.frames import Frame, FrameObservation, InitialPair, TrackedPose
from slam.map.slam_map import SlamMap
from slam.map.tracks import Pixels, Tracks
from slam.predictor_checks import relate
from slam.tracking.camera_at_rest import Rest
from slam.tracking.frame_tracker import FrameTracker
from slam.tracking.keyframe_policy import common_pixels, median_parallax_px
from slam.tracking.overlay import LEAST

# Factor by which the motion of the tracks that no rotation explains must grow before the next attempt. Their whole
# motion grows with a turn, and shrinks with the turn back, whatever the parallax.
RETRY_GROWTH = 1.15
MATCH_RATIO = 0.85  # maximum ratio of descriptor distances, best to second best (Lowe's ratio test)
LINE_RATIO, LINE_SIMILARITY = 0.8, 0.8  # ratio test and minimum similarity of matching along epipolar lines
# Maximum fraction of the image that a pure rotation may explain: that part has no depth yet, and the rest may be a
# moving object. Initial pairs of real sequences had 2 to 54 %.
MAX_ROTATION_RATIO = 0.65
MAX_BETWEEN = 1000  # maximum number of frames kept between the two of the pair; beyond it, every second one is dropped


@dataclass(frozen=True, slots=True)
class NotInitialized:
    """No initial pair yet; `reason` states what is missing."""

    reason: str


@dataclass(slots=True, eq=False)
class ReferenceFrame:
    """A candidate for the first frame of the pair, and the later frames through which its points were tracked."""

    observation: FrameObservation
    use_track_geometry: bool = False
    between: list[tuple[Frame, Tracks]] = field(default_factory=list)

    def add_between(self, frame: Frame, tracks: Tracks) -> None:
        self.between.append((frame.without_image(), tracks))
        if len(self.between) > MAX_BETWEEN:
            self.between = self.between[::2]


class Initializer:
    """Tries each new frame against earlier reference frames, until a pair gives enough landmarks for a map.

    The newest reference is tracked by KLT. When its tracks break, the new frame is matched by descriptors to all
    references, and becomes the next reference when none of them gives a pair.
    """

    def __init__(
        self,
        config: SlamConfig,
        slam_map: SlamMap,
        frame_tracker: FrameTracker,
        predictor: PosePredictor,
    ) -> None:
        self._config = config.initialization
        self._geometric = config.predictor.geometric
        self._noise_px = 1.5 * config.tracks.noise_px
        self._map = slam_map
        self._frame_tracker = frame_tracker
        self._predictor = predictor
        # The reference that is tracked comes first.
        self._references: deque[ReferenceFrame] = deque(maxlen=self._config.references)
        self._next_try_px = 0.0
        self._rest = Rest(self._config.min_parallax_px)

    def restart(self) -> None:
        """Forget the references; the next frame becomes the new reference."""
        self._references.clear()
        self._rest = Rest(self._config.min_parallax_px)

    def process(self, frame: Frame) -> InitialPair | NotInitialized:
        """Try the newest frame of the frame tracker against the references."""
        if not self._references:
            return self._set_reference(self._frame_tracker.extract(frame))
        followed = self._references[0]
        before, _ = common_pixels(followed.observation.tracks, self._frame_tracker.tracks)
        if len(before) < self._config.min_landmarks:
            return self._try_descriptors(frame)
        outcome = self._try_tracks(followed, frame)
        if isinstance(outcome, NotInitialized):
            followed.add_between(frame, self._frame_tracker.tracks)
        return outcome

    def pair_of(self, first: FrameObservation, second: FrameObservation) -> InitialPair | NotInitialized:
        """The initial pair of two images that are matched by their descriptors; the references are forgotten."""
        self.restart()
        self._set_reference(first)
        outcome = self._try_reference(self._references[0], second)
        self.restart()
        return outcome

    def _set_reference(self, observation: FrameObservation) -> NotInitialized:
        """Use this frame as the reference that is tracked."""
        features = observation.features
        tracks = self._map.start_tracks(features.pixels, features.descriptors, observation.frame.image)
        witnesses = self._frame_tracker.tracks.where(self._rest.is_witness(self._frame_tracker.tracks.ids))
        self._frame_tracker.tracks = tracks = tracks.joined(witnesses)
        self._references.appendleft(ReferenceFrame(replace(observation, tracks=tracks)))
        self._next_try_px = 0.0
        return NotInitialized(f"{len(features)} points to follow")

    def _try_tracks(self, first: ReferenceFrame, frame: Frame) -> InitialPair | NotInitialized:
        resting = self._remove_dynamic_tracks(first.observation.tracks, frame)
        if resting is not None:
            return resting
        before, now = common_pixels(first.observation.tracks, self._frame_tracker.tracks)
        moved = float(np.median(np.linalg.norm(now - before, axis=1))) if len(now) else 0.0
        if moved < self._config.min_parallax_px:
            return NotInitialized(f"tracks moved {moved:.1f} px, {self._config.min_parallax_px:.1f} needed")
        unexplained = _beyond_rotation_px(before, now, frame.camera)
        if unexplained < self._next_try_px:
            return NotInitialized(
                f"tracks moved {moved:.1f} px, {unexplained:.1f} px of it by more than a turn, "
                f"{self._next_try_px:.1f} needed"
            )
        self._next_try_px = RETRY_GROWTH * unexplained
        return self._try(first, self._frame_tracker.extract(frame))

    def _remove_dynamic_tracks(self, first: Tracks, frame: Frame) -> NotInitialized | None:
        """Drop overlay tracks while the camera moves, and moving tracks while it is at rest; why to wait if it is."""
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
        """After a step too wide for KLT: match the points of the references by their descriptors."""
        observation = self._frame_tracker.extract(frame)
        reasons = []
        for reference in self._references:
            outcome = self._try_reference(reference, observation)
            if isinstance(outcome, InitialPair):
                return outcome
            reasons.append(outcome.reason)
        self._set_reference(observation)
        return NotInitialized(f"tracks broke: {reasons[0]}")

    def _try_reference(self, first: ReferenceFrame, observation: FrameObservation) -> InitialPair | NotInitialized:
        features = observation.features
        pairs = match_features(first.observation.features, features, ratio=MATCH_RATIO)
        pairs = pairs[~self._is_overlay(first.observation, observation, pairs)]
        tracks = Tracks(first.observation.tracks.ids[pairs[:, 0]], features.pixels[pairs[:, 1]])
        needed = min(self._config.min_confirming, self._config.min_landmarks)
        if len(tracks) < needed:
            return NotInitialized(f"{len(tracks)} points matched, {needed} needed")
        return self._try(first, replace(observation, tracks=tracks), by_descriptors=True)

    def _is_overlay(
        self, first: FrameObservation, second: FrameObservation, pairs: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Mask (N,) of the matches (N, 2) that are static while the rest move; no new points start there."""
        before = first.features.pixels[pairs[:, 0]].astype(np.float64)
        now = second.features.pixels[pairs[:, 1]].astype(np.float64)
        still = standing_still(Matches(before, now, first.frame.camera, second.frame.camera))
        if still.any():
            self._frame_tracker.leave_out_overlay(second.features.pixels[pairs[still, 1]])
        return still

    def _try(
        self, first: ReferenceFrame, second: FrameObservation, *, by_descriptors: bool = False
    ) -> InitialPair | NotInitialized:
        """Estimate the relative pose, and check that the common tracks give enough landmarks with it."""
        if first.use_track_geometry:
            return self._validate(first, second, self._relate_tracks(first.observation, second), by_descriptors)
        encoded = [observation.encoded(self._predictor) for observation in (first.observation, second)]
        estimate = relate(self._predictor, *encoded)
        outcome = self._validate(first, second, estimate, by_descriptors)
        if isinstance(outcome, NotInitialized) and _is_from_network(estimate):
            # A network's pose may be off by degrees, while tracks determine it to a fraction of a degree. The tracks
            # are used where the two disagree, and the slow network is not queried again for this reference.
            first.use_track_geometry = True
            outcome = self._validate(first, second, self._relate_tracks(first.observation, second), by_descriptors)
        return outcome

    def _relate_tracks(self, first: FrameObservation, second: FrameObservation) -> PairEstimate | NoEstimate:
        """Relative pose from the common tracks alone."""
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
            second = _with_epipolar_matches(
                first.observation, second, estimate.i_from_j_rotation, estimate.i_from_j_direction
            )
        return self._triangulate_pair(first, second, estimate, estimate.i_from_j_direction)

    def _triangulate_pair(
        self, first: ReferenceFrame, second: FrameObservation, estimate: PairEstimate, direction: FloatArray
    ) -> InitialPair | NotInitialized:
        config, camera = self._config, first.observation.frame.camera
        before, now = common_pixels(first.observation.tracks, second.tracks)
        result = triangulate(
            camera.normalized(before),
            second.frame.camera.normalized(now),
            rigid(estimate.i_from_j_rotation, direction),
            noise=self._noise_px / camera.mean_focal,
            min_parallax_rad=float(np.radians(config.min_landmark_parallax_deg)),
        )
        good, needed = int(result.good.sum()), self._min_landmarks(estimate)
        if good < needed:
            return NotInitialized(f"{good} of {len(before)} tracks agree with a first pair, {needed} needed")
        parallax = float(np.degrees(np.median(result.parallax_rad[result.good])))
        if parallax < config.min_parallax_deg:
            return NotInitialized(f"parallax {parallax:.2f} deg, {config.min_parallax_deg:g} needed")
        rotating = self._check_rotation(first.observation, second, estimate.i_from_j_rotation)
        if rotating is not None:
            return rotating
        length = 1.0 / float(np.median(result.points_i[result.good, 2]))
        pose = rigid(estimate.i_from_j_rotation, length * direction)
        first_observation, second = (self._frame_tracker.without_overlay(o) for o in (first.observation, second))
        return InitialPair(first_observation, second, estimate, pose, parallax, first.between)

    def _check_rotation(
        self, first: FrameObservation, second: FrameObservation, rotation: FloatArray
    ) -> NotInitialized | None:
        """Why to wait when a pure rotation explains most of the image; tracks with a large residual are dropped."""
        ids = np.intersect1d(first.tracks.ids, second.tracks.ids, assume_unique=True)
        before, now = common_pixels(first.tracks, second.tracks)
        pair = Matches(before.astype(np.float64), now.astype(np.float64), first.frame.camera, second.frame.camera)
        pure_rotation = estimate_rotation(pair, rotation, self._geometric.epipolar_px)
        explained = share_of_image(now, pure_rotation.inliers, second.frame.camera)
        if explained <= MAX_ROTATION_RATIO:
            return None
        self._frame_tracker.leave_out(ids[pure_rotation.residual_px >= self._config.min_parallax_px])
        return NotInitialized(
            f"the camera stands still or only turns: that explains {explained:.0%} of the image, at most "
            f"{MAX_ROTATION_RATIO:.0%} allowed, and what else moves may be something that crosses it"
        )

    def _min_landmarks(self, estimate: PairEstimate) -> int:
        """Minimum number of landmarks of the pair: fewer for a pose estimated confidently from enough matches."""
        config = self._config
        confident = estimate.confidence >= CONFIDENT and estimate.inliers >= config.min_confirming
        return min(config.min_confirming, config.min_landmarks) if confident else config.min_landmarks


def localize_initial_frames(
    pair: InitialPair, frame_tracker: FrameTracker, world_from_first: RigidTransform
) -> Iterator[tuple[Frame, TrackedPose]]:
    """Poses of the first frame and of the frames between the two, from their tracks in the new map.

    Frames without enough inliers are left out. `world_from_first` is the pose of the first frame in the refined map.
    """
    yield pair.first.frame, TrackedPose(world_from_first, pair.first.tracks)
    pose = world_from_first
    for frame, tracks in pair.between:
        found = frame_tracker.estimate_from(frame, tracks, pose)
        if isinstance(found, TrackedPose):
            pose = found.world_from_cam
            yield frame, found


def _with_epipolar_matches(
    first: FrameObservation, second: FrameObservation, rotation: FloatArray, direction: FloatArray
) -> FrameObservation:
    """The second observation with more points of the first, matched along epipolar lines: ambiguous without a pose."""
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


def _beyond_rotation_px(before: Pixels, now: Pixels, camera: Camera) -> float:
    """Median motion of points (N, 2) that the rotation that fits most of them does not explain, pixels."""
    pair = Matches(before.astype(np.float64), now.astype(np.float64), camera, camera)
    [before_from_now_rotation] = rotations_of(pair.rays_j[None], pair.rays_i[None], np.ones((1, len(now))))
    return median_parallax_px(before, now, camera, before_from_now_rotation)


def _is_from_network(estimate: PairEstimate | NoEstimate) -> bool:
    """Whether the estimate is a full pose without matches."""
    return isinstance(estimate, PairEstimate) and estimate.i_from_j_direction is not None and estimate.inliers == 0
