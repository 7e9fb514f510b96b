"""The keyframe graph: keyframes, the edges between them, and the one mutable table of poses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from relocalizer.geometry import FloatArray, Similarity, frozen_array
from slam.map.frames import Keyframe


class EdgeKind(StrEnum):
    ODOMETRY = "odometry"
    LOOP = "loop"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Edge:
    """A measured similarity between two keyframes, with a length: this is where scale has been decided.

    Attributes:
        i, j: keyframe ids, i < j.
        i_from_j: pose of keyframe j in keyframe i, in i's units; its scale turns j's units into i's.
        sigmas: (7,) standard deviations: rotation x, y, z (radians), translation x, y, z (i's units), and
            logarithm of the relative scale. An infinite-like value (1e6) marks what the evidence does not tell.
        inliers: observations the edge rests on.
        share: of the evidence, what is this edge's own when other edges are made of it too; a graph with all of them
            weighs each by its share. The sigmas are those of the edge alone.
    """

    i: int
    j: int
    i_from_j: Similarity
    sigmas: FloatArray
    kind: EdgeKind
    inliers: int = 0
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.i >= self.j:
            raise ValueError(f"Edge: expected i < j, got {self.i} and {self.j}")
        sigmas = frozen_array("Edge.sigmas", self.sigmas, (7,))
        if (sigmas <= 0).any():
            raise ValueError("Edge.sigmas: must be positive")
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"Edge.share: expected more than 0 and at most 1, got {self.share}")
        object.__setattr__(self, "sigmas", sigmas)


@dataclass(slots=True)
class KeyframeGraph:
    """What the map is made of: the one mutable table of keyframes, poses, segments, edges and weights.

    Writers: `slam.mapping`, `slam.loop_closing` and `slam.sessions`; everyone else reads.
    """

    keyframes: dict[int, Keyframe] = field(default_factory=dict)
    edges: dict[tuple[int, int], Edge] = field(default_factory=dict)
    world_from_keyframe: dict[int, Similarity] = field(default_factory=dict)
    segment_of: dict[int, int] = field(default_factory=dict)
    weights: dict[tuple[int, int], float] = field(default_factory=dict)  # of loops that are not believed in full
    metric: dict[int, str] = field(default_factory=dict)  # segments in meters, and where these come from, in words
    _connected: dict[int, set[int]] = field(default_factory=dict)  # keyframes that an edge ties to each
    _loops: set[tuple[int, int]] = field(default_factory=set)
    _changed: list[int] = field(default_factory=list)

    def add_keyframe(self, keyframe: Keyframe, world_from_keyframe: Similarity, segment: int = 0) -> None:
        """Keyframes of one segment share a world; segments know nothing of each other until a loop ties them.

        Raises:
            ValueError: the id is taken.
        """
        if keyframe.id in self.keyframes:
            raise ValueError(f"KeyframeGraph: keyframe {keyframe.id} is there already")
        self.keyframes[keyframe.id] = keyframe
        self.world_from_keyframe[keyframe.id] = world_from_keyframe
        self.segment_of[keyframe.id] = segment
        self._changed.append(keyframe.id)

    def remove_keyframe(self, k: int) -> None:
        """Take a keyframe out with its edges. Raises KeyError when it is not there."""
        del self.keyframes[k]
        del self.world_from_keyframe[k]
        del self.segment_of[k]
        for ends in [ends for ends in self.edges if k in ends]:
            del self.edges[ends]
            self.weights.pop(ends, None)
            self._loops.discard(ends)
        for other in self._connected.pop(k, set()):
            self._connected[other].discard(k)
        self._changed.append(k)

    def set_edge(self, edge: Edge) -> None:
        """Add an edge, or replace the one between the same keyframes by newer evidence, which is believed in full.

        Raises:
            ValueError: an end is not in the graph.
        """
        for end in (edge.i, edge.j):
            if end not in self.keyframes:
                raise ValueError(f"KeyframeGraph: edge {edge.i}-{edge.j} names keyframe {end}, which is not there")
        self.edges[edge.i, edge.j] = edge
        self.weights.pop((edge.i, edge.j), None)
        self._connected.setdefault(edge.i, set()).add(edge.j)
        self._connected.setdefault(edge.j, set()).add(edge.i)
        (self._loops.add if edge.kind is EdgeKind.LOOP else self._loops.discard)((edge.i, edge.j))
        self._changed.append(edge.j)

    def set_poses(self, world_from_keyframe: Mapping[int, Similarity]) -> None:
        """Replace poses of keyframes that are there; others stay. Raises ValueError on an unknown id."""
        unknown = world_from_keyframe.keys() - self.keyframes.keys()
        if unknown:
            raise ValueError(f"KeyframeGraph: poses for unknown keyframes {sorted(unknown)[:5]}")
        self.world_from_keyframe.update(world_from_keyframe)

    def stretch(self, segment: int, meters_per_unit: float, source: str) -> None:
        """Make the lengths of a segment meters; `source` says where these come from.

        Landmarks, frames and edges are in the units of their keyframes, and so go with them.
        """
        meters_from_units = Similarity(np.eye(3), np.zeros(3), meters_per_unit)
        self.set_poses({k: meters_from_units @ self.world_from_keyframe[k] for k in self.segment(segment)})
        self.metric[segment] = source

    def weight(self, edge: Edge) -> float:
        """How far an edge is believed, 0 to 1. One of weight 0 stays recorded and may come back."""
        return self.weights.get((edge.i, edge.j), 1.0)

    def set_weights(self, weights: Mapping[tuple[int, int], float]) -> None:
        """Replace the weights of edges that are there; others keep theirs.

        Raises:
            ValueError: an edge is not in the graph, or a weight is not in [0, 1].
        """
        for (i, j), weight in weights.items():
            if (i, j) not in self.edges:
                raise ValueError(f"KeyframeGraph: weight of edge {i}-{j}, which is not there")
            if not 0.0 <= weight <= 1.0:
                raise ValueError(f"KeyframeGraph: weight of edge {i}-{j}: expected 0 to 1, got {weight}")
        self.weights.update(weights)

    def edges_of(self, kind: EdgeKind) -> list[Edge]:
        return [edge for edge in self.edges.values() if edge.kind is kind]

    def edges_at(self, k: int) -> list[Edge]:
        """Edges that end at a keyframe, in order of the other end."""
        return [self.edges[min(k, n), max(k, n)] for n in sorted(self._connected.get(k, ()))]

    def loops(self) -> list[Edge]:
        """All loop edges, in order of their ends."""
        return [self.edges[key] for key in sorted(self._loops)]

    def changed_since(self, count: int) -> list[int]:
        """After the first `count` changes, in order: a keyframe added, or the later end of an edge."""
        return self._changed[count:]

    def segment(self, number: int) -> list[int]:
        """Ids of a segment's keyframes, in order."""
        return [k for k in sorted(self.keyframes) if self.segment_of[k] == number]

    @property
    def last_id(self) -> int:
        """Id of the newest keyframe, -1 when there is none."""
        return max(self.keyframes, default=-1)

    def positions(self) -> FloatArray:
        """Camera centers (N, 3) in map units, in order of id."""
        return np.array([self.world_from_keyframe[k].translation for k in sorted(self.keyframes)]).reshape(-1, 3)
