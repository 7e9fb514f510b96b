"""Which loops agree: with one another, and with how far the path may have drifted.

Mangelsbeck et al., "Pairwise consistent measurement set maximization for robust multi-robot map merging", 2018:
two loops and the odometry between their ends make a cycle, which closes within what all their errors allow, or one
of the loops is false. A set of loops is believed when it is the largest in which all agree.

Errors are written on the right, i_from_j = measured @ Exp(d), with d = (rotation, translation, log scale) in j's axes
and units; d in frame b is Ad(a_from_b) d in frame a.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from relocalizer.geometry import FloatArray, Similarity, log_so3, skew
from slam.graph import Edge, EdgeKind, KeyframeGraph

CHI2_7DOF_999 = 24.32
# Loops between the same two stretches see the same things, so what deceives one deceives them all: however many
# agree, they speak against the path as three do.
MOST_WITNESSES = 3
REACH = 50  # edges between the ends of two loops that are compared; farther apart, drift leaves nothing to compare
WINDOW = 60  # loops remembered for comparison, the newest
LOOSE_LOG_SCALE = 0.2  # standard deviation from which a scale is taken from the other evidence instead
EXACT_UP_TO = 24  # loops among which the largest consistent set is searched exactly


# --- similarities and their errors --------------------------------------------------------------------


def difference(measured: Similarity, other: Similarity) -> FloatArray:
    """d (7,) with other = measured @ Exp(d), to first order: rotation, translation, log scale in the right frame."""
    step = measured.inverse() @ other
    return np.concatenate([log_so3(step.rotation), step.translation, [np.log(step.scale)]])


def adjoint(a_from_b: Similarity) -> FloatArray:
    """(7, 7) that takes a small (rotation, translation, log scale) in b to the same motion in a.

    The motion moves a point x of b by w x x + v + s x; the rest is a change of coordinates.
    """
    R, t = a_from_b.rotation, a_from_b.translation
    A = np.zeros((7, 7))
    A[:3, :3] = R
    A[3:6, :3] = skew(t) @ R
    A[3:6, 3:6] = a_from_b.scale * R
    A[3:6, 6] = -t
    A[6, 6] = 1.0
    return A


def covariance_of(edge: Edge) -> FloatArray:
    """(7, 7) covariance of an edge's error in j's axes and units."""
    sigmas = np.array(edge.sigmas)
    sigmas[3:6] /= edge.i_from_j.scale
    return np.diag(sigmas**2)


def spread_in(keyframe: int, edges: Iterable[Edge], world_from_keyframe: Mapping[int, Similarity]) -> FloatArray:
    """(7, 7) covariance, in a keyframe's frame, of independent errors of edges at the poses as they are."""
    total = np.zeros((7, 7))
    here_from_world = world_from_keyframe[keyframe].inverse()
    for edge in edges:
        A = adjoint(here_from_world @ world_from_keyframe[edge.j])
        total += A @ covariance_of(edge) @ A.T
    return total


def squared_distance(d: FloatArray, covariance: FloatArray) -> float:
    """Squared Mahalanobis length of d."""
    return float(d @ np.linalg.solve(covariance, d))


# --- paths --------------------------------------------------------------------------------------------


class Paths:
    """The most certain paths from one keyframe over some edges of a graph."""

    def __init__(self, edges: Collection[Edge], source: int) -> None:
        self._edges = {(edge.i, edge.j): edge for edge in edges}
        ids = np.unique(np.array([*self._edges], dtype=np.int64).ravel())
        self._ids = ids
        self._row = {int(k): n for n, k in enumerate(ids)}
        self._source = source
        self._before = np.full(len(ids), -1, np.int64)
        if source in self._row:
            ends = np.searchsorted(ids, np.array([*self._edges], dtype=np.int64))
            # Rotation and log scale add up along a path whatever its shape, so they say which path is better.
            doubt = [float((e.sigmas[:3] ** 2).sum() + e.sigmas[6] ** 2) for e in self._edges.values()]
            matrix = coo_array((doubt, (ends[:, 0], ends[:, 1])), shape=(len(ids), len(ids))).tocsr()
            _, before = dijkstra(matrix, directed=False, indices=self._row[source], return_predecessors=True)
            self._before = before.astype(np.int64)

    def to(self, target: int) -> list[Edge] | None:
        """Edges from the source to `target`, in order; None when nothing ties them."""
        if target == self._source:
            return []
        if target not in self._row or self._before[self._row[target]] < 0:
            return None
        path: list[Edge] = []
        n = self._row[target]
        while self._ids[n] != self._source:
            a, b = int(self._ids[self._before[n]]), int(self._ids[n])
            path.append(self._edges[min(a, b), max(a, b)])
            n = int(self._before[n])
        return path[::-1]


