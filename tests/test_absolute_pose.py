"""The pose of one frame: it converges, resists gross errors, and is as sure as it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relocalizer.absolute_pose import (
    CHI2_2DOF_95,
    PosePrior,
    optimize_pose,
    pair_prior,
    pose_information,
    rotate_pixels,
    search_pose,
)
from relocalizer.camera import Camera
from relocalizer.geometry import (
    exp_so3,
    log_so3,
    rigid,
    rotation_angle,
    rotation_matrix,
    translation_of,
)
from relocalizer.interfaces import PairEstimate

CAMERA = Camera(width=640, height=480, fx=500.0, fy=480.0, cx=310.0, cy=250.0)
NOISE_PX = 0.8


class Sight:
    """Points in front of a camera somewhere in the world, and where it sees them."""

    def __init__(self, seed, count=80, noise=0.0):
        rng = np.random.default_rng(seed)
        self.pose = rigid(exp_so3(rng.normal(size=3)), rng.normal(size=3))
        in_cam = rng.uniform([-1, -0.8, 2], [1, 0.8, 6], (count, 3)) * [[2, 2, 1]]
        self.points = np.asarray(self.pose.apply(in_cam))
        self.pixels = CAMERA.project(in_cam) + rng.normal(0, noise, (count, 2)) * (noise > 0)

    def near(self, rng, angle=0.1, distance=0.2):
        """A start that is off by about this much."""
        return self.pose * rigid(exp_so3(angle * rng.normal(size=3)), distance * rng.normal(size=3))

    def fit(self, start, **changes):
        return optimize_pose(self.points, self.pixels, CAMERA, start, noise_px=NOISE_PX, **changes)


def error_of(fit_pose, pose):
    """(radians, map units) between two poses."""
    between = pose.inv() * fit_pose
    return rotation_angle(rotation_matrix(between)), float(np.linalg.norm(translation_of(between)))


# Refinement


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_without_noise_a_start_far_off_comes_to_the_truth(seed):
    sight, rng = Sight(seed), np.random.default_rng(seed)
    fit = sight.fit(sight.near(rng))
    assert max(error_of(fit.world_from_cam, sight.pose)) < 1e-6
    assert fit.inliers.all()
    assert fit.inlier_count == 80


@pytest.mark.parametrize("seed", range(20))
def test_three_of_ten_pixels_may_be_anywhere(seed):
    sight, rng = Sight(seed, count=100, noise=0.5), np.random.default_rng(seed)
    sight.pixels[:30] = rng.uniform(0, [640, 480], (30, 2))
    far_off = np.linalg.norm(sight.pixels[:30] - Sight(seed, count=100, noise=0.5).pixels[:30], axis=1) > 10
    fit = sight.fit(sight.near(rng, 0.02, 0.05))
    angle, distance = error_of(fit.world_from_cam, sight.pose)
    assert np.degrees(angle) < 0.2
    assert distance < 0.015
    assert not fit.inliers[:30][far_off].any()
    assert fit.inliers[30:].mean() > 0.95


@pytest.mark.parametrize("seed", range(5))
def test_the_end_is_least_squares_over_the_inliers_alone(seed):
    sight, rng = Sight(seed, count=200, noise=NOISE_PX), np.random.default_rng(seed)
    sight.pixels[:20] += rng.uniform(4, 9, (20, 2))  # near enough to keep pulling under any kernel that never lets go
    fit = sight.fit(sight.near(rng, 0.01, 0.02))
    pixels = sight.pixels.copy()
    sight.points, sight.pixels = sight.points[fit.inliers], pixels[fit.inliers]
    gradient = numeric_gradient(sight, fit.world_from_cam)
    information = sight_information(sight, fit.world_from_cam)
    step = np.linalg.solve(information, gradient)
    sigmas = np.sqrt(np.diag(np.linalg.inv(information)))
    assert np.abs(step / sigmas).max() < 0.05  # nothing left to gain


def numeric_gradient(sight, pose):
    """Of half the squared error in sigmas, by a left perturbation of cam_from_world (central differences)."""

    def cost(delta):
        moved = rigid(exp_so3(delta[:3]), delta[3:]) * pose.inv()
        off = CAMERA.project(np.asarray(moved.apply(sight.points))) - sight.pixels
        return 0.5 * (off**2).sum() / NOISE_PX**2

    h = 1e-5
    return np.array([(cost(h * e) - cost(-h * e)) / (2 * h) for e in np.eye(6)])


def pixel_jacobian(points, pose):
    """(2 N, 6) of the pixels by a left perturbation of cam_from_world (central differences)."""

    def pixels(delta):
        moved = rigid(exp_so3(delta[:3]), delta[3:]) * pose.inv()
        return CAMERA.project(np.asarray(moved.apply(points))).ravel()

    h = 1e-6
    return np.stack([(pixels(h * e) - pixels(-h * e)) / (2 * h) for e in np.eye(6)], axis=1)


def sight_information(sight, pose):
    J = pixel_jacobian(sight.points, pose)
    return J.T @ J / NOISE_PX**2


def left_error(fit_pose, pose):
    """(6,) left perturbation of cam_from_world that turns the true pose into the fitted one."""
    delta = fit_pose.inv() * pose
    return np.concatenate([log_so3(rotation_matrix(delta)), translation_of(delta)])


def test_the_information_is_what_finite_differences_of_the_pixels_give():
    sight = Sight(1)
    fit = sight.fit(sight.pose)
    assert np.allclose(fit.information, sight_information(sight, sight.pose), rtol=1e-4, atol=1.0)


@pytest.mark.parametrize("count", [20, 80])
def test_the_pose_scatters_as_its_information_says(count):
    truth, errors, informations = Sight(3, count=count), [], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        sight = Sight(3, count=count)
        sight.pixels = sight.pixels + rng.normal(0, NOISE_PX, sight.pixels.shape)
        fit = sight.fit(truth.pose)
        errors.append(left_error(fit.world_from_cam, truth.pose))
        informations.append(fit.information)
    real = np.std(errors, axis=0)
    stated = np.sqrt(np.diag(np.linalg.inv(np.mean(informations, axis=0))))
    assert ((real / stated > 1 / 1.5) & (real / stated < 1.5)).all()


def test_inliers_are_what_noise_alone_would_leave():
    counts = [Sight(seed, count=200, noise=NOISE_PX) for seed in range(20)]
    share = np.mean([s.fit(s.pose).inliers.mean() for s in counts])
    assert share == pytest.approx(0.95, abs=0.02)


def test_points_behind_the_camera_are_no_inliers_and_do_not_pull():
    sight = Sight(4, count=60)
    behind = np.asarray(sight.pose.apply(np.tile([0.1, 0.1, -3.0], (30, 1))))
    sight.points = np.vstack([sight.points, behind])
    sight.pixels = np.vstack([sight.pixels, np.full((30, 2), 200.0)])
    fit = sight.fit(sight.near(np.random.default_rng(4), 0.02, 0.05))
    assert max(error_of(fit.world_from_cam, sight.pose)) < 1e-6
    assert not fit.inliers[60:].any()


def test_without_points_the_start_stays_and_nothing_is_known():
    sight = Sight(5, count=0)
    fit = sight.fit(sight.pose)
    assert max(error_of(fit.world_from_cam, sight.pose)) < 1e-12
    assert np.array_equal(fit.information, np.zeros((6, 6)))


def test_refinement_changes_none_of_its_inputs():
    sight = Sight(6)
    points, pixels = sight.points.copy(), sight.pixels.copy()
    sight.fit(sight.near(np.random.default_rng(6)))
    assert np.array_equal(points, sight.points)
    assert np.array_equal(pixels, sight.pixels)


# Information of uncertain points


def test_points_known_exactly_tell_what_the_pixels_tell():
    sight = Sight(7)
    stated = pose_information(sight.points, np.zeros_like(sight.points), CAMERA, sight.pose, NOISE_PX)
    assert np.allclose(stated, sight_information(sight, sight.pose), rtol=1e-4, atol=1.0)


def test_a_pixel_along_the_image_of_an_unsure_depth_counts_by_the_sum_of_both_variances():
    sight, rng = Sight(8, count=30), np.random.default_rng(8)
    along = 0.1 * rng.normal(size=(30, 3))
    stated = pose_information(sight.points, along, CAMERA, sight.pose, NOISE_PX)
    expected, h = np.zeros((6, 6)), 1e-6
    for point, deviation in zip(sight.points, along, strict=True):
        ends = [CAMERA.project(np.asarray(sight.pose.inv().apply([point + s * h * deviation])))[0] for s in (1, -1)]
        smear = (ends[0] - ends[1]) / (2 * h)
        J = pixel_jacobian(point[None], sight.pose)
        expected += J.T @ np.linalg.inv(NOISE_PX**2 * np.eye(2) + np.outer(smear, smear)) @ J
    assert np.allclose(stated, expected, rtol=1e-4, atol=1e-4 * np.trace(expected))


def test_points_of_unsure_depth_tell_less_and_never_more():
    sight = Sight(8)
    along = sight.points - translation_of(sight.pose) + [0.5, 0.2, 0.0]
    sure, unsure = (
        pose_information(sight.points, share * along, CAMERA, sight.pose, NOISE_PX) for share in (0.001, 0.1)
    )
    assert np.linalg.eigvalsh(sure - unsure).min() > -1e-6 * np.trace(sure)
    assert np.trace(unsure) < 0.9 * np.trace(sure)


def moved_along_the_first_ray(seed, share):
    """A sight, and a deviation of that share of every depth by which one point in four lies too near or too far."""
    sight = Sight(seed)
    along = share * (sight.points - translation_of(sight.pose) - [0.4, 0.0, 0.0])  # found from somewhere beside
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], len(sight.points)) * (np.arange(len(sight.points)) % 4 == 0)
    return sight, along, sight.points + 1.5 * signs[:, None] * along


@pytest.mark.parametrize("seed", range(3))
def test_a_point_of_unsure_depth_may_lie_off_along_its_ray_and_hardly_pulls(seed):
    sight, along, points = moved_along_the_first_ray(seed, 0.2)
    unsure = optimize_pose(points, sight.pixels, CAMERA, sight.pose, noise_px=NOISE_PX, depth_sigma_world=along)
    exact = optimize_pose(points, sight.pixels, CAMERA, sight.pose, noise_px=NOISE_PX)
    assert unsure.inlier_count == len(points)
    assert exact.inlier_count < 0.95 * len(points)


def test_a_point_of_unsure_depth_may_not_lie_off_across_its_ray():
    sight, along, _ = moved_along_the_first_ray(0, 0.2)
    ray = np.asarray(sight.pose.inv().apply(sight.points + along)).reshape(-1, 3)
    smear = CAMERA.project(ray) - sight.pixels
    across = np.stack([-smear[:, 1], smear[:, 0]], axis=1) / np.linalg.norm(smear, axis=1, keepdims=True)
    wrong = np.arange(len(along)) % 4 == 0
    pixels = sight.pixels + np.where(wrong[:, None], 6.0 * NOISE_PX * across, 0.0)
    fit = optimize_pose(sight.points, pixels, CAMERA, sight.pose, noise_px=NOISE_PX, depth_sigma_world=along)
    assert not fit.inliers[wrong].any()
    assert fit.inliers[~wrong].all()


def test_the_information_of_a_fit_to_unsure_points_is_what_such_points_tell():
    sight, along, _ = moved_along_the_first_ray(1, 0.1)
    fit = optimize_pose(sight.points, sight.pixels, CAMERA, sight.pose, noise_px=NOISE_PX, depth_sigma_world=along)
    stated = pose_information(sight.points, along, CAMERA, sight.pose, NOISE_PX)
    assert fit.information == pytest.approx(stated, rel=1e-6, abs=1e-6 * np.abs(stated).max())


def test_points_behind_the_camera_tell_nothing():
    sight = Sight(9)
    behind = np.asarray(sight.pose.apply([[0.0, 0.0, -2.0]]))
    alone = pose_information(sight.points, np.zeros_like(sight.points), CAMERA, sight.pose, NOISE_PX)
    more = np.vstack([sight.points, behind])
    assert np.array_equal(pose_information(more, np.zeros_like(more), CAMERA, sight.pose, NOISE_PX), alone)


@pytest.mark.parametrize("times", [1e6, 1e12, 1e30])
def test_landmarks_whose_depth_is_as_good_as_unknown_tell_what_is_across_their_rays(times):
    sight, along, _ = moved_along_the_first_ray(2, 0.1)
    unsure = pose_information(sight.points, 1e3 * along, CAMERA, sight.pose, NOISE_PX)
    stated = pose_information(sight.points, times * along, CAMERA, sight.pose, NOISE_PX)
    assert stated == pytest.approx(unsure, rel=1e-2, abs=1e-2 * np.abs(unsure).max())


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e200])
def test_numbers_that_no_pose_can_be_fitted_to_leave_the_pose_where_it_was(wrong):
    sight = Sight(3)
    pixels = np.full_like(sight.pixels, wrong)
    fit = optimize_pose(sight.points, pixels, CAMERA, sight.pose, noise_px=NOISE_PX)
    assert np.allclose(fit.world_from_cam.as_matrix(), sight.pose.as_matrix())
    assert fit.inlier_count == 0


# Priors


def estimate(R, d, *, rotation_sigma=0.01, direction_sigma=0.05):
    return PairEstimate(
        i_from_j_rotation=R,
        i_from_j_direction=d,
        confidence=0.9,
        rotation_sigma_rad=rotation_sigma,
        direction_sigma_rad=direction_sigma,
        direction_unknown="" if d is not None else "it only turned",
    )


I_POSE = rigid(exp_so3([0.3, -0.2, 0.5]), [1.0, 2.0, 3.0])
R_IJ = exp_so3([0.05, 0.2, -0.1])
D_IJ = np.array([2.0, 1.0, 2.0]) / 3.0


def pulled(start, prior):
    """Where a prior alone takes a pose."""
    return optimize_pose(np.zeros((0, 3)), np.zeros((0, 2)), CAMERA, start, noise_px=1.0, prior=prior).world_from_cam


def moved_in_i(pose, step):
    """The pose with its center moved by a step given in i's axes."""
    return rigid(rotation_matrix(pose), translation_of(pose) + rotation_matrix(I_POSE) @ np.asarray(step))


