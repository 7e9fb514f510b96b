"""Bundle adjustment with GTSAM: poses, landmarks and optionally the intrinsics of the shared camera."""

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
    AdjustedBundle,
    Bundle,
    IntrinsicsPrior,
    reprojection_errors,
    undistorted_pixels,
)
from slam.mapping.bundle_weights import (
    FIXED_INTRINSICS_SIGMA,
    FIXED_SIGMA,
    FOCAL_PRIOR_WEIGHT,
    HUBER_K,
    SCALE_SIGMA,
    WEAK_POINT_SIGMA,
)

POINT = 1 << 40  # first key of the landmarks, above all keyframe keys
CALIBRATION = 1 << 50  # key of the shared camera
BODY_FROM_CAM = (1 << 50) + 1  # key of the pose of the camera in the body, which is the identity


class GtsamBundleAdjuster:
    """Levenberg-Marquardt over projection factors with a Huber kernel."""

    def refine(
        self, bundle: Bundle, *, noise_px: float, iterations: int, relative_tolerance: float = 1e-5
    ) -> AdjustedBundle:
        """As `BundleAdjuster.refine`; a distortion that is not observable is fixed, and the problem solved again.

        So is a focal length that contradicts its prior.
        """
        parameters = gtsam.LevenbergMarquardtParams()
        parameters.setMaxIterations(iterations)
        parameters.setRelativeErrorTol(relative_tolerance)
        parameters.setLinearSolverType("SEQUENTIAL_CHOLESKY")  # 10 % faster than multifrontal, on maps of any size
        while True:
            graph, start = _factor_graph(bundle, noise_px)
            solution, problem = _solve(graph, start, parameters)
            if problem:
                return _unchanged(bundle, problem)
            observable = None if bundle.lens is None else _observable_part(bundle.lens, graph, solution)
            if observable == bundle.lens:
                return _adjusted(bundle, solution)
            bundle = replace(bundle, lens=observable)


# --- the factor graph ---------------------------------------------------------------------------------


def _factor_graph(bundle: Bundle, noise_px: float) -> tuple[gtsam.NonlinearFactorGraph, gtsam.Values]:
    """The factors of a bundle, and the initial values."""
    graph, start = gtsam.NonlinearFactorGraph(), gtsam.Values()
    poses = {k: gtsam.Pose3(pose.as_matrix()) for k, pose in bundle.world_from_cam.items()}
    for k, pose in poses.items():
        start.insert(k, pose)
    for n, point in enumerate(bundle.points_world):
        start.insert(POINT + n, point)
    if bundle.lens is not None:
        _add_projections_of_free_camera(graph, start, bundle, bundle.lens, noise_px)
    else:
        _add_projections(graph, bundle, poses, noise_px)
    _add_pairs(graph, bundle)
    _fix_gauge(graph, start, bundle)
    _fix_unconstrained(graph, start)
    return graph, start


def _add_projections(
    graph: gtsam.NonlinearFactorGraph, bundle: Bundle, poses: Mapping[int, gtsam.Pose3], noise_px: float
) -> None:
    """Projection factors; an observation in a fixed keyframe constrains the landmark only, which is faster to solve."""
    noise = _robust(gtsam.noiseModel.Isotropic.Sigma(2, noise_px))
    K = {k: _calibration(camera) for k, camera in bundle.cameras.items()}
    fixed_cameras = {k: gtsam.PinholeCameraCal3_S2(poses[k], K[k]) for k in bundle.fixed}
    factor, fixed_factor = gtsam.GenericProjectionFactorCal3_S2, gtsam.TriangulationFactorCal3_S2
    rows = zip(bundle.keyframe_of.tolist(), bundle.point_of.tolist(), bundle.pixels, strict=True)
    for k, n, pixel in rows:
        if k in fixed_cameras:
            graph.add(fixed_factor(fixed_cameras[k], pixel, noise, POINT + n))
        else:
            graph.add(factor(pixel, noise, k, POINT + n, K[k]))


def _add_projections_of_free_camera(
    graph: gtsam.NonlinearFactorGraph, start: gtsam.Values, bundle: Bundle, prior: IntrinsicsPrior, noise_px: float
) -> None:
    """Projection factors with one shared camera whose intrinsics are free.

    The factor with a body-sensor offset is used: the plain one prints to stdout if a point is behind the camera.
    """
    camera = next(iter(bundle.cameras.values()))
    given = _free_calibration(camera)
    expected = given if prior.focal is None else _free_calibration(_refocused(camera, prior.focal.focal_px))
    start.insert(CALIBRATION, given)
    start.insert(BODY_FROM_CAM, gtsam.Pose3())
    graph.add(gtsam.PriorFactorCal3DS2(CALIBRATION, expected, _intrinsics_noise(camera, prior)))
    graph.add(gtsam.PriorFactorPose3(BODY_FROM_CAM, gtsam.Pose3(), gtsam.noiseModel.Isotropic.Sigma(6, FIXED_SIGMA)))
    noise = _robust(gtsam.noiseModel.Isotropic.Sigma(2, noise_px))
    factor = gtsam_unstable.ProjectionFactorPPPCCal3DS2
    rows = zip(bundle.keyframe_of.tolist(), bundle.point_of.tolist(), bundle.pixels, strict=True)
    for k, n, pixel in rows:
        graph.add(factor(pixel, noise, k, BODY_FROM_CAM, POINT + n, CALIBRATION))


