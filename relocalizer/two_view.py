"""Two-view geometry from matched pixels: rotation, direction of translation, and their standard deviations.

Convention: x_i ~ R x_j + d, with R = i_from_j_rotation and d = i_from_j_direction, so the essential matrix
E = [d]x R satisfies ray_i . E ray_j = 0. Residuals are in pixels, also when the two cameras differ.

The search always returns an essential matrix, even in degenerate configurations. Two of these are detected:
no parallax (a pure rotation explains the matches and the direction is noise) and a planar scene (two poses
explain the matches equally well, Longuet-Higgins 1986).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, direction_angle, exp_so3, log_so3, nearest_rotation, skew
from relocalizer.sampson import SampsonTerms

try:
    import poselib
except ImportError:  # there is no wheel for this platform
    poselib = None

BoolArray = NDArray[np.bool_]

_SEED = 0
# Minimum number of RANSAC samples. PoseLib's local optimization turns a poor sample into a good one, so few suffice.
_MIN_SAMPLES = 100
# Maximum number of RANSAC samples, enough for an inlier ratio of 0.3. Most loop candidates are false and must be cheap.
_MAX_SAMPLES = 4000
# Inlier threshold of OpenCV's search as a fraction of that of the refinement: its local optimization fails with wide
# thresholds.
_OPENCV_THRESHOLD_RATIO = 0.7
# Smallest standard deviation of a keypoint coordinate, pixels.
_MIN_NOISE_PX = 0.1
# Factor by which the linearized sigma is too small, because errors of matches are correlated and the pose selects its
# own inliers (docs/experiments.md, triplets and drawn scenes).
_SIGMA_INFLATION = 1.5
# Minimum number of inliers in front of both cameras of a possible pose, as a fraction of the maximum over all poses.
_IN_FRONT_RATIO = 0.9
# Maximum angle between two poses that count as duplicates, radians.
_SAME_POSE_RAD = np.radians(3.0)
_GENERATORS = np.stack([skew(axis) for axis in np.eye(3)])  # derivatives (3, 3, 3) of a rotation at the identity


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Pixels (N, 2) of the same points in views i and j, float64, and the two pinhole cameras."""

    pixels_i: FloatArray
    pixels_j: FloatArray
    camera_i: Camera
    camera_j: Camera

    def __len__(self) -> int:
        return len(self.pixels_i)

    def subset(self, kept: BoolArray) -> Matches:
        return Matches(self.pixels_i[kept], self.pixels_j[kept], self.camera_i, self.camera_j)

    @property
    def rays_i(self) -> FloatArray:
        """(N, 3) with z = 1."""
        return _homogeneous(self.camera_i.normalized(self.pixels_i))

    @property
    def rays_j(self) -> FloatArray:
        """(N, 3) with z = 1."""
        return _homogeneous(self.camera_j.normalized(self.pixels_j))


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """A relative pose up to scale, its inliers and its uncertainty.

    Attributes:
        rotation: (3, 3). direction: unit (3,). inliers: (N,).
        cost: truncated squared Sampson distance summed over all matches; an outlier counts 1.
        noise_px: standard deviation of a pixel coordinate, from the inliers.
        rotation_sigma_rad, direction_sigma_rad: standard deviations per axis, from the linearized problem.
    """

    rotation: FloatArray
    direction: FloatArray
    inliers: BoolArray
    cost: float
    noise_px: float
    rotation_sigma_rad: float
    direction_sigma_rad: float


@dataclass(frozen=True, slots=True, eq=False)
class PureRotation:
    """A relative rotation without translation, its inliers and its uncertainty.

    Attributes:
        rotation: (3, 3). inliers: (N,).
        residual_px: (N,) distance of each match from the pixel that the rotation predicts, pixels of i.
        rotation_sigma_rad: standard deviation per axis.
    """

    rotation: FloatArray
    inliers: BoolArray
    residual_px: FloatArray
    rotation_sigma_rad: float


def find_motion(matches: Matches, threshold_px: float) -> Motion | None:
    """Relative pose by RANSAC, refined on its inliers; None when no pose has enough of them.

    Args:
        threshold_px: maximum distance of an inlier from its epipolar lines.
    """
    if len(matches) < 5:
        return None
    search = _search_with_opencv if poselib is None else _search_with_poselib
    found = search(matches, threshold_px)
    return None if found is None else refine_motion(matches, *found, threshold_px)