def test_the_prior_of_a_pair_is_i_composed_with_its_step():
    prior = pair_prior(I_POSE, estimate(R_IJ, D_IJ), 0.7)
    assert max(error_of(prior.world_from_cam, I_POSE * rigid(R_IJ, 0.7 * D_IJ))) < 1e-12


def test_a_prior_pulls_the_rotation():
    prior = pair_prior(I_POSE, estimate(R_IJ, D_IJ), 0.7)
    off = prior.world_from_cam * rigid(exp_so3([0.02, -0.03, 0.01]), np.zeros(3))
    assert error_of(pulled(off, prior), prior.world_from_cam)[0] < 1e-7


def test_a_prior_pulls_the_direction():
    prior = pair_prior(I_POSE, estimate(R_IJ, D_IJ), 0.7)
    across = np.array([1.0, 0.0, -1.0]) / np.sqrt(2.0)
    back = pulled(moved_in_i(prior.world_from_cam, 0.05 * across), prior)
    assert error_of(back, prior.world_from_cam)[1] < 1e-6


def test_a_prior_does_not_pull_the_length():
    prior = pair_prior(I_POSE, estimate(R_IJ, D_IJ), 0.7)
    farther = moved_in_i(prior.world_from_cam, 0.2 * D_IJ)
    back = pulled(farther, prior)
    assert error_of(back, farther)[1] < 1e-4  # of the 0.2 it is off


