"""Residuals of bundle adjustment and their Jacobians: projections, prior of the intrinsics, range that fixes the scale.

All residuals are whitened: divided by their standard deviations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray
from slam.mapping.bundle import MIN_DEPTH, Bundle, IntrinsicsPrior
from slam.mapping.bundle_unknowns import K1, K2, LOG_FOCAL, PRINCIPAL_X, PRINCIPAL_Y, Unknowns
from slam.mapping.bundle_weights import FOCAL_PRIOR_WEIGHT, HUBER_K, SCALE_SIGMA
from slam.mapping.pair_residuals import PairResiduals, cauchy_cost

# Residual of a landmark behind the camera, as a multiple of the focal length: a constant, because the derivative of
# the projection leads such a landmark to infinity.
BEHIND = 2.0


# Columns of the Jacobian of an observation; the last one is its residual.
BY_POINT, BY_POSE, BY_INTRINSICS = slice(0, 3), slice(3, 9), slice(9, -1)
BY_ROTATION, BY_TRANSLATION = slice(3, 6), slice(6, 9)


def huber_cost(squared: FloatArray) -> FloatArray:
    """Huber's cost of residuals with these squared norms: half the square, linear beyond the threshold."""
    linear = HUBER_K * (np.sqrt(squared) - 0.5 * HUBER_K)
    return np.asarray(np.where(squared < HUBER_K**2, 0.5 * squared, linear))


def huber_root_weight(squared: FloatArray) -> FloatArray:
    """Factor of a residual and its Jacobian with which least squares has the gradient of Huber's cost."""
    return np.sqrt(np.minimum(1.0, HUBER_K / np.sqrt(np.maximum(squared, 1e-300))))


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
        focal, radial = self.focal * np.exp(unknowns.intrinsics[LOG_FOCAL]), unknowns.radial
        if radial.any():
            squared = (directions**2).sum(axis=1, keepdims=True)
            directions = directions * (1.0 + squared * (radial[0] + squared * radial[1]))
        target = self.target - self.focal * unknowns.principal if unknowns.principal.any() else self.target
        return np.asarray(np.where(front[:, None], focal * directions - target, BEHIND * focal))

    def jacobian(
        self, unknowns: Unknowns, in_cam: FloatArray, residuals: FloatArray, free: NDArray[np.int64]
    ) -> FloatArray:
        """Derivatives by point (3), pose (6) and the F free intrinsics, and the residual: (M, 2, 10 + F), weighted.

        They are one array, because the products of its columns are all that the normal equations need.

        Args:
            free: (F,) which of the intrinsics are estimated.
        """
        # Coordinate by coordinate, (..., M), which NumPy is faster with; the products need observation by observation.
        weight = huber_root_weight((residuals**2).sum(axis=1))
        x, y, z = in_cam.T.copy()
        front = z > MIN_DEPTH
        inverse_depth = 1.0 / np.where(front, z, 1.0)
        directions = np.stack([x, y]) * inverse_depth
        shown, radial = self.focal.T * (weight * front), unknowns.radial
        focal = shown * np.exp(unknowns.intrinsics[LOG_FOCAL])
        by_cam = _projection_by_point(directions, focal * inverse_depth, radial)
        rotation = unknowns.rotations.transpose(1, 2, 0)[:, :, self.keyframe]
        jacobian = np.empty((2, 10 + len(free), len(in_cam)))
        for row, (by_x, by_y, by_z) in zip(jacobian, by_cam, strict=True):
            row[BY_POINT] = by_x * rotation[:, 0] + by_y * rotation[:, 1] + by_z * rotation[:, 2]
            row[BY_ROTATION] = by_y * z - by_z * y, by_z * x - by_x * z, by_x * y - by_y * x
        jacobian[:, BY_TRANSLATION] = -by_cam
        if len(free):
            squared = (directions**2).sum(axis=0)
            stretch = 1.0 + squared * (radial[0] + squared * radial[1])
            along = free[free <= K2]
            factors = np.stack([stretch, squared, squared**2])[along]
            jacobian[:, 9 : 9 + len(along)] = (focal * directions)[:, None] * factors
            shifts = np.eye(2)[:, free[free > K2] - PRINCIPAL_X]
            jacobian[:, 9 + len(along) : -1] = shown[:, None] * shifts[:, :, None]
        jacobian[:, -1] = residuals.T * weight
        return np.ascontiguousarray(jacobian.transpose(2, 0, 1))