def _add_pairs(graph: gtsam.NonlinearFactorGraph, bundle: Bundle) -> None:
    """Factors of the pair estimates: rotation and direction of translation, or the rotation alone."""
    for i, j, estimate in bundle.pairs:
        rotation = gtsam.Rot3(estimate.i_from_j_rotation)
        rotation_sigma, direction_sigma = estimate.rotation_sigma_rad, estimate.direction_sigma_rad
        if estimate.i_from_j_direction is None:
            # Only the rotation is known: the sigma of the translation is larger than any map.
            noise = gtsam.noiseModel.Diagonal.Sigmas(np.array([rotation_sigma] * 3 + [1e6] * 3))
            graph.add(gtsam.BetweenFactorPose3(i, j, gtsam.Pose3(rotation, np.zeros(3)), _robust(noise)))
        else:
            essential = gtsam.EssentialMatrix(rotation, gtsam.Unit3(estimate.i_from_j_direction))
            noise = gtsam.noiseModel.Diagonal.Sigmas(np.array([rotation_sigma] * 3 + [direction_sigma] * 2))
            graph.add(gtsam.EssentialMatrixConstraint(i, j, essential, _robust(noise)))


def _fix_gauge(graph: gtsam.NonlinearFactorGraph, start: gtsam.Values, bundle: Bundle) -> None:
    """Priors on the fixed keyframes; with fewer than two, on the first pose and the distance to the farthest one."""
    noise = gtsam.noiseModel.Isotropic.Sigma(6, FIXED_SIGMA)
    fixed = sorted(bundle.fixed) or [min(bundle.world_from_cam)]
    for k in fixed:
        graph.add(gtsam.PriorFactorPose3(k, start.atPose3(k), noise))
    if len(fixed) < 2:
        first = start.atPose3(fixed[0])
        distances = {k: first.range(start.atPose3(k)) for k in bundle.world_from_cam}
        farthest = max(distances, key=lambda k: (distances[k], -k))
        if distances[farthest] > 0:
            range_noise = gtsam.noiseModel.Isotropic.Sigma(1, SCALE_SIGMA * distances[farthest])
            graph.add(gtsam.RangeFactorPose3(fixed[0], farthest, distances[farthest], range_noise))


def _fix_unconstrained(graph: gtsam.NonlinearFactorGraph, start: gtsam.Values) -> None:
    """Priors on all values that no factor constrains, because the solver fails on them."""
    for key in sorted(set(start.keys()) - set(graph.keyVector())):
        if key < POINT:
            noise = gtsam.noiseModel.Isotropic.Sigma(6, FIXED_SIGMA)
            graph.add(gtsam.PriorFactorPose3(key, start.atPose3(key), noise))
        else:
            noise = gtsam.noiseModel.Isotropic.Sigma(3, FIXED_SIGMA)
            graph.add(gtsam.PriorFactorPoint3(key, start.atPoint3(key), noise))


# --- the solution -------------------------------------------------------------------------------------


def _solve(
    graph: gtsam.NonlinearFactorGraph, start: gtsam.Values, parameters: gtsam.LevenbergMarquardtParams
) -> tuple[gtsam.Values, str]:
    """The solution, and why it is unusable; empty if it is usable."""
    try:
        solution = gtsam.LevenbergMarquardtOptimizer(graph, start, parameters).optimize()
    except RuntimeError as error:  # GTSAM's error for a singular linear system
        return start, " ".join(str(error).split())
    return solution, "" if np.isfinite(graph.error(solution)) else "the solution is not finite"


def _adjusted(bundle: Bundle, solution: gtsam.Values) -> AdjustedBundle:
    """Poses, points and errors of a solution; the errors are those of the corrected camera."""
    lens = CorrectionStep()
    if bundle.lens is not None:
        lens = _correction(bundle.lens, next(iter(bundle.cameras.values())), solution)
        bundle = undistorted_pixels(bundle, lens)
    world_from_cam = {k: _rigid(solution.atPose3(k)) for k in bundle.world_from_cam}
    points = np.array([solution.atPoint3(POINT + n) for n in range(len(bundle.points_world))]).reshape(-1, 3)
    errors = reprojection_errors(bundle, world_from_cam, points)
    return AdjustedBundle(world_from_cam=world_from_cam, points_world=points, error_px=errors, lens=lens)


