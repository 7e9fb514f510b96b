"""The pose between two views from matched pixels: rotation and direction, and how well each is known.

Everywhere: x_i ~ R x_j + d with R = i_from_j_rotation and d = i_from_j_direction, so the essential matrix
E = [d]x R satisfies ray_i . E ray_j = 0. Residuals are in pixels, whatever the two cameras.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray, exp_so3, nearest_rotation, skew
from relocalizer.images import Camera

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Pixels (N, 2) of the same points in views i and j, float64, and the two pinhole cameras."""

    pixels_i: FloatArray
    pixels_j: FloatArray
    camera_i: Camera
    camera_j: Camera

    def __len__(self) -> int:
        return len(self.pixels_i)

    def subset(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> Matches:
        return Matches(self.pixels_i[kept], self.pixels_j[kept], self.camera_i, self.camera_j)

    @property
    def rays_i(self) -> FloatArray:
        """(N, 3) with z = 1."""
        return _homogeneous(self.camera_i.normalised(self.pixels_i))

    @property
    def rays_j(self) -> FloatArray:
        """(N, 3) with z = 1."""
        return _homogeneous(self.camera_j.normalised(self.pixels_j))


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """A fitted rotation (3, 3) and unit direction (3,), the matches that agree (N,), and how well known.

    Attributes:
        noise_px: standard deviation of the residuals that agree.
        covariance: (5, 5) of the rotation (3, radians, in j's axes) and of the direction (2, radians).
    """

    rotation: FloatArray
    direction: FloatArray
    agrees: BoolArray
    noise_px: float
    covariance: FloatArray


def sampson_residuals(matches: Matches, rotation: FloatArray, direction: FloatArray) -> FloatArray:
    """Signed first-order distance (N,), pixels, of each match from agreeing with the epipolar geometry.

    Hartley and Zisserman, "Multiple View Geometry", 2nd edition, equation 11.9, square root with sign.
    """
    F = _fundamental(matches, skew(direction) @ rotation)
    x_i, x_j = _homogeneous(matches.pixels_i), _homogeneous(matches.pixels_j)
    line_i, line_j = x_j @ F.T, x_i @ F
    size = np.sqrt((line_i[:, :2] ** 2).sum(axis=1) + (line_j[:, :2] ** 2).sum(axis=1))
    return np.asarray((x_i * line_i).sum(axis=1) / np.maximum(size, 1e-12))


def robust_essential(
    matches: Matches, threshold_px: float
) -> tuple[FloatArray, FloatArray, BoolArray] | None:
    """Rotation, direction and inliers (N,) of the essential matrix most matches agree with, if any.

    MAGSAC++ (Barath et al. 2020) as OpenCV has it: the same matches give the same answer.
    """
    if len(matches) < 5:
        return None
    # One common focal length keeps the threshold in pixels although the two cameras may differ.
    focal = 0.5 * (matches.camera_i.mean_focal + matches.camera_j.mean_focal)
    a, b = matches.rays_j[:, :2], matches.rays_i[:, :2]
    E, mask = cv2.findEssentialMat(
        a, b, np.eye(3), method=cv2.USAC_MAGSAC, prob=0.9999, threshold=threshold_px / focal
    )
    if E is None or E.shape[0] < 3 or mask is None:
        return None
    _, R, t, _ = cv2.recoverPose(E[:3], a, b, np.eye(3), mask=mask.copy())
    return nearest_rotation(R), np.asarray(t, dtype=np.float64).ravel(), mask.ravel().astype(bool)


def refine_motion(
    matches: Matches,
    rotation: FloatArray,
    direction: FloatArray,
    threshold_px: float,
    *,
    iterations: int = 10,
) -> Motion:
    """Least Sampson distance over all matches with a Cauchy weight, by Levenberg-Marquardt.

    The covariance is that of the linearised problem at the end, over the matches that agree.
    """
    R, d = np.asarray(rotation, dtype=np.float64), np.asarray(direction, dtype=np.float64)
    width = 0.5 * threshold_px  # residuals beyond this weigh less
    damping, cost = 1e-4, np.inf
    residual, jacobian, basis = _linearise(matches, R, d)
    for _ in range(iterations):
        weight = 1.0 / (1.0 + (residual / width) ** 2)
        cost = float(np.log1p((residual / width) ** 2).sum())
        H, g = (jacobian * weight) @ jacobian.T, jacobian @ (weight * residual)
        step = -np.linalg.solve(H + damping * np.diag(np.diag(H) + 1e-12), g)
        new_R, new_d = R @ exp_so3(step[:3]), _normalise(d + basis @ step[3:])
        new_residual, new_jacobian, new_basis = _linearise(matches, new_R, new_d)
        new_cost = float(np.log1p((new_residual / width) ** 2).sum())
        if new_cost > cost:
            damping *= 10.0
            continue
        R, d, residual, jacobian, basis = new_R, new_d, new_residual, new_jacobian, new_basis
        damping *= 0.1
        if cost - new_cost < 1e-9 * cost or np.abs(step).max() < 1e-9:
            break
    agrees = np.abs(residual) < threshold_px
    noise = noise_of(residual[agrees])
    H = jacobian[:, agrees] @ jacobian[:, agrees].T
    covariance = (
        noise**2 * np.asarray(np.linalg.pinv(H, hermitian=True))
        if agrees.sum() > 5
        else np.full((5, 5), np.inf)
    )
    return Motion(nearest_rotation(R), d, agrees, noise, covariance)


def noise_of(residuals: FloatArray) -> float:
    """Robust standard deviation of residuals around zero, pixels; at least 0.1: no corner is found better."""
    return max(0.1, 1.4826 * float(np.median(np.abs(residuals)))) if residuals.size else np.inf


def in_front(matches: Matches, rotation: FloatArray, direction: FloatArray) -> BoolArray:
    """Which matches (N,) triangulate in front of both cameras (or so far away that it cannot be told)."""
    ray_i, ray_j = _unit_rows(matches.rays_i), _unit_rows(matches.rays_j) @ rotation.T
    # depth_i * ray_i = depth_j * ray_j + direction, least squares; the common divisor is positive.
    cosine = (ray_i * ray_j).sum(axis=1)
    along_i, along_j = ray_i @ direction, ray_j @ direction
    tolerance = -1e-6
    return np.asarray((along_i - cosine * along_j > tolerance) & (cosine * along_i - along_j > tolerance))


def fit_rotation(
    matches: Matches, start: FloatArray, threshold_px: float, *, iterations: int = 20
) -> tuple[FloatArray, FloatArray]:
    """The rotation that best carries rays of j onto rays of i, and the residuals (N, 2) in pixels of i.

    Gauss-Newton with a Cauchy weight on pixel_i - project(R ray_j).
    """
    R = np.asarray(start, dtype=np.float64)
    width = max(threshold_px, 1e-6)
    residual, jacobian = _linearise_rotation(matches, R)
    for _ in range(iterations):
        weight = 1.0 / (1.0 + (residual**2).sum(axis=1) / width**2)
        H = np.einsum("n,nkp,nkq->pq", weight, jacobian, jacobian)
        g = np.einsum("n,nkp,nk->p", weight, jacobian, residual)
        step = np.linalg.solve(H + 1e-9 * np.eye(3), -g)
        R = nearest_rotation(R @ exp_so3(step))
        residual, jacobian = _linearise_rotation(matches, R)
        if np.abs(step).max() < 1e-10:
            break
    return R, residual


def _linearise(matches: Matches, R: FloatArray, d: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Sampson residuals (N,), their derivatives (5, N), and the basis (3, 2) in which the direction moves."""
    basis = _tangent_basis(d)
    E_moves = [skew(d) @ R @ skew(axis) for axis in np.eye(3)] + [skew(axis) @ R for axis in basis.T]
    x_i, x_j = _homogeneous(matches.pixels_i), _homogeneous(matches.pixels_j)
    F = _fundamental(matches, skew(d) @ R)
    line_i, line_j = x_j @ F.T, x_i @ F
    size = np.sqrt(np.maximum((line_i[:, :2] ** 2).sum(axis=1) + (line_j[:, :2] ** 2).sum(axis=1), 1e-24))
    residual = (x_i * line_i).sum(axis=1) / size
    jacobian = np.empty((5, len(matches)))
    for k, E_move in enumerate(E_moves):
        dF = _fundamental(matches, E_move)
        d_line_i, d_line_j = x_j @ dF.T, x_i @ dF
        d_size = (line_i[:, :2] * d_line_i[:, :2]).sum(axis=1) + (line_j[:, :2] * d_line_j[:, :2]).sum(axis=1)
        jacobian[k] = (x_i * d_line_i).sum(axis=1) / size - residual * d_size / size**2
    return residual, jacobian, basis


def _linearise_rotation(matches: Matches, R: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Residuals (N, 2), pixels of i, of rotating j's rays, and their derivatives (N, 2, 3)."""
    rays = matches.rays_j
    turned = rays @ R.T
    z = np.maximum(turned[:, 2], 1e-6)
    fx, fy = matches.camera_i.fx, matches.camera_i.fy
    predicted = np.stack(
        [fx * turned[:, 0] / z + matches.camera_i.cx, fy * turned[:, 1] / z + matches.camera_i.cy], axis=1
    )
    zero = np.zeros_like(z)
    d_pixel = np.stack(
        [
            np.stack([fx / z, zero, -fx * turned[:, 0] / z**2], axis=1),
            np.stack([zero, fy / z, -fy * turned[:, 1] / z**2], axis=1),
        ],
        axis=1,
    )
    d_turned = np.stack([R @ skew(axis) for axis in np.eye(3)])  # times the ray: derivative along each axis
    moved = np.einsum("pab,nb->nap", d_turned, rays)
    return predicted - matches.pixels_i, d_pixel @ moved


def _fundamental(matches: Matches, E: FloatArray) -> FloatArray:
    inverse_i, inverse_j = np.linalg.inv(matches.camera_i.matrix), np.linalg.inv(matches.camera_j.matrix)
    return np.asarray(inverse_i.T @ E @ inverse_j)


def _homogeneous(points: FloatArray) -> FloatArray:
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


def _unit_rows(rows: FloatArray) -> FloatArray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _normalise(vector: FloatArray) -> FloatArray:
    return np.asarray(vector / np.linalg.norm(vector))


def _tangent_basis(direction: FloatArray) -> FloatArray:
    """Two unit vectors (3, 2) square to the direction and to each other."""
    away = np.eye(3)[np.argmin(np.abs(direction))]
    first = _normalise(np.cross(direction, away))
    return np.stack([first, np.cross(direction, first)], axis=1)
