"""Residuals of bundle adjustment and their Jacobians: projections, pair estimates, and the range that fixes the scale.

The increment of a pose is (rotation, translation) in the axes of its camera: world_from_cam becomes
(R exp(rotation), center + R translation). All residuals are whitened: divided by their standard deviations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from relocalizer.geometry import FloatArray, stack_matrices
from slam.mapping.bundle import MIN_DEPTH, Bundle
from slam.mapping.bundle_weights import CAUCHY_C, HUBER_K, SCALE_SIGMA

# Residual of a landmark behind the camera, as a multiple of the focal length: a constant, because the derivative of
# the projection leads such a landmark to infinity.
BEHIND = 2.0
MIN_SINE = 1e-9  # minimum sine of half a rotation angle; below it the Jacobian of the logarithm is the identity


# Columns of the Jacobian of an observation; the last one is its residual.
BY_POINT, BY_POSE, BY_RADIAL = slice(0, 3), slice(3, 9), slice(9, -1)
BY_ROTATION, BY_TRANSLATION = slice(3, 6), slice(6, 9)


@dataclass(frozen=True, slots=True, eq=False)
class Unknowns:
    """The values that bundle adjustment estimates.

    Attributes:
        rotations: (K, 3, 3) of world_from_cam, keyframes in the order of their ids.
        centers: (K, 3) camera centers, map units.
        points: (N, 3) landmarks in the world, map units.
        radial: (2,) distortion k1, k2 of the shared camera.
    """

    rotations: FloatArray
    centers: FloatArray
    points: FloatArray
    radial: FloatArray

    @staticmethod
    def of(bundle: Bundle) -> Unknowns:
        """The initial values; the distortion is zero."""
        poses = stack_matrices([bundle.world_from_cam[k] for k in sorted(bundle.world_from_cam)])
        return Unknowns(
            rotations=poses[:, :3, :3],
            centers=poses[:, :3, 3],
            points=np.asarray(bundle.points_world, dtype=np.float64),
            radial=np.zeros(2),
        )

    @property
    def is_finite(self) -> bool:
        """Whether all values are finite numbers."""
        return all(np.isfinite(v).all() for v in (self.rotations, self.centers, self.points, self.radial))

    def moved(self, poses: FloatArray, points: FloatArray, radial: FloatArray) -> Unknowns:
        """The values after increments of the poses (K, 6), the points (N, 3) and the distortion (2,)."""
        turn = Rotation.from_rotvec(poses[:, :3]).as_matrix()
        return Unknowns(
            rotations=self.rotations @ turn,
            centers=self.centers + np.einsum("kij,kj->ki", self.rotations, poses[:, 3:]),
            points=self.points + points,
            radial=self.radial + radial,
        )


def huber_cost(squared: FloatArray) -> FloatArray:
    """Huber's cost of residuals with these squared norms: half the square, linear beyond the threshold."""
    linear = HUBER_K * (np.sqrt(squared) - 0.5 * HUBER_K)
    return np.asarray(np.where(squared < HUBER_K**2, 0.5 * squared, linear))


def huber_root_weight(squared: FloatArray) -> FloatArray:
    """Factor of a residual and its Jacobian with which least squares has the gradient of Huber's cost."""
    return np.sqrt(np.minimum(1.0, HUBER_K / np.sqrt(np.maximum(squared, 1e-300))))


def cauchy_cost(squared: FloatArray) -> FloatArray:
    """Cauchy's cost of residuals with these squared norms."""
    return np.asarray(0.5 * CAUCHY_C**2 * np.log1p(squared / CAUCHY_C**2))


def cauchy_root_weight(squared: FloatArray) -> FloatArray:
    """Factor of a residual and its Jacobian with which least squares has the gradient of Cauchy's cost."""
    return np.asarray(1.0 / np.sqrt(1.0 + squared / CAUCHY_C**2))


