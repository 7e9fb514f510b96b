"""The pose of one frame from the landmarks it sees: robust search, then refinement over all of them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, exp_so3, rigid, rotation_matrix, translation_of
from relocalizer.interfaces import PairEstimate

CHI2_2DOF_95 = 5.991
UNINFORMED = 1e-12  # keeps the normal equations solvable where nothing informs them


@dataclass(frozen=True, slots=True, eq=False)
class PoseFit:
    """A camera pose and how well it explains the landmarks.

    Attributes:
        world_from_cam: the pose, in the landmarks' units.
        inliers: (N,) bool, landmarks within the 95 % bound of their noise.
        information: (6, 6) of a left perturbation (rotation, translation) of cam_from_world.
    """

    world_from_cam: RigidTransform
    inliers: NDArray[np.bool_]
    information: FloatArray

    @property
    def inlier_count(self) -> int:
        return int(self.inliers.sum())


@dataclass(frozen=True, slots=True, eq=False)
class PosePrior:
    """What is believed of a pose before looking: a pose and the (6, 6) information of a left perturbation."""

    world_from_cam: RigidTransform
    information: FloatArray


def pair_prior(world_from_i: RigidTransform, estimate: PairEstimate, length: float) -> PosePrior:
    """The prior a pair estimate and a length give for camera j.

    The rotation is known to `rotation_sigma_rad`; the position across the direction to
    length * `direction_sigma_rad`; along it nothing is known, for that is the landmarks' to say.
    """
    direction = estimate.i_from_j_direction
    step = np.zeros(3) if direction is None else length * direction
    world_from_j = world_from_i * rigid(estimate.i_from_j_rotation, step)
    information = np.zeros((6, 6))
    information[:3, :3] = np.eye(3) / estimate.rotation_sigma_rad**2
    if direction is not None and length > 0:
        # cam_from_world's translation is -R^T c: an error across d in i is one across R^T d in j's axes.
        along = estimate.i_from_j_rotation.T @ direction
        across = np.eye(3) - np.outer(along, along)
        information[3:, 3:] = across / (length * estimate.direction_sigma_rad) ** 2
    return PosePrior(world_from_j, information)


def optimize_pose(
    points_world: FloatArray,
    pixels: NDArray[np.floating],
    camera: Camera,
    start: RigidTransform,
    *,
    noise_px: float,
    depth_sigma_world: FloatArray | None = None,
    prior: PosePrior | None = None,
    iterations: int = 12,
) -> PoseFit:
    """Motion-only refinement: the pose that best explains pixels (N, 2) of points (N, 3), robustly.

    Gauss-Newton with the Cauchy kernel, whose weights fall to nothing for gross errors yet keep pulling at first
    when the start is off; then two rounds over the inliers alone.

    Args:
        start: world_from_cam to begin from.
        noise_px: standard deviation of a pixel.
        along_world: (N, 3) one standard deviation of each landmark along the ray it was found by. The image of it is
            added to the pixel's covariance, so that what is uncertain pulls less and may lie farther off. None takes
            the points for exact.
    """
    R = rotation_matrix(start).T
    t = -R @ translation_of(start)
    pixels = np.asarray(pixels, dtype=np.float64)
    focal = np.array([camera.fx, camera.fy])
    center = np.array([camera.cx, camera.cy])

    def misfits(R: FloatArray, t: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Residuals (N, 2), Jacobians (N, 2, 6) and squared errors (N,) in noises, infinite behind the camera."""
        p = points_world @ R.T + t
        z = np.maximum(p[:, 2], 1e-6)
        normalized = p[:, :2] / z[:, None]
        residual, J = normalized * focal + center - pixels, _jacobians(normalized, z, focal)
        if depth_sigma_world is not None:
            residual, J = _whitened(residual, J, depth_sigma_world @ R.T, noise_px)
        squared = (residual**2).sum(axis=1) / noise_px**2
        return residual, J, np.where(p[:, 2] > 1e-6, squared, np.inf)

    H = np.zeros((6, 6))
    settled, inlier_rounds = False, 0
    for step in range(iterations + 2):
        residual, J, squared = misfits(R, t)
        settled = settled or step == iterations
        if not settled:
            weight = 1.0 / (1.0 + squared / CHI2_2DOF_95)
        else:
            weight = (squared < CHI2_2DOF_95).astype(np.float64)
            inlier_rounds += 1
        H, gradient = _normal_equations(J, residual, weight / noise_px**2)
        if prior is not None:
            error = _left_difference(R, t, prior.world_from_cam)
            H += prior.information
            gradient += prior.information @ error
        delta = -np.linalg.solve(H + UNINFORMED * np.eye(6) * max(float(np.trace(H)), 1.0), gradient)
        if not np.isfinite(delta).all():  # numbers too large for their squares: the pose so far has to do
            break
        dR = exp_so3(delta[:3])
        R, t = dR @ R, dR @ t + delta[3:]
        if inlier_rounds == 2:
            break
        settled = settled or bool(np.abs(delta).max() < 1e-7)
    _, _, squared = misfits(R, t)
    return PoseFit(rigid(R.T, -R.T @ t), squared < CHI2_2DOF_95, H)


