"""Joint refinement of keyframe poses and landmarks over their observations (bundle adjustment, GTSAM)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, rotation_matrix, translation_of
from relocalizer.interfaces import PairEstimate
from relocalizer.intrinsics_correction import CorrectionStep

HUBER_K = 1.345  # 95 % efficiency on a normal distribution


@dataclass(frozen=True, slots=True)
class IntrinsicsPrior:
    """How uncertain the distortion of a camera is before the refinement; its focal length is held.

    Attributes:
        radial_sigma: of the radial distortion (k1 and k2) of its images about none.
        significant: standard deviations that a distortion must be away from none to be believed.
        most_px: a distortion that moves a corner of the image farther is not believed.
    """

    radial_sigma: float
    significant: float = 5.0  # observations of one track err together, so 3 would be too few
    most_px: float = float("inf")


# Calibrations leave some: 0.01 to 0.02 in KITTI's rectified images and in 7-Scenes', which are sold as pinholes.
CALIBRATED = IntrinsicsPrior(radial_sigma=0.02)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Bundle:
    """Keyframes, landmarks and who saw what.

    Attributes:
        world_from_cam: pose of every keyframe taking part, by id.
        cameras: pinhole camera of each.
        fixed: ids of keyframes that must not move. With fewer than two, the first keyframe is held and the
            distance to the keyframe farthest from it is kept, so that place and scale are pinned.
        points_world: (N, 3).
        keyframe_of, point_of: (M,) keyframe id and row of `points_world` of each observation.
        pixels: (M, 2).
        pairs: the predictor's estimates (i, j, i_from_j) between keyframes of the bundle.
        lens: find the distortion too, of the camera that all keyframes share; None holds it.
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
    """New poses and points, and the reprojection error (M,) in pixels of each observation under them.

    `lens` is what was found of the camera; nothing where it was held, or is not observable. `problem` is why the solver
    failed, and then nothing has moved; empty where it did not.
    """

    world_from_cam: dict[int, RigidTransform]
    points_world: FloatArray
    error_px: FloatArray
    lens: CorrectionStep = field(default_factory=CorrectionStep)
    problem: str = ""


class BundleAdjuster(Protocol):
    def refine(
        self, bundle: Bundle, *, noise_px: float, iterations: int, relative_tolerance: float = 1e-5
    ) -> AdjustedBundle:
        """Poses and points that fit the observations better; stops when the error falls by less than the tolerance."""
        ...


def reprojection_errors(
    bundle: Bundle, world_from_cam: Mapping[int, RigidTransform], points_world: FloatArray
) -> FloatArray:
    """Pixels (M,) between each observation and where its landmark falls; infinite behind the camera."""
    errors = np.full(len(bundle.pixels), np.inf)
    for k, pose in world_from_cam.items():
        rows = np.flatnonzero(bundle.keyframe_of == k)
        points = np.asarray(pose.inv().apply(points_world[bundle.point_of[rows]])).reshape(-1, 3)
        front = points[:, 2] > 1e-6
        log_error = bundle.cameras[k].project(points[front]) - bundle.pixels[rows[front]]
        errors[rows[front]] = np.linalg.norm(log_error, axis=1)
    return errors


def structure_only_adjustment(bundle: Bundle, *, noise_px: float, iterations: int = 4) -> FloatArray:
    """The bundle's landmarks (N, 3), each moved alone to fit its observations, the cameras held.

    Damped Gauss-Newton on all points at once under a Huber kernel; a point that gets no better stays where it was.
    """
    order = sorted(bundle.world_from_cam)
    which = np.searchsorted(order, bundle.keyframe_of)
    R = np.array([rotation_matrix(bundle.world_from_cam[k]).T for k in order])[which]
    center = np.array([translation_of(bundle.world_from_cam[k]) for k in order])[which]
    focal = np.array([[bundle.cameras[k].fx, bundle.cameras[k].fy] for k in order])[which]
    principal = np.array([[bundle.cameras[k].cx, bundle.cameras[k].cy] for k in order])[which]
    count = len(bundle.points_world)

    def residuals(points: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        in_cam = np.einsum("mij,mj->mi", R, points[bundle.point_of] - center)
        z = np.where(in_cam[:, 2] > 1e-6, in_cam[:, 2], np.inf)
        residual = in_cam[:, :2] / z[:, None] * focal + principal - bundle.pixels
        size = np.linalg.norm(residual, axis=1) / noise_px
        cost = np.where(size < HUBER_K, 0.5 * size**2, HUBER_K * (size - 0.5 * HUBER_K))
        total = np.bincount(bundle.point_of, np.where(np.isinf(z), 1e9, cost), minlength=count)
        return in_cam, residual, np.asarray(total, dtype=np.float64)

    points = bundle.points_world.copy()
    in_cam, residual, cost = residuals(points)
    for _ in range(iterations):
        z = np.maximum(in_cam[:, 2], 1e-6)
        J = np.zeros((len(z), 2, 3))
        J[:, 0, 0], J[:, 1, 1] = focal[:, 0] / z, focal[:, 1] / z
        J[:, :, 2] = -focal * in_cam[:, :2] / (z**2)[:, None]
        J = J @ R
        weight = np.minimum(1.0, HUBER_K * noise_px / np.maximum(np.linalg.norm(residual, axis=1), 1e-12))
        weighted = weight[:, None, None] * J
        H = _sums(np.einsum("mij,mik->mjk", weighted, J), bundle.point_of, count)
        gradient = _sums(np.einsum("mij,mi->mj", weighted, residual), bundle.point_of, count)
        damping = 1e-3 * np.trace(H, axis1=1, axis2=2) + 1e-12
        tried = points - np.linalg.solve(H + damping[:, None, None] * np.eye(3), gradient[:, :, None])[:, :, 0]
        in_cam_tried, residual_tried, cost_tried = residuals(tried)
        better = cost_tried < cost
        points = np.where(better[:, None], tried, points)
        cost = np.where(better, cost_tried, cost)
        moved = better[bundle.point_of]
        in_cam = np.where(moved[:, None], in_cam_tried, in_cam)
        residual = np.where(moved[:, None], residual_tried, residual)
    return points


def _sums(terms: FloatArray, of: NDArray[np.int64], count: int) -> FloatArray:
    """Terms (M, ...) added up by the row (M,) each belongs to, (count, ...)."""
    columns = terms.reshape(len(terms), -1).T
    sums = np.stack([np.bincount(of, column, minlength=count) for column in columns], axis=1)
    return np.asarray(sums.reshape(count, *terms.shape[1:]), dtype=np.float64)


def undistorted_pixels(bundle: Bundle, lens: CorrectionStep) -> Bundle:
    """The bundle as the corrected camera would have seen it."""
    camera = next(iter(bundle.cameras.values()))
    pixels = lens.undistorted_pixels(bundle.pixels, camera)
    return replace(bundle, cameras=dict.fromkeys(bundle.cameras, lens.camera(camera)), pixels=pixels)