def refine_motion(
    matches: Matches,
    rotation: FloatArray,
    direction: FloatArray,
    threshold_px: float,
    *,
    iterations: int = 10,
) -> Motion:
    """Minimize the truncated squared Sampson distance from a nearby start, by Levenberg-Marquardt.

    The cost is truncated because a soft kernel leaves some weight to the many gross outliers, which biases the
    direction.
    """
    R, d = np.asarray(rotation, dtype=np.float64), np.asarray(direction, dtype=np.float64)
    terms = SampsonTerms.of(matches.pixels_i, matches.pixels_j, matches.camera_i, matches.camera_j)
    residual, jacobian, basis = terms.linearize(R, d)
    cost, damping = _truncated(residual, threshold_px), 1e-4
    for _ in range(iterations):
        near = np.abs(residual) < threshold_px
        H, g = jacobian[:, near] @ jacobian[:, near].T, jacobian[:, near] @ residual[near]
        step = -np.linalg.solve(H + damping * np.diag(np.diag(H)) + 1e-9 * np.eye(5), g)
        moved_R, moved_d = R @ exp_so3(step[:3]), _unit(d + basis @ step[3:])
        moved = terms.linearize(moved_R, moved_d)
        moved_cost = _truncated(moved[0], threshold_px)
        if moved_cost > cost:
            damping *= 10.0
            continue
        gain, cost, damping = cost - moved_cost, moved_cost, damping * 0.1
        R, d, (residual, jacobian, basis) = moved_R, moved_d, moved
        if gain <= 1e-9 * cost:
            break
    near = np.abs(residual) < threshold_px
    noise = _noise(residual[near], threshold_px)
    sigma = _SIGMA_INFLATION * noise / _curvature_ratio(residual, threshold_px)
    variance = np.diag(_covariance(jacobian[:, near] @ jacobian[:, near].T, sigma))
    return Motion(
        rotation=nearest_rotation(R),
        direction=_unit(d),
        inliers=near & in_front(matches, R, d),
        cost=cost,
        noise_px=noise,
        rotation_sigma_rad=float(np.sqrt(variance[:3].mean())),
        direction_sigma_rad=float(np.sqrt(variance[3:].mean())),
    )


def estimate_rotation(
    matches: Matches, start: FloatArray, threshold_px: float, *, iterations: int = 20
) -> PureRotation:
    """The pure rotation between the views, refined from a nearby start.

    Gauss-Newton on pixel_i - project(R ray_j) with a Geman-McClure kernel whose width shrinks to the threshold.
    """
    R, rays_j = np.asarray(start, dtype=np.float64), matches.rays_j.T
    for step_number in range(iterations):
        residual, jacobian = _linearize_rotation(matches, rays_j, R)
        width = threshold_px * max(1.0, 8.0 * 0.6**step_number)
        weight = 1.0 / (1.0 + (residual**2).sum(axis=0) / width**2) ** 2
        weighted = (jacobian * weight).reshape(3, -1)
        H, g = weighted @ jacobian.reshape(3, -1).T, weighted @ residual.ravel()
        # The rotation about the ray of a single point is unobservable, and H singular.
        step = -np.linalg.solve(H + (1e-9 + 1e-12 * np.trace(H)) * np.eye(3), g)
        R = nearest_rotation(R @ exp_so3(step))
        if width <= threshold_px and np.abs(step).max() < 1e-10:
            break
    residual, jacobian = _linearize_rotation(matches, rays_j, R)
    residual_px = np.asarray(np.linalg.norm(residual, axis=0))
    # Twice the threshold: the error has both coordinates of both images, an epipolar distance has only one.
    inliers = residual_px < 2.0 * threshold_px
    derivatives = jacobian[:, :, inliers].reshape(3, -1)
    H = derivatives @ derivatives.T
    noise = _noise(residual[:, inliers].ravel(), 2.0 * threshold_px)
    variance = np.diag(_covariance(H, noise)).mean()
    # An undetectable translation rotates the fit by a fraction of the noise, independent of the number of matches.
    translation_bias = 0.5 * noise / matches.camera_i.mean_focal
    return PureRotation(R, inliers, residual_px, float(np.sqrt(variance + translation_bias**2)))