@dataclass(frozen=True, slots=True, eq=False)
class Projections:
    """Reprojection errors of the observations, in the order of the landmarks, then of the keyframes.

    Attributes:
        keyframe, point: (M,) rows of `Unknowns` that an observation depends on.
        focal: (M, 2) focal lengths divided by the standard deviation of an observation.
        target: (M, 2) pixels relative to the principal point, divided by the same.
    """

    keyframe: NDArray[np.int64]
    point: NDArray[np.int64]
    focal: FloatArray
    target: FloatArray

    @staticmethod
    def of(bundle: Bundle, noise_px: float) -> Projections:
        ids = sorted(bundle.world_from_cam)
        keyframe = np.searchsorted(ids, bundle.keyframe_of)
        order = np.lexsort((keyframe, bundle.point_of))
        keyframe, cameras = keyframe[order], [bundle.cameras[k] for k in ids]
        principal = np.array([[camera.cx, camera.cy] for camera in cameras])[keyframe]
        return Projections(
            keyframe=keyframe,
            point=bundle.point_of[order],
            focal=np.array([[camera.fx, camera.fy] for camera in cameras])[keyframe] / noise_px,
            target=(bundle.pixels[order] - principal) / noise_px,
        )

    def in_cam(self, unknowns: Unknowns) -> FloatArray:
        """Landmarks (M, 3) in the axes of the cameras that observe them."""
        relative = unknowns.points[self.point] - unknowns.centers[self.keyframe]
        return np.asarray(relative[:, None, :] @ unknowns.rotations[self.keyframe])[:, 0]

    def residuals(self, unknowns: Unknowns, in_cam: FloatArray) -> FloatArray:
        """Reprojection errors (M, 2) of landmarks in the axes of the cameras."""
        front = in_cam[:, 2] > MIN_DEPTH
        directions = in_cam[:, :2] / np.where(front, in_cam[:, 2], 1.0)[:, None]
        if unknowns.radial.any():
            squared = (directions**2).sum(axis=1, keepdims=True)
            directions = directions * (1.0 + squared * (unknowns.radial[0] + squared * unknowns.radial[1]))
        return np.where(front[:, None], self.focal * directions - self.target, BEHIND * self.focal)

    def jacobian(
        self, unknowns: Unknowns, in_cam: FloatArray, residuals: FloatArray, *, with_radial: bool
    ) -> FloatArray:
        """Derivatives by point (3), pose (6) and distortion (2, or none), and the residual: (M, 2, 10 or 12), weighted.

        They are one array, because the products of its columns are all that the normal equations need.
        """
        weight = huber_root_weight((residuals**2).sum(axis=1))
        front = in_cam[:, 2] > MIN_DEPTH
        inverse_depth = 1.0 / np.where(front, in_cam[:, 2], 1.0)
        directions = in_cam[:, :2] * inverse_depth[:, None]
        focal = self.focal * (weight * front)[:, None]
        by_cam = _projection_by_point(directions, inverse_depth, focal, unknowns.radial)
        jacobian = np.empty((len(in_cam), 2, 12 if with_radial else 10))
        jacobian[:, :, BY_POINT] = by_cam @ unknowns.rotations.transpose(0, 2, 1)[self.keyframe]
        jacobian[:, :, BY_ROTATION] = np.cross(by_cam, in_cam[:, None, :])
        jacobian[:, :, BY_TRANSLATION] = -by_cam
        if with_radial:
            squared = (directions**2).sum(axis=1)
            powers = np.stack([squared, squared**2], axis=1)
            jacobian[:, :, BY_RADIAL] = (focal * directions)[:, :, None] * powers[:, None, :]
        jacobian[:, :, -1] = residuals * weight[:, None]
        return jacobian


def _projection_by_point(
    directions: FloatArray, inverse_depth: FloatArray, focal: FloatArray, radial: FloatArray
) -> FloatArray:
    """Jacobian (M, 2, 3) of the projection with respect to the point in the axes of the camera.

    Args:
        directions: (M, 2) of the points, on the plane z = 1.
        focal: (M, 2) weighted focal lengths.
    """
    jacobian = np.zeros((len(directions), 2, 3))
    along = focal * inverse_depth[:, None]
    if radial.any():
        squared = (directions**2).sum(axis=1)
        stretch = 1.0 + squared * (radial[0] + squared * radial[1])
        slope = 2.0 * (radial[0] + 2.0 * squared * radial[1])
        jacobian[:, :, :2] = (slope[:, None] * directions)[:, :, None] * directions[:, None, :]
        jacobian[:, 0, 0] += stretch
        jacobian[:, 1, 1] += stretch
        jacobian[:, :, 2] = -np.einsum("mij,mj->mi", jacobian[:, :, :2], directions)
        return jacobian * along[:, :, None]
    jacobian[:, 0, 0], jacobian[:, 1, 1] = along.T
    jacobian[:, :, 2] = -along * directions
    return jacobian


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


