"""Long maps thinned out: an old keyframe whose landmarks others see anyway is merged into its nearest neighbour.

Policy: maps of at most `keyframes.thin_beyond` keyframes are left alone, and all maps where that is 0, as it is by
default: after more than ten thousand keyframes a thinned map broke (docs/results.md, "Cost of long runs and
retrieval"). Beyond, every new keyframe has a few old ones looked at, round and round, so that the cost of a keyframe
does not grow; where the camera goes on into the unknown the map grows with it, where it comes again it does not. The
redundancy test is that of Mur-Artal, Montiel and Tardos, "ORB-SLAM: a versatile and accurate monocular SLAM system",
2015, section VI-E.
"""

from __future__ import annotations

from collections.abc import Callable, Set

import numpy as np

from relocalizer.geometry import FloatArray, Similarity
from relocalizer.interfaces import Retriever
from slam.frame_log import FrameLog
from slam.graph import Edge, EdgeKind, KeyframeGraph
from slam.mapping import Mapper, rows_of

# Other keyframes that must see a landmark for it to need this one no more. With 3, as ORB-SLAM has it, the last
# refinement of what is left drifts, for it knows of no edges (docs/results.md, "Cost of long runs and retrieval").
WITNESSES = 8
REDUNDANT_SHARE = 0.9  # of a keyframe's landmarks that must have so many
NEWEST_KEPT = 50  # keyframes that windows, links and loops still work on
LOOKED_AT = 3  # old keyframes for each new one; of those at most
MERGED = 2


class Sparsifier:
    """Merges redundant keyframes into neighbours, a few at a time."""

    def __init__(
        self,
        mapper: Mapper,
        log: FrameLog,
        retriever: Retriever,
        *,
        beyond: int,
        kept: Callable[[], Set[int]],
        since: int = 0,
    ) -> None:
        """Args:
        beyond: keyframes up to which nothing is merged; 0 merges nothing ever.
        kept: ids of keyframes that must stay, such as the ends of loops that are not closed yet.
        since: id of the first keyframe that may go; those before it belong to an earlier run.
        """
        self._mapper = mapper
        self._log = log
        self._retriever = retriever
        self._beyond = beyond
        self._kept = kept
        self._since = since
        self._next = since

    def thin(self) -> list[tuple[int, int]]:
        """Look at the next few old keyframes; pairs (merged keyframe, the one it was merged into)."""
        graph = self._mapper.graph
        if self._beyond == 0 or len(graph.keyframes) <= self._beyond:
            return []
        merged: list[tuple[int, int]] = []
        kept = self._kept() | _loop_ends(graph) | {next(iter(graph.keyframes))}  # the first is the world
        for k in self._next_old():
            if len(merged) == MERGED:
                break
            self._next = k + 1
            if k in kept or not self._is_redundant(k):
                continue
            heir = self._heir(k)
            if heir is not None:
                merge_into(heir, k, self._mapper, self._log)
                self._retriever.remove(k)
                merged.append((k, heir))
        return merged

    def _next_old(self) -> list[int]:
        """The keyframes to look at, in order of id and then from the first again."""
        graph, last = self._mapper.graph, self._mapper.graph.last_id - NEWEST_KEPT
        found: list[int] = []
        at = self._next
        for _ in range(20 * LOOKED_AT):  # ids that are gone are stepped over
            if at > last:
                at = self._since
            if at in graph.keyframes and at <= last and at not in found:
                found.append(at)
            at += 1
            if len(found) == LOOKED_AT:
                break
        self._next = at
        return found

    def _is_redundant(self, k: int) -> bool:
        landmarks = self._mapper.landmarks
        ids = landmarks.observed[k].ids
        ids = np.sort(ids[landmarks.has_place(ids)])
        if len(ids) == 0:
            return False
        witnesses = np.zeros(len(ids), np.int64)
        for i in landmarks.observed.seen_by(ids):
            if i != k:
                rows = rows_of(landmarks.observed[i].ids, ids)
                witnesses[rows[rows >= 0]] += 1
        return float((witnesses >= WITNESSES).mean()) >= REDUNDANT_SHARE

    def _heir(self, k: int) -> int | None:
        """The keyframe that shares the most landmarks with k, of those tied to it by an edge that is believed."""
        graph = self._mapper.graph
        tied = {edge.i + edge.j - k for edge in graph.edges_at(k) if graph.weight(edge) > 0}
        return next((i for i in self._mapper.related(k, 20) if i in tied), None)


