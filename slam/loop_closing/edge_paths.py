"""Relative poses of keyframes with their covariance, along the paths of least variance over odometry and loops.

Errors are written on the right, i_from_j = measured @ Exp(d), with d = (rotation, translation, log scale) in j's axes
and units; d in frame b is Ad(a_from_b) d in frame a.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise

import numpy as np

from slam.loop_closing.edge_path import EdgePath, edge_variance
from slam.map.keyframe_graph import Edge, EdgeKind, KeyframeGraph

REACH = 30  # maximum length of a local path, edges


# --- the tree -----------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Node:
    """A keyframe in the odometry tree, with a skip pointer: any ancestor is logarithmically many steps away.

    Attributes:
        root: keyframe id of the root of its tree.
        latest: highest keyframe id on the path from the root.
        depth: number of edges from the root.
        variance: sum of the variances of the edges from the root.
        parent, edge: next node toward the root, and the edge to it; None at the root.
        skip: an ancestor farther up; the node itself at the root.
        skip_path: path from the node to `skip`, computed on first use.
    """

    keyframe: int
    root: int
    latest: int
    depth: int = 0
    variance: float = 0.0
    parent: _Node | None = None
    edge: Edge | None = None
    skip: _Node = field(init=False)
    skip_path: EdgePath | None = None

    def __post_init__(self) -> None:
        self.skip = self
        if self.parent is not None:
            above = self.parent.skip
            equal_jumps = self.parent.depth - above.depth == above.depth - above.skip.depth
            self.skip = above.skip if equal_jumps else self.parent

    def ancestor_with(self, variance: float) -> _Node:
        """The lowest ancestor, or this node, whose variance is at most `variance`; the root if there is none."""
        node = self
        while node.variance > variance and node.parent is not None:
            node = node.skip if node.skip.variance > variance else node.parent
        return node

    def is_above(self, other: _Node) -> bool:
        """Whether this node is `other` or one of its ancestors."""
        return _common_ancestor(self, other) is self


class OdometryTree:
    """Paths of least variance along the odometry edges of a graph.

    Local paths, of at most `REACH` edges, are searched for in the graph. Longer ones run along the tree of the paths of
    least variance from the first keyframe of each connected component: between the source and an ancestor of the
    target that is near the source, or the other way round. Paths over the tree are composed of precomputed paths over
    increasing numbers of edges, after Myers, "An applicative random-access stack", 1983, so they cost the logarithm of
    their length. If edges of a keyframe change, it and all later keyframes are inserted into the tree again; changes
    are near the newest keyframe, so these are few.
    """

    def __init__(self) -> None:
        self._graph = KeyframeGraph()
        self._changes = 0  # number of changes of the graph that the tree includes
        self._nodes: dict[int, _Node] = {}
        self._by_latest: dict[int, list[int]] = {}  # by `_Node.latest`, keyframe ids
        self._around: dict[int, _Surroundings] = {}  # by keyframe, computed since the last change
        self._variances: dict[tuple[int, int], float] = {}  # of paths between the ends of loops

    def follow(self, graph: KeyframeGraph) -> None:
        """Update the tree to the graph, which must be the same one in every call."""
        self._graph, changed = graph, graph.changed_since(self._changes)
        self._changes += len(changed)
        if not changed:
            return
        first = min(changed)
        self._grow(self._remove_from(first))
        self._around = {}
        self._variances = {ends: variance for ends, variance in self._variances.items() if max(ends) < first}

    def local_path(self, source: int, target: int) -> EdgePath | None:
        """The path between two keyframes; None if they are not connected by at most `REACH` edges."""
        return self._surroundings(source).to(target)

    def path(self, source: int, target: int) -> EdgePath | None:
        """The path between two keyframes; None if they are not connected."""
        near = self.local_path(source, target)
        if near is not None or not self._are_connected(source, target):
            return near
        a, b = self._nodes[source], self._nodes[target]
        turn = self._turn(a, b)[1]
        there = _climb(a, turn) if turn.is_above(a) else self.local_path(source, turn.keyframe)
        back = _climb(b, turn) if turn.is_above(b) else self.local_path(target, turn.keyframe)
        assert there is not None
        assert back is not None
        return there.then(back.backwards())

    def path_through_loops(self, loops: Collection[Edge], source: int, target: int) -> EdgePath | None:
        """The path between two keyframes along odometry and these loops; None if they are not connected.

        It may pass through the end keyframes of other loops, which barely lengthens it.
        """
        links: dict[int, list[tuple[int, float, Edge | None]]] = defaultdict(list)
        chains: dict[int, list[int]] = defaultdict(list)  # by connected component
        for k in sorted({source, target, *(end for loop in loops for end in (loop.i, loop.j))} & self._nodes.keys()):
            chains[self._nodes[k].root].append(k)
        for a, b in (pair for chain in chains.values() for pair in pairwise(chain)):
            links[a].append((b, self._variance(a, b), None))
            links[b].append((a, self._variance(a, b), None))
        for loop in loops:
            links[loop.i].append((loop.j, edge_variance(loop), loop))
            links[loop.j].append((loop.i, edge_variance(loop), loop))
        return self._compose(_loops_along(links, source, target), source, target)

    # --- the tree -------------------------------------------------------------------------------------

    def _remove_from(self, first: int) -> set[int]:
        """Remove all nodes whose path from the root contains keyframe `first` or later.

        Returns:
            The keyframes to insert again.
        """
        last = max(self._by_latest, default=-1)
        removed = {k for latest in range(first, last + 1) for k in self._by_latest.pop(latest, [])}
        for k in removed:
            del self._nodes[k]
        keyframes = self._graph.keyframes
        return {k for k in (*removed, *range(first, self._graph.last_id + 1)) if k in keyframes}

    def _grow(self, missing: set[int]) -> None:
        """Insert keyframes in order of variance (Dijkstra); keyframes without an edge to the tree become roots."""
        waiting: list[tuple[float, int, int]] = []  # variance, keyframe, parent
        for k in sorted(missing):
            for parent, edge in self._neighbors(k):
                if parent in self._nodes:
                    heappush(waiting, (self._nodes[parent].variance + edge_variance(edge), k, parent))
        roots = iter(sorted(missing))
        while missing:
            if not waiting:
                root = next(k for k in roots if k in missing)
                waiting.append((0.0, root, root))
            variance, k, parent = heappop(waiting)
            if k not in missing:
                continue
            missing.discard(k)
            node = self._insert(k, parent, variance)
            for other, edge in self._neighbors(k):
                if other in missing:
                    heappush(waiting, (variance + edge_variance(edge), other, k))
                elif self._nodes[other].root != node.root:  # two trees have become connected
                    return self._grow(missing | self._remove_from(0))
                elif variance + edge_variance(edge) < self._nodes[other].variance:  # a better path to an old node
                    return self._grow(missing | self._remove_from(self._nodes[other].latest))
        return None

    def _insert(self, k: int, parent: int, variance: float) -> _Node:
        """Insert keyframe k below a parent, or as a root if it is its own parent."""
        if parent == k:
            node = _Node(k, root=k, latest=k)
        else:
            above, edge = self._nodes[parent], self._graph.edges[min(k, parent), max(k, parent)]
            latest = max(k, above.latest)
            node = _Node(k, above.root, latest, above.depth + 1, variance, above, edge)
        self._nodes[k] = node
        self._by_latest.setdefault(node.latest, []).append(k)
        return node

    def _neighbors(self, k: int) -> list[tuple[int, Edge]]:
        """Keyframes that an odometry edge connects to k, each with the edge."""
        return [(e.i + e.j - k, e) for e in self._graph.edges_at(k) if e.kind is EdgeKind.ODOMETRY]

    # --- paths ----------------------------------------------------------------------------------------

    def _surroundings(self, k: int) -> _Surroundings:
        if k not in self._around:
            self._around[k] = _Surroundings(k, self._neighbors)
        return self._around[k]

    def _are_connected(self, a: int, b: int) -> bool:
        return a in self._nodes and b in self._nodes and self._nodes[a].root == self._nodes[b].root

    def _variance(self, a: int, b: int) -> float:
        """Variance of the path between two connected keyframes."""
        if (a, b) not in self._variances:
            near = self._surroundings(a).variance.get(b)
            self._variances[a, b] = self._turn(self._nodes[a], self._nodes[b])[0] if near is None else near
        return self._variances[a, b]

    def _turn(self, a: _Node, b: _Node) -> tuple[float, _Node]:
        """Variance of the tree path between two keyframes, and the node at which it switches branches.

        That node is their lowest common ancestor, or an ancestor of one of them that has a local path to the other.
        """
        common = _common_ancestor(a, b)
        turns = [(a.variance + b.variance - 2.0 * common.variance, common.keyframe)]
        for here, there in ((a, b), (b, a)):
            near = self._surroundings(here.keyframe).variance
            reach = max(near.values())  # bounds the difference of the variances of `here` and of any node near it
            node = there.ancestor_with(here.variance + reach)
            while node is not common and node.variance >= here.variance - reach:
                if node.keyframe in near:
                    turns.append((near[node.keyframe] + there.variance - node.variance, node.keyframe))
                assert node.parent is not None
                node = node.parent
        variance, keyframe = min(turns)
        return variance, self._nodes[keyframe]

    def _compose(self, loops: list[tuple[int, int, Edge]] | None, source: int, target: int) -> EdgePath | None:
        """The path that follows odometry from loop to loop."""
        if loops is None:
            return None
        path, at = EdgePath.still(), source
        for start, end, loop in loops:
            between = self.path(at, start)
            assert between is not None
            path, at = path.then(between).then(EdgePath.along(loop, start)), end
        rest = self.path(at, target)
        assert rest is not None
        return path.then(rest)


class _Surroundings:
    """Paths of least variance from a keyframe over at most `REACH` edges (Dijkstra).

    Attributes:
        variance: of each path, by target.
    """

    def __init__(self, source: int, neighbors: Callable[[int], list[tuple[int, Edge]]]) -> None:
        self.variance: dict[int, float] = {}
        self._before: dict[int, tuple[int, Edge | None]] = {source: (source, None)}
        self._paths = {source: EdgePath.still()}
        best = {source: 0.0}
        waiting = [(0.0, source, 0)]
        while waiting:
            variance, k, edges = heappop(waiting)
            if k in self.variance:
                continue
            self.variance[k] = variance
            for other, edge in neighbors(k) if edges < REACH else ():
                more = variance + edge_variance(edge)
                if more < best.get(other, np.inf):
                    best[other], self._before[other] = more, (k, edge)
                    heappush(waiting, (more, other, edges + 1))

    def to(self, target: int) -> EdgePath | None:
        """The path to a keyframe; None if it is farther than `REACH` edges."""
        if target not in self._before:
            return None
        missing: list[int] = []
        while target not in self._paths:
            missing.append(target)
            target = self._before[target][0]
        path = self._paths[target]
        for after in reversed(missing):
            before, edge = self._before[after]
            assert edge is not None
            path = self._paths[after] = path.then(EdgePath.along(edge, before))
        return path


def _common_ancestor(a: _Node, b: _Node) -> _Node:
    """The lowest common ancestor of two nodes of one tree, which may be one of them."""
    while a.depth != b.depth:
        low, high = (a, b) if a.depth > b.depth else (b, a)
        assert low.parent is not None
        a, b = (low.skip if low.skip.depth >= high.depth else low.parent), high
    while a is not b:
        assert a.parent is not None
        assert b.parent is not None
        a, b = (a.parent, b.parent) if a.skip is b.skip else (a.skip, b.skip)
    return a


def _climb(node: _Node, ancestor: _Node) -> EdgePath:
    """The path from a node to one of its ancestors."""
    path = EdgePath.still()
    while node is not ancestor:
        if node.skip.depth >= ancestor.depth:
            path, node = path.then(_skip_path(node)), node.skip
        else:
            assert node.parent is not None
            assert node.edge is not None
            path, node = path.then(EdgePath.along(node.edge, node.keyframe)), node.parent
    return path


def _skip_path(node: _Node) -> EdgePath:
    """The path from a node to its skip ancestor, composed recursively and cached."""
    if node.skip_path is None:
        assert node.parent is not None
        assert node.edge is not None
        path = EdgePath.along(node.edge, node.keyframe)
        if node.skip is not node.parent:
            path = path.then(_skip_path(node.parent)).then(_skip_path(node.parent.skip))
        node.skip_path = path
    return node.skip_path


def _loops_along(
    links: dict[int, list[tuple[int, float, Edge | None]]], source: int, target: int
) -> list[tuple[int, int, Edge]] | None:
    """The loops (from, to, edge) along the path of least variance; None if there is no path (Dijkstra).

    Args:
        links: by keyframe, (other keyframe, variance, loop or None for odometry).
    """
    before: dict[int, tuple[int, Edge | None]] = {}
    waiting: list[tuple[float, int, int, int]] = [(0.0, source, source, -1)]
    while waiting and target not in before:
        variance, k, previous, link = heappop(waiting)
        if k in before:
            continue
        before[k] = previous, links[previous][link][2] if link >= 0 else None
        for number, (other, more, _) in enumerate(links[k]):
            if other not in before:
                heappush(waiting, (variance + more, other, k, number))
    if target not in before:
        return None
    loops, at = list[tuple[int, int, Edge]](), target
    while at != source:
        previous, loop = before[at]
        if loop is not None:
            loops.append((previous, at, loop))
        at = previous
    return loops[::-1]
