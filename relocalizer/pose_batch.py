"""Poses of many images from the landmarks that they observe: as `optimize_pose`, for all images at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relocalizer.absolute_pose import (
    CHI2_2DOF_95,
    CONVERGED,
    ITERATIONS,
    LEAST_DEPTH,
    UNINFORMED,
    reprojection_jacobians,
)
from relocalizer.camera import Camera
from relocalizer.geometry import MAX_COORDINATE, FloatArray, exp_so3_of_each, inner_products


@dataclass(frozen=True, slots=True, eq=False)
class LandmarkObservations:
    """What one image observes: landmarks (N, 3), N >= 1, at pixels (N, 2), and its initial pose (4, 4)."""

    points_world: FloatArray
    pixels: NDArray[np.floating]
    camera: Camera
    world_from_cam: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class _PoseProblems:
    """The observations of M images, padded to the largest number of them, N, with repetitions that weigh nothing.

    Attributes:
        points: (M, N, 3) landmarks; centered: (M, N, 2) their pixels relative to the principal point.
        focal: (M, 1, 2).
        is_padding: (M, N).
        noise_px: standard deviation of a pixel coordinate.
    """

    points: FloatArray
    centered: FloatArray
    focal: FloatArray
    is_padding: NDArray[np.bool_]
    noise_px: float

    @staticmethod
    def of(images: Sequence[LandmarkObservations], noise_px: float) -> _PoseProblems:
        counts = np.array([len(image.pixels) for image in images])
        rows = [np.minimum(np.arange(counts.max()), count - 1) for count in counts]
        principal = np.array([[image.camera.cx, image.camera.cy] for image in images])
        pixels = np.array([image.pixels[row] for image, row in zip(images, rows, strict=True)], dtype=np.float64)
        return _PoseProblems(
            np.array([image.points_world[row] for image, row in zip(images, rows, strict=True)]),
            pixels - principal[:, None],
            np.array([[[image.camera.fx, image.camera.fy]] for image in images]),
            np.arange(counts.max()) >= counts[:, None],
            noise_px,
        )

    def where(self, images: NDArray[np.bool_]) -> _PoseProblems:
        """The problems of the images selected by a mask (M,)."""
        if images.all():
            return self
        return _PoseProblems(
            self.points[images], self.centered[images], self.focal[images], self.is_padding[images], self.noise_px
        )

    def errors(self, R: FloatArray, t: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Points (M, N, 2) in the normalized image, depths (M, N), residuals (M, N, 2), and chi-square errors (M, N).

        The last are infinite for padding and behind the camera.
        """
        p = self.points @ R.transpose(0, 2, 1) + t[:, None]
        z = np.maximum(p[..., 2], LEAST_DEPTH)
        normalized = p[..., :2] / z[..., None]
        residual = normalized * self.focal - self.centered
        squared = inner_products(residual, residual) / self.noise_px**2
        return normalized, z, residual, np.where((p[..., 2] > LEAST_DEPTH) & ~self.is_padding, squared, np.inf)

    def steps(self, R: FloatArray, t: FloatArray, *, robust: bool) -> FloatArray:
        """Gauss-Newton steps (M, 6), left perturbations (rotation, translation) of cam_from_world (R, t).

        Args:
            robust: weights of the Cauchy kernel; otherwise the inliers alone.
        """
        normalized, z, residual, squared = self.errors(R, t)
        weight = 1.0 / (1.0 + squared / CHI2_2DOF_95) if robust else (squared < CHI2_2DOF_95).astype(np.float64)
        weight /= self.noise_px**2
        J = reprojection_jacobians(normalized.transpose(2, 0, 1), z, (self.focal[..., 0], self.focal[..., 1]))
        H, gradient = np.zeros((len(R), 6, 6)), np.zeros((len(R), 6))
        for coordinate in range(2):
            rows = J[coordinate].transpose(1, 0, 2)
            weighted = rows * weight[:, None]
            H += weighted @ rows.transpose(0, 2, 1)
            gradient += np.einsum("mkn,mn->mk", weighted, residual[..., coordinate])
        damping = UNINFORMED * np.maximum(np.trace(H, axis1=1, axis2=2), 1.0)
        return -np.linalg.solve(H + damping[:, None, None] * np.eye(6), gradient[..., None])[..., 0]


def optimize_poses(images: Sequence[LandmarkObservations], *, noise_px: float) -> tuple[FloatArray, NDArray[np.int64]]:
    """Poses world_from_cam (M, 4, 4) of M images by motion-only bundle adjustment, and their numbers of inliers (M,).

    Each image by itself as in `optimize_pose`, to rounding: Gauss-Newton with the Cauchy kernel until its pose has
    converged, then two iterations over its inliers.
    """
    problems = _PoseProblems.of(images, noise_px)
    world_from_cam = np.array([image.world_from_cam for image in images])
    R = world_from_cam[:, :3, :3].transpose(0, 2, 1).copy()
    t = -(R @ world_from_cam[:, :3, 3:])[..., 0]
    is_moving, is_finite = np.ones(len(images), bool), np.ones(len(images), bool)
    for _ in range(ITERATIONS):
        step, is_finite[is_moving] = _moved(problems, R, t, is_moving, robust=True)
        is_moving[is_moving] = step >= CONVERGED
        if not is_moving.any():
            break
    for _ in range(2):
        _, is_finite[is_finite] = _moved(problems, R, t, is_finite.copy(), robust=False)
    world_from_cam[:, :3, :3] = R.transpose(0, 2, 1)
    world_from_cam[:, :3, 3] = -(R.transpose(0, 2, 1) @ t[..., None])[..., 0]
    in_range = (np.abs(t) < MAX_COORDINATE).all(axis=1)
    inliers = (problems.errors(R, t)[3] < CHI2_2DOF_95) & in_range[:, None]
    return world_from_cam, inliers.sum(axis=1)


def _moved(
    problems: _PoseProblems, R: FloatArray, t: FloatArray, which: NDArray[np.bool_], *, robust: bool
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Move the poses (R, t) selected by a mask (M,) by one step; the largest component of each step, and which moved.

    A step that is not finite, because squared residuals overflow, moves nothing.
    """
    delta = problems.where(which).steps(R[which], t[which], robust=robust)
    finite = np.isfinite(delta).all(axis=1)
    delta[~finite] = 0.0
    dR = exp_so3_of_each(delta[:, :3])
    R[which], t[which] = dR @ R[which], (dR @ t[which][..., None])[..., 0] + delta[:, 3:]
    return np.asarray(np.abs(delta).max(axis=1)), np.asarray(finite)


__all__ = ["LandmarkObservations", "optimize_poses"]
