"""Relocalization of frames that KLT could not track: after a wide step, and after a loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures, occupied_cells
from relocalizer.geometry import FloatArray, rotation_matrix, translation_of
from relocalizer.guided_matching import first_of_each, match_along_lines
from relocalizer.interfaces import (
    CONFIDENT,
    Encoded,
    NoEstimate,
    PairEstimate,
    PosePredictor,
    Retriever,
    is_confident,
)
from relocalizer.triangulation import depths_in
from slam.config.schema import RelocalizationConfig
from slam.map.frames import FrameObservation, PoseNotFound
from slam.map.slam_map import SlamMap
from slam.map.tracks import Tracks
from slam.predictor_checks import relate
from slam.relocalization.pose_from_matches import (
    EstimatedPose,
    FeatureMatches,
    PlaceNotMatched,
    estimate_pose,
    match_keyframes,
    prior_confidence,
    refine_with_guided_matching,
)

COVISIBLE_KEYFRAMES = 3  # number of covisible keyframes matched besides the candidate
PROJECTED_KEYFRAMES = 20  # number of covisible keyframes whose landmarks are matched by projection
CHANCE_RATIO = 1 / 3  # expected inlier ratio at a wrong pose after refinement
MIN_POINTS = 12  # minimum number of features in the image, and of matches with a candidate keyframe
MIN_HYPOTHESIS = 8  # minimum number of inliers of a pose that is refined further
MIN_FIRST_MATCHES = 8  # minimum number of matches with a candidate keyframe, whatever `min_inliers` is
NEAREST_IN_TIME = 2  # number of keyframes of other segments that are tried for their time, not their descriptor
NEIGHBORS = 3  # number of covisible keyframes matched along epipolar lines for untriangulated points
LINE_RATIO, LINE_SIMILARITY = 0.8, 0.8  # ratio test and minimum similarity of matching along epipolar lines
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
    """A pose of an image at the place of keyframe `keyframe_id`.

    Attributes:
        found: the pose and its matches.
        confidence: confidence of the pair estimate, if consistent with the pose; otherwise 0.
    """

    keyframe_id: int
    found: EstimatedPose
    confidence: float

    def is_enough(self, landmarks: int) -> bool:
        return len(self.found.matches.tracks) >= landmarks

    @property
    def reason(self) -> str:
        return f"{len(self.found.matches.tracks)} landmarks around keyframe {self.keyframe_id} agree"


class FrameRelocalizer:
    """Relocalizes frames: tries the reference keyframe first, then the most similar keyframes by place recognition."""

    def __init__(
        self, config: RelocalizationConfig, slam_map: SlamMap, predictor: PosePredictor, retriever: Retriever
    ) -> None:
        self._config = config
        self._map = slam_map
        self._predictor = predictor
        self._retriever = retriever

    def relocalize(self, observation: FrameObservation, active: int) -> RelocalizedFrame | PoseNotFound:
        """The frame's pose from the landmarks of keyframe `active` or of similar keyframes, or why it was not found."""
        features, camera = observation.features, observation.frame.camera
        if len(features) < MIN_POINTS:
            return PoseNotFound(f"{len(features)} points in the image, {MIN_POINTS} needed")
        encoded = observation.encoded(self._predictor)
        descriptor, _ = observation.descriptor(self._predictor)
        similar = self._retriever.query(descriptor, self._config.candidates, frozenset([active]))
        best = PlaceNotMatched("no keyframe to compare with", -1)
        for c in [active, *(candidate.key for candidate in similar)]:
            outcome = self._try(features, camera, encoded, c)
            if isinstance(outcome, PlaceMatch):
                landmarks = outcome.found.matches.tracks
                more = self._match_untriangulated(features, camera, outcome)
                pose, tracks = outcome.found.fit.world_from_cam, landmarks.joined(more)
                return RelocalizedFrame(observation, pose, c, landmarks, tracks)
            best = max(best, outcome, key=lambda refused: refused.landmarks)
        return PoseNotFound(best.reason)

    def find_in_other_segments(self, k: int, *, min_inliers: int) -> Iterator[PlaceMatch]:
        """Poses of keyframe k at older keyframes of other segments, each with at least `min_inliers` landmarks.

        Tries the most similar keyframes, and those nearest in time: one segment may begin where another ends.
        """
        graph = self._map.graph
        keyframe = graph.keyframes[k]
        others = [i for i in graph.keyframes if i < k and graph.segment_of[i] != graph.segment_of[k]]
        excluded = frozenset(graph.keyframes) - frozenset(others)
        similar = self._retriever.query(keyframe.descriptor, self._config.candidates, excluded)
        nearest_in_time = sorted(others, key=lambda i: abs(graph.keyframes[i].frame_index - keyframe.frame_index))[
            :NEAREST_IN_TIME
        ]
        for c in dict.fromkeys([*(candidate.key for candidate in similar), *nearest_in_time]):
            if graph.segment_of[c] == graph.segment_of[k]:  # joined meanwhile
                continue
            outcome = self._try(keyframe.features, keyframe.camera, keyframe.encoded, c)
            if isinstance(outcome, PlaceMatch) and outcome.is_enough(min_inliers):
                yield outcome

    def observed_ratio(self, found: RelocalizedFrame) -> float:
        """Fraction (0 to 1) of the landmarks of the matched keyframe that the relocalized frame observes."""
        landmarks = self._map.landmarks
        ids = landmarks.observed[found.keyframe_id].ids
        ids = ids[landmarks.is_triangulated(ids)]
        return float(np.isin(ids, found.landmarks.ids).sum()) / max(len(ids), 1)

    def _try(self, features: LocalFeatures, camera: Camera, encoded: Encoded, c: int) -> PlaceMatch | PlaceNotMatched:
        matches = match_place(features, c, self._map, min_inliers=2 * MIN_POINTS)
        if isinstance(matches, PlaceNotMatched):
            return PlaceNotMatched(matches.reason)
        estimate = relate(self._predictor, self._map.graph.keyframes[c].encoded, encoded)
        first = estimate_pose_at_place(
            features,
            camera,
            c,
            matches,
            estimate,
            self._map,
            min_inliers=min(MIN_HYPOTHESIS, self._config.min_confirming),
            covisible_keyframes=self._config.covisible_keyframes,
            search_too=True,
            along_lines=True,
        )
        if not isinstance(first, EstimatedPose):
            return first
        pose_c = self._map.graph.world_from_keyframe[c]
        confident = prior_confidence(first.fit.world_from_cam, estimate, pose_c) >= CONFIDENT
        found = self._refine_pose(features, camera, c, first, use_depth_uncertainty=confident)
        return self._verify(PlaceMatch(c, found, prior_confidence(found.fit.world_from_cam, estimate, pose_c)), camera)

    def _match_untriangulated(self, features: LocalFeatures, camera: Camera, place: PlaceMatch) -> Tracks:
        """Untriangulated points of the keyframe and its most covisible keyframes that the image shows too.

        They are matched along epipolar lines of the known pose, to be triangulated later.
        """
        graph, landmarks, found = self._map.graph, self._map.landmarks, place.found
        more = found.matches.tracks.joined(found.untriangulated)
        for k in [place.keyframe_id, *self._map.covisible(place.keyframe_id, NEIGHBORS)]:
            k_from_cam = graph.world_from_keyframe[k].rigid.inv() * found.fit.world_from_cam
            if not self._has_baseline(k, k_from_cam):
                continue
            lines = rotation_matrix(k_from_cam), translation_of(k_from_cam)
            tracks = match_lines_of(features, camera, k, *lines, self._map).tracks
            more = more.with_new(tracks.where(~landmarks.is_triangulated(tracks.ids)))
        return more.where(np.arange(len(more)) >= len(found.matches.tracks))

    def _has_baseline(self, k: int, k_from_cam: RigidTransform) -> bool:
        """Whether the baseline to keyframe k is long enough, relative to k's median depth, for epipolar lines."""
        graph, landmarks = self._map.graph, self._map.landmarks
        ids = landmarks.observed[k].ids
        ids = ids[landmarks.is_triangulated(ids)]
        if len(ids) == 0:
            return False
        depths = depths_in(landmarks.points_world(ids, graph), graph.world_from_keyframe[k].rigid)
        return float(np.linalg.norm(translation_of(k_from_cam))) > MIN_BASELINE_RATIO * float(np.median(depths))

    def _refine_pose(
        self, features: LocalFeatures, camera: Camera, c: int, first: EstimatedPose, *, use_depth_uncertainty: bool
    ) -> EstimatedPose:
        graph, landmarks = self._map.graph, self._map.landmarks
        keyframe_ids = [c, *self._map.covisible(c, PROJECTED_KEYFRAMES)]
        ids = np.unique(np.concatenate([landmarks.observed[k].ids for k in keyframe_ids]))
        return refine_with_guided_matching(
            first,
            features,
            camera,
            ids[landmarks.is_triangulated(ids)],
            landmarks,
            graph,
            radius_px=self._config.search_radius_px,
            min_similarity=self._config.min_similarity,
            use_depth_uncertainty=use_depth_uncertainty,
        )

    def _verify(self, place: PlaceMatch, camera: Camera) -> PlaceMatch | PlaceNotMatched:
        """Accept the pose only with enough inliers, inlier ratio and spread: a false pose is worse than none."""
        config, found = self._config, place.found
        count, among = len(found.matches.tracks), f"landmarks around keyframe {place.keyframe_id} agree"
        needed = needed_landmarks(place.confidence, config)
        ratio = needed_share(len(found.fit.inliers), config.min_share, place.confidence)
        if count < needed or found.share < ratio:
            return PlaceNotMatched(
                f"{count} of {len(found.fit.inliers)} {among}, {needed} and {ratio:.0%} needed", count
            )
        cells = occupied_cells(found.matches.tracks.pixels, camera)
        if cells < config.min_cells and place.confidence < CONFIDENT:
            cells_needed = f"in {cells} cells of the image, {config.min_cells} needed"
            return PlaceNotMatched(f"{count} {among}, but {cells_needed}", count)
        return place


