"""Geometric verification of a loop candidate, and the edge that the loop would be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from relocalizer.absolute_pose import pose_information
from relocalizer.features import CELLS, occupied_cells
from relocalizer.geometry import FloatArray, Similarity
from relocalizer.interfaces import NoEstimate, PosePredictor
from relocalizer.scale import fit_relative_scale
from relocalizer.triangulation import depths_in
from slam.config.schema import LoopClosingConfig
from slam.events import Event, ScaleUnobservable
from slam.loop_closing.edge_information import (
    LOOP_CORRELATION,
    UNKNOWN_LOG_SCALE,
    design_effect,
    edge_sigmas,
    relative_depth_sigma,
)
from slam.loop_closing.edge_path import edge_covariance, log_error
from slam.loop_closing.pairwise_consistency import squared_distance
from slam.map.keyframe_graph import Edge, EdgeKind
from slam.map.slam_map import SlamMap
from slam.predictor_checks import relate
from slam.relocalization.frame_relocalizer import COVISIBLE_KEYFRAMES, estimate_pose_at_place, match_place
from slam.relocalization.pose_from_matches import (
    FEATURE_NOISE_PX,
    EstimatedPose,
    PlaceNotMatched,
    refine_with_guided_matching,
)

MIN_SCALE_LANDMARKS = 8
# Looked at closer, landmarks are searched this far from where the loop puts them, in pixels, by descriptors this alike.
CLOSER_PX, CLOSER_SIMILARITY = 10.0, 0.8
FOUND_AGAIN = 2 / 3  # of as many landmarks as the loop rests on
CHI2_6DOF_999 = 22.46


@dataclass(frozen=True, slots=True, eq=False)
class Verified:
    """A loop that geometry speaks for: the edge it would be, and the landmarks recognized."""

    edge: Edge
    found: EstimatedPose


class LoopVerifier:
    """Tests whether a keyframe observes the place of another one: cheapest test first."""

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

    def verify(self, c: int, k: int) -> Verified | PlaceNotMatched:
        """Whether keyframe k really sees the place of keyframe c: cheapest test first."""
        graph, config = self._map.graph, self._config
        features, camera = graph.keyframes[k].features, graph.keyframes[k].camera
        matches = match_place(features, c, self._map, min_inliers=config.min_inliers)
        if isinstance(matches, PlaceNotMatched):
            return matches
        estimate = relate(self._predictor, graph.keyframes[c].encoded, graph.keyframes[k].encoded)
        if isinstance(estimate, NoEstimate):
            return PlaceNotMatched(estimate.reason)
        if estimate.confidence < config.min_confidence:
            needed = f"{config.min_confidence:g} needed"
            return PlaceNotMatched(f"confidence {estimate.confidence:.2f} of the pair estimate, {needed}")
        found = estimate_pose_at_place(
            features, camera, c, matches, estimate, self._map, min_inliers=config.min_inliers
        )
        if isinstance(found, PlaceNotMatched):
            return found
        cells = occupied_cells(found.matches.tracks.pixels, camera)
        if cells < config.min_cells:
            landmarks = f"{found.fit.inlier_count} landmarks in {cells} of {CELLS[0] * CELLS[1]} cells of the image"
            return PlaceNotMatched(f"{landmarks}, {config.min_cells} needed", found.fit.inlier_count)
        return self._refine_pose(Verified(self.loop_edge(c, k, found), found))

    def _refine_pose(self, loop: Verified) -> Verified | PlaceNotMatched:
        """The loop with the pose that the whole image gives it; why not, where the image does not bear it out.

        Every landmark of the place is looked for where the pose puts it, those that were not matched included. At the
        right pose about as many agree again, or more, and they hardly move it. As in Mur-Artal, Montiel and
        Tardos, "ORB-SLAM: a versatile and accurate monocular SLAM system", 2015, section VII-B. How sure the loop is
        stays what the landmarks say that were recognized without being looked for.
        """
        c, k, graph, landmarks = loop.edge.i, loop.edge.j, self._map.graph, self._map.landmarks
        ids = np.unique(
            np.concatenate([landmarks.observed[i].ids for i in [c, *self._map.covisible(c, COVISIBLE_KEYFRAMES)]])
        )
        closer = refine_with_guided_matching(
            loop.found,
            graph.keyframes[k].features,
            graph.keyframes[k].camera,
            ids[landmarks.is_triangulated(ids)],
            landmarks,
            graph,
            radius_px=CLOSER_PX,
            min_similarity=CLOSER_SIMILARITY,
        )
        count, needed = closer.fit.inlier_count, int(np.ceil(FOUND_AGAIN * loop.edge.inliers))
        if count < needed:
            return PlaceNotMatched(f"looked at closer, {count} landmarks agree, {needed} needed", count)
        pose_c, scale = graph.world_from_keyframe[c], loop.edge.i_from_j.scale
        there = pose_c.inverse() @ Similarity.from_rigid(closer.fit.world_from_cam, pose_c.scale * scale)
        moved = log_error(loop.edge.i_from_j, there)[:6]
        away = squared_distance(moved, edge_covariance(loop.edge)[:6, :6])
        if away > CHI2_6DOF_999:
            said = f"chi-square {away:.1f} from where they put it, limit {CHI2_6DOF_999:.1f}"
            return PlaceNotMatched(f"looked at closer, {said}", count)
        return Verified(replace(loop.edge, i_from_j=there), closer)

    def loop_edge(self, c: int, k: int, found: EstimatedPose) -> Edge:
        """The loop as a measurement, in c's units, with its scale."""
        graph = self._map.graph
        ratio, log_scale_sigma = self._relative_scale(k, found)
        seen_from_c = Similarity.from_rigid(found.fit.world_from_cam, graph.world_from_keyframe[k].scale * ratio)
        pose_c = graph.world_from_keyframe[c]
        information = self._loop_information(k, found) / design_effect(found.fit.inlier_count, LOOP_CORRELATION)
        return Edge(
            i=c,
            j=k,
            i_from_j=pose_c.inverse() @ seen_from_c,
            sigmas=edge_sigmas(information, pose_c.scale, log_scale_sigma),
            kind=EdgeKind.LOOP,
            inliers=found.fit.inlier_count,
        )

    def _loop_information(self, k: int, found: EstimatedPose) -> FloatArray:
        """Information (6, 6) of a loop's pose, from landmarks that are themselves uncertain."""
        graph, landmarks, ids = self._map.graph, self._map.landmarks, found.matches.tracks.ids
        return pose_information(
            landmarks.points_world(ids, graph),
            landmarks.depth_sigma_world(ids, graph),
            graph.keyframes[k].camera,
            found.fit.world_from_cam,
            FEATURE_NOISE_PX,
        )

    def _relative_scale(self, k: int, found: EstimatedPose) -> tuple[float, float]:
        """How k's map units must be stretched to agree with the old landmarks, and the sigma of its logarithm.

        The sigma is what the ratios scatter, or what the landmarks' own depths allow where that is more.
        """
        slam_map, graph = self._map, self._map.graph
        own = slam_map.landmarks.feature_tracks[k][found.matches.feature]
        both = (own >= 0) & (own != found.matches.tracks.ids)  # one landmark's depth says nothing of two scales
        both[both] = slam_map.landmarks.is_triangulated(own[both])
        old_points = slam_map.landmarks.points_world(found.matches.tracks.ids[both], graph)
        own_points = slam_map.landmarks.points_world(own[both], graph)
        old_depth = depths_in(old_points, found.fit.world_from_cam)
        own_depth = depths_in(own_points, graph.world_from_keyframe[k].rigid)
        positive = (old_depth > 1e-9) & (own_depth > 1e-9)
        count = int(positive.sum())
        if count >= MIN_SCALE_LANDMARKS:
            ratio, sigma = fit_relative_scale(old_depth[positive], own_depth[positive])
            old_sigma, own_sigma = (
                relative_depth_sigma(self._map.landmarks, ids[both]) for ids in (found.matches.tracks.ids, own)
            )
            sigma = max(sigma, float(np.sqrt(np.median(old_sigma**2 + own_sigma**2) / count)))
            return ratio, sigma * float(np.sqrt(design_effect(count, LOOP_CORRELATION)))
        reason = f"loop at keyframe {k}: {count} landmarks have depth on both sides"
        reason = f"{reason}, {MIN_SCALE_LANDMARKS} needed for its scale"
        self._publish(ScaleUnobservable(frame_index=self._map.frame_index_of(k), reason=reason))
        return 1.0, UNKNOWN_LOG_SCALE
