"""The keyframe graph: keyframes, the edges between them, and the only mutable table of poses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from relocalizer.geometry import FloatArray, Similarity, frozen_array
from slam.map.frames import Keyframe


class EdgeKind(StrEnum):
    """Origin of an edge: covisibility of consecutive keyframes, or a loop closure."""

    ODOMETRY = "odometry"
    LOOP = "loop"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Edge:
    """A measured similarity (Sim(3)) between two keyframes: its translation has a length, so its scale is fixed.

    Attributes:
        i, j: keyframe ids, i < j.
        i_from_j: pose of keyframe j in keyframe i, in i's units; its scale turns j's units into i's.
        sigmas: (7,) standard deviations: rotation x, y, z (radians), translation x, y, z (i's units), and
            logarithm of the relative scale. A huge value (1e6) marks an unobservable component.
        inliers: number of observations that the edge was estimated from.
        cells: number of cells of the image in which the landmarks of a loop lie; 0 where that is not known.
        evidence_fraction: fraction of the information attributed to this edge when several edges are derived from the
            same observations. The optimizer scales the information by it. The sigmas are those of the edge alone.
    """

    i: int
    j: int
    i_from_j: Similarity
    sigmas: FloatArray
    kind: EdgeKind
    inliers: int = 0
    cells: int = 0
    evidence_fraction: float = 1.0

    def __post_init__(self) -> None:
        if self.i >= self.j:
            raise ValueError(f"Edge: expected i < j, got {self.i} and {self.j}")
        sigmas = frozen_array("Edge.sigmas", self.sigmas, (7,))
        if (sigmas <= 0).any():
            raise ValueError("Edge.sigmas: must be positive")
        if not 0.0 < self.evidence_fraction <= 1.0:
            raise ValueError(
                f"Edge.evidence_fraction: expected more than 0 and at most 1, got {self.evidence_fraction}"
            )
        object.__setattr__(self, "sigmas", sigmas)


@dataclass(slots=True)
class KeyframeGraph:
    """Pose graph over the keyframes: the only mutable table of keyframes, poses, segments, edges and weights.

    Only `SlamMap` changes the graph of a map; all other classes read it.

    Attributes:
        keyframes: by id.
        edges: by (i, j), i < j.
        world_from_keyframe: pose of each keyframe; its scale is the map units per unit of the keyframe.
        segment_of: segment number of each keyframe (a segment is a sub-map of the atlas in ORB-SLAM3).
        weights: weight of each edge whose weight is not 1.
        metric: source of the metric scale, in words, of each segment in meters.
        odometry_variance: ratio of the variance of odometry edges to that from the landmarks they were estimated from,
            the variance of unit weight of least squares adjustment; 1 unless loops have shown that it is larger.
    """

    keyframes: dict[int, Keyframe] = field(default_factory=dict)
    edges: dict[tuple[int, int], Edge] = field(default_factory=dict)
    world_from_keyframe: dict[int, Similarity] = field(default_factory=dict)
    segment_of: dict[int, int] = field(default_factory=dict)
    weights: dict[tuple[int, int], float] = field(default_factory=dict)
    metric: dict[int, str] = field(default_factory=dict)
    odometry_variance: float = 1.0
    _connected: dict[int, set[int]] = field(default_factory=dict)  # by keyframe, the other ends of its edges
    _loops: set[tuple[int, int]] = field(default_factory=set)
    _changed: list[int] = field(default_factory=list)

    def add_keyframe(self, keyframe: Keyframe, world_from_keyframe: Similarity, segment: int = 0) -> None:
        """Add a keyframe. Those of one segment share a world; segments are unrelated until a loop connects them.

        Raises:
            ValueError: the id is taken, or the pose is out of range (`Similarity.is_in_range`).
        """
        _check_range(f"pose of keyframe {keyframe.id}", world_from_keyframe)
        if keyframe.id in self.keyframes:
            raise ValueError(f"KeyframeGraph: keyframe {keyframe.id} is there already")
        self.keyframes[keyframe.id] = keyframe
        self.world_from_keyframe[keyframe.id] = world_from_keyframe
        self.segment_of[keyframe.id] = segment
        self._changed.append(keyframe.id)

    def remove_keyframe(self, k: int) -> None:
        """Remove a keyframe and its edges. Raises KeyError if it is not in the graph."""
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
        """Add an edge, or replace the edge between the same keyframes; its weight becomes 1.

        Raises:
            ValueError: an end is not in the graph, or the measurement is out of range (`Similarity.is_in_range`).
        """
        _check_range(f"edge {edge.i}-{edge.j}", edge.i_from_j)
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
        """Replace the poses of some keyframes; all other poses stay.

        Raises:
            ValueError: an id is unknown, or a pose is out of range (`Similarity.is_in_range`). No pose is replaced.
        """
        unknown = world_from_keyframe.keys() - self.keyframes.keys()
        if unknown:
            raise ValueError(f"KeyframeGraph: poses for unknown keyframes {sorted(unknown)[:5]}")
        for k, pose in world_from_keyframe.items():
            _check_range(f"pose of keyframe {k}", pose)
        self.world_from_keyframe.update(world_from_keyframe)

    def scale_to_meters(self, segment: int, meters_per_unit: float, source: str) -> None:
        """Scale a segment to meters.

        Landmarks, frames and edges are in the units of their keyframes, so they scale with them.

        Args:
            source: source of the metric scale, in words.

        Raises:
            ValueError: a pose would be out of range.
        """
        meters_from_units = Similarity(np.eye(3), np.zeros(3), meters_per_unit)
        self.set_poses({k: meters_from_units @ self.world_from_keyframe[k] for k in self.segment(segment)})
        self.metric[segment] = source

    def join_segments(self, c: int, k: int, c_world_from_k_world: Similarity) -> bool:
        """Join the segments of keyframes c and k by the similarity between their worlds.

        The older segment keeps its world and units, so a continued map keeps its own; but if only the younger one is
        metric, that one keeps them.

        Returns:
            False, and nothing changes, if a keyframe would be out of range (`Similarity.is_in_range`).
        """
        kept, moved, kept_from_moved = self.segment_of[c], self.segment_of[k], c_world_from_k_world
        if (moved in self.metric, -moved) > (kept in self.metric, -kept):
            kept, moved, kept_from_moved = moved, kept, kept_from_moved.inverse()
        poses = {i: kept_from_moved @ self.world_from_keyframe[i] for i in self.segment(moved)}
        if not all(pose.is_in_range for pose in poses.values()):
            return False
        self.set_poses(poses)
        self.segment_of.update(dict.fromkeys(poses, kept))
        self.metric.pop(moved, None)
        return True

    def weight(self, edge: Edge) -> float:
        """Robust weight of an edge, 0 to 1. An edge of weight 0 stays in the graph and may be re-enabled."""
        return self.weights.get((edge.i, edge.j), 1.0)

    def set_weights(self, weights: Mapping[tuple[int, int], float]) -> None:
        """Replace the weights of some edges; all other weights stay.

        Raises:
            ValueError: an edge is not in the graph, or a weight is not in [0, 1].
        """
        for (i, j), weight in weights.items():
            if (i, j) not in self.edges:
                raise ValueError(f"KeyframeGraph: weight of edge {i}-{j}, which is not there")
            if not 0.0 <= weight <= 1.0:
                raise ValueError(f"KeyframeGraph: weight of edge {i}-{j}: expected 0 to 1, got {weight}")
        self.weights.update(weights)

    def inflate_odometry(self, factor: float) -> None:
        """Multiply the variance of all odometry edges by a factor; that of later ones is up to their creator."""
        if factor == 1.0:
            return
        self.odometry_variance *= factor
        for edge in self.edges_of(EdgeKind.ODOMETRY):
            self.set_edge(replace(edge, sigmas=np.sqrt(factor) * edge.sigmas))

    def edges_of(self, kind: EdgeKind) -> list[Edge]:
        """All edges of a kind, in order of insertion."""
        return [edge for edge in self.edges.values() if edge.kind is kind]

    def edges_at(self, k: int) -> list[Edge]:
        """Edges at a keyframe, in order of the other end."""
        return [self.edges[min(k, n), max(k, n)] for n in sorted(self._connected.get(k, ()))]

    def sequence_neighbors(self, k: int, count: int) -> frozenset[int]:
        """Keyframes within `count` ids of keyframe k, which is one of them, that odometry connects with it.

        The keyframes before a loss are no neighbors of those after it, unless they observe the same landmarks. Other
        segments are not looked into: their keyframes within `count` ids count as neighbors.
        """
        segment_of = self.segment_of
        near = range(k - count + 1, k + count)
        others = [i for i in near if i in segment_of and segment_of[i] != segment_of[k]]
        reached, newest = {k}, [k]
        for _ in range(count):
            ends = {e.i + e.j - n for n in newest for e in self.edges_at(n) if e.kind is EdgeKind.ODOMETRY}
            newest = [n for n in sorted(ends - reached) if n in near]
            reached.update(newest)
        return frozenset([*reached, *others])

    def loops(self) -> list[Edge]:
        """All loop edges, in order of their ends."""
        return [self.edges[key] for key in sorted(self._loops)]

    def changed_since(self, count: int) -> list[int]:
        """Keyframe ids of all changes after the first `count`, in order.

        A change is a keyframe added or removed, or an edge set, which counts for its later end.
        """
        return self._changed[count:]

    def segment(self, number: int) -> list[int]:
        """Ids of the keyframes of a segment, in order."""
        return [k for k in sorted(self.keyframes) if self.segment_of[k] == number]

    @property
    def last_id(self) -> int:
        """Id of the newest keyframe, -1 in an empty graph."""
        return max(self.keyframes, default=-1)

    def positions(self) -> FloatArray:
        """Camera centers (N, 3) in map units, in order of id."""
        return np.array([self.world_from_keyframe[k].translation for k in sorted(self.keyframes)]).reshape(-1, 3)


def _check_range(what: str, pose: Similarity) -> None:
    if not pose.is_in_range:
        far, scale = float(np.abs(pose.translation).max()), pose.scale
        raise ValueError(f"KeyframeGraph: {what} is out of range: coordinates up to {far:.3g}, scale {scale:.3g}")
