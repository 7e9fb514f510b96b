"""Joint refinement of keyframe poses and landmarks over their observations (bundle adjustment, GTSAM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import gtsam
import gtsam_unstable
import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, rigid
from relocalizer.intrinsics_correction import CorrectionStep
from slam.mapping.bundle import (
    HUBER_K,
    AdjustedBundle,
    Bundle,
    IntrinsicsPrior,
    reprojection_errors,
    undistorted_pixels,
)

FIXED_SIGMA = 1e-6
# Nothing else speaks of the size, so a soft hold keeps it just as well; a hard one forbids every straight step that
# is not along the sphere of that distance, and the solver gives up at the start.
SIZE_SIGMA = 1e-2
POINT = 1 << 40  # landmark keys lie above all keyframe keys
CALIBRATION, CENTERED = 1 << 50, (1 << 50) + 1  # keys of the shared camera, and of the identity between it and a pose
CALIBRATION_HELD = 1e-5  # of what is believed of the camera: pixels as a share of the focal length, or a coefficient
FAR = 100.0  # times the map's size


class GtsamBundleAdjuster:
    """Levenberg-Marquardt over projection factors with a Huber kernel."""

    def refine(
        self, bundle: Bundle, *, noise_px: float, iterations: int, relative_tolerance: float = 1e-5
    ) -> AdjustedBundle:
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
        self._fix_gauge(graph, start, bundle)
        self._fix_unconstrained(graph, start)
        parameters = gtsam.LevenbergMarquardtParams()
        parameters.setMaxIterations(iterations)
        parameters.setRelativeErrorTol(relative_tolerance)
        parameters.setLinearSolverType("SEQUENTIAL_CHOLESKY")  # a tenth quicker than multifrontal, small map or large
        solution, problem = _solved(graph, start, parameters)
        if problem:  # better the old map than a broken one
            poses_before, points_before = dict(bundle.world_from_cam), bundle.points_world
            errors = reprojection_errors(bundle, poses_before, points_before)
            return AdjustedBundle(
                world_from_cam=poses_before, points_world=points_before, error_px=errors, problem=problem
            )
        found = CorrectionStep()
        if bundle.lens is not None:
            if not is_told(bundle.lens, solution, camera_covariance(graph, solution)):
                held = replace(bundle, lens=None)
                return self.refine(
                    held, noise_px=noise_px, iterations=iterations, relative_tolerance=relative_tolerance
                )
            found = _found(solution)
            bundle = undistorted_pixels(bundle, found)
        world_from_cam = {k: _rigid(solution.atPose3(k)) for k in bundle.world_from_cam}
        points = np.array([solution.atPoint3(POINT + n) for n in range(len(bundle.points_world))]).reshape(-1, 3)
        errors = reprojection_errors(bundle, world_from_cam, points)
        return AdjustedBundle(world_from_cam=world_from_cam, points_world=points, error_px=errors, lens=found)

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
        graph: gtsam.NonlinearFactorGraph, start: gtsam.Values, bundle: Bundle, prior: IntrinsicsPrior, noise_px: float
    ) -> None:
        """Projection factors on one camera: those with a sensor's offset, for the others print points behind them."""
        camera = next(iter(bundle.cameras.values()))
        given = gtsam.Cal3DS2(camera.fx, camera.fy, 0.0, camera.cx, camera.cy, 0.0, 0.0)
        start.insert(CALIBRATION, given)
        start.insert(CENTERED, gtsam.Pose3())
        graph.add(gtsam.PriorFactorCal3DS2(CALIBRATION, given, _intrinsics_noise(camera, prior)))
        graph.add(gtsam.PriorFactorPose3(CENTERED, gtsam.Pose3(), gtsam.noiseModel.Isotropic.Sigma(6, FIXED_SIGMA)))
        noise = _robust(gtsam.noiseModel.Isotropic.Sigma(2, noise_px))
        factor = gtsam_unstable.ProjectionFactorPPPCCal3DS2
        rows = zip(bundle.keyframe_of.tolist(), bundle.point_of.tolist(), bundle.pixels, strict=True)
        for k, n, pixel in rows:
            graph.add(factor(pixel, noise, k, CENTERED, POINT + n, CALIBRATION))

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
    def _fix_gauge(graph: gtsam.NonlinearFactorGraph, start: gtsam.Values, bundle: Bundle) -> None:
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
    def _fix_unconstrained(graph: gtsam.NonlinearFactorGraph, start: gtsam.Values) -> None:
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


def _intrinsics_noise(camera: Camera, prior: IntrinsicsPrior) -> gtsam.noiseModel.Gaussian:
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


def is_told(prior: IntrinsicsPrior, solution: gtsam.Values, covariance: FloatArray | None) -> bool:
    """Whether the observations tell the distortion: one that may be the noise's is none."""
    if covariance is None:
        return False
    found = solution.atCal3DS2(CALIBRATION)
    radial = np.array([found.k1(), found.k2()])
    return float(np.sqrt(radial @ np.linalg.solve(covariance[5:7, 5:7], radial))) >= prior.significant


def _found(solution: gtsam.Values) -> CorrectionStep:
    found = solution.atCal3DS2(CALIBRATION)
    return CorrectionStep(radial=(found.k1(), found.k2()))


def _calibration(camera: Camera) -> gtsam.Cal3_S2:
    return gtsam.Cal3_S2(camera.fx, camera.fy, 0.0, camera.cx, camera.cy)


def _robust(noise: gtsam.noiseModel.Base) -> gtsam.noiseModel.Robust:
    return gtsam.noiseModel.Robust.Create(gtsam.noiseModel.mEstimator.Huber.Create(HUBER_K), noise)


def _rigid(pose: gtsam.Pose3) -> RigidTransform:
    return rigid(pose.rotation().matrix(), pose.translation())