def motions_of_plane(matches: Matches, threshold_px: float) -> list[Motion]:
    """Relative poses from the homography of the dominant plane, each refined on all matches, best first.

    A homography has up to four decompositions (Malis and Vargas 2007), of which at most two have the plane in
    front of both cameras. Empty when no homography fits.
    """
    if len(matches) < 8:
        return []
    focal = 0.5 * (matches.camera_i.mean_focal + matches.camera_j.mean_focal)
    rays_j, rays_i = matches.rays_j[:, :2], matches.rays_i[:, :2]
    H, _ = cv2.findHomography(rays_j, rays_i, cv2.USAC_ACCURATE, 2.0 * threshold_px / focal)
    if H is None:
        return []
    _, rotations, translations, _ = cv2.decomposeHomographyMat(H, np.eye(3))
    motions: list[Motion] = []
    for R, t in zip(rotations, translations, strict=True):
        if np.linalg.norm(t) > 1e-9:
            motions.append(
                refine_motion(
                    matches, nearest_rotation(R), _unit(np.asarray(t, dtype=np.float64).ravel()), threshold_px
                )
            )
    return sorted(motions, key=lambda motion: motion.cost)


def plane_share(matches: Matches, threshold_px: float) -> float:
    """Fraction of the matches consistent with one homography (one plane, or points at infinity), in [0, 1]."""
    if len(matches) < 8:
        return 1.0
    H, _ = cv2.findHomography(matches.pixels_j, matches.pixels_i, cv2.USAC_ACCURATE, 2.0 * threshold_px)
    if H is None:
        return 0.0
    moved = _homogeneous(matches.pixels_j) @ H.T
    error = np.linalg.norm(moved[:, :2] / moved[:, 2:] - matches.pixels_i, axis=1)
    return float((error < 2.0 * threshold_px).mean())


def possible_poses(motions: list[Motion]) -> list[Motion]:
    """The poses with most of their matches in front of both cameras, without duplicates, the smallest cost first."""
    most = max(int(motion.inliers.sum()) for motion in motions)
    kept: list[Motion] = []
    for motion in sorted(motions, key=lambda motion: motion.cost):
        is_duplicate = any(pose_angle(motion, other) < _SAME_POSE_RAD for other in kept)
        if motion.inliers.sum() >= _IN_FRONT_RATIO * most and not is_duplicate:
            kept.append(motion)
    return kept


def pose_angle(a: Motion, b: Motion) -> float:
    """The larger of the angles between the rotations and between the directions of two poses, radians."""
    angle = float(np.linalg.norm(log_so3(a.rotation.T @ b.rotation)))
    return max(angle, direction_angle(a.direction, b.direction))


def sampson_residuals(matches: Matches, rotation: FloatArray, direction: FloatArray) -> FloatArray:
    """Signed Sampson distances (N,) of the matches, pixels."""
    terms = SampsonTerms.of(matches.pixels_i, matches.pixels_j, matches.camera_i, matches.camera_j)
    return terms.linearize(rotation, direction)[0]


def in_front(matches: Matches, rotation: FloatArray, direction: FloatArray) -> BoolArray:
    """Mask (N,) of the matches that triangulate in front of both cameras, or too far away to decide (cheirality)."""
    ray_i, ray_j = _unit_rows(matches.rays_i), _unit_rows(matches.rays_j) @ rotation.T
    # depth_i ray_i = depth_j ray_j + direction in least squares; the common divisor 1 - cosine^2 is positive.
    cosine = (ray_i * ray_j).sum(axis=1)
    along_i, along_j = ray_i @ direction, ray_j @ direction
    # A parallax of up to 1.5 pixels in the wrong direction is noise.
    slack = -1.5 / min(matches.camera_i.mean_focal, matches.camera_j.mean_focal)
    return np.asarray((along_i - cosine * along_j > slack) & (cosine * along_i - along_j > slack))


