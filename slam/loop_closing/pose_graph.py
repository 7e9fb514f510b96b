"""The graph solved: edges in, keyframe poses out (GTSAM, Sim(3))."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from relocalizer.geometry import Similarity
from slam.map.keyframe_graph import KeyframeGraph

LOOP_LIMIT = 18.48  # 99 % of the squares of seven independent normal errors

Weights = Mapping[tuple[int, int], float]  # a number for each loop


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Solution:
    """Poses of the keyframes that were solved for, the graph's error before and after, and what became of the loops.

    Attributes:
        loop_weights: 1 for a loop that was followed, 0 for one that the rest of the graph contradicts.
        loop_errors: squared error of each loop at the solution, in its sigmas.
        problem: why the solver failed, and then the poses and the weights are those of before; empty where it did not.
    """

    world_from_keyframe: Mapping[int, Similarity]
    error_before: float
    error_after: float
    loop_weights: Weights = field(default_factory=dict)
    loop_errors: Weights = field(default_factory=dict)
    problem: str = ""

    @property
    def why_unusable(self) -> str:
        """Why nothing of this can be put into a graph; empty when it can."""
        numbers = [self.error_before, self.error_after, *self.loop_weights.values(), *self.loop_errors.values()]
        return self.problem or ("" if np.isfinite(numbers).all() else "errors or weights are not finite")


class GraphOptimizer(Protocol):
    def optimize(self, graph: KeyframeGraph) -> Solution:
        """Poses that fit the edges; the first keyframe of each connected part stays where it is."""
        ...


def first_of_each_part(graph: KeyframeGraph) -> list[int]:
    """The lowest keyframe id of every connected part of the graph, in order."""
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