def follow(path: Sequence[Edge], source: int) -> Similarity:
    """source_from_target as the edges of a path measured it."""
    pose, here = Similarity.identity(), source
    for edge in path:
        forward = edge.i == here
        pose = pose @ (edge.i_from_j if forward else edge.i_from_j.inverse())
        here = edge.j if forward else edge.i
    return pose


def departure(edge: Edge, graph: KeyframeGraph) -> float | None:
    """By how much a loop contradicts the map: chi-square of 7 degrees; None when no path ties its ends.

    The map says where j lies seen from i, as surely as the best path between them; other paths would make it surer,
    so the test errs on the side of the loop.
    """
    known = [e for e in graph.edges.values() if (e.i, e.j) != (edge.i, edge.j) and graph.weight(e) > 0.5]
    path = Paths(known, edge.i).to(edge.j)
    if path is None:
        return None
    poses = graph.world_from_keyframe
    known_pose = poses[edge.i].inverse() @ poses[edge.j]
    measured = _with_scale(edge, known_pose.scale)
    covariance = covariance_of(measured) + spread_in(edge.j, path, poses)
    return squared_distance(difference(measured.i_from_j, known_pose), covariance)


def disagreement(a: Edge, b: Edge, from_i: Paths, from_j: Paths, graph: KeyframeGraph) -> float | None:
    """By how much the cycle of two loops and the odometry between their ends fails to close: chi-square of 7 degrees.

    Args:
        from_i, from_j: odometry paths from the ends of a.

    Returns:
        None when the ends are not tied, or by more than `REACH` edges: then nothing speaks for or against.
    """
    there, back = from_i.to(b.i), from_j.to(b.j)
    if there is None or back is None or len(there) > REACH or len(back) > REACH:
        return None
    i_from_k, j_from_l = follow(there, a.i), follow(back, a.j)
    if a.sigmas[6] >= b.sigmas[6]:
        a = _with_scale(a, i_from_k.scale * b.i_from_j.scale / j_from_l.scale)
    else:
        b = _with_scale(b, a.i_from_j.scale * j_from_l.scale / i_from_k.scale)
    around = i_from_k @ b.i_from_j @ j_from_l.inverse()
    # Odometry at the far side is carried over by loop a, for where the map has the two sides may be wrong.
    j_from_i = a.i_from_j.inverse()
    covariance = covariance_of(a)
    covariance += _carried(there, a.i, j_from_i) + _carried(back, a.j, Similarity.identity())
    A = adjoint(j_from_l)
    covariance += A @ covariance_of(b) @ A.T
    return squared_distance(difference(a.i_from_j, around), covariance)


def _with_scale(edge: Edge, scale: float) -> Edge:
    """The edge itself, or with this scale when its own is so uncertain that errors are not small any more."""
    if edge.sigmas[6] < LOOSE_LOG_SCALE:
        return edge
    return replace(edge, i_from_j=Similarity(edge.i_from_j.rotation, edge.i_from_j.translation, scale))


def _carried(path: Sequence[Edge], source: int, frame_from_source: Similarity) -> FloatArray:
    """(7, 7) covariance of a path's errors in a frame that the path's source is seen from."""
    total, pose, here = np.zeros((7, 7)), frame_from_source, source
    for edge in path:
        forward = edge.i == here
        after = pose @ (edge.i_from_j if forward else edge.i_from_j.inverse())
        A = adjoint(after if forward else pose)  # an edge's error stands in the frame of its j
        total += A @ covariance_of(edge) @ A.T
        pose, here = after, edge.j if forward else edge.i
    return total


# --- the largest set that agrees ----------------------------------------------------------------------


def largest_consistent_set(agree: NDArray[np.bool_]) -> list[int]:
    """Indices, in order, of a largest set in which all agree; agree (N, N) is symmetric.

    Exact by branch and bound up to `EXACT_UP_TO` members; beyond, grown from every member in turn, always by the one
    that agrees with the most. Of equal sets the first in order of index.
    """
    count = len(agree)
    friends = [set(np.flatnonzero(agree[n]).tolist()) - {n} for n in range(count)]
    best: list[int] = []
    for n in sorted(range(count), key=lambda n: (-len(friends[n]), n)):
        grown = _grow(n, friends)
        best = grown if len(grown) > len(best) else best
    if count <= EXACT_UP_TO:
        best = _branch([], list(range(count)), friends, best)
    return best