def test_a_prior_without_a_direction_pulls_the_rotation_alone():
    prior = pair_prior(I_POSE, estimate(R_IJ, None), 0.7)
    assert np.array_equal(prior.information[3:, 3:], np.zeros((3, 3)))
    off = prior.world_from_cam * rigid(exp_so3([0.02, 0.0, 0.0]), np.zeros(3))
    assert error_of(pulled(off, prior), prior.world_from_cam)[0] < 1e-7


def test_a_prior_of_no_length_knows_no_direction():
    assert np.array_equal(pair_prior(I_POSE, estimate(R_IJ, D_IJ), 0.0).information[3:], np.zeros((3, 6)))


def test_a_prior_is_as_sure_as_its_sigmas():
    information = pair_prior(I_POSE, estimate(R_IJ, D_IJ, rotation_sigma=0.02, direction_sigma=0.1), 0.5).information
    assert np.allclose(np.linalg.eigvalsh(information[:3, :3]), [2500.0] * 3)
    assert np.allclose(np.linalg.eigvalsh(information[3:, 3:]), [0.0, 400.0, 400.0], atol=1e-6)


def test_points_and_a_prior_that_disagree_settle_where_neither_gains():
    sight, rng = Sight(13, count=12), np.random.default_rng(13)
    wrong = sight.pose * rigid(exp_so3([0.003, -0.004, 0.002]), [0.01, 0.005, -0.01])
    root = rng.normal(size=(6, 6))
    prior = PosePrior(wrong, 2e4 * root @ root.T)
    pose = sight.fit(sight.pose, prior=prior).world_from_cam

    def prior_cost(delta):
        moved = rigid(exp_so3(delta[:3]), delta[3:]) * pose.inv()
        off = moved * wrong
        error = np.concatenate([log_so3(rotation_matrix(off)), translation_of(off)])
        return 0.5 * error @ prior.information @ error

    h = 1e-6
    pull = np.array([(prior_cost(h * e) - prior_cost(-h * e)) / (2 * h) for e in np.eye(6)])
    push = numeric_gradient(sight, pose)
    scale = np.sqrt(np.diag(sight_information(sight, pose) + prior.information))
    assert np.abs(pull / scale).max() > 0.1  # they do disagree
    assert np.abs((pull + push) / scale).max() < 0.02


