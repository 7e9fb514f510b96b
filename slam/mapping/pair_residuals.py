"""Residuals of the pair estimates in bundle adjustment, and their Jacobians; whitened by their standard deviations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from relocalizer.geometry import FloatArray
from slam.mapping.bundle import Bundle
from slam.mapping.bundle_unknowns import Unknowns
from slam.mapping.bundle_weights import CAUCHY_C

MIN_SINE = 1e-9  # minimum sine of half a rotation angle; below it the Jacobian of the logarithm is the identity


def cauchy_cost(squared: FloatArray) -> FloatArray:
    """Cauchy's cost of residuals with these squared norms."""
    return np.asarray(0.5 * CAUCHY_C**2 * np.log1p(squared / CAUCHY_C**2))


def cauchy_root_weight(squared: FloatArray) -> FloatArray:
    """Factor of a residual and its Jacobian with which least squares has the gradient of Cauchy's cost."""
    return np.asarray(1.0 / np.sqrt(1.0 + squared / CAUCHY_C**2))


@dataclass(frozen=True, slots=True, eq=False)
class PairJacobians:
    """Weighted residuals (P, 6) of the pair estimates, and their Jacobians (P, 6, 6) with respect to both poses."""

    residuals: FloatArray
    by_i: FloatArray
    by_j: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class PairResiduals:
    """Pair estimates: the rotation vector of the error of a rotation, and the difference of the unit directions.

    Attributes:
        i, j: (P,) rows of the keyframes.
        j_from_i_rotation: (P, 3, 3), estimated.
        direction: (P, 3) estimated direction from i to j in i's axes.
        rotation_weight, direction_weight: (P,) inverse standard deviations; zero for an unknown direction.
    """

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    j_from_i_rotation: FloatArray
    direction: FloatArray
    rotation_weight: FloatArray
    direction_weight: FloatArray

    @staticmethod
    def of(bundle: Bundle) -> PairResiduals:
        ids = sorted(bundle.world_from_cam)
        estimates = [estimate for _, _, estimate in bundle.pairs]
        known = [estimate.i_from_j_direction is not None for estimate in estimates]
        sigmas = np.array([[e.rotation_sigma_rad, e.direction_sigma_rad] for e in estimates]).reshape(-1, 2)
        directions = [np.zeros(3) if e.i_from_j_direction is None else e.i_from_j_direction for e in estimates]
        return PairResiduals(
            i=np.searchsorted(ids, [i for i, _, _ in bundle.pairs]),
            j=np.searchsorted(ids, [j for _, j, _ in bundle.pairs]),
            j_from_i_rotation=np.array([e.i_from_j_rotation.T for e in estimates]).reshape(-1, 3, 3),
            direction=np.array(directions).reshape(-1, 3),
            rotation_weight=1.0 / sigmas[:, 0],
            direction_weight=np.where(known, 1.0 / sigmas[:, 1], 0.0),
        )

    def linearize(self, unknowns: Unknowns, residuals: FloatArray) -> PairJacobians:
        """Residuals and Jacobians, weighted by the kernel."""
        R_i, R_j = unknowns.rotations[self.i], unknowns.rotations[self.j]
        weight = cauchy_root_weight((residuals**2).sum(axis=1))[:, None]
        rotation_weight = (weight * self.rotation_weight[:, None])[:, :, None]
        i_from_j = np.einsum("pji,pjk->pik", R_i, R_j)
        inverse = inverse_right_jacobian(residuals[:, :3] / self.rotation_weight[:, None])
        by_i, by_j = np.zeros((2, len(R_i), 6, 6))
        by_j[:, :3, :3] = rotation_weight * inverse
        by_i[:, :3, :3] = -by_j[:, :3, :3] @ i_from_j.transpose(0, 2, 1)
        baseline, length = self._baselines(unknowns)
        unit = baseline / length[:, None]
        direction_weight = weight * (self.direction_weight / length)[:, None]
        tangent = direction_weight[:, :, None] * (np.eye(3) - unit[:, :, None] * unit[:, None, :])
        by_i[:, 3:, :3] = np.cross(tangent, baseline[:, None, :])
        by_i[:, 3:, 3:] = -tangent
        by_j[:, 3:, 3:] = tangent @ i_from_j
        return PairJacobians(residuals * weight, by_i, by_j)

    def residuals(self, unknowns: Unknowns) -> FloatArray:
        """Errors (P, 6): rotation vectors, and differences of directions."""
        R_i, R_j = unknowns.rotations[self.i], unknowns.rotations[self.j]
        error = self.j_from_i_rotation @ np.einsum("pji,pjk->pik", R_i, R_j)
        turn = Rotation.from_matrix(error).as_rotvec() if len(error) else np.zeros((0, 3))
        baseline, length = self._baselines(unknowns)
        off = (baseline / length[:, None] - self.direction) * self.direction_weight[:, None]
        return np.concatenate([turn * self.rotation_weight[:, None], off], axis=1)

    def _baselines(self, unknowns: Unknowns) -> tuple[FloatArray, FloatArray]:
        """Vectors (P, 3) from camera i to camera j in i's axes, and their lengths; infinite for coincident cameras."""
        relative = unknowns.centers[self.j] - unknowns.centers[self.i]
        baseline = np.einsum("pji,pj->pi", unknowns.rotations[self.i], relative)
        length = np.linalg.norm(baseline, axis=1)
        return baseline, np.where(length > 0, length, np.inf)


def inverse_right_jacobian(rotvec: FloatArray) -> FloatArray:
    """Inverse (P, 3, 3) of the right Jacobian of SO(3) at rotation vectors (P, 3): the derivative of the logarithm.

    Solà et al., "A micro Lie theory for state estimation in robotics", 2018, equation 144.
    """
    half = 0.5 * np.linalg.norm(rotvec, axis=1)
    small = np.sin(half) < MIN_SINE
    half = np.where(small, 1.0, half)
    factor = np.where(small, 1.0 / 12.0, (1.0 - half / np.tan(half)) / (4.0 * half**2))
    cross = np.cross(np.eye(3), rotvec[:, None, :])
    return np.eye(3) + 0.5 * cross + factor[:, None, None] * (cross @ cross)
