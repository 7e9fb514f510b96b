"""Bundle adjustment: the problem, its result, the solver's interface, and reprojection errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, stack_matrices
from relocalizer.interfaces import PairEstimate
from relocalizer.intrinsics_correction import CorrectionStep
from slam.mapping.bundle_weights import HUBER_K

MIN_DEPTH = 1e-6  # minimum depth of a landmark in front of a camera, map units


@dataclass(frozen=True, slots=True)
class FocalPrior:
    """An estimate of the focal length from elsewhere, for bundle adjustment.

    Attributes:
        focal_px: mean of the focal lengths in x and y, pixels; their ratio is fixed.
        sigma: standard deviation of its logarithm.
        is_guess: whether the camera stays `assumed` after bundle adjustment.
    """

    focal_px: float
    sigma: float
    is_guess: bool = False

    def agrees_with(self, focal_px: float) -> bool:
        """Whether a focal length is compatible with this estimate."""
        return abs(float(np.log(focal_px / self.focal_px))) <= COMPATIBLE_SIGMAS * self.sigma


@dataclass(frozen=True, slots=True)
class PrincipalPrior:
    """Where the principal point is expected, for bundle adjustment: (cx, cy) and standard deviation, pixels."""

    cx: float
    cy: float
    sigma_px: float

    def agrees_with(self, cx: float, cy: float) -> bool:
        """Whether a principal point is compatible with this expectation."""
        return max(abs(cx - self.cx), abs(cy - self.cy)) <= COMPATIBLE_SIGMAS * self.sigma_px


@dataclass(frozen=True, slots=True)
class IntrinsicsPrior:
    """Prior of the intrinsics of a camera in bundle adjustment: distortion, focal length and principal point.

    Attributes:
        radial_sigma: standard deviation of the radial coefficients k1 and k2 about zero; 0 keeps them zero.
        focal: prior of the focal length; None fixes it.
        principal: prior of the principal point; None fixes it.
        significant: minimum Mahalanobis distance of the estimated distortion from zero for it to be applied.
        most_px: maximum displacement of the image corners for a distortion to be applied, pixels.
    """

    radial_sigma: float = 0.0
    focal: FocalPrior | None = None
    principal: PrincipalPrior | None = None
    significant: float = 5.0  # 3 would be too low, because the errors of the observations of one track are correlated
    most_px: float = float("inf")


# Maximum difference between a result of bundle adjustment and its prior, standard deviations of the prior.
COMPATIBLE_SIGMAS = 3.0
# Prior of a calibrated camera. The residual k1 is 0.01 to 0.02 in the images of KITTI (rectified) and 7-Scenes, both
# published as pinhole images.
CALIBRATED = IntrinsicsPrior(radial_sigma=0.02)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Bundle:
    """A bundle adjustment problem: keyframes, landmarks and observations.

    Attributes:
        world_from_cam: pose of every keyframe, by id.
        cameras: pinhole camera of every keyframe, by id.
        fixed: ids of the fixed keyframes. With fewer than two, the gauge is fixed by the pose of the first keyframe
            and its distance to the keyframe farthest from it.
        points_world: (N, 3), map units.
        keyframe_of, point_of: (M,) keyframe id and row of `points_world` of each observation.
        pixels: (M, 2) of each observation.
        pairs: the predictor's estimates (i, j, i_from_j) between keyframes of the bundle.
        lens: prior of the intrinsics of the camera that all keyframes share, to refine them too; None fixes them.
    """

    world_from_cam: Mapping[int, RigidTransform]
    cameras: Mapping[int, Camera]
    fixed: frozenset[int]
    points_world: FloatArray
    keyframe_of: NDArray[np.int64]
    point_of: NDArray[np.int64]
    pixels: FloatArray
    pairs: Sequence[tuple[int, int, PairEstimate]] = ()
    lens: IntrinsicsPrior | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AdjustedBundle:
    """Result of a bundle adjustment.

    Attributes:
        world_from_cam: pose of every keyframe, by id.
        points_world: (N, 3), map units.
        error_px: (M,) reprojection error of each observation, pixels.
        lens: correction of the intrinsics; empty if they were fixed or are not observable.
        problem: why the solver failed, in which case nothing has moved; empty on success.
    """

    world_from_cam: dict[int, RigidTransform]
    points_world: FloatArray
    error_px: FloatArray
    lens: CorrectionStep = field(default_factory=CorrectionStep)
    problem: str = ""


class BundleAdjuster(Protocol):
    """Solver of bundle adjustment problems."""

    def refine(
        self, bundle: Bundle, *, noise_px: float, iterations: int, relative_tolerance: float = 1e-5
    ) -> AdjustedBundle:
        """Minimize the reprojection errors.

        Args:
            noise_px: standard deviation of an observation, pixels.
            iterations: maximum number of iterations.
            relative_tolerance: relative decrease of the error per iteration below which the solver stops.
        """
        ...


def reprojection_errors(
    bundle: Bundle, world_from_cam: Mapping[int, RigidTransform], points_world: FloatArray
) -> FloatArray:
    """Reprojection error (M,) of each observation, pixels; infinite behind the camera."""
    order, row = _rows_of_keyframes(bundle)
    poses = stack_matrices([world_from_cam[k] for k in order])[row]
    relative = points_world[bundle.point_of] - poses[:, :3, 3]
    in_cam = (relative[:, None, :] @ poses[:, :3, :3])[:, 0]
    focal, principal = _focal_and_principal(bundle, order)
    depth = np.where(in_cam[:, 2] > MIN_DEPTH, in_cam[:, 2], np.nan)
    residuals = in_cam[:, :2] / depth[:, None] * focal[row] + principal[row] - bundle.pixels
    return np.where(np.isnan(depth), np.inf, np.linalg.norm(residuals, axis=1))


def _rows_of_keyframes(bundle: Bundle) -> tuple[list[int], NDArray[np.int64]]:
    """Ids of the keyframes in order, and the place among them (M,) of the keyframe of each observation."""
    order = sorted(bundle.world_from_cam)
    return order, np.searchsorted(order, bundle.keyframe_of)


def _focal_and_principal(bundle: Bundle, order: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """Focal lengths (K, 2) and principal points (K, 2) of keyframes, pixels."""
    cameras = [bundle.cameras[k] for k in order]
    focal = np.array([[camera.fx, camera.fy] for camera in cameras]).reshape(-1, 2)
    return focal, np.array([[camera.cx, camera.cy] for camera in cameras]).reshape(-1, 2)


def structure_only_adjustment(bundle: Bundle, *, noise_px: float, iterations: int = 4) -> FloatArray:
    """Structure-only bundle adjustment: the refined landmarks (N, 3) with all cameras fixed.

    Damped Gauss-Newton on all points at once with a Huber kernel; a step that does not reduce a point's cost is not
    applied to that point.
    """
    order, which = _rows_of_keyframes(bundle)
    poses = stack_matrices([bundle.world_from_cam[k] for k in order])
    R, center = poses[:, :3, :3].transpose(0, 2, 1)[which], poses[which, :3, 3]
    focal, principal = (values[which] for values in _focal_and_principal(bundle, order))
    count = len(bundle.points_world)

    def residuals(points: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        in_cam = np.einsum("mij,mj->mi", R, points[bundle.point_of] - center)
        z = np.where(in_cam[:, 2] > MIN_DEPTH, in_cam[:, 2], np.inf)
        residual = in_cam[:, :2] / z[:, None] * focal + principal - bundle.pixels
        size = np.linalg.norm(residual, axis=1) / noise_px
        cost = np.where(size < HUBER_K, 0.5 * size**2, HUBER_K * (size - 0.5 * HUBER_K))
        total = np.bincount(bundle.point_of, np.where(np.isinf(z), 1e9, cost), minlength=count)
        return in_cam, residual, np.asarray(total, dtype=np.float64)

    points = bundle.points_world.copy()
    in_cam, residual, cost = residuals(points)
    for _ in range(iterations):
        z = np.maximum(in_cam[:, 2], MIN_DEPTH)
        J = np.zeros((len(z), 2, 3))
        J[:, 0, 0], J[:, 1, 1] = focal[:, 0] / z, focal[:, 1] / z
        J[:, :, 2] = -focal * in_cam[:, :2] / (z**2)[:, None]
        J = J @ R
        weight = np.minimum(1.0, HUBER_K * noise_px / np.maximum(np.linalg.norm(residual, axis=1), 1e-12))
        weighted = weight[:, None, None] * J
        H = _sum_by_row(np.einsum("mij,mik->mjk", weighted, J), bundle.point_of, count)
        gradient = _sum_by_row(np.einsum("mij,mi->mj", weighted, residual), bundle.point_of, count)
        damping = 1e-3 * np.trace(H, axis1=1, axis2=2) + 1e-12
        candidate = points - np.linalg.solve(H + damping[:, None, None] * np.eye(3), gradient[:, :, None])[:, :, 0]
        new_in_cam, new_residual, new_cost = residuals(candidate)
        better = new_cost < cost
        points = np.where(better[:, None], candidate, points)
        cost = np.where(better, new_cost, cost)
        moved = better[bundle.point_of]
        in_cam = np.where(moved[:, None], new_in_cam, in_cam)
        residual = np.where(moved[:, None], new_residual, residual)
    return points


def _sum_by_row(terms: FloatArray, rows: NDArray[np.int64], count: int) -> FloatArray:
    """Sums (count, ...) of the terms (M, ...) of each row; `rows` (M,) are the rows of the terms."""
    columns = terms.reshape(len(terms), -1).T
    sums = np.stack([np.bincount(rows, column, minlength=count) for column in columns], axis=1)
    return np.asarray(sums.reshape(count, *terms.shape[1:]), dtype=np.float64)


def undistorted_pixels(bundle: Bundle, lens: CorrectionStep) -> Bundle:
    """The bundle with a correction of the intrinsics applied to its cameras and pixels."""
    camera = next(iter(bundle.cameras.values()))
    pixels = lens.undistorted_pixels(bundle.pixels, camera)
    return replace(bundle, cameras=dict.fromkeys(bundle.cameras, lens.camera(camera)), pixels=pixels)
