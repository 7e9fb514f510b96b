"""Interface of the pose graph optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from relocalizer.geometry import Similarity
from slam.map.keyframe_graph import KeyframeGraph

LOOP_LIMIT = 18.48  # maximum squared error of an enabled loop: 99 % quantile of chi-square with 7 degrees of freedom

Weights = Mapping[tuple[int, int], float]  # by loop (i, j), a number


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Solution:
    """Result of a pose graph optimization.

    Attributes:
        error_before, error_after: half of the squared Mahalanobis length of all errors, loops weighted.
        loop_weights: 1 for an enabled loop, 0 for one that contradicts the rest of the graph.
        loop_errors: squared Mahalanobis length of the error of each loop at the solution.
        problem: why the solver failed, in which case poses and weights are unchanged; empty on success.
    """

    world_from_keyframe: Mapping[int, Similarity]
    error_before: float
    error_after: float
    loop_weights: Weights = field(default_factory=dict)
    loop_errors: Weights = field(default_factory=dict)
    problem: str = ""

    @property
    def why_unusable(self) -> str:
        """Why the solution must not be applied to the graph; empty if it may be."""
        if self.problem:
            return self.problem
        numbers = [self.error_before, self.error_after, *self.loop_weights.values(), *self.loop_errors.values()]
        if not np.isfinite(numbers).all():
            return "errors or weights are not finite"
        return "" if all(pose.is_in_range for pose in self.world_from_keyframe.values()) else "poses are out of range"


class GraphOptimizer(Protocol):
    """Solver of the pose graph."""

    def optimize(self, graph: KeyframeGraph) -> Solution:
        """Poses that fit the edges; the first keyframe of each connected component is fixed."""
        ...


def first_of_each_part(graph: KeyframeGraph) -> list[int]:
    """The lowest keyframe id of every connected component of the graph, in order; edges of weight 0 do not count."""
    parent = {k: k for k in graph.keyframes}

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    for edge in graph.edges.values():
        if graph.weight(edge) == 0.0:
            continue
        a, b = root(edge.i), root(edge.j)
        parent[max(a, b)] = min(a, b)
    return sorted({root(k) for k in graph.keyframes})
