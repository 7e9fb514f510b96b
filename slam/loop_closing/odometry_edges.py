"""Odometry edges: every keyframe is tied to the keyframes it shares landmarks with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from relocalizer.absolute_pose import pose_information
from relocalizer.interfaces import PosePredictor
from slam.config.schema import LoopClosingConfig
from slam.events import EdgeAccepted, Event, ScaleUnobservable
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
    """Adds edges between covisible keyframes, and reports when their parallax gives no depth."""

    def __init__(
        self,
        config: LoopClosingConfig,
        mapper: Mapper,
        predictor: PosePredictor,
        publish: Callable[[Event], None],
        *,
        noise_px: float,
    ) -> None:
        """Args:
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
        """Ask the predictor how keyframe k lies to the one before it, for a prior of the refinement.

        After a relocalization the one before may show another place; then it is asked about the most covisible one.
        """
        graph, before = self._map.graph, self._map.before(k)
        overlaps = before is not None and before in covisible_enough(self._map, k, [before])
        for i in [before] if before is not None and overlaps else self._map.covisible(k, 1):
            estimate = relate(self._predictor, graph.keyframes[i].encoded, graph.keyframes[k].encoded)
            self._mapper.remember_pair(i, k, estimate)

    def add_odometry_edges(self, k: int, window: int) -> None:
        """Edges from the newest keyframes, which a refinement has just moved, to those they share landmarks with."""
        recent = self._map.latest(k, 3 * window)
        # The newest needs its first edges; the one that leaves the window has just been refined for the last time.
        for j in {recent[-1], recent[-window] if len(recent) >= window else recent[-1]}:
            earlier = self._map.covisible(j, self._config.neighbors, among=[i for i in recent if i < j])
            if not earlier:  # recognized at a place long ago
                earlier = self._map.covisible(
                    j, self._config.neighbors, among=[i for i in self._map.segment_keyframes(k) if i < j]
                )
            for i in earlier:
                known = self._map.graph.edges.get((i, j))
                if known is not None and known.kind is EdgeKind.LOOP:
                    continue
                span = sum(i < between <= j for between in recent)
                edge = self._odometry_edge(i, j, share=1.0 / (len(earlier) * min(max(span, 1), len(earlier))))
                self._map.graph.set_edge(edge)
                if known is None:
                    self._publish(EdgeAccepted(edge=edge, frame_index=self._map.frame_index_of(k)))

    def _odometry_edge(self, i: int, j: int, *, share: float) -> Edge:
        """The relative pose the refined landmarks give, as sure as the landmarks that both keyframes see.

        A keyframe's edges to several earlier ones come from one refinement of the same landmarks. With n of them, an
        edge over m keyframes has 1 / (m n) of the evidence for its own: then all together are as stiff as a chain of
        single steps, if variance grows with the number of steps.
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
        variance = relative_depth_sigma(self._map.landmarks, shared)
        log_scale_sigma = float(np.median(variance)) / np.sqrt(len(shared)) if len(shared) else UNKNOWN_LOG_SCALE
        seen = landmarks.observed[j].ids  # all of them placed j, and their common errors with it
        inflation = design_effect(int(landmarks.is_triangulated(seen).sum()), CORRELATION)
        return Edge(
            i=i,
            j=j,
            i_from_j=pose_i.inverse() @ pose_j,
            sigmas=edge_sigmas(information / inflation, pose_i.scale, np.sqrt(inflation) * log_scale_sigma),
            kind=EdgeKind.ODOMETRY,
            inliers=len(shared),
            share=share,
        )

    def check_parallax(self, k: int, needed_deg: float) -> None:
        """Say when keyframe k gives new points no depth, because the camera turned more than it moved.

        Said once for each such stretch: again only after the parallax has been twice what is needed.
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
