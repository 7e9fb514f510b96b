"""Consistency of loops: pairwise with one another, and with the drift that the odometry allows.

Pairwise consistent measurement set maximization (PCM): Mangelson et al., "Pairwise consistent measurement set
maximization for robust multi-robot map merging", 2018. Two loops and the odometry between their ends form a cycle. If
the cycle does not close within the errors of its edges, one of the loops is false. The largest set of pairwise
consistent loops is accepted.
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
from slam.map.frame_measurement import Gate
from slam.map.keyframe_graph import Edge, KeyframeGraph

CHI2_7DOF_999 = 24.32  # 99.9 % quantile of chi-square with 7 degrees of freedom
EXPECTED = 7.0  # expected value of chi-square with 7 degrees of freedom
# Maximum number of supporting keyframes that count. Loops between the same two places see the same things and are
# deceived together, so more than three count as three.
MAX_SUPPORT = 3
WINDOW = 60  # maximum number of loops stored for comparison, the newest ones
# Standard deviation of the log scale of a loop from which its scale is replaced by that of the path or the other loop.
LOOSE_LOG_SCALE = 0.2
WHOLE_VIEW_GATE = "keyframes that show the whole view"  # only of loops that do not pass the gate before
DISTANCE_GATE = "chi-square from the map"  # the gate that a verified loop far from where the path leads does not pass
# A verified loop is refuted if its squared distance to the map is this many times the largest limit: no drift explains
# it. Where at least this number of keyframes have refuted loops, the scene repeats itself.
REFUTED = 10.0
REPEATING = 10
# Minimum number of cells of the image, half of all, in which the landmarks of an unmistakable loop lie: the whole view
# is that of the old place.
WIDE_CELLS = 24
EXACT_UP_TO = 24  # maximum number of loops for which the largest consistent set is searched exactly


# --- Mahalanobis distances ----------------------------------------------------------------------------


def squared_distance(d: FloatArray, covariance: FloatArray) -> float:
    """Squared Mahalanobis length of d; infinite if the covariance is numerically singular, so that nothing agrees."""
    try:
        distance = float(d @ np.linalg.solve(covariance, d))
    except np.linalg.LinAlgError:
        return float("inf")
    return distance if np.isfinite(distance) else float("inf")


def map_mahalanobis(
    edge: Edge, graph: KeyframeGraph, odometry: OdometryTree, *, odometry_only: bool = False
) -> float | None:
    """Squared Mahalanobis distance (chi-square, 7 degrees of freedom) of a loop from the map: an innovation test.

    The relative pose is that of the map, its covariance that of the best path between the ends of the loop. Further
    paths would reduce the covariance, so the test favors the loop.

    Args:
        odometry: the odometry of the graph, up to date.
        odometry_only: use the pose and covariance of the odometry alone, which all other loops leave unchanged.

    Returns:
        None if no path connects the ends.
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
    """Squared Mahalanobis distance (chi-square, 7 degrees of freedom) of the closure error of a cycle (PCM).

    The cycle consists of two loops and the odometry between their ends.

    Returns:
        None if the ends are not near each other: with much drift any two loops would be consistent.
    """
    # Between two overlapping segments one loop may lead from the first to the second and the other loop back.
    crossed = odometry.local_path(a.i, b.i) is None and odometry.local_path(a.i, b.j) is not None
    there, back = odometry.local_path(a.i, b.j if crossed else b.i), odometry.local_path(a.j, b.i if crossed else b.j)
    if there is None or back is None:
        return None
    i_from_k, j_from_l = there.source_from_target, back.source_from_target
    k_from_l, covariance_b = _measured(b, crossed)
    if a.sigmas[6] >= b.sigmas[6]:
        a = _with_scale(a, i_from_k.scale * k_from_l.scale / j_from_l.scale)
    else:
        scale = a.i_from_j.scale * j_from_l.scale / i_from_k.scale
        k_from_l, covariance_b = _measured(_with_scale(b, 1.0 / scale if crossed else scale), crossed)
    i_from_j = i_from_k @ k_from_l @ j_from_l.inverse()
    A = adjoint(j_from_l)
    # Covariances are transformed by the relative pose of loop a, because that of the map may be wrong.
    covariance = edge_covariance(a) + there.covariance_in(a.i_from_j.inverse()) + back.covariance
    covariance += A @ covariance_b @ A.T
    return squared_distance(log_error(a.i_from_j, i_from_j), covariance)


