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


@dataclass(frozen=True, slots=True, eq=False)
class _FixedViews:
    """Observations of landmarks in cameras that are fixed, coordinate by coordinate, which NumPy is faster with.

    Attributes:
        rotation: (3, 3, M) cam_from_world of the camera of each observation; center: (3, M) its position.
        focal: (2, M); target: (2, M) pixels relative to the principal point.
        point_of: (M,) rows of the N landmarks.
    """

    rotation: FloatArray
    center: FloatArray
    focal: FloatArray
    target: FloatArray
    point_of: NDArray[np.int64]
    noise_px: float

    @staticmethod
    def of(bundle: Bundle, noise_px: float) -> _FixedViews:
        order, row = _rows_of_keyframes(bundle)
        poses = stack_matrices([bundle.world_from_cam[k] for k in order])
        focal, principal = _focal_and_principal(bundle, order)
        return _FixedViews(
            poses[:, :3, :3].transpose(2, 1, 0)[:, :, row],
            poses[:, :3, 3].T[:, row],
            focal.T[:, row],
            np.ascontiguousarray(bundle.pixels.T) - principal.T[:, row],
            bundle.point_of,
            noise_px,
        )

    def evaluate(self, points: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Landmarks (3, M) in the axes of their cameras, residuals (2, M), and the cost (N,) of landmarks (3, N)."""
        x, y, z = points[:, self.point_of] - self.center
        in_cam = self.rotation[:, 0] * x + self.rotation[:, 1] * y + self.rotation[:, 2] * z
        depth = np.where(in_cam[2] > MIN_DEPTH, in_cam[2], np.inf)
        residual = in_cam[:2] / depth * self.focal - self.target
        size = np.sqrt(residual[0] ** 2 + residual[1] ** 2) / self.noise_px
        cost = np.where(size < HUBER_K, 0.5 * size**2, HUBER_K * (size - 0.5 * HUBER_K))
        return in_cam, residual, self._sums(np.where(np.isinf(depth), 1e9, cost), points.shape[1])

    def step(self, in_cam: FloatArray, residual: FloatArray, count: int) -> FloatArray:
        """Damped Gauss-Newton steps (3, N) of the N landmarks."""
        depth = np.maximum(in_cam[2], MIN_DEPTH)
        along, slope = self.focal / depth, -self.focal * in_cam[:2] / depth**2
        J = along[:, None] * self.rotation[:2] + slope[:, None] * self.rotation[2]  # (2, 3, M)
        size = np.sqrt(residual[0] ** 2 + residual[1] ** 2)
        weighted = J * np.minimum(1.0, HUBER_K * self.noise_px / np.maximum(size, 1e-12))
        a, b, c, d, e, f = (
            self._sums(weighted[0, i] * J[0, j] + weighted[1, i] * J[1, j], count)
            for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
        )
        gradient = [self._sums(weighted[0, i] * residual[0] + weighted[1, i] * residual[1], count) for i in range(3)]
        damping = 1e-3 * (a + d + f) + 1e-12
        return -_solved((a + damping, b, c, d + damping, e, f + damping), gradient)

    def _sums(self, terms: FloatArray, count: int) -> FloatArray:
        """Sums (N,) of the terms (M,) of the observations of each landmark."""
        return np.asarray(np.bincount(self.point_of, terms, minlength=count), dtype=np.float64)


def structure_only_adjustment(bundle: Bundle, *, noise_px: float, iterations: int = 4) -> FloatArray:
    """Structure-only bundle adjustment: the refined landmarks (N, 3) with all cameras fixed.

    Damped Gauss-Newton on all points at once with a Huber kernel; a step that does not reduce a point's cost is not
    applied to that point.
    """
    views, points = _FixedViews.of(bundle, noise_px), np.ascontiguousarray(bundle.points_world.T)
    in_cam, residual, cost = views.evaluate(points)
    for _ in range(iterations):
        candidate = points + views.step(in_cam, residual, points.shape[1])
        new_in_cam, new_residual, new_cost = views.evaluate(candidate)
        better = new_cost < cost
        points, cost = np.where(better, candidate, points), np.where(better, new_cost, cost)
        moved = better[bundle.point_of]
        in_cam, residual = np.where(moved, new_in_cam, in_cam), np.where(moved, new_residual, residual)
    return np.ascontiguousarray(points.T)


def _solved(H: tuple[FloatArray, ...], g: Sequence[FloatArray]) -> FloatArray:
    """Solutions (3, N) of N symmetric systems, well conditioned, by Cramer's rule.

    Args:
        H: the six entries (N,) of the upper triangles, row by row; g: the three (N,) of the right sides.
    """
    a, b, c, d, e, f = H
    A, B, C = d * f - e * e, c * e - b * f, b * e - c * d
    D, E, F = a * f - c * c, b * c - a * e, a * d - b * b
    x, y, z = A * g[0] + B * g[1] + C * g[2], B * g[0] + D * g[1] + E * g[2], C * g[0] + E * g[1] + F * g[2]
    return np.stack([x, y, z]) / (a * A + b * B + c * C)


def undistorted_pixels(bundle: Bundle, lens: CorrectionStep) -> Bundle:
    """The bundle with a correction of the intrinsics applied to its cameras and pixels."""
    camera = next(iter(bundle.cameras.values()))
    pixels = lens.undistorted_pixels(bundle.pixels, camera)
    return replace(bundle, cameras=dict.fromkeys(bundle.cameras, lens.camera(camera)), pixels=pixels)
