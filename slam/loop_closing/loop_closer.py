"""Loop closing: loops are detected, verified, checked for consistency and closed.

Candidates come from image retrieval (FAISS) and are verified geometrically: enough landmarks of the old place, spread
over the image, must agree with one pose. Loops are accepted if they are consistent with one another and with the drift
of the odometry (`slam.loop_closing.pairwise_consistency`). The reason of every rejection contains the number and the
threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from relocalizer.interfaces import Candidate
from relocalizer.pose_from_matches import EstimatedPose, PoseRejected
from slam.config.schema import LoopClosingConfig
from slam.events import EdgeAccepted, EdgeRejected, EstimateRefused, Event, GraphOptimized, LoopExamined
from slam.loop_closing.loop_detector import LoopDetector
from slam.loop_closing.loop_examination import LoopExamination
from slam.loop_closing.loop_verifier import LoopVerifier, Verified
from slam.loop_closing.pairwise_consistency import Deferred, LoopEvidence
from slam.loop_closing.pose_graph import LOOP_LIMIT, GraphOptimizer, Solution
from slam.map.edge_residuals import residuals_of
from slam.map.frame_measurement import Gate
from slam.map.keyframe_graph import Edge, EdgeKind
from slam.map.tracks import Tracks
from slam.mapping.mapper import Mapper

OUT_OF_RANGE = "its length or its scale is beyond what a map can hold"
MAX_JOIN_LOG_SCALE = 0.2  # maximum standard deviation of the log scale of a loop that joins two segments


class LoopCloser:
    """Closes loops: accepts consistent ones, optimizes the pose graph and fuses duplicate landmarks.

    Corresponds to ORB-SLAM's loop closing thread, with pairwise consistency (PCM) in place of covisibility consistency.
    """

    def __init__(
        self,
        config: LoopClosingConfig,
        mapper: Mapper,
        detector: LoopDetector,
        verifier: LoopVerifier,
        optimizer: GraphOptimizer,
        publish: Callable[[Event], None],
    ) -> None:
        self._config = config
        self._map = mapper.map
        self._fusion = mapper.fusion
        self._detector = detector
        self._verifier = verifier
        self._optimizer = optimizer
        self._publish = publish
        self._evidence = LoopEvidence(single_loop_min_inliers=config.single_loop_min_inliers)
        self._verified: dict[tuple[int, int], Verified] = {}  # deferred loops
        self._examination = LoopExamination(-1, -1)  # of the newest candidate
        self._last_reason = ""  # of the newest rejection

    def close_loops(self, k: int, *, among: Collection[int] | None = None) -> bool:
        """Detect loops of keyframe k and close the first that is accepted; whether one was closed.

        Where the scene repeats itself nearly all candidates pass verification, which is expensive, and are false; there
        only the most similar one is verified.

        Args:
            among: keyframes that may be candidates; by default all.
        """
        candidates = self._detector.candidates(k, among=among)
        most = 1 if self._evidence.scene_repeats else len(candidates)
        return any(self._examine(candidate, k) for candidate in candidates[:most])

    def join(self, c: int, k: int, found: EstimatedPose) -> bool:
        """Join the segment of keyframe k to that of keyframe c, in which k was relocalized; whether they are joined.

        Args:
            found: pose of keyframe k in the world of keyframe c.
        """
        edge = self._verifier.loop_edge(c, k, found)
        if edge.sigmas[6] >= MAX_JOIN_LOG_SCALE:
            reason = f"scale known to {edge.sigmas[6]:.0%}, {MAX_JOIN_LOG_SCALE:.0%} needed to join two maps"
            self._reject(c, k, reason, edge.inliers)
            return False
        self._close_if_accepted(Verified(edge, found))
        return self._map.graph.segment_of[c] == self._map.graph.segment_of[k]

    def _examine(self, candidate: Candidate, k: int) -> bool:
        """Verify one candidate, close the loop if it is accepted, and publish how it was examined."""
        self._last_reason, self._evidence.gates = "", []
        closed = self._verify_and_close(candidate.key, k)
        similarity = Gate(
            name="similarity", value=candidate.similarity, limit=self._detector.threshold, passed=True
        )  # the detector returns no other candidates
        self._publish(
            LoopExamined(
                frame_index=self._map.frame_index_of(k),
                i=candidate.key,
                j=k,
                is_accepted=closed,
                reason="" if closed else self._last_reason,
                gates=(similarity, *self._examination.gates, *self._evidence.gates),
                matches=self._examination.points(self._map),
            )
        )
        return closed

    def _verify_and_close(self, c: int, k: int) -> bool:
        """Verify one candidate, and close the loop if it is accepted; whether it was closed."""
        outcome = self._verifier.verify(c, k)
        self._examination = self._verifier.examination
        if isinstance(outcome, PoseRejected):
            self._reject(c, k, outcome.reason, outcome.landmarks)
            return False
        return self._close_if_accepted(outcome)

    def _close_if_accepted(self, loop: Verified) -> bool:
        """Close a loop, and deferred loops that it supports; whether it was accepted.

        If only a second loop is missing, the previous keyframe is verified at the same place.
        """
        if not loop.edge.i_from_j.is_in_range:
            self._reject(loop.edge.i, loop.edge.j, OUT_OF_RANGE, loop.edge.inliers)
            return False
        evaluated, verdict = [loop], self._evaluate(loop)
        if isinstance(verdict, Deferred) and verdict.alone and (second := self._second_look(loop.edge.i, loop.edge.j)):
            evaluated.append(second)
            verdict = self._evaluate(second)
        if isinstance(verdict, Deferred):
            reason = f"deferred: {verdict.reason}"
            for deferred in evaluated:
                edge = deferred.edge
                self._reject(edge.i, edge.j, reason, edge.inliers, is_refuted=verdict.is_refuted)
            return False
        return self._close(loop.edge.j, verdict)

    def _evaluate(self, loop: Verified) -> Deferred | list[Verified]:
        """The loops to close now that this one is verified: this one and deferred ones that it supports."""
        if not self._config.robust:
            return [loop]
        self._verified[loop.edge.i, loop.edge.j] = loop
        verdict = self._evidence.evaluate(loop.edge, self._map.graph)
        self._verified = {key: v for key, v in self._verified.items() if self._evidence.is_pending(*key)}
        if isinstance(verdict, Deferred):
            return verdict
        self._map.inflate_odometry(verdict.odometry_variance)
        return [self._verified.pop((e.i, e.j)) for e in verdict.edges if (e.i, e.j) in self._verified]

    def _second_look(self, c: int, k: int) -> Verified | None:
        """The loop from the keyframe before k to the same place, which that keyframe should observe too."""
        before = self._map.before(k)
        if before is None or c >= before or (c, before) in self._map.graph.edges:
            return None
        if c in self._map.graph.sequence_neighbors(before, self._config.min_gap):
            return None
        if self._evidence.scene_repeats:  # the keyframe before was deceived in the same way
            return None
        outcome = self._verifier.verify(c, before)
        if isinstance(outcome, PoseRejected):
            self._reject(c, before, f"second look: {outcome.reason}", outcome.landmarks)
            return None
        return outcome

    def _reject(self, c: int, k: int, reason: str, landmarks: int, *, is_refuted: bool = False) -> None:
        """Publish why there is no loop between c and k, and the number of landmarks that supported it."""
        self._last_reason = reason
        self._publish(
            EdgeRejected(
                i=c,
                j=k,
                kind=EdgeKind.LOOP,
                reason=reason,
                landmarks=landmarks,
                frame_index=self._map.frame_index_of(k),
                is_refuted=is_refuted,
            )
        )

    def _close(self, k: int, loops: list[Verified]) -> bool:
        """Add the edges of loops, join their segments, optimize the pose graph and fuse duplicate landmarks.

        Returns:
            False, and nothing changes, if the joined segment would be out of range.
        """
        graph = self._map.graph
        edge = min((loop.edge for loop in loops), key=lambda edge: float(edge.sigmas[6]))  # with the best-known scale
        if graph.segment_of[edge.i] != graph.segment_of[edge.j] and not self._join_along(edge):
            for loop in loops:
                self._reject(loop.edge.i, loop.edge.j, OUT_OF_RANGE, loop.edge.inliers)
            return False
        for loop in loops:
            self._map.set_edge(loop.edge)
        ends = " and ".join(f"{loop.edge.i}-{loop.edge.j}" for loop in loops)
        landmarks = sum(loop.edge.inliers for loop in loops)
        cause = f"loop{'s' * (len(loops) > 1)} {ends} with {landmarks} landmarks"
        solved = self._optimize(k, cause, new={(loop.edge.i, loop.edge.j) for loop in loops})
        for loop in loops:
            if solved and graph.weight(loop.edge) > 0:
                self._fuse_landmarks(loop.edge.j, loop.found)
                self._fusion.search_by_projection(loop.edge.j)
        return True

    def _join_along(self, edge: Edge) -> bool:
        """Join the segments at the ends of an edge; False if that would leave the range of poses."""
        poses = self._map.graph.world_from_keyframe
        i_world_from_j_world = poses[edge.i] @ edge.i_from_j @ poses[edge.j].inverse()
        return self._map.join_segments(edge.i, edge.j, i_world_from_j_world)

    def _optimize(self, k: int, cause: str, new: set[tuple[int, int]]) -> bool:
        """Optimize the pose graph with the `new` loops in it, and publish which loops changed.

        Returns:
            False if the solver failed: all poses stay, and the loops remain in the graph for the next optimization.
        """
        graph, frame_index = self._map.graph, self._map.frame_index_of(k)
        solution = self._optimizer.optimize(graph)
        if problem := solution.why_unusable:
            self._publish(EstimateRefused(frame_index=frame_index, reason=f"graph optimization: {problem}"))
            for key in sorted(new):
                self._publish(EdgeAccepted(edge=graph.edges[key], frame_index=frame_index))
            return False
        self._publish_changes(frame_index, solution, new)
        before = residuals_of(graph)
        self._map.apply_pose_graph(solution.world_from_keyframe, solution.loop_weights)
        self._publish(
            GraphOptimized(
                frame_index=frame_index,
                world_from_keyframe=dict(graph.world_from_keyframe),
                error_before=solution.error_before,
                error_after=solution.error_after,
                cause=cause,
                before=before,
                after=residuals_of(graph),
            )
        )
        return True

    def _publish_changes(self, frame_index: int, solution: Solution, new: set[tuple[int, int]]) -> None:
        """Publish which loops the solution, not applied yet, enables, and which it disables."""
        graph = self._map.graph
        for edge in graph.edges_of(EdgeKind.LOOP):
            key = edge.i, edge.j
            enabled, was_enabled = solution.loop_weights.get(key, 1.0) > 0, graph.weight(edge) > 0 and key not in new
            if enabled and not was_enabled:
                self._publish(EdgeAccepted(edge=edge, frame_index=frame_index))
            elif not enabled and (was_enabled or key in new):
                error = solution.loop_errors[key]
                reason = f"left out: chi-square {error:.1f} from where all others lead, limit {LOOP_LIMIT:g}"
                self._reject(*key, reason, edge.inliers)

    def _fuse_landmarks(self, k: int, found: EstimatedPose) -> None:
        """Fuse the landmarks that keyframe k observes with the old landmarks they were matched to."""
        landmarks = self._map.landmarks
        is_current = landmarks.is_triangulated(found.matches.landmark)  # False for ids fused since the match
        matches = found.matches.where(is_current)
        pixels = self._map.graph.keyframes[k].features.pixels[matches.feature]
        old, own = matches.landmark, landmarks.feature_tracks[k][matches.feature]
        has_track = own >= 0
        new = ~has_track & ~np.isin(old, landmarks.observed[k].ids)
        self._map.add_observations(k, matches.feature[new], Tracks(old[new], pixels[new]))
        differ = has_track & (own != old)
        self._map.fuse_landmarks(old[differ], own[differ])
