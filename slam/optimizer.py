"""The graph solved: edges in, keyframe poses out (GTSAM, Sim(3))."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import gtsam
import numpy as np

from relocalizer.geometry import Similarity
from slam.graph import Edge, EdgeKind, KeyframeGraph

GAUGE_SIGMA = 1e-6
# A loop is verified by dozens of landmarks, and the drift of a round is tens of the loop's small sigmas: with a
# kernel that lets go at once a true loop is never closed. Beyond some hundred sigmas it lets go of a false one.
CAUCHY_K = 10.0
HUBER_K = 1.345


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Solution:
    """Poses of the keyframes that were solved for, and the graph's error at the start and at the end."""

    world_from_keyframe: Mapping[int, Similarity]
    error_before: float
    error_after: float


class GraphOptimizer(Protocol):
    def optimise(self, graph: KeyframeGraph) -> Solution:
        """Poses that fit the edges; the first keyframe of each connected part stays where it is."""
        ...


class GtsamOptimizer:
    """Levenberg-Marquardt over similarity edges; odometry under a Huber kernel, loops under Cauchy's.

    GTSAM's Similarity3 acts as s * (R p + t), so a translation T is handed over as T / s; its tangent is
    rotation, translation, log scale. `between(a, b)` is a^-1 b: of world_from_i and world_from_j, i_from_j.
    """

    def optimise(self, graph: KeyframeGraph) -> Solution:
        factors, start = gtsam.NonlinearFactorGraph(), gtsam.Values()
        for k, pose in graph.world_from_keyframe.items():
            start.insert(k, to_similarity3(pose))
        pin = gtsam.noiseModel.Isotropic.Sigma(7, GAUGE_SIGMA)
        for k in first_of_each_part(graph):
            factors.add(gtsam.PriorFactorSimilarity3(k, start.atSimilarity3(k), pin))
        for edge in graph.edges.values():
            factors.add(gtsam.BetweenFactorSimilarity3(edge.i, edge.j, to_similarity3(edge.i_from_j), _noise(edge)))
        before = factors.error(start)
        solution = gtsam.LevenbergMarquardtOptimizer(factors, start, gtsam.LevenbergMarquardtParams()).optimize()
        after = factors.error(solution)
        if not np.isfinite(after) or after > before:
            return Solution(world_from_keyframe={}, error_before=before, error_after=before)
        poses = {k: from_similarity3(solution.atSimilarity3(k)) for k in graph.world_from_keyframe}
        return Solution(world_from_keyframe=poses, error_before=before, error_after=after)


def first_of_each_part(graph: KeyframeGraph) -> list[int]:
    """The lowest keyframe id of every connected part of the graph, in order."""
    parent = {k: k for k in graph.keyframes}

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    for edge in graph.edges.values():
        a, b = root(edge.i), root(edge.j)
        parent[max(a, b)] = min(a, b)
    return sorted({root(k) for k in graph.keyframes})


def _noise(edge: Edge) -> gtsam.noiseModel.Robust:
    sigmas = np.array(edge.sigmas)
    sigmas[3:6] /= edge.i_from_j.scale  # GTSAM's translation is T / s
    estimator = gtsam.noiseModel.mEstimator
    kernel = estimator.Cauchy.Create(CAUCHY_K) if edge.kind is EdgeKind.LOOP else estimator.Huber.Create(HUBER_K)
    return gtsam.noiseModel.Robust.Create(kernel, gtsam.noiseModel.Diagonal.Sigmas(sigmas))


def to_similarity3(pose: Similarity) -> gtsam.Similarity3:
    return gtsam.Similarity3(gtsam.Rot3(pose.rotation), pose.translation / pose.scale, pose.scale)


def from_similarity3(pose: gtsam.Similarity3) -> Similarity:
    return Similarity(pose.rotation().matrix(), pose.translation() * pose.scale(), pose.scale())