def _grow(start: int, friends: Sequence[set[int]]) -> list[int]:
    members, left = [start], set(friends[start])
    while left:
        nearest = max(sorted(left), key=lambda n: len(friends[n] & left))
        members.append(nearest)
        left &= friends[nearest]
    return sorted(members)


def _branch(members: list[int], left: list[int], friends: Sequence[set[int]], best: list[int]) -> list[int]:
    """The largest set that adds some of `left` to `members`, or `best` where none is larger."""
    if len(members) > len(best):
        best = members
    for position, n in enumerate(left):
        if len(members) + len(left) - position <= len(best):
            break
        best = _branch([*members, n], [m for m in left[position + 1 :] if m in friends[n]], friends, best)
    return best


# --- evidence -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Believed:
    """Loops that may bend the map: the newest, and those that waited for it."""

    edges: tuple[Edge, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """A loop that has to wait; `reason` is a sentence with the number and the threshold.

    `alone` says that nothing but a second loop is missing.
    """

    reason: str
    alone: bool


@dataclass(slots=True)
class LoopEvidence:
    """Verified loops, those that wait included, and which of them agree.

    A loop is believed with a second one from another keyframe that agrees with it, when the map's departure from it
    is within `CHI2_7DOF_999` for every keyframe that says so, at most `MOST_WITNESSES`. That is the trade of truncated
    least squares: to follow n loops may cost the odometry what it costs to call n loops false. A single loop that
    rests on `alone_inliers` landmarks is believed within the drift that the odometry allows. Between parts
    that nothing ties there is no drift to speak of, and it takes two.
    """

    alone_inliers: int
    _loops: dict[tuple[int, int], Edge] = field(default_factory=dict)
    _agree: dict[frozenset[tuple[int, int]], bool] = field(default_factory=dict)

    def weigh(self, edge: Edge, graph: KeyframeGraph) -> Believed | Held:
        """What a newly verified loop, with all that is remembered, allows."""
        group = self._compare(edge, graph)
        keys = [*group, (edge.i, edge.j)]
        self._remember(edge)
        agree = np.array([[a == b or self._agree.get(frozenset([a, b]), True) for b in keys] for a in keys])
        chosen = [self._loops[keys[n]] for n in largest_consistent_set(agree)]
        if edge not in chosen:
            return Held(f"contradicts {len(chosen)} loops of its place that agree (limit 0)", alone=False)
        witnesses = len({e.j for e in chosen})
        if verdict := self._refuse(edge, departure(edge, graph), witnesses):
            return verdict
        return Believed(tuple(e for e in chosen if (e.i, e.j) not in graph.edges or e is edge))

    def remembers(self, i: int, j: int) -> bool:
        """Whether a loop is still there to be compared with."""
        return (i, j) in self._loops

    def _refuse(self, edge: Edge, away: float | None, witnesses: int) -> Held | None:
        alone = witnesses < 2
        if away is None:
            return Held(f"{witnesses} loop ties the two parts, 2 needed", alone=True) if alone else None
        limit = CHI2_7DOF_999 * min(witnesses, MOST_WITNESSES)
        if away > limit:
            said = (
                f"chi-square {away:.1f} from where the path leads, limit {limit:.1f} with {witnesses} loops that agree"
            )
            return Held(said, alone=alone)
        if alone and edge.inliers < self.alone_inliers:
            said = f"{edge.inliers} landmarks and no second loop that agrees, {self.alone_inliers} needed alone"
            return Held(said, alone=True)
        return None

    def _compare(self, edge: Edge, graph: KeyframeGraph) -> list[tuple[int, int]]:
        """Compare a loop with the remembered ones; those that there is something to compare with."""
        others = [e for key, e in self._loops.items() if key != (edge.i, edge.j)]
        if not others:
            return []
        odometry = graph.edges_of(EdgeKind.ODOMETRY)
        from_i, from_j = Paths(odometry, edge.i), Paths(odometry, edge.j)
        group = []
        for other in others:
            distance = disagreement(edge, other, from_i, from_j, graph)
            if distance is not None:
                group.append((other.i, other.j))
                self._agree[frozenset([(edge.i, edge.j), (other.i, other.j)])] = distance <= CHI2_7DOF_999
        return group

    def _remember(self, edge: Edge) -> None:
        self._loops.pop((edge.i, edge.j), None)
        self._loops[edge.i, edge.j] = edge
        while len(self._loops) > WINDOW:
            gone = next(iter(self._loops))
            del self._loops[gone]
            self._agree = {pair: same for pair, same in self._agree.items() if gone not in pair}
