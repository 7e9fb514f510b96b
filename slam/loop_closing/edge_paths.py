"""Where keyframes lie seen from one another, and how surely: paths along edges, and the tree of odometry they take.

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

REACH = 30  # edges between keyframes that are near each other


# --- the tree -----------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Node:
    """A keyframe in the tree: `leap` is an ancestor some way up, so that a climb takes few steps, however high.

    `depth` counts the edges from the root, `doubt` is theirs; `newest` is the highest id on the way from the root.
    """

    keyframe: int
    root: int
    latest: int
    depth: int = 0
    variance: float = 0.0
    parent: _Node | None = None
    edge: Edge | None = None  # to the parent
    skip: _Node = field(init=False)
    skip_path: EdgePath | None = None  # to `leap`, once it was asked for

    def __post_init__(self) -> None:
        self.skip = self
        if self.parent is not None:
            above = self.parent.skip
            even = self.parent.depth - above.depth == above.depth - above.skip.depth
            self.skip = above.skip if even else self.parent

    def ancestor_with(self, variance: float) -> _Node:
        """The lowest ancestor, or this node itself, that has no more doubt; the root when all have more."""
        node = self
        while node.variance > variance and node.parent is not None:
            node = node.skip if node.skip.variance > variance else node.parent
        return node

    def is_above(self, other: _Node) -> bool:
        """Whether this is an ancestor of another node, or it itself."""
        return _meeting(self, other) is self


class OdometryTree:
    """A graph's odometry, and the most certain paths along it.

    Nearby, over `REACH` edges, they are looked for. Farther, they go along the tree of the most certain paths from the
    first keyframe of each part: between the source and an ancestor of the target that is near it, or the other way
    round. Paths over the tree are put together of paths over ever more keyframes, after Myers, "An applicative
    random-access stack", 1983, so they cost the logarithm of their length. Keyframes whose edges have changed are
    grafted anew with all later ones: changes are near the newest, so that is a few.
    """

    def __init__(self) -> None:
        self._graph = KeyframeGraph()
        self._seen = 0  # changes of the graph
        self._nodes: dict[int, _Node] = {}
        self._by_newest: dict[int, list[int]] = {}
        self._around: dict[int, _Surroundings] = {}  # since the last change
        self._doubts: dict[tuple[int, int], float] = {}  # of paths between the ends of loops

    def follow(self, graph: KeyframeGraph) -> None:
        """Take in what has changed in a graph, always the same one, since it was last followed."""
        self._graph, changed = graph, graph.changed_since(self._seen)
        self._seen += len(changed)
        if not changed:
            return
        first = min(changed)
        self._grow(self._forget_from(first))
        self._around = {}
        self._doubts = {ends: variance for ends, variance in self._doubts.items() if max(ends) < first}

    def local_path(self, source: int, target: int) -> EdgePath | None:
        """The path between two keyframes; None when nothing ties them, or more than `REACH` edges do."""
        return self._surroundings(source).to(target)

    def path(self, source: int, target: int) -> EdgePath | None:
        """The path between two keyframes; None when nothing ties them."""
        near = self.local_path(source, target)
        if near is not None or not self._are_tied(source, target):
            return near
        a, b = self._nodes[source], self._nodes[target]
        turn = self._turn(a, b)[1]
        there = _climb(a, turn) if turn.is_above(a) else self.local_path(source, turn.keyframe)
        back = _climb(b, turn) if turn.is_above(b) else self.local_path(target, turn.keyframe)
        assert there is not None
        assert back is not None
        return there.then(back.backwards())

    def path_through_loops(self, loops: Collection[Edge], source: int, target: int) -> EdgePath | None:
        """The path where loops may be gone along as well; None when nothing ties the two.

        Between loops it leads through the ends of all others that it passes, which makes it little longer.
        """
        ties: dict[int, list[tuple[int, float, Edge | None]]] = defaultdict(list)
        chains: dict[int, list[int]] = defaultdict(list)  # of each part
        for k in sorted({source, target, *(end for loop in loops for end in (loop.i, loop.j))} & self._nodes.keys()):
            chains[self._nodes[k].root].append(k)
        for a, b in (pair for chain in chains.values() for pair in pairwise(chain)):
            ties[a].append((b, self._variance(a, b), None))
            ties[b].append((a, self._variance(a, b), None))
        for loop in loops:
            ties[loop.i].append((loop.j, edge_variance(loop), loop))
            ties[loop.j].append((loop.i, edge_variance(loop), loop))
        return self._compose(_steps(ties, source, target), source, target)

    # --- how it grows ---------------------------------------------------------------------------------

    def _forget_from(self, first: int) -> set[int]:
        """Forget all that hangs off keyframe `first` or a later one; keyframes that are to be grafted."""
        last = max(self._by_newest, default=-1)
        gone = {k for latest in range(first, last + 1) for k in self._by_newest.pop(latest, [])}
        for k in gone:
            del self._nodes[k]
        known = self._graph.keyframes
        return {k for k in (*gone, *range(first, self._graph.last_id + 1)) if k in known}

    def _grow(self, missing: set[int]) -> None:
        """Graft keyframes, the surest first (Dijkstra), or make them roots where nothing ties them to the tree."""
        waiting: list[tuple[float, int, int]] = []  # doubt, keyframe, parent
        for k in sorted(missing):
            for parent, edge in self._tied_to(k):
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
            node = self._graft(k, parent, variance)
            for other, edge in self._tied_to(k):
                if other in missing:
                    heappush(waiting, (variance + edge_variance(edge), other, k))
                elif self._nodes[other].root != node.root:  # two parts of the tree have become one
                    return self._grow(missing | self._forget_from(0))
                elif variance + edge_variance(edge) < self._nodes[other].variance:  # the new makes the old surer
                    return self._grow(missing | self._forget_from(self._nodes[other].latest))
        return None

    def _graft(self, k: int, parent: int, variance: float) -> _Node:
        if parent == k:
            node = _Node(k, root=k, latest=k)
        else:
            above, edge = self._nodes[parent], self._graph.edges[min(k, parent), max(k, parent)]
            latest = max(k, above.latest)
            node = _Node(k, above.root, latest, above.depth + 1, variance, above, edge)
        self._nodes[k] = node
        self._by_newest.setdefault(node.latest, []).append(k)
        return node

    def _tied_to(self, k: int) -> list[tuple[int, Edge]]:
        """Keyframes that odometry ties to k, each with the edge."""
        return [(e.i + e.j - k, e) for e in self._graph.edges_at(k) if e.kind is EdgeKind.ODOMETRY]

    # --- paths ----------------------------------------------------------------------------------------

    def _surroundings(self, k: int) -> _Surroundings:
        if k not in self._around:
            self._around[k] = _Surroundings(k, self._tied_to)
        return self._around[k]

    def _are_tied(self, a: int, b: int) -> bool:
        return a in self._nodes and b in self._nodes and self._nodes[a].root == self._nodes[b].root

    def _variance(self, a: int, b: int) -> float:
        """That of the path between two keyframes that are tied."""
        if (a, b) not in self._doubts:
            near = self._surroundings(a).variance.get(b)
            self._doubts[a, b] = self._turn(self._nodes[a], self._nodes[b])[0] if near is None else near
        return self._doubts[a, b]

    def _turn(self, a: _Node, b: _Node) -> tuple[float, _Node]:
        """The doubt of the way over the tree between two keyframes, and the node where it leaves the one's ancestors.

        That is where both branches meet, or an ancestor of one that the other has near.
        """
        meeting = _meeting(a, b)
        turns = [(a.variance + b.variance - 2.0 * meeting.variance, meeting.keyframe)]
        for here, there in ((a, b), (b, a)):
            near = self._surroundings(here.keyframe).variance
            reach = max(near.values())  # what is near differs by no more in its doubt from the root
            node = there.ancestor_with(here.variance + reach)
            while node is not meeting and node.variance >= here.variance - reach:
                if node.keyframe in near:
                    turns.append((near[node.keyframe] + there.variance - node.variance, node.keyframe))
                assert node.parent is not None
                node = node.parent
        variance, keyframe = min(turns)
        return variance, self._nodes[keyframe]

    def _compose(self, steps: list[tuple[int, int, Edge]] | None, source: int, target: int) -> EdgePath | None:
        """The path along odometry from loop to loop."""
        if steps is None:
            return None
        path, at = EdgePath.still(), source
        for start, end, loop in steps:
            between = self.path(at, start)
            assert between is not None
            path, at = path.then(between).then(EdgePath.along(loop, start)), end
        rest = self.path(at, target)
        assert rest is not None
        return path.then(rest)


class _Surroundings:
    """The most certain paths from a keyframe over at most `REACH` edges (Dijkstra)."""

    def __init__(self, source: int, tied_to: Callable[[int], list[tuple[int, Edge]]]) -> None:
        self.variance: dict[int, float] = {}  # of the paths, by target
        self._before: dict[int, tuple[int, Edge | None]] = {source: (source, None)}
        self._paths = {source: EdgePath.still()}
        best = {source: 0.0}
        waiting = [(0.0, source, 0)]
        while waiting:
            variance, k, edges = heappop(waiting)
            if k in self.variance:
                continue
            self.variance[k] = variance
            for other, edge in tied_to(k) if edges < REACH else ():
                more = variance + edge_variance(edge)
                if more < best.get(other, np.inf):
                    best[other], self._before[other] = more, (k, edge)
                    heappush(waiting, (more, other, edges + 1))

    def to(self, target: int) -> EdgePath | None:
        """The path to a keyframe; None when it is not near."""
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


def _meeting(a: _Node, b: _Node) -> _Node:
    """The lowest node above both, or one of them."""
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
    """The path from a node up to one above it."""
    path = EdgePath.still()
    while node is not ancestor:
        if node.skip.depth >= ancestor.depth:
            path, node = path.then(_over(node)), node.skip
        else:
            assert node.parent is not None
            assert node.edge is not None
            path, node = path.then(EdgePath.along(node.edge, node.keyframe)), node.parent
    return path


def _over(node: _Node) -> EdgePath:
    """The path from a node to its leap."""
    if node.skip_path is None:
        assert node.parent is not None
        assert node.edge is not None
        path = EdgePath.along(node.edge, node.keyframe)
        if node.skip is not node.parent:
            path = path.then(_over(node.parent)).then(_over(node.parent.skip))
        node.skip_path = path
    return node.skip_path


def _steps(
    ties: dict[int, list[tuple[int, float, Edge | None]]], source: int, target: int
) -> list[tuple[int, int, Edge]] | None:
    """The loops (from, to, edge) along the path of least doubt; None when there is no path (Dijkstra)."""
    before: dict[int, tuple[int, Edge | None]] = {}
    waiting: list[tuple[float, int, int, int]] = [(0.0, source, source, -1)]
    while waiting and target not in before:
        variance, k, previous, tie = heappop(waiting)
        if k in before:
            continue
        before[k] = previous, ties[previous][tie][2] if tie >= 0 else None
        for number, (other, more, _) in enumerate(ties[k]):
            if other not in before:
                heappush(waiting, (variance + more, other, k, number))
    if target not in before:
        return None
    steps, at = list[tuple[int, int, Edge]](), target
    while at != source:
        previous, loop = before[at]
        if loop is not None:
            steps.append((previous, at, loop))
        at = previous
    return steps[::-1]
