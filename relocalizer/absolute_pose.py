"""Absolute camera pose from 2D-3D correspondences: PnP with RANSAC, then motion-only optimization."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.geometry import (
    MAX_COORDINATE,
    FloatArray,
    apply_inverse,
    exp_so3,
    rigid,
    rotation_matrix,
    translation_of,
)
from relocalizer.interfaces import PairEstimate

CHI2_2DOF_95 = 5.991
# Largest step, radians and map units, below which the robust iterations have converged: 0.01 px at a focal length of
# 1000. Two iterations over the inliers follow.
CONVERGED = 1e-5
ITERATIONS = 12  # maximum number of robust iterations of a pose
LEAST_DEPTH = 1e-6  # depth, map units, up to which a landmark counts as behind the camera
UNINFORMED = 1e-12  # relative damping that keeps the normal equations solvable along unobservable directions
_IDENTITY = np.eye(6)


@dataclass(frozen=True, slots=True, eq=False)
class PoseFit:
    """An estimated camera pose, its inliers and its information.

    Attributes:
        world_from_cam: the pose, in the landmarks' units.
        inliers: (N,) bool, observations within the 95 % bound of their noise; none if the pose is beyond
            `MAX_COORDINATE`.
        information: (6, 6) information matrix of a left perturbation (rotation, translation) of cam_from_world.
    """

    world_from_cam: RigidTransform
    inliers: NDArray[np.bool_]
    information: FloatArray

    @property
    def inlier_count(self) -> int:
        return int(self.inliers.sum())


@dataclass(frozen=True, slots=True, eq=False)
class PosePrior:
    """A Gaussian prior of a pose: its mean, and the (6, 6) information matrix of a left perturbation."""

    world_from_cam: RigidTransform
    information: FloatArray


def pair_prior(world_from_i: RigidTransform, estimate: PairEstimate, length: float) -> PosePrior:
    """Pose prior of camera j from a pair estimate and a baseline length.

    The standard deviation of the rotation is `rotation_sigma_rad`; that of the position is
    length * `direction_sigma_rad` across the direction. Along the direction the prior has no information; the
    landmarks constrain it.
    """
    direction = estimate.i_from_j_direction
    step = np.zeros(3) if direction is None else length * direction
    world_from_j = world_from_i * rigid(estimate.i_from_j_rotation, step)
    information = np.zeros((6, 6))
    information[:3, :3] = np.eye(3) / estimate.rotation_sigma_rad**2
    if direction is not None and length > 0:
        # cam_from_world's translation is -R^T c, so an error across d in i's axes is across R^T d in j's axes.
        along = estimate.i_from_j_rotation.T @ direction
        across = np.eye(3) - np.outer(along, along)
        information[3:, 3:] = across / (length * estimate.direction_sigma_rad) ** 2
    return PosePrior(world_from_j, information)


@dataclass(frozen=True, slots=True, eq=False)
class _PoseProblem:
    """Observations of landmarks in one image, coordinate by coordinate, which NumPy is faster with.

    Attributes:
        points: (3, N) landmarks in the world; centered: (2, N) their pixels relative to the principal point.
        depth_sigma: (3, N) or None, as in `optimize_pose`.
    """

    points: FloatArray
    centered: FloatArray
    camera: Camera
    noise_px: float
    depth_sigma: FloatArray | None

    def residuals(self, R: FloatArray, t: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Residuals (2, N), Jacobians (2, 6, N) and chi-square errors (N,), infinite behind the camera."""
        residual, normalized, z = self._projected(R, t)
        J = reprojection_jacobians(normalized, z, (self.camera.fx, self.camera.fy))
        if self.depth_sigma is not None:
            residual, J = _whitened(residual, J, R @ self.depth_sigma, self.noise_px)
        return residual, J, self._squared(residual, z)

    def errors(self, R: FloatArray, t: FloatArray) -> FloatArray:
        """The chi-square errors (N,) alone."""
        if self.depth_sigma is not None:  # which the Jacobians project
            return self.residuals(R, t)[2]
        residual, _, z = self._projected(R, t)
        return self._squared(residual, z)

    def _projected(self, R: FloatArray, t: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Residuals (2, N), points (2, N) in the normalized image, and their depths (N,), at least `LEAST_DEPTH`."""
        in_cam = R @ self.points + t[:, None]
        z = np.maximum(in_cam[2], LEAST_DEPTH)
        normalized = in_cam[:2] / z
        residual = normalized * np.array([[self.camera.fx], [self.camera.fy]]) - self.centered
        return residual, normalized, z

    def _squared(self, residual: FloatArray, z: FloatArray) -> FloatArray:
        squared = np.einsum("cn,cn->n", residual, residual) / self.noise_px**2
        return np.where(z > LEAST_DEPTH, squared, np.inf)


def optimize_pose(
    points_world: FloatArray,
    pixels: NDArray[np.floating],
    camera: Camera,
    start: RigidTransform,
    *,
    noise_px: float,
    depth_sigma_world: FloatArray | None = None,
    prior: PosePrior | None = None,
    iterations: int = ITERATIONS,
) -> PoseFit:
    """Motion-only bundle adjustment: the pose that minimizes the robust reprojection error.

    Gauss-Newton with the Cauchy kernel, whose weights vanish for gross errors but stay large enough to correct an
    inaccurate start; then two iterations over the inliers only.

    Args:
        points_world: (N, 3) landmarks; pixels: (N, 2) their observations.
        start: initial world_from_cam.
        noise_px: standard deviation of a pixel coordinate.
        depth_sigma_world: (N, 3) displacement of each landmark by one standard deviation along the ray it was
            triangulated from. Its projection is added to the covariance of the pixel, which lowers the weight of
            uncertain landmarks and widens their inlier bound. None means exact points.
        prior: optional pose prior, added to the normal equations.
    """
    R = rotation_matrix(start).T
    t = -R @ translation_of(start)
    centered = np.ascontiguousarray(np.transpose(pixels), dtype=np.float64) - np.array([[camera.cx], [camera.cy]])
    depth_sigma = None if depth_sigma_world is None else np.ascontiguousarray(depth_sigma_world.T)
    problem = _PoseProblem(np.ascontiguousarray(points_world.T), centered, camera, noise_px, depth_sigma)
    H = np.zeros((6, 6))
    converged, inlier_rounds = False, 0
    for step in range(iterations + 2):
        residual, J, squared = problem.residuals(R, t)
        converged = converged or step == iterations
        if not converged:
            weight = 1.0 / (1.0 + squared / CHI2_2DOF_95)
        else:
            weight = (squared < CHI2_2DOF_95).astype(np.float64)
            inlier_rounds += 1
        H, gradient = _normal_equations(J, residual, weight / noise_px**2)
        if prior is not None:
            error = _left_difference(R, t, prior.world_from_cam)
            H += prior.information
            gradient += prior.information @ error
        delta = -np.linalg.solve(H + UNINFORMED * max(float(H.trace()), 1.0) * _IDENTITY, gradient)
        if not np.isfinite(delta).all():  # overflow of the squared residuals: keep the current pose
            break
        dR = exp_so3(delta[:3])
        R, t = dR @ R, dR @ t + delta[3:]
        if inlier_rounds == 2:
            break
        converged = converged or bool(np.abs(delta).max() < CONVERGED)
    squared = problem.errors(R, t)
    in_range = bool((np.abs(t) < MAX_COORDINATE).all())
    return PoseFit(rigid(R.T, -R.T @ t), (squared < CHI2_2DOF_95) & in_range, H)


def whitened_errors(
    points_world: FloatArray,
    pixels: NDArray[np.floating],
    camera: Camera,
    world_from_cam: RigidTransform,
    *,
    noise_px: float,
    depth_sigma_world: FloatArray,
) -> FloatArray:
    """Reprojection errors (N, 2), pixels, whitened for the uncertainty of depths; arguments as in `optimize_pose`.

    The component along the projection of the uncertainty is scaled so that all have the standard deviation `noise_px`.
    """
    R = rotation_matrix(world_from_cam).T
    centered = np.ascontiguousarray(np.transpose(pixels), dtype=np.float64) - np.array([[camera.cx], [camera.cy]])
    points, sigma = np.ascontiguousarray(points_world.T), np.ascontiguousarray(depth_sigma_world.T)
    problem = _PoseProblem(points, centered, camera, noise_px, sigma)
    residual, _, squared = problem.residuals(R, -R @ translation_of(world_from_cam))
    return np.where(np.isfinite(squared), residual, np.inf).T


def pose_information(
    points_world: FloatArray,
    depth_sigma_world: FloatArray,
    camera: Camera,
    world_from_cam: RigidTransform,
    noise_px: float,
) -> FloatArray:
    """Information matrix (6, 6) of a pose (left perturbation of cam_from_world) from uncertain landmarks.

    Args:
        points_world: (N, 3).
        depth_sigma_world: (N, 3) displacement of each landmark by one standard deviation along the ray it was
            triangulated from, its least certain direction; its projection is added to the pixel covariance.
    """
    p = apply_inverse(world_from_cam, points_world).T
    in_front = p[2] > LEAST_DEPTH
    p, depth_sigma_cam = p[:, in_front], (depth_sigma_world @ rotation_matrix(world_from_cam)).T[:, in_front]
    J = reprojection_jacobians(p[:2] / p[2], p[2], (camera.fx, camera.fy))
    _, J = _whitened(np.zeros((2, J.shape[2])), J, depth_sigma_cam, noise_px)
    return np.asarray((J[0] @ J[0].T + J[1] @ J[1].T) / noise_px**2)


def _normal_equations(J: FloatArray, residual: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """H (6, 6) and gradient (6,) of the weighted squared reprojection error, for a left perturbation."""
    weighted = J * weight
    H = weighted[0] @ J[0].T + weighted[1] @ J[1].T
    return H, weighted[0] @ residual[0] + weighted[1] @ residual[1]


def _whitened(
    residual: FloatArray, J: FloatArray, depth_sigma_cam: FloatArray, noise_px: float
) -> tuple[FloatArray, FloatArray]:
    """Residuals (2, N) and Jacobians (2, 6, N), whitened for each point's depth uncertainty (3, N).

    They are scaled along the projection s of the uncertainty so that the covariance noise^2 I + s s^T becomes
    noise^2 I.
    """
    projected = np.einsum("cin,in->cn", J[:, 3:], depth_sigma_cam)
    squared = (projected**2).sum(axis=0)
    shrink = 1.0 - 1.0 / np.sqrt(1.0 + squared / noise_px**2)
    axis = projected * np.sqrt(shrink / np.maximum(squared, 1e-12))
    residual = residual - axis * (axis * residual).sum(axis=0)
    return residual, J - axis[:, None] * np.einsum("cn,cin->in", axis, J)


def reprojection_jacobians(
    normalized: FloatArray, z: FloatArray, focal: tuple[float | FloatArray, float | FloatArray]
) -> FloatArray:
    """(2, 6, ...): derivatives of the pixels by a left perturbation (rotation, translation) of cam_from_world.

    The last three are also the derivatives by the point, in camera axes.

    Args:
        normalized: (2, ...) points in the normalized image; z: (...) their depths.
        focal: focal lengths in x and y, of all points or (...) of each, pixels.
    """
    (u, v), (fx, fy) = normalized, focal
    x, y, inverse = fx * u, fy * v, 1.0 / z
    J = np.zeros((2, 6, *z.shape))
    J[0, 0], J[0, 1], J[0, 2] = -x * v, fx + x * u, -fx * v
    J[0, 3], J[0, 5] = fx * inverse, -x * inverse
    J[1, 0], J[1, 1], J[1, 2] = -fy - y * v, y * u, fy * u
    J[1, 4], J[1, 5] = fy * inverse, -y * inverse
    return J


def _left_difference(R: FloatArray, t: FloatArray, prior: RigidTransform) -> FloatArray:
    """First-order left difference (rotation, translation) of cam_from_world (R, t) from that of the prior."""
    prior_R = rotation_matrix(prior).T
    prior_t = -prior_R @ translation_of(prior)
    dR = R @ prior_R.T
    omega = 0.5 * np.array([dR[2, 1] - dR[1, 2], dR[0, 2] - dR[2, 0], dR[1, 0] - dR[0, 1]])
    return np.concatenate([omega, t - dR @ prior_t])


def search_pose(
    points_world: FloatArray, pixels: NDArray[np.floating], camera: Camera, *, noise_px: float
) -> RigidTransform | None:
    """world_from_cam by RANSAC, without an initial pose; None when no minimal set has enough inliers.

    OpenCV's USAC with SQPnP and MAGSAC scoring, which is deterministic.
    """
    if len(points_world) < 6:
        return None
    ok, rvec, tvec, _ = cv2.solvePnPRansac(
        np.ascontiguousarray(points_world),
        np.ascontiguousarray(pixels, dtype=np.float64),
        camera.matrix,
        np.zeros(4),
        iterationsCount=500,
        reprojectionError=3.0 * noise_px,
        confidence=0.999,
        flags=cv2.USAC_MAGSAC,
    )
    if not ok or not (np.isfinite(rvec).all() and np.isfinite(tvec).all()):
        return None
    R = exp_so3(rvec.ravel())
    return rigid(R.T, -R.T @ tvec.ravel())


def rotate_pixels(pixels: NDArray[np.floating], camera: Camera, j_from_i_rotation: FloatArray) -> NDArray[np.float32]:
    """Pixels (N, 2) of points at infinity after a rotation of the camera."""
    H = camera.matrix @ j_from_i_rotation @ np.linalg.inv(camera.matrix)
    moved = np.hstack([pixels, np.ones((len(pixels), 1))]) @ H.T
    return np.asarray(moved[:, :2] / np.maximum(moved[:, 2:], 1e-6), dtype=np.float32)


__all__ = [
    "PoseFit",
    "PosePrior",
    "optimize_pose",
    "pair_prior",
    "pose_information",
    "rotate_pixels",
    "search_pose",
    "whitened_errors",
]
