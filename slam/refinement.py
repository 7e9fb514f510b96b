"""Joint refinement of keyframe poses and landmarks over their observations (bundle adjustment, GTSAM)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import gtsam
import gtsam_unstable
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.geometry import FloatArray, rigid, rotation_matrix, translation_of
from relocalizer.images import Camera
from relocalizer.interfaces import PairEstimate
from relocalizer.lens import LensStep

HUBER_K = 1.345  # 95 % efficiency on a normal distribution
FIXED_SIGMA = 1e-6
# Nothing else speaks of the size, so a soft hold keeps it just as well; a hard one forbids every straight step that
# is not along the sphere of that distance, and the solver gives up at the start.
SIZE_SIGMA = 1e-2
POINT = 1 << 40  # landmark keys lie above all keyframe keys
CALIBRATION, CENTRED = 1 << 50, (1 << 50) + 1  # keys of the shared camera, and of the identity between it and a pose
CALIBRATION_HELD = 1e-5  # of what is believed of the camera: pixels as a share of the focal length, or a coefficient
FAR = 100.0  # times the map's size


@dataclass(frozen=True, slots=True)
class LensPrior:
    """How uncertain the distortion of a camera is before the refinement; its focal length is held.

    Attributes:
        radial_sigma: of the radial distortion (k1 and k2) of its images about none.
        significant: standard deviations that a distortion must be away from none to be believed.
        most_px: a distortion that moves a corner of the image farther is not believed.
    """

    radial_sigma: float
    significant: float = 5.0  # observations of one track err together, so 3 would be too few
    most_px: float = float("inf")


# Calibrations leave some: 0.01 to 0.02 in KITTI's rectified pictures and in 7-Scenes', which are sold as pinholes.
GIVEN = LensPrior(radial_sigma=0.02)


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
    lens: LensPrior | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Refined:
    """New poses and points, and the reprojection error (M,) in pixels of each observation under them.

    `lens` is what was found of the camera; nothing where it was held, or is not observable. `problem` is why the solver
    failed, and then nothing has moved; empty where it did not.
    """

    world_from_cam: dict[int, RigidTransform]
    points_world: FloatArray
    error_px: FloatArray
    lens: LensStep = field(default_factory=LensStep)
    problem: str = ""


class Refiner(Protocol):
    def refine(self, bundle: Bundle, *, noise_px: float, iterations: int, relative_tolerance: float = 1e-5) -> Refined:
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
        difference = bundle.cameras[k].project(points[front]) - bundle.pixels[rows[front]]
        errors[rows[front]] = np.linalg.norm(difference, axis=1)
    return errors


def refine_points(bundle: Bundle, *, noise_px: float, iterations: int = 4) -> FloatArray:
    """The bundle's landmarks (N, 3), each moved alone to fit its observations, the cameras held.

    Damped Gauss-Newton on all points at once under a Huber kernel; a point that gets no better stays where it was.
    """
    order = sorted(bundle.world_from_cam)
    which = np.searchsorted(order, bundle.keyframe_of)
    R = np.array([rotation_matrix(bundle.world_from_cam[k]).T for k in order])[which]
    centre = np.array([translation_of(bundle.world_from_cam[k]) for k in order])[which]
    focal = np.array([[bundle.cameras[k].fx, bundle.cameras[k].fy] for k in order])[which]
    principal = np.array([[bundle.cameras[k].cx, bundle.cameras[k].cy] for k in order])[which]
    count = len(bundle.points_world)

    def residuals(points: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        in_cam = np.einsum("mij,mj->mi", R, points[bundle.point_of] - centre)
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


class GtsamRefiner:
    """Levenberg-Marquardt over projection factors with a Huber kernel."""

    def refine(self, bundle: Bundle, *, noise_px: float, iterations: int, relative_tolerance: float = 1e-5) -> Refined:
        graph, start = gtsam.NonlinearFactorGraph(), gtsam.Values()
        poses = {k: gtsam.Pose3(pose.as_matrix()) for k, pose in bundle.world_from_cam.items()}
        for k, pose in poses.items():
            start.insert(k, pose)
        for n, point in enumerate(bundle.points_world):
            start.insert(POINT + n, point)
        if bundle.lens is not None:
            self._add_projections_of_free_camera(graph, start, bundle, bundle.lens, noise_px)
        else:
            self._add_projections(graph, bundle, poses, noise_px)
        self._add_pairs(graph, bundle)
        self._pin(graph, start, bundle)
        self._hold_what_nothing_speaks_of(graph, start)
        parameters = gtsam.LevenbergMarquardtParams()
        parameters.setMaxIterations(iterations)
        parameters.setRelativeErrorTol(relative_tolerance)
        parameters.setLinearSolverType("SEQUENTIAL_CHOLESKY")  # a tenth quicker than multifrontal, small map or large
        solution, problem = _solved(graph, start, parameters)
        if problem:  # better the old map than a broken one
            poses_before, points_before = dict(bundle.world_from_cam), bundle.points_world
            errors = reprojection_errors(bundle, poses_before, points_before)
            return Refined(world_from_cam=poses_before, points_world=points_before, error_px=errors, problem=problem)
        found = LensStep()
        if bundle.lens is not None:
            if not is_told(bundle.lens, solution, camera_covariance(graph, solution)):
                held = replace(bundle, lens=None)
                return self.refine(
                    held, noise_px=noise_px, iterations=iterations, relative_tolerance=relative_tolerance
                )
            found = _found(solution)
            bundle = straightened(bundle, found)
        world_from_cam = {k: _rigid(solution.atPose3(k)) for k in bundle.world_from_cam}
        points = np.array([solution.atPoint3(POINT + n) for n in range(len(bundle.points_world))]).reshape(-1, 3)
        errors = reprojection_errors(bundle, world_from_cam, points)
        return Refined(world_from_cam=world_from_cam, points_world=points, error_px=errors, lens=found)

    @staticmethod
    def _add_projections(
        graph: gtsam.NonlinearFactorGraph, bundle: Bundle, poses: Mapping[int, gtsam.Pose3], noise_px: float
    ) -> None:
        """Projection factors; what a fixed keyframe saw speaks of the landmark alone, which is quicker to solve."""
        noise = _robust(gtsam.noiseModel.Isotropic.Sigma(2, noise_px))
        K = {k: _calibration(camera) for k, camera in bundle.cameras.items()}
        held = {k: gtsam.PinholeCameraCal3_S2(poses[k], K[k]) for k in bundle.fixed}
        factor, of_held = gtsam.GenericProjectionFactorCal3_S2, gtsam.TriangulationFactorCal3_S2
        rows = zip(bundle.keyframe_of.tolist(), bundle.point_of.tolist(), bundle.pixels, strict=True)
        for k, n, pixel in rows:
            if k in held:
                graph.add(of_held(held[k], pixel, noise, POINT + n))
            else:
                graph.add(factor(pixel, noise, k, POINT + n, K[k]))

    @staticmethod
    def _add_projections_of_free_camera(
        graph: gtsam.NonlinearFactorGraph, start: gtsam.Values, bundle: Bundle, prior: LensPrior, noise_px: float
    ) -> None:
        """Projection factors on one camera: those with a sensor's offset, for the others print points behind them."""
        camera = next(iter(bundle.cameras.values()))
        given = gtsam.Cal3DS2(camera.fx, camera.fy, 0.0, camera.cx, camera.cy, 0.0, 0.0)
        start.insert(CALIBRATION, given)
        start.insert(CENTRED, gtsam.Pose3())
        graph.add(gtsam.PriorFactorCal3DS2(CALIBRATION, given, _uncertain(camera, prior)))
        graph.add(gtsam.PriorFactorPose3(CENTRED, gtsam.Pose3(), gtsam.noiseModel.Isotropic.Sigma(6, FIXED_SIGMA)))
        noise = _robust(gtsam.noiseModel.Isotropic.Sigma(2, noise_px))
        factor = gtsam_unstable.ProjectionFactorPPPCCal3DS2
        rows = zip(bundle.keyframe_of.tolist(), bundle.point_of.tolist(), bundle.pixels, strict=True)
        for k, n, pixel in rows:
            graph.add(factor(pixel, noise, k, CENTRED, POINT + n, CALIBRATION))

    @staticmethod
    def _add_pairs(graph: gtsam.NonlinearFactorGraph, bundle: Bundle) -> None:
        for i, j, estimate in bundle.pairs:
            rotation = gtsam.Rot3(estimate.i_from_j_rotation)
            sigma_r, sigma_d = estimate.rotation_sigma_rad, estimate.direction_sigma_rad
            if estimate.i_from_j_direction is None:
                # Only the rotation is known: the translation's sigma is beyond any map's size.
                noise = gtsam.noiseModel.Diagonal.Sigmas(np.array([sigma_r] * 3 + [1e6] * 3))
                graph.add(gtsam.BetweenFactorPose3(i, j, gtsam.Pose3(rotation, np.zeros(3)), _robust(noise)))
            else:
                essential = gtsam.EssentialMatrix(rotation, gtsam.Unit3(estimate.i_from_j_direction))
                noise = gtsam.noiseModel.Diagonal.Sigmas(np.array([sigma_r] * 3 + [sigma_d] * 2))
                graph.add(gtsam.EssentialMatrixConstraint(i, j, essential, _robust(noise)))

    @staticmethod
    def _pin(graph: gtsam.NonlinearFactorGraph, start: gtsam.Values, bundle: Bundle) -> None:
        rigidly = gtsam.noiseModel.Isotropic.Sigma(6, FIXED_SIGMA)
        held = sorted(bundle.fixed) or [min(bundle.world_from_cam)]
        for k in held:
            graph.add(gtsam.PriorFactorPose3(k, start.atPose3(k), rigidly))
        if len(held) < 2:
            first = start.atPose3(held[0])
            distances = {k: first.range(start.atPose3(k)) for k in bundle.world_from_cam}
            far = max(distances, key=lambda k: (distances[k], -k))
            if distances[far] > 0:
                noise = gtsam.noiseModel.Isotropic.Sigma(1, SIZE_SIGMA * distances[far])
                graph.add(gtsam.RangeFactorPose3(held[0], far, distances[far], noise))

    @staticmethod
    def _hold_what_nothing_speaks_of(graph: gtsam.NonlinearFactorGraph, start: gtsam.Values) -> None:
        """A keyframe that sees none of the landmarks stays where it is; the solver fails on what no factor names."""
        for key in sorted(set(start.keys()) - set(graph.keyVector())):
            if key < POINT:
                noise = gtsam.noiseModel.Isotropic.Sigma(6, FIXED_SIGMA)
                graph.add(gtsam.PriorFactorPose3(key, start.atPose3(key), noise))
            else:
                noise = gtsam.noiseModel.Isotropic.Sigma(3, FIXED_SIGMA)
                graph.add(gtsam.PriorFactorPoint3(key, start.atPoint3(key), noise))