def _measured(edge: Edge, backwards: bool) -> tuple[Similarity, FloatArray]:
    """The measurement of an edge, from i to j or backwards, and the covariance (7, 7) of its error on the right."""
    covariance = edge_covariance(edge)
    if not backwards:
        return edge.i_from_j, covariance
    A = adjoint(edge.i_from_j)
    return edge.i_from_j.inverse(), A @ covariance @ A.T


def _with_scale(edge: Edge, scale: float) -> Edge:
    """The edge, with this scale if its own is so uncertain that its error cannot be linearized."""
    if edge.sigmas[6] < LOOSE_LOG_SCALE:
        return edge
    return replace(edge, i_from_j=Similarity(edge.i_from_j.rotation, edge.i_from_j.translation, scale))


# --- the largest consistent set (maximum clique) ------------------------------------------------------


def largest_consistent_set(consistent: NDArray[np.bool_]) -> list[int]:
    """Indices, in order, of a largest set whose members are pairwise consistent: a maximum clique.

    Exact by branch and bound up to `EXACT_UP_TO` members; beyond that greedy, starting from every member in turn. Of
    equally large sets, the first found is returned.

    Args:
        consistent: (N, N), symmetric.
    """
    count = len(consistent)
    consistent_with = [set(np.flatnonzero(consistent[n]).tolist()) - {n} for n in range(count)]
    best: list[int] = []
    for n in sorted(range(count), key=lambda n: (-len(consistent_with[n]), n)):
        clique = _greedy_clique(n, consistent_with)
        best = clique if len(clique) > len(best) else best
    if count <= EXACT_UP_TO:
        best = _branch_and_bound([], list(range(count)), consistent_with, best)
    return best


def _greedy_clique(start: int, consistent_with: Sequence[set[int]]) -> list[int]:
    """A clique grown from `start` by the candidate that is consistent with the most remaining candidates."""
    members, candidates = [start], set(consistent_with[start])
    while candidates:
        chosen = max(sorted(candidates), key=lambda n: len(consistent_with[n] & candidates))
        members.append(chosen)
        candidates &= consistent_with[chosen]
    return sorted(members)


def _branch_and_bound(
    members: list[int], candidates: list[int], consistent_with: Sequence[set[int]], best: list[int]
) -> list[int]:
    """The largest clique of `members` and some of `candidates`, or `best` if none is larger."""
    if len(members) > len(best):
        best = members
    for position, n in enumerate(candidates):
        if len(members) + len(candidates) - position <= len(best):
            break
        remaining = [m for m in candidates[position + 1 :] if m in consistent_with[n]]
        best = _branch_and_bound([*members, n], remaining, consistent_with, best)
    return best


def consistent_loops(loops: Sequence[Edge], graph: KeyframeGraph) -> list[Edge]:
    """A largest consistent set of the newest `WINDOW` loops, together with all older loops.

    Loops that cannot be compared count as consistent.
    """
    latest = sorted(loops, key=lambda edge: (edge.j, edge.i))[-WINDOW:]
    odometry = OdometryTree()
    odometry.follow(graph)
    consistent = np.ones((len(latest), len(latest)), bool)
    for (row, a), (column, b) in combinations(enumerate(latest), 2):
        distance = cycle_mahalanobis(a, b, odometry)
        consistent[row, column] = consistent[column, row] = distance is None or distance <= CHI2_7DOF_999
    chosen = [latest[n] for n in largest_consistent_set(consistent)]
    recent = {(edge.i, edge.j) for edge in latest}
    return [edge for edge in loops if (edge.i, edge.j) not in recent or edge in chosen]


# --- acceptance ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Accepted:
    """Loops to close: the newest one, and deferred ones that it supports.

    Attributes:
        odometry_variance: factor by which the variance of the odometry is larger than was assumed.
    """

    edges: tuple[Edge, ...]
    odometry_variance: float = 1.0


@dataclass(frozen=True, slots=True)
class Deferred:
    """A loop that must wait for further loops.

    Attributes:
        reason: a sentence with the number and the threshold.
        alone: whether a second, consistent loop is all that is missing.
        is_refuted: whether no drift explains the loop.
    """

    reason: str
    alone: bool
    is_refuted: bool = False


