"""A frame that could not be followed, recognized: after a wide step, and after a loss."""

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

COVISIBLE_KEYFRAMES = 3
AROUND = 20  # keyframes that see the same as the one recognized, whose landmarks are looked for
CHANCE = 1 / 3  # of the landmarks found near where a wrong pose puts them agree with it, once it is fitted to them
MIN_POINTS = 12  # of a keyframe, recognized before more is tried
MIN_HYPOTHESIS = 8  # landmarks that agree with a pose worth a closer look
MIN_FIRST_MATCHES = 8
BESIDE = 2  # keyframes of other segments, the nearest in time, that are looked at whatever they look like
NEIGHBORS = 3  # keyframes, besides the one recognized, that new points are looked for in
LINE_RATIO, LINE_SIMILARITY = 0.8, 0.8  # of descriptors matched along epipolar lines
LEAST_STEP = 0.02  # of the scene's depth: cameras nearer to each other have no epipolar lines to speak of


@dataclass(frozen=True, slots=True, eq=False)
class RelocalizedFrame:
    """A pose found from keyframe `keyframe_id` and its relatives.

    Attributes:
        landmarks: those that agree with the pose.
        tracks: all tracks to go on with: the agreeing landmarks, and recognized points without a place yet.
    """

    seen: FrameObservation
    world_from_cam: RigidTransform
    keyframe_id: int
    landmarks: Tracks
    tracks: Tracks


@dataclass(frozen=True, slots=True, eq=False)
class PlaceMatch:
    """What an image shows of the place of keyframe `keyframe_id`.

    Attributes:
        confidence: of a pair estimate that agrees with it; 0 where none does.
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
    """Tries the active keyframe first, then the places that look most alike."""

    def __init__(
        self, config: RelocalizationConfig, slam_map: SlamMap, predictor: PosePredictor, retriever: Retriever
    ) -> None:
        self._config = config
        self._map = slam_map
        self._predictor = predictor
        self._retriever = retriever

    def relocalize(self, seen: FrameObservation, active: int) -> RelocalizedFrame | PoseNotFound:
        """The frame's pose from landmarks of remembered keyframes, or why none agrees."""
        if len(seen.features) < MIN_POINTS:
            return PoseNotFound(f"{len(seen.features)} points in the image, {MIN_POINTS} needed")
        encoded = seen.encoded(self._predictor)
        descriptor, _ = seen.descriptor(self._predictor)
        found = self._retriever.query(descriptor, self._config.candidates, frozenset([active]))
        best = PlaceNotMatched("no keyframe to compare with", -1)
        for c in [active, *(candidate.key for candidate in found)]:
            outcome = self._try(seen.features, seen.frame.camera, encoded, c)
            if isinstance(outcome, PlaceMatch):
                landmarks = outcome.found.matches.tracks
                more = self._more_points(seen.features, seen.frame.camera, outcome)
                pose, tracks = outcome.found.fit.world_from_cam, landmarks.joined(more)
                return RelocalizedFrame(seen, pose, c, landmarks, tracks)
            best = max(best, outcome, key=lambda refused: refused.landmarks)
        return PoseNotFound(best.reason)

    def find_in_other_segments(self, k: int, *, min_inliers: int) -> Iterator[PlaceMatch]:
        """Places of other segments that keyframe k shows, by older keyframes and at least so many landmarks.

        Those that look most alike are tried, and those nearest in time: where one map ends another may begin.
        """
        graph = self._map.graph
        keyframe = graph.keyframes[k]
        others = [i for i in graph.keyframes if i < k and graph.segment_of[i] != graph.segment_of[k]]
        excluded = frozenset(graph.keyframes) - frozenset(others)
        alike = self._retriever.query(keyframe.descriptor, self._config.candidates, excluded)
        beside = sorted(others, key=lambda i: abs(graph.keyframes[i].frame_index - keyframe.frame_index))[:BESIDE]
        for c in dict.fromkeys([*(candidate.key for candidate in alike), *beside]):
            if graph.segment_of[c] == graph.segment_of[k]:  # joined meanwhile
                continue
            outcome = self._try(keyframe.features, keyframe.camera, keyframe.encoded, c)
            if isinstance(outcome, PlaceMatch) and outcome.is_enough(min_inliers):
                yield outcome

    def observed_ratio(self, found: RelocalizedFrame) -> float:
        """How much of what the keyframe saw, by which an image was recognized, the image sees: 0 to 1."""
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
        sure = prior_confidence(first.fit.world_from_cam, estimate, pose_c) >= CONFIDENT
        found = self._refine_pose(features, camera, c, first, unsure_depths=sure)
        return self._judge(PlaceMatch(c, found, prior_confidence(found.fit.world_from_cam, estimate, pose_c)), camera)

    def _more_points(self, features: LocalFeatures, camera: Camera, place: PlaceMatch) -> Tracks:
        """Points without a place that the image has in common with the keyframes it shows most of.

        Now that its pose is known they are looked for along their epipolar lines; each is a landmark to be.
        """
        graph, landmarks, found = self._map.graph, self._map.landmarks, place.found
        more = found.matches.tracks.joined(found.untriangulated)
        for k in [place.keyframe_id, *self._map.covisible(place.keyframe_id, NEIGHBORS)]:
            k_from_cam = graph.world_from_keyframe[k].rigid.inv() * found.fit.world_from_cam
            if not self._is_apart(k, k_from_cam):
                continue
            lines = rotation_matrix(k_from_cam), translation_of(k_from_cam)
            tracks = match_lines_of(features, camera, k, *lines, self._map).tracks
            more = more.with_new(tracks.where(~landmarks.is_triangulated(tracks.ids)))
        return more.where(np.arange(len(more)) >= len(found.matches.tracks))

    def _is_apart(self, k: int, k_from_cam: RigidTransform) -> bool:
        """Whether a camera stands so far from keyframe k, for the depth of what k sees, that lines are to be told."""
        graph, landmarks = self._map.graph, self._map.landmarks
        ids = landmarks.observed[k].ids
        ids = ids[landmarks.is_triangulated(ids)]
        if len(ids) == 0:
            return False
        depths = depths_in(landmarks.points_world(ids, graph), graph.world_from_keyframe[k].rigid)
        return float(np.linalg.norm(translation_of(k_from_cam))) > LEAST_STEP * float(np.median(depths))

    def _refine_pose(
        self, features: LocalFeatures, camera: Camera, c: int, first: EstimatedPose, *, unsure_depths: bool
    ) -> EstimatedPose:
        graph, landmarks = self._map.graph, self._map.landmarks
        around = [c, *self._map.covisible(c, AROUND)]
        ids = np.unique(np.concatenate([landmarks.observed[k].ids for k in around]))
        return refine_with_guided_matching(
            first,
            features,
            camera,
            ids[landmarks.is_triangulated(ids)],
            landmarks,
            graph,
            radius_px=self._config.search_radius_px,
            min_similarity=self._config.min_similarity,
            unsure_depths=unsure_depths,
        )

    def _judge(self, place: PlaceMatch, camera: Camera) -> PlaceMatch | PlaceNotMatched:
        """A false pose is worse than none: enough landmarks, most of those recognized, and an estimate where few."""
        config, found = self._config, place.found
        count, among = len(found.matches.tracks), f"landmarks around keyframe {place.keyframe_id} agree"
        needed = needed_landmarks(place.confidence, config)
        share = needed_share(len(found.fit.inliers), config.min_share, place.confidence)
        if count < needed or found.share < share:
            return PlaceNotMatched(
                f"{count} of {len(found.fit.inliers)} {among}, {needed} and {share:.0%} needed", count
            )
        cells = occupied_cells(found.matches.tracks.pixels, camera)
        if cells < config.min_cells and place.confidence < CONFIDENT:
            cells_needed = f"in {cells} cells of the image, {config.min_cells} needed"
            return PlaceNotMatched(f"{count} {among}, but {cells_needed}", count)
        return place