def test_many_points_outvote_a_wrong_prior_and_few_do_not():
    def angle_left(count):
        sight = Sight(10, count=count)
        wrong = sight.pose * rigid(exp_so3([0.0, 0.01, 0.0]), np.zeros(3))
        information = np.zeros((6, 6))
        information[:3, :3] = np.eye(3) / 0.002**2
        return error_of(sight.fit(wrong, prior=PosePrior(wrong, information)).world_from_cam, sight.pose)[0]

    assert angle_left(2) > 0.005
    assert angle_left(300) < 0.001


# Search


@pytest.mark.parametrize("seed", range(5))
def test_a_pose_is_found_from_nothing_among_three_in_ten_wrong(seed):
    sight, rng = Sight(seed, count=60, noise=0.5), np.random.default_rng(seed)
    sight.pixels[:18] = rng.uniform(0, [640, 480], (18, 2))
    found = search_pose(sight.points, sight.pixels, CAMERA, noise_px=1.0)
    angle, distance = error_of(found, sight.pose)
    assert np.degrees(angle) < 1.0
    assert distance < 0.1


def test_the_search_gives_the_same_pose_every_time():
    sight = Sight(11, noise=0.5)
    a, b = (search_pose(sight.points, sight.pixels, CAMERA, noise_px=1.0) for _ in range(2))
    assert a.as_matrix().tobytes() == b.as_matrix().tobytes()


