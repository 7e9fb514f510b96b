"""Odometry edges: every keyframe is connected to the keyframes it shares landmarks with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from relocalizer.absolute_pose import pose_information
from relocalizer.interfaces import PosePredictor
from slam.config.schema import LoopClosingConfig
from slam.events import EdgeAccepted, EstimateRefused, Event, PairRelated, ScaleUnobservable
from slam.loop_closing.edge_information import (
    CORRELATION,
    UNKNOWN_LOG_SCALE,
    covisible_enough,
    design_effect,
    edge_sigmas,
    relative_depth_sigma,
)
from slam.map.keyframe_graph import Edge, EdgeKind
from slam.mapping.mapper import Mapper
from slam.predictor_checks import relate


class OdometryEdges:
    """Adds edges between covisible keyframes, and reports when their parallax is too small to triangulate.

    The edges are those of ORB-SLAM's covisibility graph, limited to a few per keyframe.
    """

    def __init__(
        self,
        config: LoopClosingConfig,
        mapper: Mapper,
        predictor: PosePredictor,
        publish: Callable[[Event], None],
        *,
        noise_px: float,
    ) -> None:
        """
        Args:
            noise_px: standard deviation of a track, pixels.
        """
        self._config = config
        self._mapper = mapper
        self._map = mapper.map
        self._predictor = predictor
        self._publish = publish
        self._noise_px = noise_px
        self._scale_is_observable = True

    def relate_to_covisible(self, k: int) -> None:
        """Predict the relative pose of keyframe k and the previous keyframe, a prior of bundle adjustment.

        After a relocalization the previous keyframe may show another place; then the most covisible one is used.
        """
        graph, before = self._map.graph, self._map.before(k)
        overlaps = before is not None and before in covisible_enough(self._map, k, [before])
        for i in [before] if before is not None and overlaps else self._map.covisible(k, 1):
            estimate = relate(self._predictor, graph.keyframes[i].encoded, graph.keyframes[k].encoded)
            self._mapper.remember_pair(i, k, estimate)
            frame_index = self._map.frame_index_of(k)
            self._publish(PairRelated(frame_index=frame_index, i=i, j=k, purpose="odometry", estimate=estimate))

    def add_odometry_edges(self, k: int, window: int) -> None:
        """Set the edges from the newest keyframe, and from the one leaving the window, to their covisible keyframes."""
        recent = self._map.latest(k, 3 * window)
        # The newest keyframe has no edges yet; the one that leaves the window was just refined for the last time.
        for j in {recent[-1], recent[-window] if len(recent) >= window else recent[-1]}:
            earlier = self._map.covisible(j, self._config.neighbors, among=[i for i in recent if i < j])
            if not earlier:  # relocalized at a place mapped long ago
                earlier = self._map.covisible(
                    j, self._config.neighbors, among=[i for i in self._map.segment_keyframes(k) if i < j]
                )
            for i in earlier:
                known = self._map.graph.edges.get((i, j))
                if known is not None and known.kind is EdgeKind.LOOP:
                    continue
                span = sum(i < between <= j for between in recent)
                fraction = 1.0 / (len(earlier) * min(max(span, 1), len(earlier)))
                edge = self._odometry_edge(i, j, evidence_fraction=fraction)
                if not edge.i_from_j.is_in_range:
                    frame, reason = self._map.frame_index_of(k), f"the edge from keyframe {i} to {j} is out of range"
                    self._publish(EstimateRefused(frame_index=frame, reason=reason))
                    continue
                self._map.set_edge(edge)
                if known is None:
                    self._publish(EdgeAccepted(edge=edge, frame_index=self._map.frame_index_of(k)))

    def _odometry_edge(self, i: int, j: int, *, evidence_fraction: float) -> Edge:
        """The relative pose after bundle adjustment, with the covariance from the landmarks both keyframes observe.

        A keyframe's edges to several earlier ones are derived from the same landmarks. With n edges, an edge that
        spans m keyframes gets the fraction 1 / (m n) of the information: then all edges together are as stiff as a
        chain of single steps, provided that variance grows with the number of steps.
        """
        graph, landmarks = self._map.graph, self._map.landmarks
        pose_i, pose_j = graph.world_from_keyframe[i], graph.world_from_keyframe[j]
        shared = np.intersect1d(landmarks.observed[i].ids, landmarks.observed[j].ids, assume_unique=True)
        shared = shared[landmarks.is_triangulated(shared)]
        information = pose_information(
            landmarks.points_world(shared, graph),
            landmarks.depth_sigma_world(shared, graph),
            graph.keyframes[j].camera,
            pose_j.rigid,
            self._noise_px,
        )
        depth_sigma = relative_depth_sigma(self._map.landmarks, shared)
        log_scale_sigma = float(np.median(depth_sigma)) / np.sqrt(len(shared)) if len(shared) else UNKNOWN_LOG_SCALE
        seen = landmarks.observed[j].ids  # the pose of j was estimated from all of them, with their correlated errors
        inflation = design_effect(int(landmarks.is_triangulated(seen).sum()), CORRELATION)
        inflation *= self._map.graph.odometry_variance
        return Edge(
            i=i,
            j=j,
            i_from_j=pose_i.inverse() @ pose_j,
            sigmas=edge_sigmas(information / inflation, pose_i.scale, np.sqrt(inflation) * log_scale_sigma),
            kind=EdgeKind.ODOMETRY,
            inliers=len(shared),
            evidence_fraction=evidence_fraction,
        )

    def check_parallax(self, k: int, needed_deg: float) -> None:
        """Report when the parallax of keyframe k is too small to triangulate new points.

        Reported once per sequence of such keyframes: again only after the parallax has exceeded twice `needed_deg`.
        """
        i = self._map.before(k)
        parallax = None if i is None else self._map.parallax_deg(i, k)
        if parallax is None:
            return
        if parallax < needed_deg and self._scale_is_observable:
            self._scale_is_observable = False
            reason = f"parallax {parallax:.2f} deg between keyframes {i} and {k}, {needed_deg:g} needed"
            self._publish(
                ScaleUnobservable(
                    frame_index=self._map.frame_index_of(k), reason=f"{reason} to give new points a depth"
                )
            )
        elif parallax > 2 * needed_deg:
            self._scale_is_observable = True