def _solved(
    graph: gtsam.NonlinearFactorGraph, start: gtsam.Values, parameters: gtsam.LevenbergMarquardtParams
) -> tuple[gtsam.Values, str]:
    """The solution, and why it is none; empty when it is one."""
    try:
        solution = gtsam.LevenbergMarquardtOptimizer(graph, start, parameters).optimize()
    except RuntimeError as error:  # how GTSAM says that a linear system is singular
        return start, " ".join(str(error).split())
    return solution, "" if np.isfinite(graph.error(solution)) else "the solution is not finite"


def _uncertain(camera: Camera, prior: LensPrior) -> gtsam.noiseModel.Gaussian:
    """Of fx, fy, skew, cx, cy, k1, k2, p1, p2: all but k1 and k2 are held."""
    held = CALIBRATION_HELD * np.array([camera.mean_focal] * 5 + [1.0] * 4)
    held[5:7] = prior.radial_sigma
    return gtsam.noiseModel.Diagonal.Sigmas(held)


def camera_covariance(graph: gtsam.NonlinearFactorGraph, solution: gtsam.Values) -> FloatArray | None:
    """Of the free camera's fx, fy, skew, cx, cy, k1, k2, p1, p2, (9, 9); None where nothing tells them."""
    held = gtsam.NonlinearFactorGraph(graph)
    keys: list[int] = list(solution.keys())  # gtsam.Values cannot be iterated itself
    points = [key for key in keys if POINT <= key < CALIBRATION]
    size = float(np.median([np.linalg.norm(solution.atPoint3(key)) for key in points])) + 1e-9
    for key in points:  # one that has gone behind its cameras is held by nothing else
        held.add(gtsam.PriorFactorPoint3(key, solution.atPoint3(key), gtsam.noiseModel.Isotropic.Sigma(3, FAR * size)))
    try:
        return np.asarray(gtsam.Marginals(held, solution).marginalCovariance(CALIBRATION), dtype=np.float64)
    except RuntimeError:  # how GTSAM says that a linear system is singular
        return None