@dataclass(frozen=True, slots=True)
class Gauge:
    """What fixes the gauge: fixed poses, and with fewer than two the distance of one keyframe from the first of them.

    Attributes:
        free: (K,) row of each keyframe among those that move; -1 for fixed ones.
        fixed, far: rows of the two keyframes whose distance is fixed; equal when none is.
        distance: distance of the two, map units.
    """

    free: NDArray[np.int64]
    fixed: int
    far: int
    distance: float

    @staticmethod
    def of(bundle: Bundle, start: Unknowns) -> Gauge:
        ids = sorted(bundle.world_from_cam)
        fixed = np.searchsorted(ids, sorted(bundle.fixed) or [ids[0]])
        is_free = np.ones(len(ids), bool)
        is_free[fixed] = False
        free = np.where(is_free, np.cumsum(is_free) - 1, -1)
        first = int(fixed[0])
        distances = np.linalg.norm(start.centers - start.centers[first], axis=1)
        far = int(distances.argmax()) if len(fixed) < 2 else first
        return Gauge(free, first, far, float(distances[far]))

    @property
    def fixes_range(self) -> bool:
        """Whether a distance is fixed; not when all keyframes are at one place."""
        return self.distance > 0

    def residual(self, unknowns: Unknowns) -> float:
        """Whitened error of the distance."""
        if not self.fixes_range:
            return 0.0
        distance = float(np.linalg.norm(unknowns.centers[self.far] - unknowns.centers[self.fixed]))
        return (distance / self.distance - 1.0) / SCALE_SIGMA

    def jacobian(self, unknowns: Unknowns) -> FloatArray:
        """Derivative (6,) of the residual with respect to the pose of the far keyframe."""
        relative = unknowns.centers[self.far] - unknowns.centers[self.fixed]
        along = unknowns.rotations[self.far].T @ (relative / max(float(np.linalg.norm(relative)), 1e-300))
        return np.concatenate([np.zeros(3), along / (self.distance * SCALE_SIGMA)])


@dataclass(frozen=True, slots=True, eq=False)
class BundleResiduals:
    """All terms of the objective.

    Attributes:
        radial_sigma: standard deviation of the prior of the distortion about zero; None when it is fixed.
    """

    projections: Projections
    pairs: PairResiduals
    gauge: Gauge
    radial_sigma: float | None

    @staticmethod
    def of(bundle: Bundle, start: Unknowns, noise_px: float) -> BundleResiduals:
        return BundleResiduals(
            Projections.of(bundle, noise_px),
            PairResiduals.of(bundle),
            Gauge.of(bundle, start),
            None if bundle.lens is None else bundle.lens.radial_sigma,
        )

    def evaluate(self, unknowns: Unknowns) -> Evaluation:
        """Residuals of all terms, and the objective: half the sum of their squares, with the robust kernels."""
        in_cam = self.projections.in_cam(unknowns)
        observations = self.projections.residuals(unknowns, in_cam)
        pairs = self.pairs.residuals(unknowns)
        robust = huber_cost((observations**2).sum(axis=1)).sum() + cauchy_cost((pairs**2).sum(axis=1)).sum()
        prior = 0.0 if self.radial_sigma is None else float((unknowns.radial**2).sum()) / self.radial_sigma**2
        cost = float(robust) + 0.5 * prior + 0.5 * self.gauge.residual(unknowns) ** 2
        return Evaluation(unknowns, in_cam, observations, pairs, cost)


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The objective at some values.

    Attributes:
        in_cam: (M, 3) landmarks in the axes of the cameras that observe them.
        observations, pairs: (M, 2) and (P, 6) residuals, not weighted by the kernel.
        cost: the objective.
    """

    unknowns: Unknowns
    in_cam: FloatArray
    observations: FloatArray
    pairs: FloatArray
    cost: float