def _unchanged(bundle: Bundle, problem: str) -> AdjustedBundle:
    """The bundle as it was, after a failure of the solver."""
    poses, points = dict(bundle.world_from_cam), bundle.points_world
    errors = reprojection_errors(bundle, poses, points)
    return AdjustedBundle(world_from_cam=poses, points_world=points, error_px=errors, problem=problem)


def _intrinsics_noise(camera: Camera, prior: IntrinsicsPrior) -> gtsam.noiseModel.Gaussian:
    """Noise model of the prior of fx, fy, skew, cx, cy, k1, k2, p1, p2.

    All except k1 and k2 are fixed, and with a prior of the focal length the ratio of fx and fy instead of both.
    """
    sigmas = FIXED_INTRINSICS_SIGMA * np.array([camera.mean_focal] * 5 + [1.0] * 4)
    if prior.radial_sigma:
        sigmas[5:7] = prior.radial_sigma
    covariance = np.diag(sigmas**2)
    if prior.focal is not None:
        along = np.array([camera.fx, camera.fy]) * prior.focal.sigma / FOCAL_PRIOR_WEIGHT
        covariance[:2, :2] += np.outer(along, along)
    return gtsam.noiseModel.Gaussian.Covariance(covariance)


def _intrinsics_covariance(graph: gtsam.NonlinearFactorGraph, solution: gtsam.Values) -> FloatArray | None:
    """Marginal covariance (9, 9) of fx, fy, skew, cx, cy, k1, k2, p1, p2; None if they are unobservable."""
    constrained = gtsam.NonlinearFactorGraph(graph)
    keys: list[int] = list(solution.keys())  # gtsam.Values itself is not iterable
    points = [key for key in keys if POINT <= key < CALIBRATION]
    size = float(np.median([np.linalg.norm(solution.atPoint3(key)) for key in points])) + 1e-9
    noise = gtsam.noiseModel.Isotropic.Sigma(3, WEAK_POINT_SIGMA * size)
    for key in points:  # nothing else constrains a point that has moved behind its cameras
        constrained.add(gtsam.PriorFactorPoint3(key, solution.atPoint3(key), noise))
    try:
        marginals = gtsam.Marginals(constrained, solution)
        return np.asarray(marginals.marginalCovariance(CALIBRATION), dtype=np.float64)
    except RuntimeError:  # GTSAM's error for a singular linear system
        return None


def _observable_part(
    prior: IntrinsicsPrior, graph: gtsam.NonlinearFactorGraph, solution: gtsam.Values
) -> IntrinsicsPrior | None:
    """The prior without what the solution does not determine; None if nothing is left.

    A distortion must be significant with respect to its covariance, and a focal length compatible with its prior.
    """
    estimate = solution.atCal3DS2(CALIBRATION)
    if prior.radial_sigma:
        covariance = _intrinsics_covariance(graph, solution)
        radial = np.array([estimate.k1(), estimate.k2()])
        if covariance is None or _mahalanobis(radial, covariance[5:7, 5:7]) < prior.significant:
            prior = replace(prior, radial_sigma=0.0)
    if prior.focal is not None and not prior.focal.agrees_with(0.5 * (estimate.fx() + estimate.fy())):
        prior = replace(prior, focal=None)
    return prior if prior.radial_sigma or prior.focal is not None else None


def _mahalanobis(values: FloatArray, covariance: FloatArray) -> float:
    return float(np.sqrt(values @ np.linalg.solve(covariance, values)))


def _correction(prior: IntrinsicsPrior, camera: Camera, solution: gtsam.Values) -> CorrectionStep:
    """The correction of the intrinsics by the estimated ones, of which only the free ones count."""
    estimate = solution.atCal3DS2(CALIBRATION)
    radial = (estimate.k1(), estimate.k2()) if prior.radial_sigma else (0.0, 0.0)
    if prior.focal is None:
        return CorrectionStep(radial=radial)
    ratio = 0.5 * (estimate.fx() / camera.fx + estimate.fy() / camera.fy)
    return CorrectionStep((ratio, ratio), radial, is_guess=prior.focal.is_guess)


def _free_calibration(camera: Camera) -> gtsam.Cal3DS2:
    return gtsam.Cal3DS2(camera.fx, camera.fy, 0.0, camera.cx, camera.cy, 0.0, 0.0)


def _refocused(camera: Camera, focal_px: float) -> Camera:
    ratio = focal_px / camera.mean_focal
    return camera.refocused((ratio, ratio))


def _calibration(camera: Camera) -> gtsam.Cal3_S2:
    return gtsam.Cal3_S2(camera.fx, camera.fy, 0.0, camera.cx, camera.cy)


def _robust(noise: gtsam.noiseModel.Base) -> gtsam.noiseModel.Robust:
    return gtsam.noiseModel.Robust.Create(gtsam.noiseModel.mEstimator.Huber.Create(HUBER_K), noise)


def _rigid(pose: gtsam.Pose3) -> RigidTransform:
    return rigid(pose.rotation().matrix(), pose.translation())
