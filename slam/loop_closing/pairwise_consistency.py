"""Which loops agree: with one another, and with how far the path may have drifted.

Mangelsbeck et al., "Pairwise consistent measurement set maximization for robust multi-robot map merging", 2018:
two loops and the odometry between their ends make a cycle, which closes within what all their errors allow, or one
of the loops is false. A set of loops is believed when it is the largest in which all agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray, Similarity
from slam.loop_closing.edge_path import adjoint, edge_covariance, log_error
from slam.loop_closing.edge_paths import OdometryTree
from slam.map.keyframe_graph import Edge, KeyframeGraph

CHI2_7DOF_999 = 24.32
# Loops between the same two stretches see the same things, so what deceives one deceives them all: however many
# agree, they speak against the path as three do.
MAX_SUPPORT = 3
WINDOW = 60  # loops remembered for comparison, the newest
LOOSE_LOG_SCALE = 0.2  # standard deviation from which a scale is taken from the other evidence instead
EXACT_UP_TO = 24  # loops among which the largest consistent set is searched exactly


# --- how far apart ------------------------------------------------------------------------------------


def squared_distance(d: FloatArray, covariance: FloatArray) -> float:
    """Squared Mahalanobis length of d."""
    return float(d @ np.linalg.solve(covariance, d))


def map_mahalanobis(
    edge: Edge, graph: KeyframeGraph, odometry: OdometryTree, *, odometry_only: bool = False
) -> float | None:
    """By how much a loop contradicts the map: chi-square of 7 degrees; None when no path ties its ends.

    The map says where j lies seen from i, as surely as the best path between them; other paths would make it surer,
    so the test errs on the side of the loop. With `odometry_only` other loops are not asked: neither where they have
    moved the map, nor how sure they have made it.

    Args:
        odometry: that of the graph as it is.
    """
    loops = [e for e in graph.loops() if graph.weight(e) > 0.5 and (e.i, e.j) != (edge.i, edge.j)]
    path = odometry.path_through_loops([] if odometry_only else loops, edge.i, edge.j)
    if path is None:
        return None
    poses = graph.world_from_keyframe
    i_from_j = path.source_from_target if odometry_only else poses[edge.i].inverse() @ poses[edge.j]
    measured = _with_scale(edge, i_from_j.scale)
    covariance = edge_covariance(measured) + path.covariance_in(i_from_j.inverse())
    return squared_distance(log_error(measured.i_from_j, i_from_j), covariance)


def cycle_mahalanobis(a: Edge, b: Edge, odometry: OdometryTree) -> float | None:
    """By how much the cycle of two loops and the odometry between their ends fails to close: chi-square of 7 degrees.

    Returns:
        None when the ends are not near each other: drift leaves nothing to compare, for or against.
    """
    # Where two maps begun apart overlap, one loop may lead from the first to the second and the other back.
    crossed = odometry.local_path(a.i, b.i) is None and odometry.local_path(a.i, b.j) is not None
    there, back = odometry.local_path(a.i, b.j if crossed else b.i), odometry.local_path(a.j, b.i if crossed else b.j)
    if there is None or back is None:
        return None
    i_from_k, j_from_l = there.source_from_target, back.source_from_target
    k_from_l, spread = _measured(b, crossed)
    if a.sigmas[6] >= b.sigmas[6]:
        a = _with_scale(a, i_from_k.scale * k_from_l.scale / j_from_l.scale)
    else:
        scale = a.i_from_j.scale * j_from_l.scale / i_from_k.scale
        k_from_l, spread = _measured(_with_scale(b, 1.0 / scale if crossed else scale), crossed)
    around = i_from_k @ k_from_l @ j_from_l.inverse()
    A = adjoint(j_from_l)
    # The far side is seen through loop a, for where the map has the two sides may be wrong.
    covariance = edge_covariance(a) + there.covariance_in(a.i_from_j.inverse()) + back.covariance
    covariance += A @ spread @ A.T
    return squared_distance(log_error(a.i_from_j, around), covariance)


def _measured(edge: Edge, backwards: bool) -> tuple[Similarity, FloatArray]:
    """What an edge measured, read from i to j or backwards, and the (7, 7) covariance of its error on the right."""
    covariance = edge_covariance(edge)
    if not backwards:
        return edge.i_from_j, covariance
    A = adjoint(edge.i_from_j)
    return edge.i_from_j.inverse(), A @ covariance @ A.T


def _with_scale(edge: Edge, scale: float) -> Edge:
    """The edge itself, or with this scale when its own is so uncertain that errors are not small any more."""
    if edge.sigmas[6] < LOOSE_LOG_SCALE:
        return edge
    return replace(edge, i_from_j=Similarity(edge.i_from_j.rotation, edge.i_from_j.translation, scale))


# --- the largest set that agrees ----------------------------------------------------------------------


def largest_consistent_set(agree: NDArray[np.bool_]) -> list[int]:
    """Indices, in order, of a largest set in which all agree; agree (N, N) is symmetric.

    Exact by branch and bound up to `EXACT_UP_TO` members; beyond, grown from every member in turn, always by the one
    that agrees with the most. Of equal sets the first in order of index.
    """
    count = len(agree)
    consistent_with = [set(np.flatnonzero(agree[n]).tolist()) - {n} for n in range(count)]
    best: list[int] = []
    for n in sorted(range(count), key=lambda n: (-len(consistent_with[n]), n)):
        grown = _grow(n, consistent_with)
        best = grown if len(grown) > len(best) else best
    if count <= EXACT_UP_TO:
        best = _branch([], list(range(count)), consistent_with, best)
    return best


def _grow(start: int, consistent_with: Sequence[set[int]]) -> list[int]:
    members, left = [start], set(consistent_with[start])
    while left:
        nearest = max(sorted(left), key=lambda n: len(consistent_with[n] & left))
        members.append(nearest)
        left &= consistent_with[nearest]
    return sorted(members)


def _branch(members: list[int], left: list[int], consistent_with: Sequence[set[int]], best: list[int]) -> list[int]:
    """The largest set that adds some of `left` to `members`, or `best` where none is larger."""
    if len(members) > len(best):
        best = members
    for position, n in enumerate(left):
        if len(members) + len(left) - position <= len(best):
            break
        best = _branch(
            [*members, n], [m for m in left[position + 1 :] if m in consistent_with[n]], consistent_with, best
        )
    return best


def agreeing(loops: Sequence[Edge], graph: KeyframeGraph) -> list[Edge]:
    """A largest set of the newest `WINDOW` loops in which no two disagree; older loops are all in it."""
    latest = sorted(loops, key=lambda edge: (edge.j, edge.i))[-WINDOW:]
    odometry = OdometryTree()
    odometry.follow(graph)
    agree = np.ones((len(latest), len(latest)), bool)
    for (row, a), (column, b) in combinations(enumerate(latest), 2):
        distance = cycle_mahalanobis(a, b, odometry)
        agree[row, column] = agree[column, row] = distance is None or distance <= CHI2_7DOF_999
    chosen = [latest[n] for n in largest_consistent_set(agree)]
    recent = {(edge.i, edge.j) for edge in latest}
    return [edge for edge in loops if (edge.i, edge.j) not in recent or edge in chosen]


# --- evidence -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Accepted:
    """Loops that may bend the map: the newest, and those that waited for it."""

    edges: tuple[Edge, ...]


@dataclass(frozen=True, slots=True)
class Deferred:
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
    rests on `single_loop_min_inliers` landmarks is believed within the drift that the odometry allows. Between parts
    that nothing ties there is no drift to speak of, and it takes two.
    """

    single_loop_min_inliers: int
    _odometry: OdometryTree = field(default_factory=OdometryTree)
    _loops: dict[tuple[int, int], Edge] = field(default_factory=dict)
    _agree: dict[frozenset[tuple[int, int]], bool] = field(default_factory=dict)

    def evaluate(self, edge: Edge, graph: KeyframeGraph) -> Accepted | Deferred:
        """What a newly verified loop, with all that is remembered, allows; the graph is always the same one."""
        self._odometry.follow(graph)
        self._remember(edge)
        group = self._compare(edge)
        consistent_with = [key for key in group if self._agree[frozenset([key, (edge.i, edge.j)])]]
        agree = np.ones((len(consistent_with), len(consistent_with)), bool)
        for (row, a), (column, b) in combinations(enumerate(consistent_with), 2):
            agree[row, column] = agree[column, row] = self._agree.get(frozenset([a, b]), True)
        chosen = [edge, *(self._loops[consistent_with[n]] for n in largest_consistent_set(agree))]
        believed = [key for key in group if key in graph.edges and graph.weight(graph.edges[key]) > 0.5]
        against = len(believed) - sum(key in consistent_with for key in believed)
        if against >= len(chosen):
            return Deferred(f"{against} loops of its place contradict it, and {len(chosen) - 1} agree", alone=False)
        supporters = len({e.j for e in chosen})
        verdict = self._refuse(edge, map_mahalanobis(edge, graph, self._odometry), supporters)
        if verdict is not None and supporters >= MAX_SUPPORT:
            # So many may question loops that were closed before: all go into the graph, which decides.
            verdict = self._refuse(edge, map_mahalanobis(edge, graph, self._odometry, odometry_only=True), supporters)
        if verdict is not None:
            return verdict
        return Accepted(tuple(e for e in chosen if (e.i, e.j) not in graph.edges or e is edge))

    def is_pending(self, i: int, j: int) -> bool:
        """Whether a loop is still there to be compared with."""
        return (i, j) in self._loops

    def _refuse(self, edge: Edge, away: float | None, supporters: int) -> Deferred | None:
        alone = supporters < 2
        if away is None:
            return Deferred(f"{supporters} loop ties the two parts, 2 needed", alone=True) if alone else None
        limit = CHI2_7DOF_999 * min(supporters, MAX_SUPPORT)
        if away > limit:
            said = (
                f"chi-square {away:.1f} from where the path leads, limit {limit:.1f} with {supporters} loops that agree"
            )
            return Deferred(said, alone=alone)
        if alone and edge.inliers < self.single_loop_min_inliers:
            said = (
                f"{edge.inliers} landmarks and no second loop that agrees, {self.single_loop_min_inliers} needed alone"
            )
            return Deferred(said, alone=True)
        return None

    def _compare(self, edge: Edge) -> list[tuple[int, int]]:
        """Compare a loop with the other remembered ones; those that there is something to compare with."""
        others = [e for key, e in self._loops.items() if key != (edge.i, edge.j)]
        group = []
        for other in others:
            distance = cycle_mahalanobis(edge, other, self._odometry)
            if distance is not None:
                group.append((other.i, other.j))
                self._agree[frozenset([(edge.i, edge.j), (other.i, other.j)])] = distance <= CHI2_7DOF_999
        return group

    def _remember(self, edge: Edge) -> None:
        """Take a loop in as the newest, in the place of an earlier measurement of it, and forget the oldest."""
        self._forget((edge.i, edge.j))
        self._loops[edge.i, edge.j] = edge
        while len(self._loops) > WINDOW:
            self._forget(next(iter(self._loops)))

    def _forget(self, key: tuple[int, int]) -> None:
        """Forget a loop together with what it was compared with: what is compared is always remembered."""
        if self._loops.pop(key, None) is not None:
            self._agree = {pair: same for pair, same in self._agree.items() if key not in pair}
