"""Relative poses along edges of the graph, with their covariance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relocalizer.geometry import FloatArray, Similarity, log_so3, skew
from slam.map.keyframe_graph import Edge


def log_error(measured: Similarity, other: Similarity) -> FloatArray:
    """d (7,) with other = measured @ Exp(d), to first order: rotation, translation, log scale, in the right frame."""
    step = measured.inverse() @ other
    return np.concatenate([log_so3(step.rotation), step.translation, [np.log(step.scale)]])


def adjoint(a_from_b: Similarity) -> FloatArray:
    """Adjoint (7, 7) of Sim(3): maps a small (rotation, translation, log scale) in b to the same motion in a.

    The motion moves a point x of b by w x x + v + s x; the adjoint changes its coordinates from b to a.
    """
    R, t = a_from_b.rotation, a_from_b.translation
    A = np.zeros((7, 7))
    A[:3, :3] = R
    A[3:6, :3] = skew(t) @ R
    A[3:6, 3:6] = a_from_b.scale * R
    A[3:6, 6] = -t
    A[6, 6] = 1.0
    return A


def edge_covariance(edge: Edge) -> FloatArray:
    """Covariance (7, 7) of the error of an edge, in j's axes and units."""
    sigmas = np.array(edge.sigmas)
    sigmas[3:6] /= edge.i_from_j.scale
    return np.diag(sigmas**2)


def edge_variance(edge: Edge) -> float:
    """Variance that an edge adds to a path: rotation and log scale, whose sums do not depend on the path's shape."""
    x, y, z, *_, log_scale = edge.sigmas.tolist()
    return float(x * x + y * y + z * z + log_scale * log_scale)


@dataclass(frozen=True, slots=True, eq=False)
class EdgePath:
    """Relative pose of two keyframes, composed along edges.

    Attributes:
        source_from_target: pose of the target keyframe in the source keyframe.
        covariance: (7, 7) of its error, in the source's axes and units.
        edges: number of edges.
    """

    source_from_target: Similarity
    covariance: FloatArray
    edges: int

    @staticmethod
    def still() -> EdgePath:
        """The empty path from a keyframe to itself."""
        return EdgePath(Similarity.identity(), np.zeros((7, 7)), 0)

    @staticmethod
    def along(edge: Edge, source: int) -> EdgePath:
        """The path along one edge from either of its ends."""
        if source == edge.j:
            return EdgePath(edge.i_from_j.inverse(), edge_covariance(edge), 1)
        A = adjoint(edge.i_from_j)  # the error of an edge is in the frame of its j
        return EdgePath(edge.i_from_j, A @ edge_covariance(edge) @ A.T, 1)

    def then(self, onward: EdgePath) -> EdgePath:
        """This path continued by a path that starts at its target."""
        return EdgePath(
            self.source_from_target @ onward.source_from_target,
            self.covariance + onward.covariance_in(self.source_from_target),
            self.edges + onward.edges,
        )

    def backwards(self) -> EdgePath:
        """The path from the target to the source."""
        back = self.source_from_target.inverse()
        return EdgePath(back, self.covariance_in(back), self.edges)

    def covariance_in(self, frame_from_source: Similarity) -> FloatArray:
        """The covariance (7, 7) transformed from the source to another frame."""
        A = adjoint(frame_from_source)
        return np.asarray(A @ self.covariance @ A.T)
