"""Edges: each keyframe tied to its neighbours, and loops found, verified and closed.

Loops are found by looks (FAISS) and believed by geometry: landmarks of the old place must agree with one pose of
the new picture. Every rejection says the number and the threshold.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from relocalizer.absolute_pose import pose_information
from relocalizer.geometry import FloatArray, Similarity
from relocalizer.interfaces import Candidate, NoEstimate, PairEstimate, PosePredictor, Retriever
from relocalizer.scale import fit_relative_scale
from relocalizer.triangulation import depths_in
from slam.config import LinkingConfig
from slam.events import EdgeAccepted, EdgeRejected, Event, GraphOptimised, ScaleUnobservable
from slam.graph import Edge, EdgeKind
from slam.localization import FEATURE_NOISE_PX, Localised, NotLocalised
from slam.mapping import Mapper
from slam.optimizer import GraphOptimizer
from slam.recognition import recognise_place
from slam.tracks import Tracks

COVISIBLE = 15  # landmarks shared by keyframes that need no loop between them
UNKNOWN_LOG_SCALE = 0.5
MIN_SCALE_LANDMARKS = 8
MIN_SIGMA = 1e-5


class Linker:
    """Ties keyframes of the mapper's graph together."""

    def __init__(
        self,
        config: LinkingConfig,
        mapper: Mapper,
        predictor: PosePredictor,
        retriever: Retriever,
        optimizer: GraphOptimizer,
        emit: Callable[[Event], None],
    ) -> None:
        self._config = config
        self._mapper = mapper
        self._predictor = predictor
        self._retriever = retriever
        self._optimizer = optimizer
        self._emit = emit
        self._scale_is_observable = True

    # --- neighbours -----------------------------------------------------------------------------------

    def relate_to_previous(self, k: int) -> None:
        """Ask the predictor how keyframe k lies to the one before it; the refinement takes the answer as a prior."""
        members = self._mapper.segment_keyframes(k)
        if len(members) < 2:
            return
        i, graph = members[-2], self._mapper.graph
        [estimate] = self._predictor.relate([(graph.keyframes[i].encoded, graph.keyframes[k].encoded)])
        self._mapper.remember_pair(i, k, estimate)

    def tie_to_neighbours(self, k: int, window: int) -> None:
        """Edges from the newest keyframes, which a refinement has just moved, to those they share landmarks with."""
        members = self._mapper.segment_keyframes(k)
        recent = members[-3 * window :]
        # The newest needs its first edges; the one that leaves the window has just been refined for the last time.
        for j in {recent[-1], recent[-window] if len(recent) >= window else recent[-1]}:
            earlier = self._mapper.related(j, self._config.neighbours, among=[i for i in recent if i < j])
            if not earlier:  # recognised at a place long ago
                earlier = self._mapper.related(j, self._config.neighbours, among=[i for i in members if i < j])
            for i in earlier:
                known = self._mapper.graph.edges.get((i, j))
                if known is not None and known.kind is EdgeKind.LOOP:
                    continue
                edge = self._odometry_edge(i, j)
                self._mapper.graph.set_edge(edge)
                if known is None:
                    self._emit(EdgeAccepted(edge=edge, frame_index=self._frame_of(k)))

    def _odometry_edge(self, i: int, j: int) -> Edge:
        """The relative pose the refined landmarks give, as sure as the landmarks that both keyframes see."""
        graph, landmarks = self._mapper.graph, self._mapper.landmarks
        pose_i, pose_j = graph.world_from_keyframe[i], graph.world_from_keyframe[j]
        shared = np.intersect1d(landmarks.observed[i].ids, landmarks.observed[j].ids, assume_unique=True)
        shared = shared[landmarks.has_place(shared)]
        information = pose_information(
            landmarks.points_world(shared, graph),
            landmarks.depth_deviation_world(shared, graph),
            graph.keyframes[j].camera,
            pose_j.rigid,
            self._mapper.noise_px,
        )
        relative = landmarks.inverse_depth_sigma[shared] * landmarks.point_in_anchor[shared, 2]
        log_scale_sigma = float(np.median(relative)) / np.sqrt(len(shared)) if len(shared) else UNKNOWN_LOG_SCALE
        return Edge(
            i=i,
            j=j,
            i_from_j=pose_i.inverse() @ pose_j,
            sigmas=_sigmas(information, pose_i.scale, log_scale_sigma),
            kind=EdgeKind.ODOMETRY,
            inliers=len(shared),
        )

    def watch_scale(self, k: int, needed_deg: float) -> None:
        """Say when keyframe k gives new points no depth, because the camera turned more than it moved.

        Said once for each such stretch: again only after the parallax has been twice what is needed.
        """
        members = self._mapper.segment_keyframes(k)
        if len(members) < 2:
            return
        i = members[-2]
        parallax = self._mapper.parallax_deg(i, k)
        if parallax < needed_deg and self._scale_is_observable:
            self._scale_is_observable = False
            reason = f"parallax {parallax:.2f} deg between keyframes {i} and {k}, {needed_deg:g} needed"
            self._emit(ScaleUnobservable(frame_index=self._frame_of(k), reason=f"{reason} to give new points a depth"))
        elif parallax > 2 * needed_deg:
            self._scale_is_observable = True

    # --- loops ----------------------------------------------------------------------------------------

    def remember(self, k: int) -> None:
        """Let later keyframes find this one."""
        self._retriever.add(k, self._mapper.graph.keyframes[k].descriptor)

    def close_loops(self, k: int) -> bool:
        """Look for loops from keyframe k and close the first that stands; whether one was closed."""
        graph = self._mapper.graph
        candidates = self._candidates(k)
        pairs = [(graph.keyframes[c.key].encoded, graph.keyframes[k].encoded) for c in candidates]
        for candidate, estimate in zip(candidates, self._predictor.relate(pairs), strict=True):
            outcome = self._verify(candidate.key, k, estimate)
            if isinstance(outcome, Localised):
                self._close(candidate.key, k, outcome)
                return True
            self._emit(
                EdgeRejected(
                    i=candidate.key, j=k, kind=EdgeKind.LOOP, reason=outcome.reason, frame_index=self._frame_of(k)
                )
            )
        return False

    def _verify(self, c: int, k: int, estimate: PairEstimate | NoEstimate) -> Localised | NotLocalised:
        """Whether keyframe k really sees the place of keyframe c: cheapest test first."""
        if isinstance(estimate, NoEstimate):
            return NotLocalised(estimate.reason)
        return recognise_place(
            self._mapper.graph.keyframes[k].features,
            self._mapper.graph.keyframes[k].camera,
            c,
            estimate,
            self._mapper,
            min_inliers=self._config.loop_min_inliers,
        )

    def _candidates(self, k: int) -> list[Candidate]:
        """Keyframes that look like k, far from it in the run and not already tied to it by landmarks."""
        graph, landmarks = self._mapper.graph, self._mapper.landmarks
        tracks = landmarks.observed[k]
        placed = tracks.ids[landmarks.has_place(tracks.ids)]
        shared = landmarks.shared_with(placed, list(graph.keyframes))
        near = {i for i in graph.keyframes if abs(i - k) < self._config.loop_min_gap}
        tied = {i for i, count in shared.items() if count >= COVISIBLE}
        descriptor = graph.keyframes[k].descriptor
        recent = [float(descriptor @ graph.keyframes[i].descriptor) for i in (k - 1, k - 2) if i in graph.keyframes]
        threshold = self._config.loop_min_similarity * max(recent, default=1.0)
        found = self._retriever.query(descriptor, self._config.loop_candidates, frozenset(near | tied))
        return [c for c in found if c.similarity >= threshold]

    def _close(self, c: int, k: int, found: Localised) -> None:
        """Accept the loop: an edge with its scale, the graph solved, the two names of each landmark made one."""
        mapper, graph = self._mapper, self._mapper.graph
        pose_k = graph.world_from_keyframe[k]
        ratio, log_scale_sigma = self._relative_scale(k, found)
        seen_from_c = Similarity.from_rigid(found.fit.world_from_cam, pose_k.scale * ratio)
        pose_c = graph.world_from_keyframe[c]
        edge = Edge(
            i=c,
            j=k,
            i_from_j=pose_c.inverse() @ seen_from_c,
            sigmas=_sigmas(self._loop_information(k, found), pose_c.scale, log_scale_sigma),
            kind=EdgeKind.LOOP,
            inliers=found.fit.inlier_count,
        )
        graph.set_edge(edge)
        self._emit(EdgeAccepted(edge=edge, frame_index=self._frame_of(k)))
        if graph.segment_of[c] != graph.segment_of[k]:
            mapper.join_segments(c, k, seen_from_c @ pose_k.inverse())
        self._optimise(k, f"loop {c}-{k} with {edge.inliers} landmarks")
        self._unite_landmarks(k, found)
        mapper.refind(k)

    def _loop_information(self, k: int, found: Localised) -> FloatArray:
        """Information (6, 6) of a loop's pose, from landmarks that are themselves uncertain."""
        graph, landmarks, ids = self._mapper.graph, self._mapper.landmarks, found.matches.tracks.ids
        return pose_information(
            landmarks.points_world(ids, graph),
            landmarks.depth_deviation_world(ids, graph),
            graph.keyframes[k].camera,
            found.fit.world_from_cam,
            FEATURE_NOISE_PX,
        )

    def _relative_scale(self, k: int, found: Localised) -> tuple[float, float]:
        """How k's map units must be stretched to agree with the old landmarks, and the sigma of its logarithm."""
        mapper, graph = self._mapper, self._mapper.graph
        own = mapper.landmarks.feature_tracks[k][found.matches.feature]
        both = own >= 0
        both[both] = mapper.landmarks.has_place(own[both])
        old_points = mapper.landmarks.points_world(found.matches.tracks.ids[both], graph)
        own_points = mapper.landmarks.points_world(own[both], graph)
        old_depth = depths_in(old_points, found.fit.world_from_cam)
        own_depth = depths_in(own_points, graph.world_from_keyframe[k].rigid)
        positive = (old_depth > 1e-9) & (own_depth > 1e-9)
        if int(positive.sum()) >= MIN_SCALE_LANDMARKS:
            return fit_relative_scale(old_depth[positive], own_depth[positive])
        reason = f"loop at keyframe {k}: {int(positive.sum())} landmarks have depth on both sides"
        reason = f"{reason}, {MIN_SCALE_LANDMARKS} needed for its scale"
        self._emit(ScaleUnobservable(frame_index=self._frame_of(k), reason=reason))
        return 1.0, UNKNOWN_LOG_SCALE

    def _optimise(self, k: int, cause: str) -> None:
        graph = self._mapper.graph
        solution = self._optimizer.optimise(graph)
        graph.set_poses(solution.world_from_keyframe)
        self._emit(
            GraphOptimised(
                frame_index=self._frame_of(k),
                world_from_keyframe=dict(graph.world_from_keyframe),
                error_before=solution.error_before,
                error_after=solution.error_after,
                cause=cause,
            )
        )

    def _unite_landmarks(self, k: int, found: Localised) -> None:
        """What k saw under its own names are the old landmarks: one name each, so that old and new hold each other."""
        landmarks = self._mapper.landmarks
        old, own = found.matches.tracks.ids, landmarks.feature_tracks[k][found.matches.feature]
        named = own >= 0
        new = ~named & ~np.isin(old, landmarks.observed[k].ids)
        landmarks.feature_tracks[k][found.matches.feature[new]] = old[new]
        landmarks.observed[k] = landmarks.observed[k].joined(Tracks(old[new], found.matches.tracks.pixels[new]))
        differ = named & (own != old)
        landmarks.merge(old[differ], own[differ])

    def _frame_of(self, k: int) -> int:
        return self._mapper.graph.keyframes[k].frame_index


def _sigmas(information: FloatArray, unit: float, log_scale_sigma: float) -> FloatArray:
    """The seven sigmas of an edge from a pose's (6, 6) information, whose translation is in map units."""
    covariance = np.linalg.inv(information + 1e-9 * np.eye(6) * max(float(np.trace(information)), 1.0))
    sigmas = np.sqrt(np.maximum(np.diag(covariance), MIN_SIGMA**2))
    return np.concatenate([sigmas[:3], sigmas[3:] / unit, [max(log_scale_sigma, 1e-3)]])
