"""Edges: each keyframe tied to its neighbors, and loops found, verified and closed.

Loops are found by looks (FAISS) and verified by geometry: landmarks of the old place must agree with one pose of the
new image, all over the image. They are believed when they agree with each other and with how far the path may have
drifted (slam.consistency). Every rejection says the number and the threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from relocalizer.absolute_pose import pose_information
from relocalizer.features import CELLS, occupied_cells
from relocalizer.geometry import FloatArray, Similarity
from relocalizer.interfaces import Candidate, NoEstimate, PosePredictor, Retriever
from relocalizer.scale import fit_relative_scale
from relocalizer.triangulation import depths_in
from slam.config.schema import LoopClosingConfig
from slam.events import EdgeAccepted, EdgeRejected, EstimateRefused, Event, GraphOptimized, ScaleUnobservable
from slam.loop_closing.edge_path import edge_covariance, log_error
from slam.loop_closing.pairwise_consistency import Deferred, LoopEvidence, squared_distance
from slam.loop_closing.pose_graph import LOOP_LIMIT, GraphOptimizer, Solution
from slam.map.keyframe_graph import Edge, EdgeKind
from slam.map.tracks import Tracks
from slam.mapping.mapper import Mapper
from slam.predictor_checks import relate
from slam.relocalization.frame_relocalizer import COVISIBLE_KEYFRAMES, estimate_pose_at_place, match_place
from slam.relocalization.pose_from_matches import (
    FEATURE_NOISE_PX,
    EstimatedPose,
    PlaceNotMatched,
    refine_with_guided_matching,
)

COVISIBLE = 15  # landmarks shared by keyframes that need no loop between them
QUERIES, QUERIED = 4, 8  # at most so many queries a keyframe, each for so many times the candidates wanted
UNKNOWN_LOG_SCALE = 0.5
MAX_JOIN_LOG_SCALE = 0.2
MIN_SCALE_LANDMARKS = 8
MIN_SIGMA = 1e-5
# Errors of landmarks in one image have much in common: the lens, motion blur, the poses they were placed from.
# Correlated by this much, n of them say as much as n / (1 + 0.1 (n - 1)) independent ones (docs/results.md, "Loops").
CORRELATION = 0.1
# Those of a loop were placed from one end and recognized from the other, one by one, so they have less in common.
LOOP_CORRELATION = 0.05
# Looked at closer, landmarks are searched this far from where the loop puts them, in pixels, by descriptors this alike.
CLOSER_PX, CLOSER_SIMILARITY = 10.0, 0.8
FOUND_AGAIN = 2 / 3  # of as many landmarks as the loop rests on
CHI2_6DOF_999 = 22.46


@dataclass(frozen=True, slots=True, eq=False)
class Verified:
    """A loop that geometry speaks for: the edge it would be, and the landmarks recognized."""

    edge: Edge
    found: EstimatedPose


class LoopCloser:
    """Ties keyframes of the mapper's graph together."""

    def __init__(
        self,
        config: LoopClosingConfig,
        mapper: Mapper,
        predictor: PosePredictor,
        retriever: Retriever,
        optimizer: GraphOptimizer,
        publish: Callable[[Event], None],
    ) -> None:
        self._config = config
        self._mapper = mapper
        self._predictor = predictor
        self._retriever = retriever
        self._optimizer = optimizer
        self._publish = publish
        self._scale_is_observable = True
        self._evidence = LoopEvidence(single_loop_min_inliers=config.single_loop_min_inliers)
        self._verified: dict[tuple[int, int], Verified] = {}  # loops that wait to be believed

    # --- neighbors -----------------------------------------------------------------------------------

    def relate_to_covisible(self, k: int) -> None:
        """Ask the predictor how keyframe k lies to the one before it, for a prior of the refinement.

        After a relocalization the one before may show another place; then it is asked about the most covisible one.
        """
        graph, before = self._mapper.graph, self._mapper.before(k)
        overlaps = before is not None and before in self._connected(k, [before])
        for i in [before] if before is not None and overlaps else self._mapper.covisible(k, 1):
            estimate = relate(self._predictor, graph.keyframes[i].encoded, graph.keyframes[k].encoded)
            self._mapper.remember_pair(i, k, estimate)

    def add_odometry_edges(self, k: int, window: int) -> None:
        """Edges from the newest keyframes, which a refinement has just moved, to those they share landmarks with."""
        recent = self._mapper.latest(k, 3 * window)
        # The newest needs its first edges; the one that leaves the window has just been refined for the last time.
        for j in {recent[-1], recent[-window] if len(recent) >= window else recent[-1]}:
            earlier = self._mapper.covisible(j, self._config.neighbors, among=[i for i in recent if i < j])
            if not earlier:  # recognized at a place long ago
                earlier = self._mapper.covisible(
                    j, self._config.neighbors, among=[i for i in self._mapper.segment_keyframes(k) if i < j]
                )
            for i in earlier:
                known = self._mapper.graph.edges.get((i, j))
                if known is not None and known.kind is EdgeKind.LOOP:
                    continue
                span = sum(i < between <= j for between in recent)
                edge = self._odometry_edge(i, j, share=1.0 / (len(earlier) * min(max(span, 1), len(earlier))))
                self._mapper.graph.set_edge(edge)
                if known is None:
                    self._publish(EdgeAccepted(edge=edge, frame_index=self._frame_of(k)))

    def _odometry_edge(self, i: int, j: int, *, share: float) -> Edge:
        """The relative pose the refined landmarks give, as sure as the landmarks that both keyframes see.

        A keyframe's edges to several earlier ones come from one refinement of the same landmarks. With n of them, an
        edge over m keyframes has 1 / (m n) of the evidence for its own: then all together are as stiff as a chain of
        single steps, if variance grows with the number of steps.
        """
        graph, landmarks = self._mapper.graph, self._mapper.landmarks
        pose_i, pose_j = graph.world_from_keyframe[i], graph.world_from_keyframe[j]
        shared = np.intersect1d(landmarks.observed[i].ids, landmarks.observed[j].ids, assume_unique=True)
        shared = shared[landmarks.is_triangulated(shared)]
        information = pose_information(
            landmarks.points_world(shared, graph),
            landmarks.depth_sigma_world(shared, graph),
            graph.keyframes[j].camera,
            pose_j.rigid,
            self._mapper.noise_px,
        )
        variance = self._relative_depth_sigma(shared)
        log_scale_sigma = float(np.median(variance)) / np.sqrt(len(shared)) if len(shared) else UNKNOWN_LOG_SCALE
        seen = landmarks.observed[j].ids  # all of them placed j, and their common errors with it
        inflation = design_effect(int(landmarks.is_triangulated(seen).sum()), CORRELATION)
        return Edge(
            i=i,
            j=j,
            i_from_j=pose_i.inverse() @ pose_j,
            sigmas=_sigmas(information / inflation, pose_i.scale, np.sqrt(inflation) * log_scale_sigma),
            kind=EdgeKind.ODOMETRY,
            inliers=len(shared),
            share=share,
        )

    def check_parallax(self, k: int, needed_deg: float) -> None:
        """Say when keyframe k gives new points no depth, because the camera turned more than it moved.

        Said once for each such stretch: again only after the parallax has been twice what is needed.
        """
        i = self._mapper.before(k)
        parallax = None if i is None else self._mapper.parallax_deg(i, k)
        if parallax is None:
            return
        if parallax < needed_deg and self._scale_is_observable:
            self._scale_is_observable = False
            reason = f"parallax {parallax:.2f} deg between keyframes {i} and {k}, {needed_deg:g} needed"
            self._publish(
                ScaleUnobservable(frame_index=self._frame_of(k), reason=f"{reason} to give new points a depth")
            )
        elif parallax > 2 * needed_deg:
            self._scale_is_observable = True

    # --- loops ----------------------------------------------------------------------------------------

    def remember(self, k: int) -> None:
        """Let later keyframes find this one."""
        self._retriever.add(k, self._mapper.graph.keyframes[k].descriptor)

    def close_loops(self, k: int) -> bool:
        """Look for loops from keyframe k and close the first that is believed; whether one was closed."""
        return any(self._consider(candidate.key, k) for candidate in self._candidates(k))

    def join(self, c: int, k: int, found: EstimatedPose) -> bool:
        """Tie keyframe k's segment to c's, in which k was recognized; False where that does not tell its scale."""
        edge = self._loop_edge(c, k, found)
        if edge.sigmas[6] >= MAX_JOIN_LOG_SCALE:
            known = f"scale known to {edge.sigmas[6]:.0%}, {MAX_JOIN_LOG_SCALE:.0%} needed to join two maps"
            self._reject(c, k, known, edge.inliers)
            return False
        self._close_if_believed(Verified(edge, found))
        return self._mapper.graph.segment_of[c] == self._mapper.graph.segment_of[k]

    def _consider(self, c: int, k: int) -> bool:
        """Verify one candidate, and close the loop when it is believed."""
        outcome = self._verify(c, k)
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
        verdict = self._evidence.evaluate(loop.edge, self._mapper.graph)
        self._verified = {key: v for key, v in self._verified.items() if self._evidence.is_pending(*key)}
        if isinstance(verdict, Deferred):
            return verdict
        return [self._verified.pop((e.i, e.j)) for e in verdict.edges if (e.i, e.j) in self._verified]

    def _second_look(self, c: int, k: int) -> Verified | None:
        """The same place from the keyframe before k: a second image that should see it too."""
        before = self._mapper.before(k)
        if before is None or before - c < self._config.min_gap or (c, before) in self._mapper.graph.edges:
            return None
        outcome = self._verify(c, before)
        if isinstance(outcome, PlaceNotMatched):
            self._reject(c, before, f"second look: {outcome.reason}", outcome.landmarks)
            return None
        return outcome

    def _verify(self, c: int, k: int) -> Verified | PlaceNotMatched:
        """Whether keyframe k really sees the place of keyframe c: cheapest test first."""
        graph, config = self._mapper.graph, self._config
        features, camera = graph.keyframes[k].features, graph.keyframes[k].camera
        matches = match_place(features, c, self._mapper, min_inliers=config.min_inliers)
        if isinstance(matches, PlaceNotMatched):
            return matches
        estimate = relate(self._predictor, graph.keyframes[c].encoded, graph.keyframes[k].encoded)
        if isinstance(estimate, NoEstimate):
            return PlaceNotMatched(estimate.reason)
        if estimate.confidence < config.min_confidence:
            needed = f"{config.min_confidence:g} needed"
            return PlaceNotMatched(f"confidence {estimate.confidence:.2f} of the pair estimate, {needed}")
        found = estimate_pose_at_place(
            features, camera, c, matches, estimate, self._mapper, min_inliers=config.min_inliers
        )
        if isinstance(found, PlaceNotMatched):
            return found
        cells = occupied_cells(found.matches.tracks.pixels, camera)
        if cells < config.min_cells:
            landmarks = f"{found.fit.inlier_count} landmarks in {cells} of {CELLS[0] * CELLS[1]} cells of the image"
            return PlaceNotMatched(f"{landmarks}, {config.min_cells} needed", found.fit.inlier_count)
        return self._refine_pose(Verified(self._loop_edge(c, k, found), found))

    def _refine_pose(self, loop: Verified) -> Verified | PlaceNotMatched:
        """The loop with the pose that the whole image gives it; why not, where the image does not bear it out.

        Every landmark of the place is looked for where the pose puts it, those that were not matched included. At the
        right pose about as many agree again, or more, and they hardly move it. As in Mur-Artal, Montiel and
        Tardos, "ORB-SLAM: a versatile and accurate monocular SLAM system", 2015, section VII-B. How sure the loop is
        stays what the landmarks say that were recognized without being looked for.
        """
        c, k, graph, landmarks = loop.edge.i, loop.edge.j, self._mapper.graph, self._mapper.landmarks
        ids = np.unique(
            np.concatenate([landmarks.observed[i].ids for i in [c, *self._mapper.covisible(c, COVISIBLE_KEYFRAMES)]])
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

    def _reject(self, c: int, k: int, reason: str, landmarks: int) -> None:
        """Tell why there is no loop between c and k, and how many landmarks spoke for it."""
        frame = self._frame_of(k)
        self._publish(EdgeRejected(i=c, j=k, kind=EdgeKind.LOOP, reason=reason, landmarks=landmarks, frame_index=frame))

    def _candidates(self, k: int) -> list[Candidate]:
        """Keyframes that look like k, far from it in the run and not already tied to it by landmarks.

        Of candidates near each other in the run the most similar stands for all.
        """
        graph, config = self._mapper.graph, self._config
        excluded = frozenset(range(k - config.min_gap + 1, k + config.min_gap))
        descriptor = graph.keyframes[k].descriptor
        recent = [float(descriptor @ graph.keyframes[i].descriptor) for i in (k - 1, k - 2) if i in graph.keyframes]
        threshold = config.min_similarity * max(recent, default=1.0)
        chosen: list[Candidate] = []
        for _ in range(QUERIES):
            found = self._retriever.query(descriptor, QUERIED * config.candidates, excluded)
            alike = [c for c in found if c.similarity >= threshold]
            connected = self._connected(k, [c.key for c in alike])
            for candidate in alike:
                near = any(abs(candidate.key - other.key) <= config.suppression for other in chosen)
                if not near and candidate.key not in connected and len(chosen) < config.candidates:
                    chosen.append(candidate)
            if len(chosen) == config.candidates or not alike:
                break
            excluded |= {c.key for c in alike}
        return chosen

    def _connected(self, k: int, keyframe_ids: list[int]) -> set[int]:
        """Those that share so many landmarks with k that no loop is needed between them."""
        landmarks = self._mapper.landmarks
        tracks = landmarks.observed[k]
        shared = landmarks.shared_with(tracks.ids[landmarks.is_triangulated(tracks.ids)], keyframe_ids)
        return {i for i, count in shared.items() if count >= COVISIBLE}

    def _loop_edge(self, c: int, k: int, found: EstimatedPose) -> Edge:
        """The loop as a measurement, in c's units, with its scale."""
        graph = self._mapper.graph
        ratio, log_scale_sigma = self._relative_scale(k, found)
        seen_from_c = Similarity.from_rigid(found.fit.world_from_cam, graph.world_from_keyframe[k].scale * ratio)
        pose_c = graph.world_from_keyframe[c]
        information = self._loop_information(k, found) / design_effect(found.fit.inlier_count, LOOP_CORRELATION)
        return Edge(
            i=c,
            j=k,
            i_from_j=pose_c.inverse() @ seen_from_c,
            sigmas=_sigmas(information, pose_c.scale, log_scale_sigma),
            kind=EdgeKind.LOOP,
            inliers=found.fit.inlier_count,
        )

    def _close(self, k: int, loops: list[Verified]) -> None:
        """Accept loops: edges with their scale, the graph solved, the two names of each landmark made one."""
        mapper, graph = self._mapper, self._mapper.graph
        for loop in loops:
            graph.set_edge(loop.edge)
        surest = min((loop.edge for loop in loops), key=lambda edge: float(edge.sigmas[6]))
        if graph.segment_of[surest.i] != graph.segment_of[surest.j]:
            seen_from_i = graph.world_from_keyframe[surest.i] @ surest.i_from_j
            mapper.join_segments(surest.i, surest.j, seen_from_i @ graph.world_from_keyframe[surest.j].inverse())
        named = " and ".join(f"{loop.edge.i}-{loop.edge.j}" for loop in loops)
        landmarks = sum(loop.edge.inliers for loop in loops)
        cause = f"loop{'s' * (len(loops) > 1)} {named} with {landmarks} landmarks"
        solved = self._optimize(k, cause, fresh={(loop.edge.i, loop.edge.j) for loop in loops})
        for loop in loops:
            if solved and graph.weight(loop.edge) > 0:
                self._fuse_landmarks(loop.edge.j, loop.found)
                mapper.search_by_projection(loop.edge.j)

    def _loop_information(self, k: int, found: EstimatedPose) -> FloatArray:
        """Information (6, 6) of a loop's pose, from landmarks that are themselves uncertain."""
        graph, landmarks, ids = self._mapper.graph, self._mapper.landmarks, found.matches.tracks.ids
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
        mapper, graph = self._mapper, self._mapper.graph
        own = mapper.landmarks.feature_tracks[k][found.matches.feature]
        both = (own >= 0) & (own != found.matches.tracks.ids)  # one landmark's depth says nothing of two scales
        both[both] = mapper.landmarks.is_triangulated(own[both])
        old_points = mapper.landmarks.points_world(found.matches.tracks.ids[both], graph)
        own_points = mapper.landmarks.points_world(own[both], graph)
        old_depth = depths_in(old_points, found.fit.world_from_cam)
        own_depth = depths_in(own_points, graph.world_from_keyframe[k].rigid)
        positive = (old_depth > 1e-9) & (own_depth > 1e-9)
        count = int(positive.sum())
        if count >= MIN_SCALE_LANDMARKS:
            ratio, sigma = fit_relative_scale(old_depth[positive], own_depth[positive])
            old_sigma, own_sigma = (self._relative_depth_sigma(ids[both]) for ids in (found.matches.tracks.ids, own))
            sigma = max(sigma, float(np.sqrt(np.median(old_sigma**2 + own_sigma**2) / count)))
            return ratio, sigma * float(np.sqrt(design_effect(count, LOOP_CORRELATION)))
        reason = f"loop at keyframe {k}: {count} landmarks have depth on both sides"
        reason = f"{reason}, {MIN_SCALE_LANDMARKS} needed for its scale"
        self._publish(ScaleUnobservable(frame_index=self._frame_of(k), reason=reason))
        return 1.0, UNKNOWN_LOG_SCALE

    def _relative_depth_sigma(self, ids: NDArray[np.int64]) -> FloatArray:
        """Standard deviation (N,) of the depth of landmarks, as a share of it."""
        landmarks = self._mapper.landmarks
        return np.asarray(landmarks.inverse_depth_sigma[ids] * landmarks.point_in_anchor[ids, 2])

    def _optimize(self, k: int, cause: str, fresh: set[tuple[int, int]]) -> bool:
        """Solve the graph with the `fresh` loops in it, and tell what became of them and of the others.

        Returns:
            False when the solver failed: all poses stay, and the loops are in the graph for when it is solved again.
        """
        graph = self._mapper.graph
        solution = self._optimizer.optimize(graph)
        if problem := solution.why_unusable:
            self._publish(EstimateRefused(frame_index=self._frame_of(k), reason=f"graph optimization: {problem}"))
            for key in sorted(fresh):
                self._publish(EdgeAccepted(edge=graph.edges[key], frame_index=self._frame_of(k)))
            return False
        graph.set_poses(solution.world_from_keyframe)
        self._publish_changes(k, solution, fresh)
        graph.set_weights(solution.loop_weights)
        self._publish(
            GraphOptimized(
                frame_index=self._frame_of(k),
                world_from_keyframe=dict(graph.world_from_keyframe),
                error_before=solution.error_before,
                error_after=solution.error_after,
                cause=cause,
            )
        )
        return True

    def _publish_changes(self, k: int, solution: Solution, fresh: set[tuple[int, int]]) -> None:
        """Say which loops the solution has left out, and which it has taken in or taken back."""
        graph = self._mapper.graph
        for edge in graph.edges_of(EdgeKind.LOOP):
            key = edge.i, edge.j
            followed, before = solution.loop_weights.get(key, 1.0) > 0, graph.weight(edge) > 0 and key not in fresh
            if followed and not before:
                self._publish(EdgeAccepted(edge=edge, frame_index=self._frame_of(k)))
            elif not followed and (before or key in fresh):
                error = solution.loop_errors[key]
                why = f"left out: chi-square {error:.1f} from where all others lead, limit {LOOP_LIMIT:g}"
                self._reject(*key, why, edge.inliers)

    def _fuse_landmarks(self, k: int, found: EstimatedPose) -> None:
        """What k saw under its own names are the old landmarks: one name each, so that old and new hold each other."""
        landmarks = self._mapper.landmarks
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

    def _frame_of(self, k: int) -> int:
        return self._mapper.graph.keyframes[k].frame_index


def design_effect(count: int, correlation: float) -> float:
    """By how much the variance from `count` equally correlated observations exceeds that from independent ones.

    Kish, "Survey Sampling", 1965, section 5.4.
    """
    return 1.0 + correlation * max(count - 1, 0)


def _sigmas(information: FloatArray, unit: float, log_scale_sigma: float) -> FloatArray:
    """The seven sigmas of an edge from a pose's (6, 6) information, whose translation is in map units."""
    covariance = np.linalg.inv(information + 1e-9 * np.eye(6) * max(float(np.trace(information)), 1.0))
    sigmas = np.sqrt(np.maximum(np.diag(covariance), MIN_SIGMA**2))
    return np.concatenate([sigmas[:3], sigmas[3:] / unit, [max(log_scale_sigma, 1e-3)]])