def _projection_by_point(directions: FloatArray, along: FloatArray, radial: FloatArray) -> FloatArray:
    """Jacobian (2, 3, M) of the projection with respect to the point in the axes of the camera.

    Args:
        directions: (2, M) of the points, on the plane z = 1.
        along: (2, M) weighted focal lengths, divided by the depths.
    """
    jacobian = np.zeros((2, 3, directions.shape[1]))
    if radial.any():
        squared = (directions**2).sum(axis=0)
        stretch = 1.0 + squared * (radial[0] + squared * radial[1])
        slope = 2.0 * (radial[0] + 2.0 * squared * radial[1])
        jacobian[:, :2] = slope * directions[:, None] * directions
        jacobian[0, 0] += stretch
        jacobian[1, 1] += stretch
        jacobian[:, 2] = -(jacobian[:, 0] * directions[0] + jacobian[:, 1] * directions[1])
        return jacobian * along[:, None]
    jacobian[0, 0], jacobian[1, 1] = along
    jacobian[:, 2] = -along * directions
    return jacobian


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
class IntrinsicsResiduals:
    """Normal prior of the free intrinsics.

    Attributes:
        free: (F,) which of the intrinsics are estimated; empty when all are fixed.
        mean, weight: (F,) of the prior: means and inverse standard deviations.
    """

    free: NDArray[np.int64]
    mean: FloatArray
    weight: FloatArray

    @staticmethod
    def of(prior: IntrinsicsPrior | None, camera: Camera) -> IntrinsicsResiduals:
        rows: list[tuple[int, float, float]] = []
        if prior is not None and prior.focal is not None:
            mean = float(np.log(prior.focal.focal_px / camera.mean_focal))
            rows = [(LOG_FOCAL, mean, FOCAL_PRIOR_WEIGHT / prior.focal.sigma)]
        if prior is not None and prior.radial_sigma:
            rows += [(column, 0.0, 1.0 / prior.radial_sigma) for column in (K1, K2)]
        if prior is not None and (expected := prior.principal) is not None:
            weight_px = FOCAL_PRIOR_WEIGHT / expected.sigma_px
            rows += [
                (PRINCIPAL_X, (expected.cx - camera.cx) / camera.fx, weight_px * camera.fx),
                (PRINCIPAL_Y, (expected.cy - camera.cy) / camera.fy, weight_px * camera.fy),
            ]
        free, mean_of, weight = np.array(rows, dtype=np.float64).reshape(-1, 3).T
        return IntrinsicsResiduals(free.astype(np.int64), mean_of, weight)

    def residuals(self, unknowns: Unknowns) -> FloatArray:
        """Whitened errors (F,)."""
        return np.asarray((unknowns.intrinsics[self.free] - self.mean) * self.weight)


@dataclass(frozen=True, slots=True, eq=False)
class BundleResiduals:
    """All terms of the objective."""

    projections: Projections
    pairs: PairResiduals
    gauge: Gauge
    intrinsics: IntrinsicsResiduals

    @staticmethod
    def of(bundle: Bundle, start: Unknowns, noise_px: float) -> BundleResiduals:
        return BundleResiduals(
            Projections.of(bundle, noise_px),
            PairResiduals.of(bundle),
            Gauge.of(bundle, start),
            IntrinsicsResiduals.of(bundle.lens, next(iter(bundle.cameras.values()))),
        )

    def evaluate(self, unknowns: Unknowns) -> Evaluation:
        """Residuals of all terms, and the objective: half the sum of their squares, with the robust kernels."""
        in_cam = self.projections.in_cam(unknowns)
        observations = self.projections.residuals(unknowns, in_cam)
        pairs = self.pairs.residuals(unknowns)
        robust = huber_cost((observations**2).sum(axis=1)).sum() + cauchy_cost((pairs**2).sum(axis=1)).sum()
        prior = float((self.intrinsics.residuals(unknowns) ** 2).sum())
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
