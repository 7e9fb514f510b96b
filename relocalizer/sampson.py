"""Sampson distances of matched pixels from the epipolar lines of a pose, and their derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, skew


@dataclass(frozen=True, slots=True, eq=False)
class SampsonTerms:
    """The terms of the Sampson distances of matches that do not depend on the pose.

    Hartley and Zisserman, "Multiple View Geometry", 2nd edition, equation 11.9, square root with sign: numerator and
    denominator are made of products of pixels with the fundamental matrix, so one matrix product gives the values and
    all derivatives. The standard deviation of the distance is that of one pixel coordinate.

    Attributes:
        x_i, x_j: homogeneous pixels (3, N).
        x_ij: products (9, N) of their components, those of one component of x_i together.
        inverse_i, inverse_j: inverse camera matrices (3, 3).
    """

    x_i: FloatArray
    x_j: FloatArray
    x_ij: FloatArray
    inverse_i: FloatArray
    inverse_j: FloatArray

    @staticmethod
    def of(pixels_i: FloatArray, pixels_j: FloatArray, camera_i: Camera, camera_j: Camera) -> SampsonTerms:
        """The terms of matched pixels (N, 2) of two pinhole cameras."""
        ones = np.ones(len(pixels_i))
        x_i, x_j = np.vstack([pixels_i.T, ones]), np.vstack([pixels_j.T, ones])
        inverse_i, inverse_j = np.linalg.inv(camera_i.matrix), np.linalg.inv(camera_j.matrix)
        return SampsonTerms(x_i, x_j, (x_i[:, None] * x_j).reshape(9, -1), np.asarray(inverse_i), np.asarray(inverse_j))

    def linearize(self, R: FloatArray, d: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Signed Sampson distances (N,), their derivatives (5, N), and the tangent basis (3, 2) of the direction.

        The pose is R = i_from_j_rotation (3, 3) and d = i_from_j_direction, unit (3,). The first three derivatives are
        for R exp(w), the last two for d + basis u.
        """
        basis, cross_d = _tangent_basis(d), skew(d)
        essential = [cross_d @ R, *(cross_d @ R @ skew(axis) for axis in np.eye(3)), *(skew(b) @ R for b in basis.T)]
        F = self.inverse_i.T @ np.stack(essential) @ self.inverse_j  # (6, 3, 3): the value, and five derivatives
        value = F.reshape(6, 9) @ self.x_ij
        lines_i = (F[:, :2].reshape(12, 3) @ self.x_j).reshape(6, 2, -1)
        lines_j = (F.transpose(0, 2, 1)[:, :2].reshape(12, 3) @ self.x_i).reshape(6, 2, -1)
        size = np.sqrt(np.maximum((lines_i[0] ** 2).sum(axis=0) + (lines_j[0] ** 2).sum(axis=0), 1e-24))
        residual = value[0] / size
        d_size = (lines_i[0] * lines_i[1:]).sum(axis=1) + (lines_j[0] * lines_j[1:]).sum(axis=1)
        return residual, (value[1:] - residual / size * d_size) / size, basis


def _tangent_basis(direction: FloatArray) -> FloatArray:
    """Two unit vectors (3, 2) orthogonal to the direction and to each other."""
    cross = skew(direction)
    first = cross @ np.eye(3)[np.argmin(np.abs(direction))]
    first = first / np.linalg.norm(first)
    return np.stack([first, cross @ first], axis=1)
