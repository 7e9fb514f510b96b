"""Loop closing: loops are detected, verified, checked for consistency and closed.

Loops are found by looks (FAISS) and verified by geometry: landmarks of the old place must agree with one pose of the
new image, all over the image. They are believed when they agree with each other and with how far the path may have
drifted (`slam.loop_closing.pairwise_consistency`). Every rejection says the number and the threshold.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from slam.config.schema import LoopClosingConfig
from slam.events import EdgeAccepted, EdgeRejected, EstimateRefused, Event, GraphOptimized
from slam.loop_closing.loop_detector import LoopDetector
from slam.loop_closing.loop_verifier import LoopVerifier, Verified
from slam.loop_closing.pairwise_consistency import Deferred, LoopEvidence
from slam.loop_closing.pose_graph import LOOP_LIMIT, GraphOptimizer, Solution
from slam.map.keyframe_graph import EdgeKind
from slam.map.tracks import Tracks
from slam.mapping.mapper import Mapper
from slam.relocalization.pose_from_matches import (
    EstimatedPose,
    PlaceNotMatched,
)

MAX_JOIN_LOG_SCALE = 0.2


class LoopCloser:
    """Closes loops: accepts consistent ones, solves the pose graph and fuses landmarks."""

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

    def close_loops(self, k: int) -> bool:
        """Look for loops from keyframe k and close the first that is believed; whether one was closed."""
        return any(self._consider(candidate.key, k) for candidate in self._detector.candidates(k))

    def join(self, c: int, k: int, found: EstimatedPose) -> bool:
        """Tie keyframe k's segment to c's, in which k was recognized; False where that does not tell its scale."""
        edge = self._verifier.loop_edge(c, k, found)
        if edge.sigmas[6] >= MAX_JOIN_LOG_SCALE:
            known = f"scale known to {edge.sigmas[6]:.0%}, {MAX_JOIN_LOG_SCALE:.0%} needed to join two maps"
            self._reject(c, k, known, edge.inliers)
            return False
        self._close_if_believed(Verified(edge, found))
        return self._map.graph.segment_of[c] == self._map.graph.segment_of[k]

    def _consider(self, c: int, k: int) -> bool:
        """Verify one candidate, and close the loop when it is believed."""
        outcome = self._verifier.verify(c, k)
        if isinstance(outcome, PlaceNotMatched):
            self._reject(c, k, outcome.reason, outcome.landmarks)
            return False
        return self._close_if_believed(outcome)

    def _close_if_believed(self, loop: Verified) -> bool:
        """Close a loop and those that waited for it; with a second look where only a second loop is missing."""
        asked, verdict = [loop], self._evaluate(loop)
        if isinstance(verdict, Deferred) and verdict.alone and (second := self._second_look(loop.edge.i, loop.edge.j)):
            asked.append(second)
            verdict = self._evaluate(second)
        if isinstance(verdict, Deferred):
            for held in asked:
                self._reject(held.edge.i, held.edge.j, f"held back: {verdict.reason}", held.edge.inliers)
            return False
        self._close(loop.edge.j, verdict)
        return True

    def _evaluate(self, loop: Verified) -> Deferred | list[Verified]:
        """What may be closed now that this loop is known: with it, those that waited for it."""
        if not self._config.robust:
            return [loop]
        self._verified[loop.edge.i, loop.edge.j] = loop
        verdict = self._evidence.evaluate(loop.edge, self._map.graph)
        self._verified = {key: v for key, v in self._verified.items() if self._evidence.is_pending(*key)}
        if isinstance(verdict, Deferred):
            return verdict
        return [self._verified.pop((e.i, e.j)) for e in verdict.edges if (e.i, e.j) in self._verified]

    def _second_look(self, c: int, k: int) -> Verified | None:
        """The same place from the keyframe before k: a second image that should see it too."""
        before = self._map.before(k)
        if before is None or before - c < self._config.min_gap or (c, before) in self._map.graph.edges:
            return None
        outcome = self._verifier.verify(c, before)
        if isinstance(outcome, PlaceNotMatched):
            self._reject(c, before, f"second look: {outcome.reason}", outcome.landmarks)
            return None
        return outcome

    def _reject(self, c: int, k: int, reason: str, landmarks: int) -> None:
        """Tell why there is no loop between c and k, and how many landmarks spoke for it."""
        frame = self._map.frame_index_of(k)
        self._publish(EdgeRejected(i=c, j=k, kind=EdgeKind.LOOP, reason=reason, landmarks=landmarks, frame_index=frame))

    def _close(self, k: int, loops: list[Verified]) -> None:
        """Accept loops: edges with their scale, the graph solved, the two names of each landmark made one."""
        slam_map, graph = self._map, self._map.graph
        for loop in loops:
            graph.set_edge(loop.edge)
        surest = min((loop.edge for loop in loops), key=lambda edge: float(edge.sigmas[6]))
        if graph.segment_of[surest.i] != graph.segment_of[surest.j]:
            seen_from_i = graph.world_from_keyframe[surest.i] @ surest.i_from_j
            slam_map.join_segments(surest.i, surest.j, seen_from_i @ graph.world_from_keyframe[surest.j].inverse())
        named = " and ".join(f"{loop.edge.i}-{loop.edge.j}" for loop in loops)
        landmarks = sum(loop.edge.inliers for loop in loops)
        cause = f"loop{'s' * (len(loops) > 1)} {named} with {landmarks} landmarks"
        solved = self._optimize(k, cause, fresh={(loop.edge.i, loop.edge.j) for loop in loops})
        for loop in loops:
            if solved and graph.weight(loop.edge) > 0:
                self._fuse_landmarks(loop.edge.j, loop.found)
                self._fusion.search_by_projection(loop.edge.j)

    def _optimize(self, k: int, cause: str, fresh: set[tuple[int, int]]) -> bool:
        """Solve the graph with the `fresh` loops in it, and tell what became of them and of the others.

        Returns:
            False when the solver failed: all poses stay, and the loops are in the graph for when it is solved again.
        """
        graph = self._map.graph
        solution = self._optimizer.optimize(graph)
        if problem := solution.why_unusable:
            self._publish(
                EstimateRefused(frame_index=self._map.frame_index_of(k), reason=f"graph optimization: {problem}")
            )
            for key in sorted(fresh):
                self._publish(EdgeAccepted(edge=graph.edges[key], frame_index=self._map.frame_index_of(k)))
            return False
        graph.set_poses(solution.world_from_keyframe)
        self._publish_changes(k, solution, fresh)
        graph.set_weights(solution.loop_weights)
        self._publish(
            GraphOptimized(
                frame_index=self._map.frame_index_of(k),
                world_from_keyframe=dict(graph.world_from_keyframe),
                error_before=solution.error_before,
                error_after=solution.error_after,
                cause=cause,
            )
        )
        return True

    def _publish_changes(self, k: int, solution: Solution, fresh: set[tuple[int, int]]) -> None:
        """Say which loops the solution has left out, and which it has taken in or taken back."""
        graph = self._map.graph
        for edge in graph.edges_of(EdgeKind.LOOP):
            key = edge.i, edge.j
            followed, before = solution.loop_weights.get(key, 1.0) > 0, graph.weight(edge) > 0 and key not in fresh
            if followed and not before:
                self._publish(EdgeAccepted(edge=edge, frame_index=self._map.frame_index_of(k)))
            elif not followed and (before or key in fresh):
                error = solution.loop_errors[key]
                why = f"left out: chi-square {error:.1f} from where all others lead, limit {LOOP_LIMIT:g}"
                self._reject(*key, why, edge.inliers)

    def _fuse_landmarks(self, k: int, found: EstimatedPose) -> None:
        """What k saw under its own names are the old landmarks: one name each, so that old and new hold each other."""
        landmarks = self._map.landmarks
        matches = found.matches.where(
            landmarks.is_triangulated(found.matches.tracks.ids)
        )  # others were merged meanwhile
        old, own = matches.tracks.ids, landmarks.feature_tracks[k][matches.feature]
        named = own >= 0
        new = ~named & ~np.isin(old, landmarks.observed[k].ids)
        landmarks.feature_tracks[k][matches.feature[new]] = old[new]
        landmarks.observed[k] = landmarks.observed[k].joined(Tracks(old[new], matches.tracks.pixels[new]))
        differ = named & (own != old)
        landmarks.merge(old[differ], own[differ])
