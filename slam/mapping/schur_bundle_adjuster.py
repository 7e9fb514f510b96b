"""Bundle adjustment by Levenberg-Marquardt: poses, landmarks and optionally the intrinsics of the shared camera."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import RigidTransform, Rotation

from relocalizer.camera import Camera
from relocalizer.intrinsics_correction import CorrectionStep
from slam.mapping.bundle import AdjustedBundle, Bundle, IntrinsicsPrior, reprojection_errors, undistorted_pixels
from slam.mapping.bundle_residuals import BundleResiduals, Evaluation
from slam.mapping.bundle_unknowns import K1, K2, LOG_FOCAL, Unknowns
from slam.mapping.bundle_weights import WEAK_POINT_SIGMA
from slam.mapping.normal_equations import NormalEquations, SingularSystemError, Structure

FIRST_DAMPING = 1e-5  # damping of the first step, relative to the diagonal of the Hessian
DAMPING_FACTOR = 10.0  # by which the damping is divided after a step that lowers the cost, else multiplied
MIN_DAMPING, MAX_DAMPING = 1e-9, 1e5
NOT_FINITE = "the solution is not finite"


class SchurBundleAdjuster:
    """Levenberg-Marquardt with a Huber kernel; the landmarks are eliminated by the Schur complement."""

    def refine(
        self, bundle: Bundle, *, noise_px: float, iterations: int, relative_tolerance: float = 1e-5
    ) -> AdjustedBundle:
        """As `BundleAdjuster.refine`; a distortion that is not observable is fixed, and the problem solved again.

        So is a focal length or a principal point that contradicts its prior.
        """
        start = Unknowns.of(bundle)
        while True:
            residuals = BundleResiduals.of(bundle, start, noise_px)
            solution, problem = minimize(residuals, start, iterations, relative_tolerance)
            if problem:
                return _unchanged(bundle, problem)
            observable = None if bundle.lens is None else _observable_part(bundle, residuals, solution)
            if observable == bundle.lens:
                return _adjusted(bundle, solution.unknowns)
            bundle = replace(bundle, lens=observable)


def minimize(
    residuals: BundleResiduals, start: Unknowns, iterations: int, relative_tolerance: float
) -> tuple[Evaluation, str]:
    """Levenberg-Marquardt: the solution, and why it is unusable; empty if it is usable.

    Args:
        iterations: maximum number of iterations, each with as many attempts as it takes to lower the cost.
        relative_tolerance: relative decrease of the cost below which it stops.
    """
    at, damping = residuals.evaluate(start), FIRST_DAMPING
    if not np.isfinite(at.cost):
        return at, NOT_FINITE
    structure = Structure(residuals, len(start.points))
    for _ in range(iterations):
        equations = NormalEquations(structure, residuals, at)
        found, problem = None, ""
        while found is None and damping <= MAX_DAMPING:
            found, problem = _attempt(residuals, at, equations, damping)
            damping = damping * DAMPING_FACTOR if found is None else max(damping / DAMPING_FACTOR, MIN_DAMPING)
        if found is None:  # no step lowers the cost, or the system stays singular
            return at, problem
        decrease, at = at.cost - found.cost, found
        if decrease <= relative_tolerance * (at.cost + decrease):
            break
    return at, ""


def _attempt(
    residuals: BundleResiduals, at: Evaluation, equations: NormalEquations, damping: float
) -> tuple[Evaluation | None, str]:
    """The objective after a step; None if it is not lower, with the problem if the step is unusable."""
    try:
        step = equations.solve(damping)
    except SingularSystemError as error:
        return None, str(error)
    moved = at.unknowns.moved(step.poses, step.points, step.intrinsics)
    if not moved.is_finite:
        return None, NOT_FINITE
    candidate = residuals.evaluate(moved)
    return candidate if candidate.cost <= at.cost else None, ""


def _observable_part(bundle: Bundle, residuals: BundleResiduals, solution: Evaluation) -> IntrinsicsPrior | None:
    """The prior of the intrinsics without what the solution does not determine; None if nothing is left.

    A distortion must be significant with respect to its covariance, focal length and principal point compatible with
    their priors.
    """
    prior = bundle.lens
    if prior is None:
        return None
    if prior.radial_sigma and not _is_significant(residuals, solution, prior.significant):
        prior = replace(prior, radial_sigma=0.0)
    camera = next(iter(bundle.cameras.values()))
    focal_px = camera.mean_focal * float(np.exp(solution.unknowns.intrinsics[LOG_FOCAL]))
    if prior.focal is not None and not prior.focal.agrees_with(focal_px):
        prior = replace(prior, focal=None)
    shift = _principal_px(camera, solution.unknowns)
    if prior.principal is not None and not prior.principal.agrees_with(camera.cx + shift[0], camera.cy + shift[1]):
        prior = replace(prior, principal=None)
    return prior if prior.radial_sigma or prior.focal is not None or prior.principal is not None else None


def _principal_px(camera: Camera, solution: Unknowns) -> tuple[float, float]:
    """Shift of the principal point, pixels."""
    x, y = solution.principal.tolist()
    return x * camera.fx, y * camera.fy


def _is_significant(residuals: BundleResiduals, solution: Evaluation, significant: float) -> bool:
    """Whether the Mahalanobis distance of the distortion from zero is at least `significant`."""
    points = solution.unknowns.points
    size = float(np.median(np.linalg.norm(points, axis=1))) + 1e-9
    equations = NormalEquations(Structure(residuals, len(points)), residuals, solution)
    try:
        information = equations.intrinsics_information(1.0 / (WEAK_POINT_SIGMA * size) ** 2)
        rows = np.flatnonzero(np.isin(residuals.intrinsics.free, (K1, K2)))
        covariance = np.linalg.inv(information)[np.ix_(rows, rows)]  # with what else is free marginalized
        radial = solution.unknowns.radial
        return float(radial @ np.linalg.solve(covariance, radial)) >= significant**2
    except (SingularSystemError, np.linalg.LinAlgError):
        return False


def _adjusted(bundle: Bundle, solution: Unknowns) -> AdjustedBundle:
    """Poses, points and errors of a solution; the errors are those of the corrected camera."""
    lens = CorrectionStep()
    if bundle.lens is not None:
        lens = _correction(bundle.lens, next(iter(bundle.cameras.values())), solution)
        bundle = undistorted_pixels(bundle, lens)
    poses = RigidTransform.from_components(solution.centers, Rotation.from_matrix(solution.rotations))
    row_of = {k: n for n, k in enumerate(sorted(bundle.world_from_cam))}
    world_from_cam = {k: bundle.world_from_cam[k] if k in bundle.fixed else poses[row_of[k]] for k in row_of}
    errors = reprojection_errors(bundle, world_from_cam, solution.points)
    return AdjustedBundle(world_from_cam=world_from_cam, points_world=solution.points, error_px=errors, lens=lens)


def _correction(prior: IntrinsicsPrior, camera: Camera, solution: Unknowns) -> CorrectionStep:
    """The correction of the intrinsics, of which those that are fixed are zero."""
    k1, k2 = solution.radial.tolist()
    step = CorrectionStep(radial=(k1, k2), principal_px=_principal_px(camera, solution))
    if prior.focal is None:
        return step
    ratio = float(np.exp(solution.intrinsics[LOG_FOCAL]))
    return replace(step, focal_ratio=(ratio, ratio), is_guess=prior.focal.is_guess)


def _unchanged(bundle: Bundle, problem: str) -> AdjustedBundle:
    """The bundle as it was, after a failure of the solver."""
    poses, points = dict(bundle.world_from_cam), bundle.points_world
    errors = reprojection_errors(bundle, poses, points)
    return AdjustedBundle(world_from_cam=poses, points_world=points, error_px=errors, problem=problem)
