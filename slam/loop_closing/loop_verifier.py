"""Geometric verification of a loop candidate, and the edge of a verified loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from relocalizer.absolute_pose import pose_information
from relocalizer.features import CELLS, occupied_cells
from relocalizer.geometry import FloatArray, Similarity
from relocalizer.interfaces import NoEstimate, PosePredictor
from relocalizer.pose_from_matches import (
    FEATURE_NOISE_PX,
    EstimatedPose,
    FeatureMatches,
    GuidedSearch,
    ObservedImage,
    PoseRejected,
    estimate_pose,
    match_keyframes,
    refine_with_guided_matching,
)
from relocalizer.scale import fit_relative_scale
from relocalizer.triangulation import depths_in
from slam.config.schema import LoopClosingConfig
from slam.events import Event, PairRelated, ScaleUnobservable
from slam.loop_closing.edge_information import (
    LOOP_CORRELATION,
    UNKNOWN_LOG_SCALE,
    design_effect,
    edge_sigmas,
    relative_depth_sigma,
)
from slam.loop_closing.edge_path import edge_covariance, log_error
from slam.loop_closing.loop_examination import LoopExamination
from slam.loop_closing.pairwise_consistency import squared_distance
from slam.map.keyframe_graph import Edge, EdgeKind
from slam.map.slam_map import SlamMap
from slam.predictor_checks import relate

COVISIBLE_KEYFRAMES = 3  # number of covisible keyframes matched besides the candidate
MATCH_RATIO = 0.85  # maximum ratio of descriptor distances, best to second best (Lowe's ratio test)
MIN_FIRST_MATCHES = 8  # minimum number of matches with the candidate alone, whatever `min_inliers` is
MIN_SCALE_LANDMARKS = 8  # minimum number of landmarks with a depth on both sides for the scale of a loop
GUIDED_SEARCH = GuidedSearch(radius_px=10.0, min_similarity=0.8)
MIN_GUIDED_RATIO = 2 / 3  # minimum ratio of the number of inliers after guided matching to that before
CHI2_6DOF_999 = 22.46  # 99.9 % quantile of chi-square with 6 degrees of freedom


@dataclass(frozen=True, slots=True, eq=False)
class Verified:
    """A geometrically verified loop: its edge, and the pose with the matched landmarks."""

    edge: Edge
    found: EstimatedPose


class LoopVerifier:
    """Tests whether a keyframe observes the place of another one, and measures their relative pose.

    Like ORB-SLAM's loop correction: matches by descriptors, a robust pose from them, then guided matching over the
    whole place. The scale, which ORB-SLAM takes from a similarity fit, comes from the ratio of the landmarks' depths.
    """

    def __init__(
        self,
        config: LoopClosingConfig,
        slam_map: SlamMap,
        predictor: PosePredictor,
        publish: Callable[[Event], None],
    ) -> None:
        self._config = config
        self._map = slam_map
        self._predictor = predictor
        self._publish = publish
        self.examination = LoopExamination(-1, -1)

    def verify(self, c: int, k: int) -> Verified | PoseRejected:
        """Test whether keyframe k observes the place of keyframe c; the cheapest tests come first.

        Returns:
            The loop, or the reason why there is none.
        """
        graph, config = self._map.graph, self._config
        image, examination = self._image_of(k), LoopExamination(c, k)
        self.examination = examination
        matches = self._match_candidate(image, c)
        if isinstance(matches, PoseRejected):
            return matches
        covisible = self._map.covisible(c, COVISIBLE_KEYFRAMES)
        matches = match_keyframes(image.features, covisible, self._map, ratio=MATCH_RATIO, earlier=matches).one_to_one()
        examination.matched(matches)
        landmarks = int(self._map.is_triangulated(matches.landmark).sum())
        examination.at_least("landmarks matched", landmarks, config.min_inliers)
        if landmarks < config.min_inliers:
            return PoseRejected(f"{landmarks} landmarks matched, {config.min_inliers} needed", landmarks)
        estimate = relate(self._predictor, graph.keyframes[c].encoded, graph.keyframes[k].encoded)
        frame_index = self._map.frame_index_of(k)
        self._publish(PairRelated(frame_index=frame_index, i=c, j=k, purpose="loop", estimate=estimate))
        if isinstance(estimate, NoEstimate):
            examination.failed("estimate of the pair")
            return PoseRejected(estimate.reason)
        examination.at_least("confidence of the pair", estimate.confidence, config.min_confidence)
        if estimate.confidence < config.min_confidence:
            needed = f"{config.min_confidence:g} needed"
            return PoseRejected(f"confidence {estimate.confidence:.2f} of the pair estimate, {needed}")
        found = estimate_pose(matches, image, self._map, reference=c, estimate=estimate, min_inliers=config.min_inliers)
        if isinstance(found, PoseRejected):
            examination.at_least("landmarks that agree", found.landmarks, config.min_inliers)
            return found
        examination.agreed(found.matches)
        examination.at_least("landmarks that agree", found.fit.inlier_count, config.min_inliers)
        loop = Verified(self.loop_edge(c, k, found), found)
        cells = loop.edge.cells
        examination.at_least("cells of the image", cells, config.min_cells)
        if cells < config.min_cells:
            spread = f"{found.fit.inlier_count} landmarks in {cells} of {CELLS[0] * CELLS[1]} cells of the image"
            return PoseRejected(f"{spread}, {config.min_cells} needed", found.fit.inlier_count)
        return self._refine_pose(loop)

    def _image_of(self, k: int) -> ObservedImage:
        keyframe = self._map.graph.keyframes[k]
        return ObservedImage(keyframe.features, keyframe.camera)

    def _match_candidate(self, image: ObservedImage, c: int) -> FeatureMatches | PoseRejected:
        """Matches with keyframe c alone, or why they are too few for the image to show its place.

        Before the predictor, which takes much longer: most candidates are wrong.
        """
        matches = match_keyframes(image.features, [c], self._map, ratio=MATCH_RATIO)
        enough = max(MIN_FIRST_MATCHES, self._config.min_inliers // 2)
        self.examination.matched(matches)
        self.examination.at_least("points matched", len(matches), enough)
        if len(matches) < enough:
            recognized = len(matches)
            return PoseRejected(f"{recognized} points of keyframe {c} matched, {enough} needed", recognized)
        return matches

    def _refine_pose(self, loop: Verified) -> Verified | PoseRejected:
        """The loop with its pose refined by guided matching, or why it is rejected.

        All landmarks of the place are matched near their projections. At the right pose about as many as before are
        inliers, and they hardly change the pose: Mur-Artal, Montiel and Tardos, "ORB-SLAM: a versatile and accurate
        monocular SLAM system", 2015, section VII-B. The edge keeps its sigmas: guided matches are biased towards the
        pose that guided them.
        """
        c, k = loop.edge.i, loop.edge.j
        refined = refine_with_guided_matching(
            loop.found.fit.world_from_cam,
            self._image_of(k),
            self._map.observed_landmarks([c, *self._map.covisible(c, COVISIBLE_KEYFRAMES)]),
            self._map,
            GUIDED_SEARCH,
        )
        count, needed = refined.fit.inlier_count, int(np.ceil(MIN_GUIDED_RATIO * loop.edge.inliers))
        self.examination.at_least("guided matching: landmarks", count, needed)
        if count < needed:
            return PoseRejected(f"guided matching: {count} landmarks agree, {needed} needed", count)
        pose_c, scale = self._map.pose_of(c), loop.edge.i_from_j.scale
        c_from_k = pose_c.inverse() @ Similarity.from_rigid(refined.fit.world_from_cam, pose_c.scale * scale)
        change = log_error(loop.edge.i_from_j, c_from_k)[:6]
        distance = squared_distance(change, edge_covariance(loop.edge)[:6, :6])
        self.examination.at_most("guided matching: chi-square", distance, CHI2_6DOF_999)
        if distance > CHI2_6DOF_999:
            reason = f"chi-square {distance:.1f} from where they put it, limit {CHI2_6DOF_999:.1f}"
            return PoseRejected(f"guided matching: {reason}", count)
        self.examination.agreed(refined.matches)
        return Verified(replace(loop.edge, i_from_j=c_from_k), refined)

    def loop_edge(self, c: int, k: int, found: EstimatedPose) -> Edge:
        """The edge of a loop, in c's units, with its relative scale.

        Args:
            found: pose of keyframe k in the world of keyframe c.
        """
        graph = self._map.graph
        ratio, log_scale_sigma = self._relative_scale(k, found)
        pose_k = Similarity.from_rigid(found.fit.world_from_cam, graph.world_from_keyframe[k].scale * ratio)
        pose_c, keyframe = graph.world_from_keyframe[c], graph.keyframes[k]
        information = self._loop_information(k, found) / design_effect(found.fit.inlier_count, LOOP_CORRELATION)
        return Edge(
            i=c,
            j=k,
            i_from_j=pose_c.inverse() @ pose_k,
            sigmas=edge_sigmas(information, pose_c.scale, log_scale_sigma),
            kind=EdgeKind.LOOP,
            inliers=found.fit.inlier_count,
            cells=occupied_cells(keyframe.features.pixels[found.matches.feature], keyframe.camera),
        )

    def _loop_information(self, k: int, found: EstimatedPose) -> FloatArray:
        """Information (6, 6) of a loop's pose, which includes the uncertainty of the landmarks."""
        graph, landmarks, ids = self._map.graph, self._map.landmarks, found.matches.landmark
        return pose_information(
            landmarks.points_world(ids, graph),
            landmarks.depth_sigma_world(ids, graph),
            graph.keyframes[k].camera,
            found.fit.world_from_cam,
            FEATURE_NOISE_PX,
        )

    def _relative_scale(self, k: int, found: EstimatedPose) -> tuple[float, float]:
        """Scale of keyframe k's units relative to the matched landmarks, and the standard deviation of its logarithm.

        The ratio is measured by the points that are two landmarks, one on each side of the loop. Its sigma is the
        larger of the scatter of the ratios of their depths and the uncertainty of these depths.
        """
        graph, landmarks, ids = self._map.graph, self._map.landmarks, found.matches.landmark
        own = landmarks.feature_tracks[k][found.matches.feature]
        both = (own >= 0) & (own != ids)  # a landmark that is the same on both sides has the ratio 1 by definition
        both[both] = landmarks.is_triangulated(own[both])
        old_points = landmarks.points_world(ids[both], graph)
        own_points = landmarks.points_world(own[both], graph)
        old_depth = depths_in(old_points, found.fit.world_from_cam)
        own_depth = depths_in(own_points, graph.world_from_keyframe[k].rigid)
        positive = (old_depth > 1e-9) & (own_depth > 1e-9)
        count = int(positive.sum())
        if count >= MIN_SCALE_LANDMARKS:
            ratio, sigma = fit_relative_scale(old_depth[positive], own_depth[positive])
            old_sigma, own_sigma = (
                relative_depth_sigma(landmarks, ids[both]),
                relative_depth_sigma(landmarks, own[both]),
            )
            sigma = max(sigma, float(np.sqrt(np.median(old_sigma**2 + own_sigma**2) / count)))
            return ratio, sigma * float(np.sqrt(design_effect(count, LOOP_CORRELATION)))
        reason = f"loop at keyframe {k}: {count} landmarks have depth on both sides"
        reason = f"{reason}, {MIN_SCALE_LANDMARKS} needed for its scale"
        self._publish(ScaleUnobservable(frame_index=self._map.frame_index_of(k), reason=reason))
        return 1.0, UNKNOWN_LOG_SCALE