def needed_landmarks(confidence: float, config: RelocalizationConfig) -> int:
    """Minimum number of inliers, given the confidence of a consistent pair estimate: fewer for a higher confidence."""
    uncertainty = max(0.0, 1.0 - confidence / CONFIDENT)
    return round(config.min_confirming + uncertainty * max(0, config.min_inliers - config.min_confirming))


def needed_share(recognized: int, most: float, confidence: float = 0.0) -> float:
    """Minimum inlier ratio of `recognized` landmarks: two standard deviations above chance, at most `most`.

    One standard deviation with a confident, consistent pair estimate. Before global refinement the inlier ratio at the
    right place is lower, but the inlier count is high.
    """
    deviation = float(np.sqrt(CHANCE_RATIO * (1 - CHANCE_RATIO) / max(recognized, 1)))
    return min(most, CHANCE_RATIO + (2 if confidence < CONFIDENT else 1) * deviation)


def match_place(
    features: LocalFeatures, c: int, slam_map: SlamMap, *, min_inliers: int
) -> FeatureMatches | PlaceNotMatched:
    """Matches of keyframe c's tracks in an image, or why they are too few for the image to show c's place.

    To be called before the predictor: it takes milliseconds, a network much longer, and most candidates are wrong.
    """
    matches = match_keyframes(features, [c], slam_map.graph, slam_map.landmarks)
    enough = max(MIN_FIRST_MATCHES, min_inliers // 2)
    if len(matches.tracks) < enough:
        recognized = len(matches.tracks)
        return PlaceNotMatched(f"{recognized} points of keyframe {c} recognized, {enough} needed", recognized)
    return matches


def estimate_pose_at_place(
    features: LocalFeatures,
    camera: Camera,
    c: int,
    matches: FeatureMatches,
    estimate: PairEstimate | NoEstimate,
    slam_map: SlamMap,
    *,
    min_inliers: int,
    min_confirming: int | None = None,
    covisible_keyframes: int = COVISIBLE_KEYFRAMES,
    search_too: bool = False,
    along_lines: bool = False,
) -> EstimatedPose | PlaceNotMatched:
    """The pose of an image that may show the place of keyframe c, from landmarks of c and its covisible keyframes.

    With `along_lines` and a confident estimate, more of c's points are matched along epipolar lines, and the
    uncertainty of the landmarks' depths is considered.

    Args:
        matches: matches with c alone, from `match_place`; the covisible keyframes are matched here.
    """
    graph, landmarks = slam_map.graph, slam_map.landmarks
    matches = match_keyframes(features, slam_map.covisible(c, covisible_keyframes), graph, landmarks, earlier=matches)
    confident = along_lines and is_confident(estimate)
    if confident:
        assert isinstance(estimate, PairEstimate)
        assert estimate.i_from_j_direction is not None
        lines = estimate.i_from_j_rotation, estimate.i_from_j_direction
        matches = matches.with_new(match_lines_of(features, camera, c, *lines, slam_map))
    return estimate_pose(
        matches,
        camera,
        landmarks,
        graph,
        reference=c,
        estimate=estimate,
        min_inliers=min_inliers,
        min_confirming=min_confirming,
        search_too=search_too,
        use_depth_uncertainty=confident,
    )


def match_lines_of(
    features: LocalFeatures,
    camera: Camera,
    k: int,
    k_from_cam_rotation: FloatArray,
    k_from_cam_direction: FloatArray,
    slam_map: SlamMap,
) -> FeatureMatches:
    """Tracks of keyframe k matched to the features of an image along epipolar lines."""
    keyframe = slam_map.graph.keyframes[k]
    pairs = match_along_lines(
        keyframe.features,
        features,
        keyframe.camera,
        camera,
        k_from_cam_rotation,
        k_from_cam_direction,
        ratio=LINE_RATIO,
        min_similarity=LINE_SIMILARITY,
    )
    ids = slam_map.landmarks.feature_tracks[k][pairs[:, 0]]
    kept = np.flatnonzero(ids >= 0)
    kept = kept[first_of_each(ids[kept])]
    return FeatureMatches(Tracks(ids[kept], features.pixels[pairs[kept, 1]]), pairs[kept, 1])
