"""Relative poses along edges of the graph, with their covariance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relocalizer.geometry import FloatArray, Similarity, log_so3, skew
from slam.map.keyframe_graph import Edge

# --- similarities and their errors --------------------------------------------------------------------


def log_error(measured: Similarity, other: Similarity) -> FloatArray:
    """d (7,) with other = measured @ Exp(d), to first order: rotation, translation, log scale in the right frame."""
    step = measured.inverse() @ other
    return np.concatenate([log_so3(step.rotation), step.translation, [np.log(step.scale)]])


def adjoint(a_from_b: Similarity) -> FloatArray:
    """(7, 7) that takes a small (rotation, translation, log scale) in b to the same motion in a.

    The motion moves a point x of b by w x x + v + s x; the rest is a change of coordinates.
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
    """(7, 7) covariance of an edge's error in j's axes and units."""
    sigmas = np.array(edge.sigmas)
    sigmas[3:6] /= edge.i_from_j.scale
    return np.diag(sigmas**2)


# --- paths --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class EdgePath:
    """Where a keyframe lies seen from another along some edges, how many, and the (7, 7) covariance at the source."""

    source_from_target: Similarity
    covariance: FloatArray
    edges: int

    @staticmethod
    def still() -> EdgePath:
        """From a keyframe to itself."""
        return EdgePath(Similarity.identity(), np.zeros((7, 7)), 0)

    @staticmethod
    def along(edge: Edge, source: int) -> EdgePath:
        """Along one edge, from either of its ends."""
        if source == edge.j:
            return EdgePath(edge.i_from_j.inverse(), edge_covariance(edge), 1)
        A = adjoint(edge.i_from_j)  # an edge's error stands in the frame of its j
        return EdgePath(edge.i_from_j, A @ edge_covariance(edge) @ A.T, 1)

    def then(self, onward: EdgePath) -> EdgePath:
        """This path and one that begins where it ends."""
        return EdgePath(
            self.source_from_target @ onward.source_from_target,
            self.covariance + onward.covariance_in(self.source_from_target),
            self.edges + onward.edges,
        )

    def backwards(self) -> EdgePath:
        """From the target to the source."""
        back = self.source_from_target.inverse()
        return EdgePath(back, self.covariance_in(back), self.edges)

    def covariance_in(self, frame_from_source: Similarity) -> FloatArray:
        """The covariance (7, 7) in a frame that the source is seen from."""
        A = adjoint(frame_from_source)
        return np.asarray(A @ self.covariance @ A.T)


def edge_variance(edge: Edge) -> float:
    """What an edge adds to the doubt of a path: rotation and log scale, which add up whatever the path's shape."""
    x, y, z, *_, log_scale = edge.sigmas.tolist()
    return float(x * x + y * y + z * z + log_scale * log_scale)