def pose_information(
    points_world: FloatArray,
    depth_sigma_world: FloatArray,
    camera: Camera,
    world_from_cam: RigidTransform,
    noise_px: float,
) -> FloatArray:
    """Information (6, 6) that seeing uncertain landmarks gives about a pose (left perturbation of cam_from_world).

    Args:
        points_world: (N, 3).
        along_world: (N, 3) one standard deviation of each landmark along the ray it was found by, the direction in
            which it is least known; what a pixel says along the image of it counts for less.
    """
    cam_from_world = world_from_cam.inv()
    p = np.asarray(cam_from_world.apply(points_world)).reshape(-1, 3)
    along = np.asarray(cam_from_world.rotation.apply(depth_sigma_world)).reshape(-1, 3)
    p, along = p[p[:, 2] > 1e-6], along[p[:, 2] > 1e-6]
    J = _jacobians(p[:, :2] / p[:, 2:], p[:, 2], np.array([camera.fx, camera.fy]))
    _, J = _whitened(np.zeros((len(J), 2)), J, along, noise_px)
    flat = J.reshape(-1, 6)
    return np.asarray(flat.T @ flat / noise_px**2)


def _normal_equations(J: FloatArray, residual: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """H (6, 6) and gradient (6,) of the weighted squared reprojection error, for a left perturbation."""
    flat = J.reshape(-1, 6)
    weighted = flat * np.repeat(weight, 2)[:, None]
    return weighted.T @ flat, weighted.T @ residual.ravel()


def _whitened(
    residual: FloatArray, J: FloatArray, along_cam: FloatArray, noise_px: float
) -> tuple[FloatArray, FloatArray]:
    """Residuals (N, 2) and Jacobians (N, 2, 6), shrunk along the image of each point's uncertainty (N, 3).

    By so much that their covariance, noise^2 I + s s^T for the image s, becomes noise^2 I.
    """
    smear = np.einsum("nij,nj->ni", J[:, :, 3:], along_cam)
    squared = (smear**2).sum(axis=1)
    shrink = 1.0 - 1.0 / np.sqrt(1.0 + squared / noise_px**2)
    towards = smear * np.sqrt(shrink / np.maximum(squared, 1e-12))[:, None]
    residual = residual - towards * (towards * residual).sum(axis=1)[:, None]
    return residual, J - towards[:, :, None] * np.einsum("ni,nij->nj", towards, J)[:, None, :]


def _jacobians(normalized: FloatArray, z: FloatArray, focal: FloatArray) -> FloatArray:
    """(N, 2, 6): pixels by a left perturbation (rotation, translation) of cam_from_world.

    The last three columns are also the derivative by the point itself, in camera axes.
    """
    x, y = normalized.T
    inverse = 1.0 / z
    zero = np.zeros_like(x)
    J = np.empty((len(z), 2, 6))
    J[:, 0] = focal[0] * np.stack([-x * y, 1 + x * x, -y, inverse, zero, -x * inverse], axis=1)
    J[:, 1] = focal[1] * np.stack([-(1 + y * y), x * y, x, zero, inverse, -y * inverse], axis=1)
    return J


def _left_difference(R: FloatArray, t: FloatArray, prior: RigidTransform) -> FloatArray:
    """First-order (rotation, translation) by which cam_from_world (R, t) differs from the prior's, on the left."""
    prior_R = rotation_matrix(prior).T
    prior_t = -prior_R @ translation_of(prior)
    dR = R @ prior_R.T
    omega = 0.5 * np.array([dR[2, 1] - dR[1, 2], dR[0, 2] - dR[2, 0], dR[1, 0] - dR[0, 1]])
    return np.concatenate([omega, t - dR @ prior_t])


def search_pose(
    points_world: FloatArray, pixels: NDArray[np.floating], camera: Camera, *, noise_px: float
) -> RigidTransform | None:
    """world_from_cam by consensus over minimal sets, without a start; None when no set finds support.

    SQPnP inside USAC (MAGSAC scoring) of OpenCV, which is deterministic.
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
    """Where pixels (N, 2) of infinitely far points go when the camera turns."""
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
]