def _loop_ends(graph: KeyframeGraph) -> set[int]:
    return {end for edge in graph.loops() for end in (edge.i, edge.j)}


def merge_into(heir: int, k: int, mapper: Mapper, log: FrameLog) -> None:
    """Take keyframe k out of the map: its frames hang off the heir, its landmarks and edges are handed on.

    No frame and no landmark moves. What k alone has seen is forgotten with it.
    """
    graph = mapper.graph
    log.hang_elsewhere(k, heir, graph)
    _anchor_elsewhere(k, heir, mapper)
    for edge in _handed_on(k, heir, graph):
        graph.set_edge(edge)
    mapper.forget_keyframe(k)


def _anchor_elsewhere(k: int, heir: int, mapper: Mapper) -> None:
    """Landmarks that hang off k hang off another keyframe that sees them; those that none sees are forgotten."""
    landmarks, graph = mapper.landmarks, mapper.graph
    ids = landmarks.anchored_at(k)
    points = landmarks.points_world(ids, graph)
    doubt = landmarks.inverse_depth_sigma[ids] * landmarks.point_in_anchor[ids, 2]  # of the depth, as a share of it
    waiting = np.ones(len(ids), bool)
    for i in [heir, *(i for i in landmarks.observed.seen_by(ids) if i not in (heir, k))]:
        if not waiting.any():
            break
        local = graph.world_from_keyframe[i].inverse().apply(points)
        mine = np.flatnonzero(waiting & np.isin(ids, landmarks.observed[i].ids) & (local[:, 2] > 0))
        if len(mine):
            landmarks.place(ids[mine], local[mine], i, doubt[mine] / local[mine, 2])
            waiting[mine] = False
    landmarks.forget_place(ids[waiting])


def _handed_on(k: int, heir: int, graph: KeyframeGraph) -> list[Edge]:
    """For each neighbour of k that is not the heir's yet, the way over k as one edge."""
    edges = {edge.i + edge.j - k: edge for edge in graph.edges_at(k)}
    to_heir = edges.pop(heir)
    tied = {edge.i + edge.j - heir for edge in graph.edges_at(heir)}
    return [_composed(edge, to_heir, n, k, heir) for n, edge in sorted(edges.items()) if n not in tied and n != heir]


def _composed(edge: Edge, to_heir: Edge, n: int, k: int, heir: int) -> Edge:
    """The edges n-k and k-heir as one edge between n and the heir, with the errors of both.

    Independent errors add: those of the first step's rotation also shift where the second step ends.
    """
    n_from_k, first = _step(edge, n)
    k_from_heir, second = _step(to_heir, k)
    reach = float(np.linalg.norm(k_from_heir.translation)) * n_from_k.scale
    swing = np.sqrt(reach**2 * (np.sum(first[:3] ** 2) / 3.0 + first[6] ** 2))
    sigmas = np.concatenate(
        [
            np.hypot(first[:3], second[:3]),
            np.sqrt(first[3:6] ** 2 + (n_from_k.scale * second[3:6]) ** 2 + swing**2),
            [np.hypot(first[6], second[6])],
        ]
    )
    pose = n_from_k @ k_from_heir
    if n > heir:
        sigmas[3:6] /= pose.scale
        pose = pose.inverse()
    return Edge(
        i=min(n, heir),
        j=max(n, heir),
        i_from_j=pose,
        sigmas=sigmas,
        kind=EdgeKind.ODOMETRY,
        inliers=min(edge.inliers, to_heir.inliers),
        share=min(edge.share, to_heir.share),
    )


def _step(edge: Edge, start: int) -> tuple[Similarity, FloatArray]:
    """An edge walked from `start`, and its sigmas (7,) with the translation in start's units."""
    if edge.i == start:
        return edge.i_from_j, np.array(edge.sigmas)
    sigmas = np.array(edge.sigmas)
    sigmas[3:6] /= edge.i_from_j.scale
    return edge.i_from_j.inverse(), sigmas