@dataclass(slots=True)
class LoopEvidence:
    """Verified loops, deferred ones included, and the results of their pairwise comparison.

    A loop is accepted if a consistent loop from another keyframe exists and its squared Mahalanobis distance to the map
    is below n times `CHI2_7DOF_999`, where n is the number of supporting keyframes, at most `MAX_SUPPORT`. This is the
    break-even of truncated least squares, where disabling n loops costs n times the threshold. A single loop with at
    least `single_loop_min_inliers` landmarks is accepted below the threshold for n = 1. Connecting two separate
    components, where no path limits the drift, requires two loops.

    Where the scene repeats itself, many verified loops are refuted by the path, and some others lie within the drift by
    chance. There a loop needs the support of more keyframes than any refuted one had.

    The covariance of the odometry assumes a static scene and the right camera, and no loop can tell when they are not.
    But `MAX_SUPPORT` keyframes that each show the whole view of the old place again are more certain than it: if
    nothing else contradicts them, the variance of the odometry is estimated anew from the error of the cycle (the
    a posteriori variance of unit weight).

    Attributes:
        single_loop_min_inliers: minimum number of landmarks of a loop that is accepted without a second one.
        gates: the tests of the last call of `evaluate`, in order.
    """

    single_loop_min_inliers: int
    gates: list[Gate] = field(default_factory=list)
    _odometry: OdometryTree = field(default_factory=OdometryTree)
    _loops: dict[tuple[int, int], Edge] = field(default_factory=dict)
    _consistent: dict[frozenset[tuple[int, int]], bool] = field(default_factory=dict)
    _refuted: dict[tuple[int, int], int] = field(default_factory=dict)  # number of supporting keyframes

    @property
    def scene_repeats(self) -> bool:
        """Whether many keyframes matched places where the camera was not."""
        return len({j for _, j in self._refuted}) >= REPEATING

    def evaluate(self, edge: Edge, graph: KeyframeGraph) -> Accepted | Deferred:
        """Decide on a newly verified loop, given the stored ones; the graph must be the same one in every call."""
        self._odometry.follow(graph)
        self.gates = []
        self._add(edge)
        comparable = self._compare(edge)
        consistent = [key for key in comparable if self._consistent[frozenset([key, (edge.i, edge.j)])]]
        chosen = [edge, *self._largest_consistent_subset(consistent)]
        accepted = [key for key in comparable if key in graph.edges and graph.weight(graph.edges[key]) > 0.5]
        against = len(accepted) - sum(key in consistent for key in accepted)
        agreeing = len(chosen) - 1
        if against:
            name = "loops of its place that agree, against those that contradict"
            self._gate(name, agreeing, against, against < len(chosen))
        if against >= len(chosen):
            return Deferred(f"{against} loops of its place contradict it, and {agreeing} agree", alone=False)
        supporters = len({e.j for e in chosen})
        distance = map_mahalanobis(edge, graph, self._odometry)
        deferred = self._test_distance(edge, distance, supporters)
        is_refuted = distance is not None and distance > REFUTED * MAX_SUPPORT * CHI2_7DOF_999
        if is_refuted:
            self._refuted[edge.i, edge.j] = supporters
        if deferred is not None and supporters >= MAX_SUPPORT:
            # With this much support, loops closed earlier may be false; the graph optimizer decides between them.
            odometry_distance = map_mahalanobis(edge, graph, self._odometry, odometry_only=True)
            deferred = self._test_distance(edge, odometry_distance, supporters)
        variance = 1.0
        if deferred is not None and distance is not None and not is_refuted and self._is_unmistakable(chosen):
            deferred, variance = None, distance / EXPECTED
        if deferred is None:
            deferred = self._test_repetition(consistent, supporters)
        if deferred is not None:
            return replace(deferred, is_refuted=is_refuted)
        for key in [(edge.i, edge.j), *consistent]:
            self._refuted.pop(key, None)
        return Accepted(tuple(e for e in chosen if (e.i, e.j) not in graph.edges or e is edge), variance)

    def is_pending(self, i: int, j: int) -> bool:
        """Whether a loop is stored for comparison with later ones."""
        return (i, j) in self._loops

    def _largest_consistent_subset(self, keys: Sequence[tuple[int, int]]) -> list[Edge]:
        """A largest consistent set among these loops; pairs that were not comparable count as consistent."""
        consistent = np.ones((len(keys), len(keys)), bool)
        for (row, a), (column, b) in combinations(enumerate(keys), 2):
            consistent[row, column] = consistent[column, row] = self._consistent.get(frozenset([a, b]), True)
        return [self._loops[keys[n]] for n in largest_consistent_set(consistent)]

    def _test_distance(self, edge: Edge, distance: float | None, supporters: int) -> Deferred | None:
        """Why a loop at this squared distance from the map must wait; None if it need not.

        Args:
            distance: None if no path connects the ends of the loop.
        """
        alone = supporters < 2
        if distance is None:
            self._gate("loops that tie the two parts", supporters, 2, not alone)
            return Deferred(f"{supporters} loop ties the two parts, 2 needed", alone=True) if alone else None
        limit = CHI2_7DOF_999 * min(supporters, MAX_SUPPORT)
        self._gate(DISTANCE_GATE, distance, limit, distance <= limit)
        if distance > limit:
            path = f"chi-square {distance:.1f} from where the path leads"
            return Deferred(f"{path}, limit {limit:.1f} with {supporters} loops that agree", alone=alone)
        if alone:
            enough = edge.inliers >= self.single_loop_min_inliers
            self._gate("landmarks without a second loop", edge.inliers, self.single_loop_min_inliers, enough)
        if alone and edge.inliers < self.single_loop_min_inliers:
            landmarks = f"{edge.inliers} landmarks and no second loop that agrees"
            return Deferred(f"{landmarks}, {self.single_loop_min_inliers} needed alone", alone=True)
        return None

    def _is_unmistakable(self, chosen: Sequence[Edge]) -> bool:
        """Whether consistent loops are more certain than the odometry: enough of them show a whole view."""
        whole = {e.j for e in chosen if e.cells >= WIDE_CELLS and e.inliers >= self.single_loop_min_inliers}
        keys = {(e.i, e.j) for e in chosen}
        others = {j for i, j in [*self._loops, *self._refuted] if (i, j) not in keys}
        self._gate(WHOLE_VIEW_GATE, len(whole), MAX_SUPPORT, len(whole) >= MAX_SUPPORT)
        return len(whole) >= MAX_SUPPORT and len(whole) > len(others)

    def _test_repetition(self, consistent: Sequence[tuple[int, int]], supporters: int) -> Deferred | None:
        """Why a loop with these consistent ones must wait in a scene that repeats itself; None if it need not."""
        rivals = {key: count for key, count in self._refuted.items() if key not in consistent}
        repeats = len({j for _, j in rivals})
        needed = max(rivals.values(), default=0)
        if repeats < REPEATING:
            return None
        self._gate("keyframes that agree, of more than any refuted loop had", supporters, needed, supporters > needed)
        if supporters > needed:
            return None
        places = f"{repeats} keyframes matched places where they are not"
        return Deferred(f"{supporters} keyframes agree, more than {needed} needed: {places}", alone=False)

    def _gate(self, name: str, value: float, limit: float, passed: bool) -> None:
        self.gates.append(Gate(name=name, value=float(value), limit=float(limit), passed=passed))

    def _compare(self, edge: Edge) -> list[tuple[int, int]]:
        """Compare a loop with all other stored ones; the keys of the comparable ones."""
        others = [e for key, e in self._loops.items() if key != (edge.i, edge.j)]
        comparable = []
        for other in others:
            distance = cycle_mahalanobis(edge, other, self._odometry)
            if distance is not None:
                comparable.append((other.i, other.j))
                self._consistent[frozenset([(edge.i, edge.j), (other.i, other.j)])] = distance <= CHI2_7DOF_999
        return comparable

    def _add(self, edge: Edge) -> None:
        """Store a loop as the newest; it replaces an earlier measurement of the same loop, or the oldest loop."""
        self._remove((edge.i, edge.j))
        self._loops[edge.i, edge.j] = edge
        while len(self._loops) > WINDOW:
            self._remove(next(iter(self._loops)))

    def _remove(self, key: tuple[int, int]) -> None:
        """Remove a loop together with the results of its comparisons."""
        if self._loops.pop(key, None) is not None:
            self._consistent = {pair: result for pair, result in self._consistent.items() if key not in pair}