def needed_landmarks(confidence: float, config: RelocalizationConfig) -> int:
    """How many must agree where a pair estimate of this confidence does: the surer it is, the fewer."""
    doubt = max(0.0, 1.0 - confidence / CONFIDENT)
    return round(config.min_confirming + doubt * max(0, config.min_inliers - config.min_confirming))


def needed_share(recognized: int, most: float, confidence: float = 0.0) -> float:
    """Share of the landmarks recognized that must agree: two deviations over chance, and never more than `most`.

    One deviation where a pair estimate agrees that leaves little doubt. In a map that is still crooked fewer agree at
    the right place than in a refined one, but those are many.
    """
    deviation = float(np.sqrt(CHANCE * (1 - CHANCE) / max(recognized, 1)))
    return min(most, CHANCE + (2 if confidence < CONFIDENT else 1) * deviation)


def match_place(
    features: LocalFeatures, c: int, slam_map: SlamMap, *, min_inliers: int
) -> FeatureMatches | PlaceNotMatched:
    """Points of keyframe c recognized in an image, or why they are too few for the image to show c's place.

    Milliseconds, where a network takes long to relate the two: to be asked first, since most candidates are wrong.
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
    """The pose of an image that may show the place of keyframe c, from c's landmarks and its relatives'.

    With `along_lines` more of c's points are looked for on the epipolar lines of an estimate that leaves little doubt,
    and depths may be as unsure as they are.

    Args:
        matches: of c alone, as `match_place` gives them; the relatives are matched now that the place may be right.
    """
    graph, landmarks = slam_map.graph, slam_map.landmarks
    matches = match_keyframes(features, slam_map.covisible(c, covisible_keyframes), graph, landmarks, earlier=matches)
    sure = along_lines and is_confident(estimate)
    if sure:
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
        unsure_depths=sure,
    )


def match_lines_of(
    features: LocalFeatures,
    camera: Camera,
    k: int,
    k_from_cam_rotation: FloatArray,
    k_from_cam_direction: FloatArray,
    slam_map: SlamMap,
) -> FeatureMatches:
    """Tracks of keyframe k found among the features of an image along their epipolar lines."""
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
