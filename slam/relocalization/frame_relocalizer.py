"""Relocalization of frames that KLT could not track: after a wide step, and after a loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.averaging import RelativePoseObservation, average_pose
from relocalizer.confidence import ErrorBound
from relocalizer.config import RelocalizationConfig
from relocalizer.geometry import rotation_matrix, translation_of
from relocalizer.interfaces import Candidate, Encoded, PairEstimate, PosePredictor, Retriever
from relocalizer.landmark_localizer import (
    LandmarkLocalizer,
    LandmarkPose,
    PosePrediction,
    RejectedPose,
    TooFewLandmarks,
)
from relocalizer.pose_from_matches import (
    FeatureMatches,
    ObservedImage,
    match_along_lines_of,
    match_keyframes,
)
from relocalizer.triangulation import depths_in
from slam.events import PlaceAttempt
from slam.map.frames import FrameObservation, PoseNotFound
from slam.map.image_points import MatchedPoints
from slam.map.slam_map import SlamMap
from slam.map.tracks import Tracks
from slam.predictor_checks import relate

COVISIBLE_KEYFRAMES = 8  # number of covisible keyframes matched besides the candidate
MIN_POINTS = 12  # minimum number of features in the image, and of matches with a candidate keyframe
NEAREST_IN_TIME = 2  # number of keyframes of other segments that are tried for their time, not their descriptor
NEIGHBORS = 3  # number of covisible keyframes matched along epipolar lines for untriangulated points
MIN_BASELINE_RATIO = 0.02  # minimum baseline for usable epipolar lines, as a fraction of the median depth


@dataclass(frozen=True, slots=True, eq=False)
class RelocalizedFrame:
    """A frame relocalized from keyframe `keyframe_id` and its covisible keyframes.

    Attributes:
        landmarks: inlier landmarks of the pose.
        tracks: tracks to continue with: the inlier landmarks, and matched points that are not triangulated yet.
    """

    observation: FrameObservation
    world_from_cam: RigidTransform
    keyframe_id: int
    landmarks: Tracks
    tracks: Tracks


@dataclass(frozen=True, slots=True, eq=False)
class PlaceMatch:
    """A pose of an image at the place of keyframe `keyframe_id`."""

    keyframe_id: int
    pose: LandmarkPose


class FrameRelocalizer:
    """Relocalizes frames: tries the reference keyframe first, then the most similar keyframes by place recognition.

    Attributes:
        attempts: the keyframes that the last call of `relocalize` tried, in order.
    """

    def __init__(
        self, config: RelocalizationConfig, slam_map: SlamMap, predictor: PosePredictor, retriever: Retriever
    ) -> None:
        self._config = config
        self._map = slam_map
        self._predictor = predictor
        self._retriever = retriever
        self._localizer = LandmarkLocalizer(slam_map, config)
        self.attempts: list[PlaceAttempt] = []
        self._direction: tuple[float, float, float] | None = None  # of the last pair estimate, map axes
        self._confidence = np.nan  # of the last pair estimate

    def relocalize(
        self, observation: FrameObservation, active: int, *, among: Sequence[int] | None = None
    ) -> RelocalizedFrame | PoseNotFound:
        """The frame's pose from the landmarks of keyframe `active` or of similar keyframes, or why it was not found.

        Args:
            among: the keyframes to try after `active`, in place of the most similar ones.
        """
        image = ObservedImage(observation.features, observation.frame.camera)
        self.attempts = []
        if len(image.features) < MIN_POINTS:
            return PoseNotFound(f"{len(image.features)} points in the image, {MIN_POINTS} needed")
        encoded = observation.encoded(self._predictor)
        similar = self._most_similar(observation, active) if among is None else []
        best: RejectedPose | TooFewLandmarks = TooFewLandmarks("no keyframe to compare with", -1)
        for c in [active, *(among or (candidate.key for candidate in similar))]:
            outcome = self._try(image, encoded, c)
            self._note_attempt(c, similar, outcome)
            if isinstance(outcome, LandmarkPose):
                return self._relocalized(observation, image, PlaceMatch(c, outcome))
            best = max(best, outcome, key=lambda refused: refused.landmarks)
        return PoseNotFound(best.reason)

    def _most_similar(self, observation: FrameObservation, active: int) -> list[Candidate]:
        """The most similar keyframes but `active`."""
        descriptor, _ = observation.descriptor(self._predictor)
        return self._retriever.query(descriptor, self._config.candidates, frozenset([active]))

    def _note_attempt(
        self, c: int, similar: Sequence[Candidate], outcome: LandmarkPose | RejectedPose | TooFewLandmarks
    ) -> None:
        self.attempts.append(
            PlaceAttempt(
                keyframe_id=c,
                similarity=next((float(other.similarity) for other in similar if other.key == c), np.nan),
                landmarks=outcome.inliers if isinstance(outcome, LandmarkPose) else outcome.landmarks,
                reason="" if isinstance(outcome, LandmarkPose) else outcome.reason,
                direction_world=self._direction,
                confidence=self._confidence,
            )
        )

    def matched_points(self, found: RelocalizedFrame) -> MatchedPoints:
        """The inlier landmarks of a relocalized frame that its keyframe observes, as pixels in both images."""
        observed = self._map.landmarks.observed[found.keyframe_id]
        _, i, j = np.intersect1d(observed.ids, found.landmarks.ids, assume_unique=True, return_indices=True)
        return MatchedPoints(observed.pixels[i], found.landmarks.pixels[j], np.ones(len(i), bool)).thinned()

    def find_in_other_segments(
        self, k: int, *, min_inliers: int, among: Sequence[int] | None = None
    ) -> Iterator[PlaceMatch]:
        """Poses of keyframe k at older keyframes of other segments, each with at least `min_inliers` landmarks.

        Args:
            among: the keyframes to try; by default the most similar ones, and those nearest in time, because one
                segment may begin where another ends.
        """
        graph = self._map.graph
        keyframe = graph.keyframes[k]
        image = ObservedImage(keyframe.features, keyframe.camera)
        for c in self._likely_in_other_segments(k) if among is None else among:
            if c >= k or graph.segment_of[c] == graph.segment_of[k]:  # newer, or joined meanwhile
                continue
            outcome = self._try(image, keyframe.encoded, c)
            if isinstance(outcome, LandmarkPose) and outcome.inliers >= min_inliers:
                yield PlaceMatch(c, outcome)

    def _likely_in_other_segments(self, k: int) -> list[int]:
        """Older keyframes of other segments: those most similar to keyframe k, and those nearest to it in time."""
        graph = self._map.graph
        keyframe = graph.keyframes[k]
        others = [i for i in graph.keyframes if i < k and graph.segment_of[i] != graph.segment_of[k]]
        excluded = frozenset(graph.keyframes) - frozenset(others)
        similar = self._retriever.query(keyframe.descriptor, self._config.candidates, excluded)
        nearest_in_time = sorted(others, key=lambda i: abs(graph.keyframes[i].frame_index - keyframe.frame_index))[
            :NEAREST_IN_TIME
        ]
        return list(dict.fromkeys([*(candidate.key for candidate in similar), *nearest_in_time]))

    def observed_ratio(self, found: RelocalizedFrame) -> float:
        """Fraction (0 to 1) of the landmarks of the matched keyframe that the relocalized frame observes."""
        ids = self._map.observed_landmarks([found.keyframe_id])
        return float(np.isin(ids, found.landmarks.ids).sum()) / max(len(ids), 1)

    def _try(self, image: ObservedImage, encoded: Encoded, c: int) -> LandmarkPose | RejectedPose | TooFewLandmarks:
        """Localize an image at the place of keyframe c.

        The candidate alone is matched first: that takes milliseconds, the predictor much longer, and most candidates
        are wrong.
        """
        self._direction, self._confidence = None, np.nan
        own = match_keyframes(image.features, [c], self._map, ratio=self._config.match_ratio)
        if len(own) < MIN_POINTS:
            return TooFewLandmarks(f"{len(own)} points of keyframe {c} matched, {MIN_POINTS} needed", len(own))
        estimate = relate(self._predictor, self._map.graph.keyframes[c].encoded, encoded)
        prediction = PosePrediction({})
        if isinstance(estimate, PairEstimate):
            self._confidence = float(estimate.confidence)
            observation = RelativePoseObservation(self._map.pose_of(c).rigid, estimate)
            prediction = PosePrediction({c: estimate}, average_pose([observation]))
            if estimate.i_from_j_direction is not None:
                x, y, z = (self._map.pose_of(c).rotation @ estimate.i_from_j_direction).tolist()
                self._direction = x, y, z
        keyframes = [c, *self._map.covisible(c, COVISIBLE_KEYFRAMES)]
        bound = ErrorBound.of_segment(self._median_depth(c), "map units")
        return self._localizer.locate(image, keyframes, prediction, bound, own)

    def _relocalized(self, observation: FrameObservation, image: ObservedImage, place: PlaceMatch) -> RelocalizedFrame:
        found = place.pose.found
        landmarks = self._tracks(image, found.matches)
        more = self._match_untriangulated(image, place)
        tracks = landmarks.joined(self._tracks(image, more))
        return RelocalizedFrame(observation, found.fit.world_from_cam, place.keyframe_id, landmarks, tracks)

    @staticmethod
    def _tracks(image: ObservedImage, matches: FeatureMatches) -> Tracks:
        return Tracks(matches.landmark, image.features.pixels[matches.feature])

    def _match_untriangulated(self, image: ObservedImage, place: PlaceMatch) -> FeatureMatches:
        """Untriangulated points of the keyframe and its most covisible keyframes that the image shows too.

        They are matched along epipolar lines of the known pose, to be triangulated later.
        """
        found = place.pose.found
        known = found.matches.with_new(place.pose.untriangulated)
        for k in [place.keyframe_id, *self._map.covisible(place.keyframe_id, NEIGHBORS)]:
            k_from_cam = self._map.pose_of(k).rigid.inv() * found.fit.world_from_cam
            baseline = translation_of(k_from_cam)
            if float(np.linalg.norm(baseline)) > MIN_BASELINE_RATIO * self._median_depth(k):
                matches = match_along_lines_of(image, k, rotation_matrix(k_from_cam), baseline, self._map)
                known = known.with_new(matches.where(~self._map.is_triangulated(matches.landmark)))
        return known.where(np.arange(len(known)) >= len(found.matches))

    def _median_depth(self, k: int) -> float:
        """Median depth of the landmarks of keyframe k, map units; infinite without any."""
        ids = self._map.observed_landmarks([k])
        if len(ids) == 0:
            return float("inf")
        return float(np.median(depths_in(self._map.points_world(ids), self._map.pose_of(k).rigid)))
