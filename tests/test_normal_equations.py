"""The linear algebra of bundle adjustment against numerical derivatives and dense solutions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from relocalizer.camera import Camera
from relocalizer.geometry import exp_so3, rigid, rotation_matrix, translation_of
from relocalizer.interfaces import PairEstimate
from slam.mapping import bundle_residuals, normal_equations, pair_residuals
from slam.mapping.bundle import CALIBRATED, Bundle, FocalPrior, IntrinsicsPrior, PrincipalPrior
from slam.mapping.bundle_residuals import BundleResiduals
from slam.mapping.bundle_unknowns import INTRINSICS, Unknowns
from slam.mapping.normal_equations import NormalEquations, SingularSystemError, Structure, lower_inverse
from slam.mapping.pair_residuals import inverse_right_jacobian
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster, minimize

CAMERA = Camera(width=640, height=480, fx=500.0, fy=490.0, cx=320.0, cy=240.0)
STEP = 1e-6


@pytest.fixture
def no_kernel(monkeypatch):
    """Least squares: no residual is beyond the thresholds of the kernels."""
    monkeypatch.setattr(pair_residuals, "CAUCHY_C", 1e6)
    monkeypatch.setattr(bundle_residuals, "HUBER_K", 1e6)


def bundle_of(rng, *, keyframes=5, points=20, fixed=(), pairs=True, lens=None, noise=0.3):
    """Keyframes on an arc, whose poses and points are a little off; each observes two thirds of the points."""
    poses = {
        10 * k: rigid(exp_so3([0.02 * k, -0.1 * k, 0.0]), [0.5 * k, 0.05 * k, 0.03 * k * k]) for k in range(keyframes)
    }
    places = rng.uniform([-1.5, -1, 4], [2.0, 1, 7], (points, 3))
    keyframe_of, point_of, pixels = [], [], []
    for k, pose in poses.items():
        seen = np.flatnonzero(np.arange(points) % 3 != k // 10 % 3)
        keyframe_of += [k] * len(seen)
        point_of += seen.tolist()
        exact = CAMERA.project(np.asarray(pose.inv().apply(places[seen])).reshape(-1, 3))
        pixels.append(exact + noise * rng.normal(size=exact.shape))
    return Bundle(
        world_from_cam=poses,
        cameras=dict.fromkeys(poses, CAMERA),
        fixed=frozenset(fixed),
        points_world=places + 0.005 * rng.normal(size=places.shape),
        keyframe_of=np.array(keyframe_of, np.int64),
        point_of=np.array(point_of, np.int64),
        pixels=np.concatenate(pixels),
        pairs=pairs_of(poses, rng) if pairs else [],
        lens=lens,
    )


def pairs_of(poses, rng):
    """The pairs of neighbors, a little off; every second one has no direction."""
    pairs, ids = [], sorted(poses)
    for n, (i, j) in enumerate(pairwise(ids)):
        i_from_j = poses[i].inv() * poses[j]
        direction = translation_of(i_from_j) + 0.02 * rng.normal(size=3)
        known = n % 2 == 0
        estimate = PairEstimate(
            i_from_j_rotation=rotation_matrix(i_from_j) @ exp_so3(0.02 * rng.normal(size=3)),
            i_from_j_direction=direction / np.linalg.norm(direction) if known else None,
            confidence=0.9,
            rotation_sigma_rad=0.05,
            direction_sigma_rad=0.1 if known else np.pi,
            direction_unknown="" if known else "it only turned",
        )
        pairs.append((i, j, estimate))
    return pairs


def problem_of(bundle, noise_px=1.0):
    """Residuals and start."""
    start = Unknowns.of(bundle)
    return BundleResiduals.of(bundle, start, noise_px), start


def moved(residuals, start, x):
    """The start after increments in one vector: moving poses, points, free intrinsics."""
    free, count = residuals.gauge.free, len(start.points)
    poses = np.zeros((len(free), 6))
    split = 6 * (free >= 0).sum()
    poses[free >= 0] = x[:split].reshape(-1, 6)
    intrinsics = np.zeros(INTRINSICS)
    intrinsics[residuals.intrinsics.free] = x[split + 3 * count :]
    return start.moved(poses, x[split : split + 3 * count].reshape(-1, 3), intrinsics)


def stacked(residuals, start, x):
    """All residuals in one vector."""
    unknowns = moved(residuals, start, x)
    at = residuals.evaluate(unknowns)
    prior = residuals.intrinsics.residuals(unknowns)
    return np.concatenate([at.observations.ravel(), at.pairs.ravel(), prior, [residuals.gauge.residual(unknowns)]])


def size_of(residuals, start):
    return 6 * (residuals.gauge.free >= 0).sum() + start.points.size + len(residuals.intrinsics.free)


def numerical_jacobian(function, size):
    steps = STEP * np.eye(size)
    return np.stack([(function(step) - function(-step)) / (2 * STEP) for step in steps], axis=1)


KINDS = {
    "free": {},
    "some fixed": {"fixed": (0, 30)},
    "one fixed": {"fixed": (20,)},
    "no pairs": {"pairs": False},
    "distortion": {"lens": CALIBRATED},
    "focal length": {"lens": IntrinsicsPrior(focal=FocalPrior(510.0, 0.03))},
    "principal point": {"lens": IntrinsicsPrior(principal=PrincipalPrior(322.0, 237.0, 8.0))},
    "all intrinsics": {
        "lens": replace(CALIBRATED, focal=FocalPrior(510.0, 0.03), principal=PrincipalPrior(322.0, 237.0, 8.0))
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "reduced"), [(99, 99), (0, 99), (0, 0)], ids=["dense", "sparse rows", "sparse"])
@pytest.mark.usefixtures("no_kernel")
def test_the_step_is_that_of_the_whole_system(rng, monkeypatch, kind, rows, reduced):
    monkeypatch.setattr(normal_equations, "MAX_DENSE_ROWS", rows)
    monkeypatch.setattr(normal_equations, "MAX_DENSE_REDUCED", reduced)
    residuals, start = problem_of(bundle_of(rng, **KINDS[kind]))
    free = residuals.intrinsics.free
    intrinsics = np.zeros(INTRINSICS)
    intrinsics[free] = np.array([0.03, 0.02, -0.01, 0.01, -0.02])[free]
    start = replace(start, intrinsics=intrinsics)
    at = residuals.evaluate(start)
    step = NormalEquations(Structure(residuals, len(start.points)), residuals, at).solve(1e-12)

    J = numerical_jacobian(lambda x: stacked(residuals, start, x), size_of(residuals, start))
    expected = np.linalg.lstsq(J, -stacked(residuals, start, np.zeros(J.shape[1])), rcond=1e-12)[0]
    poses = step.poses[residuals.gauge.free >= 0]
    found = np.concatenate([poses.ravel(), step.points.ravel(), step.intrinsics[free]])
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_more_a_pair_is_wrong_the_less_it_pulls(rng):
    bundle = bundle_of(rng, noise=0.1)
    i, j, estimate = bundle.pairs[0]

    def refined(pairs):
        return SchurBundleAdjuster().refine(replace(bundle, pairs=pairs), noise_px=0.8, iterations=50).world_from_cam

    def pull(angle):
        turned = exp_so3([0.0, angle, 0.0]) @ estimate.i_from_j_rotation
        wrong = replace(estimate, i_from_j_rotation=turned, rotation_sigma_rad=0.005)
        moved = refined([(i, j, wrong)])
        return max(np.linalg.norm(translation_of(pose.inv() * moved[k])) for k, pose in refined([]).items())

    assert pull(0.1) > 2 * pull(0.3) > 4 * pull(0.9)


@pytest.mark.usefixtures("no_kernel")
def test_a_landmark_observed_twice_by_one_keyframe_counts_twice(rng):
    bundle = bundle_of(rng)
    doubled = replace(
        bundle,
        keyframe_of=np.append(bundle.keyframe_of, bundle.keyframe_of[3]),
        point_of=np.append(bundle.point_of, bundle.point_of[3]),
        pixels=np.vstack([bundle.pixels, bundle.pixels[3] + 1.0]),
    )
    residuals, start = problem_of(doubled)
    at = residuals.evaluate(start)
    step = NormalEquations(Structure(residuals, len(start.points)), residuals, at).solve(1e-12)
    J = numerical_jacobian(lambda x: stacked(residuals, start, x), size_of(residuals, start))
    expected = np.linalg.lstsq(J, -stacked(residuals, start, np.zeros(J.shape[1])), rcond=1e-12)[0]
    np.testing.assert_allclose(step.poses[1:].ravel(), expected[:24], atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("no_kernel")
def test_the_minimum_is_that_of_a_general_solver(rng, kind):
    residuals, start = problem_of(bundle_of(rng, **KINDS[kind]))
    solution, problem = minimize(residuals, start, 50, 1e-12)
    general = least_squares(lambda x: stacked(residuals, start, x), np.zeros(size_of(residuals, start)), xtol=1e-12)
    assert problem == ""
    assert solution.cost == pytest.approx(general.cost, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_at_a_robust_minimum_no_small_step_lowers_the_cost(rng, kind):
    bundle = bundle_of(rng, **KINDS[kind])
    pixels = bundle.pixels.copy()
    pixels[::9] += rng.normal(scale=20.0, size=pixels[::9].shape)
    residuals, start = problem_of(replace(bundle, pixels=pixels), noise_px=0.5)
    solution, _ = minimize(residuals, start, 200, 1e-14)
    for _ in range(100):
        step = 1e-4 * rng.normal(size=size_of(residuals, start))
        assert residuals.evaluate(moved(residuals, solution.unknowns, step)).cost > solution.cost


@pytest.mark.usefixtures("no_kernel")
def test_the_information_of_the_distortion_is_that_of_the_whole_system(rng):
    residuals, start = problem_of(bundle_of(rng, lens=CALIBRATED))
    at = residuals.evaluate(start)
    equations = NormalEquations(Structure(residuals, len(start.points)), residuals, at)
    J = numerical_jacobian(lambda x: stacked(residuals, start, x), size_of(residuals, start))
    covariance = np.linalg.inv(J.T @ J)[-2:, -2:]
    np.testing.assert_allclose(np.linalg.inv(equations.intrinsics_information(0.0)), covariance, rtol=1e-4)


def test_what_nothing_determines_is_singular_without_damping(rng):
    bundle = bundle_of(rng, lens=CALIBRATED)
    once = np.flatnonzero(bundle.point_of == 4)[1:]
    keep = np.setdiff1d(np.arange(len(bundle.pixels)), once)
    bundle = replace(
        bundle, keyframe_of=bundle.keyframe_of[keep], point_of=bundle.point_of[keep], pixels=bundle.pixels[keep]
    )
    residuals, start = problem_of(bundle)
    equations = NormalEquations(Structure(residuals, len(start.points)), residuals, residuals.evaluate(start))
    with pytest.raises(SingularSystemError):
        equations.intrinsics_information(-1.0)
    assert np.isfinite(equations.intrinsics_information(1e-6)).all()
    assert np.isfinite(equations.solve(1e-5).points).all()


def test_the_derivative_of_the_logarithm(rng):
    vectors = np.vstack([rng.uniform(-1.7, 1.7, (5, 3)), 1e-3 * rng.normal(size=3), np.zeros(3)])
    for vector, inverse in zip(vectors, inverse_right_jacobian(vectors), strict=True):
        log = lambda step, vector=vector: (Rotation.from_rotvec(vector) * Rotation.from_rotvec(step)).as_rotvec()  # noqa: E731
        np.testing.assert_allclose(inverse, numerical_jacobian(log, 3), atol=1e-6)


def test_inverses_of_triangular_matrices(rng):
    L = np.tril(rng.normal(size=(7, 3, 3))) + 2.0 * np.eye(3)
    np.testing.assert_allclose(lower_inverse(L) @ L, np.broadcast_to(np.eye(3), L.shape), atol=1e-12)


def test_the_order_of_observations_and_keyframes_does_not_matter(rng):
    bundle = bundle_of(rng)
    order = rng.permutation(len(bundle.pixels))
    shuffled = replace(
        bundle,
        world_from_cam=dict(reversed(bundle.world_from_cam.items())),
        keyframe_of=bundle.keyframe_of[order],
        point_of=bundle.point_of[order],
        pixels=bundle.pixels[order],
    )
    a, b = (SchurBundleAdjuster().refine(x, noise_px=0.8, iterations=5) for x in (bundle, shuffled))
    assert a.points_world.tobytes() == b.points_world.tobytes()
    np.testing.assert_array_equal(a.error_px[order], b.error_px)
