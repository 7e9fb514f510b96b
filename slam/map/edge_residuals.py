"""Residuals of the edges of a keyframe graph, as the pose graph optimizer weights them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from relocalizer.geometry import FloatArray, Similarity
from slam.map.keyframe_graph import Edge, EdgeKind, KeyframeGraph


@dataclass(frozen=True, slots=True, eq=False)
class EdgeResiduals:
    """Residuals of E edges.

    Attributes:
        ends: (E, 2) int64, keyframe ids i < j.
        is_loop: (E,) bool.
        squared: (E,) squared Mahalanobis length of each residual (chi-square, 7 degrees of freedom).
        weights: (E,) robust weights, 0 to 1.
    """

    ends: NDArray[np.int64]
    is_loop: NDArray[np.bool_]
    squared: FloatArray
    weights: FloatArray

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def normalized(self) -> FloatArray:
        """(E,) root of the mean squared residual per degree of freedom: about 1 where an edge fits its sigmas."""
        return np.sqrt(self.squared / 7.0)

    def where(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> EdgeResiduals:
        """The edges selected by a mask or by indices."""
        return EdgeResiduals(self.ends[keep], self.is_loop[keep], self.squared[keep], self.weights[keep])

    def worst(self, count: int) -> EdgeResiduals:
        """At most `count` edges, those with the largest residuals first."""
        return self.where(np.argsort(-self.squared, kind="stable")[:count])


def residuals_of(graph: KeyframeGraph) -> EdgeResiduals:
    """Residuals of all edges of a graph at its current poses."""
    edges = list(graph.edges.values())
    return residuals_at(edges, np.array([graph.weight(edge) for edge in edges]), graph.world_from_keyframe)


def residuals_at(
    edges: Sequence[Edge], weights: FloatArray, world_from_keyframe: Mapping[int, Similarity]
) -> EdgeResiduals:
    """Residuals of E edges of robust weights (E,) at given poses: log(measured^-1 current), divided by the sigmas.

    The information of an edge counts by its `evidence_fraction`, as in the optimizer, and not by its robust weight.
    """
    if not edges:
        return EdgeResiduals(np.zeros((0, 2), np.int64), np.zeros(0, bool), np.zeros(0), np.zeros(0))
    pose_i = [world_from_keyframe[edge.i] for edge in edges]
    pose_j = [world_from_keyframe[edge.j] for edge in edges]
    measured = [edge.i_from_j for edge in edges]
    R_i, R_j, R = (np.array([pose.rotation for pose in poses]) for poses in (pose_i, pose_j, measured))
    t_i, t_j, t = (np.array([pose.translation for pose in poses]) for poses in (pose_i, pose_j, measured))
    s_i, s_j, s = (np.array([pose.scale for pose in poses]) for poses in (pose_i, pose_j, measured))
    rotation = np.swapaxes(R_i, 1, 2) @ R_j
    translation = np.einsum("eba,eb->ea", R_i, t_j - t_i) / s_i[:, None]
    error = np.empty((len(edges), 7))
    error[:, :3] = Rotation.from_matrix(np.swapaxes(R, 1, 2) @ rotation).as_rotvec()
    error[:, 3:6] = np.einsum("eba,eb->ea", R, translation - t) / s[:, None]
    error[:, 6] = np.log(s_j / s_i / s)
    sigmas = np.array([edge.sigmas for edge in edges])
    sigmas[:, 3:6] /= s[:, None]
    fraction = np.array([edge.evidence_fraction for edge in edges])
    return EdgeResiduals(
        ends=np.array([(edge.i, edge.j) for edge in edges], np.int64),
        is_loop=np.array([edge.kind is EdgeKind.LOOP for edge in edges]),
        squared=((error / sigmas) ** 2).sum(axis=1) * fraction,
        weights=weights,
    )