def _search_with_poselib(matches: Matches, threshold_px: float) -> tuple[FloatArray, FloatArray] | None:
    """PoseLib's LO-RANSAC with the five-point solver."""
    pose, info = poselib.estimate_relative_pose(
        matches.pixels_j,
        matches.pixels_i,
        _poselib_camera(matches.camera_j),
        _poselib_camera(matches.camera_i),
        {
            "max_epipolar_error": threshold_px,
            "min_iterations": _MIN_SAMPLES,
            "max_iterations": _MAX_SAMPLES,
            "seed": _SEED,
        },
        {},
    )
    t = np.asarray(pose.t, dtype=np.float64)
    if info["num_inliers"] < 5 or not np.linalg.norm(t) > 0:
        return None
    return nearest_rotation(pose.R), _unit(t)


def _search_with_opencv(matches: Matches, threshold_px: float) -> tuple[FloatArray, FloatArray] | None:
    """OpenCV's graph-cut RANSAC (Barath and Matas 2018) with the five-point solver; deterministic."""
    # One common focal length keeps the threshold in pixels when the two cameras differ.
    focal = 0.5 * (matches.camera_i.mean_focal + matches.camera_j.mean_focal)
    a, b = matches.rays_j[:, :2], matches.rays_i[:, :2]
    threshold = _OPENCV_THRESHOLD_RATIO * threshold_px / focal
    E, mask = cv2.findEssentialMat(a, b, np.eye(3), method=cv2.USAC_ACCURATE, prob=0.9999, threshold=threshold)
    if E is None or len(E) < 3 or mask is None:
        return None
    _, R, t, _ = cv2.recoverPose(E[:3], a, b, np.eye(3), mask=mask)
    return nearest_rotation(R), _unit(np.asarray(t, dtype=np.float64).ravel())


def _poselib_camera(camera: Camera) -> dict[str, Any]:
    numbers = [camera.fx, camera.fy, camera.cx, camera.cy]
    return {"model": "PINHOLE", "width": camera.width, "height": camera.height, "params": numbers}


def _linearize_rotation(matches: Matches, rays_j: FloatArray, R: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Residuals (2, N), pixels of i, of j's rotated rays (3, N), and their derivatives (3, 2, N) for R exp(w)."""
    camera = matches.camera_i
    rotated = R @ rays_j
    z = np.maximum(rotated[2], 1e-6)  # rays behind the camera project far away and get no weight
    focal = np.array([[camera.fx], [camera.fy]])
    slope = rotated[:2] / z
    residual = focal * slope + np.array([[camera.cx], [camera.cy]]) - matches.pixels_i.T
    moved = (R @ _GENERATORS) @ rays_j
    return residual, focal / z * (moved[:, :2] - slope * moved[:, 2:])


def _truncated(residual: FloatArray, threshold_px: float) -> float:
    return float(np.minimum((residual / threshold_px) ** 2, 1.0).sum())


def _noise(residual: FloatArray, threshold_px: float) -> float:
    """Standard deviation of residuals about zero, pixels. A median would ignore the tails of real residuals."""
    return max(_MIN_NOISE_PX, float(np.sqrt((residual**2).mean()))) if residual.size else threshold_px


def _curvature_ratio(residual: FloatArray, threshold_px: float) -> float:
    """Curvature of the truncated cost as a fraction of that of the normal equations, in (0, 1].

    Moving the pose adds and removes matches at the threshold, which cancels part of the gradient of the inliers
    (Huber, "Robust Statistics", 1981, section 6.3: the expectation of psi' for a psi that drops to zero).
    """
    size = np.abs(residual) / threshold_px
    inside, near_edge = float((size < 1.0).sum()), float(((size > 0.7) & (size < 1.3)).sum())
    return max(0.3, 1.0 - near_edge / 0.6 / inside) if inside else 1.0


def _covariance(information: FloatArray, noise: float) -> FloatArray:
    """Inverse of J'J times the noise variance; the variance along unobservable directions is pi^2."""
    size = len(information)
    return np.asarray(np.linalg.inv(information / noise**2 + np.eye(size) / np.pi**2))


def _homogeneous(points: FloatArray) -> FloatArray:
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


def _unit_rows(rows: FloatArray) -> FloatArray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _unit(vector: FloatArray) -> FloatArray:
    return np.asarray(vector / np.linalg.norm(vector))