def is_told(prior: LensPrior, solution: gtsam.Values, covariance: FloatArray | None) -> bool:
    """Whether the observations tell the distortion: one that may be the noise's is none."""
    if covariance is None:
        return False
    found = solution.atCal3DS2(CALIBRATION)
    radial = np.array([found.k1(), found.k2()])
    return float(np.sqrt(radial @ np.linalg.solve(covariance[5:7, 5:7], radial))) >= prior.significant


def _found(solution: gtsam.Values) -> LensStep:
    found = solution.atCal3DS2(CALIBRATION)
    return LensStep(radial=(found.k1(), found.k2()))


def straightened(bundle: Bundle, lens: LensStep) -> Bundle:
    """The bundle as the corrected camera would have seen it."""
    camera = next(iter(bundle.cameras.values()))
    pixels = lens.straightened(bundle.pixels, camera)
    return replace(bundle, cameras=dict.fromkeys(bundle.cameras, lens.camera(camera)), pixels=pixels)


def _calibration(camera: Camera) -> gtsam.Cal3_S2:
    return gtsam.Cal3_S2(camera.fx, camera.fy, 0.0, camera.cx, camera.cy)


def _robust(noise: gtsam.noiseModel.Base) -> gtsam.noiseModel.Robust:
    return gtsam.noiseModel.Robust.Create(gtsam.noiseModel.mEstimator.Huber.Create(HUBER_K), noise)


def _rigid(pose: gtsam.Pose3) -> RigidTransform:
    return rigid(pose.rotation().matrix(), pose.translation())