@pytest.mark.parametrize("count", [0, 5])
def test_fewer_than_six_points_are_not_searched(count):
    sight = Sight(12, count=count)
    assert search_pose(sight.points, sight.pixels, CAMERA, noise_px=1.0) is None


# Turning


def test_turning_to_the_right_moves_points_to_the_left_by_hand():
    # j's axes are i's turned by atan(1/2) about y, to the right: what was at the center is now left of it.
    angle = np.arctan(0.5)
    i_from_j = exp_so3([0.0, angle, 0.0])
    moved = rotate_pixels(np.array([[310.0, 250.0], [560.0, 250.0]]), CAMERA, i_from_j.T)
    assert moved == pytest.approx(np.array([[310.0 - 250.0, 250.0], [310.0, 250.0]]), abs=1e-3)


def test_turning_and_turning_back_moves_nothing(rng):
    pixels, R = rng.uniform([100, 100], [500, 400], (50, 2)), exp_so3([0.05, -0.1, 0.2])
    assert np.allclose(rotate_pixels(rotate_pixels(pixels, CAMERA, R), CAMERA, R.T), pixels, atol=1e-2)


def test_the_bound_of_an_inlier_is_the_95_percent_quantile():
    assert 1 - np.exp(-CHI2_2DOF_95 / 2) == pytest.approx(0.95, abs=1e-4)
