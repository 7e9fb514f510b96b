"""Motion averaging: exact where it can be, robust where pairs lie, and it says so where rays tell no position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import RELOC3R
from scipy.spatial.transform import Rotation

from relocalizer.averaging import (
    NoIntersection,
    RayIntersection,
    RelativePoseObservation,
    average_pose,
    average_rotations,
    chordal_mean,
    geodesic_median,
    intersect_rays,
)
from relocalizer.config import AveragingConfig
from relocalizer.geometry import (
    direction_angle,
    exp_so3,
    log_so3,
    rigid,
    rotation_angle,
    rotation_matrix,
    translation_of,
)
from relocalizer.interfaces import PairEstimate

GATES = {"gate_rad": np.radians(6.0), "max_relative_sigma": 0.4}
seeds = st.integers(0, 2**32 - 1)


def random_pose(rng, spread=2.0):
    return rigid(Rotation.random(rng=rng).as_matrix(), rng.normal(0, spread, 3))


def estimate_of(world_from_i, world_from_j, *, confidence=0.9, rotation_sigma=0.01, direction_sigma=0.05, known=True):
    i_from_j = world_from_i.inv() * world_from_j
    step = translation_of(i_from_j)
    return PairEstimate(
        i_from_j_rotation=rotation_matrix(i_from_j),
        i_from_j_direction=step / np.linalg.norm(step) if known else None,
        confidence=confidence,
        rotation_sigma_rad=rotation_sigma,
        direction_sigma_rad=direction_sigma if known else np.pi,
        direction_unknown="" if known else "one plane",
    )


def wrong(rng):
    d = rng.normal(size=3)
    return PairEstimate(
        i_from_j_rotation=Rotation.random(rng=rng).as_matrix(),
        i_from_j_direction=d / np.linalg.norm(d),
        confidence=0.9,
        rotation_sigma_rad=0.01,
        direction_sigma_rad=0.05,
    )


def exact_sightings(rng, count, truth):
    return [
        RelativePoseObservation(pose, estimate_of(pose, truth)) for pose in (random_pose(rng) for _ in range(count))
    ]


def off(pose, truth):
    between = truth.inv() * pose
    return rotation_angle(rotation_matrix(between)), float(np.linalg.norm(translation_of(between)))


# The whole pose


@given(seeds, st.integers(3, 12))
@settings(max_examples=40, deadline=None)
def test_exact_sightings_give_the_exact_pose(seed, count):
    rng = np.random.default_rng(seed)
    truth = random_pose(rng)
    averaged = average_pose(exact_sightings(rng, count, truth))
    assert averaged.world_from_cam is not None, averaged.position_unknown
    assert max(off(averaged.world_from_cam, truth)) < 1e-6
    assert averaged.rotation_inliers.all()
    assert averaged.position_inliers.all()


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_the_same_estimates_the_other_way_round_give_the_same_pose_once_reversed(seed):
    """query_from_reference, reversed, is reference_from_query: what the pair (query, reference) gives."""
    rng = np.random.default_rng(seed)
    truth, poses = random_pose(rng), [random_pose(rng) for _ in range(5)]
    sightings = [RelativePoseObservation(pose, estimate_of(truth, pose).reversed()) for pose in poses]
    averaged = average_pose(sightings)
    assert averaged.world_from_cam is not None, averaged.position_unknown
    assert max(off(averaged.world_from_cam, truth)) < 1e-6


def test_a_camera_one_step_ahead_of_one_and_one_step_right_of_another_is_found_where_their_sights_cross():
    ahead, right = np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0])
    looks = [(np.zeros(3), ahead), (np.array([-2.0, 0.0, 2.0]), right)]
    sightings = [
        RelativePoseObservation(
            rigid(np.eye(3), center),
            PairEstimate(
                i_from_j_rotation=exp_so3([0.0, 0.3, 0.0]),
                i_from_j_direction=direction,
                confidence=1.0,
                rotation_sigma_rad=0.01,
                direction_sigma_rad=0.02,
            ),
        )
        for center, direction in looks
    ]
    averaged = average_pose(sightings)
    np.testing.assert_allclose(averaged.position, [0.0, 0.0, 2.0], atol=1e-9)
    np.testing.assert_allclose(averaged.rotation, exp_so3([0.0, 0.3, 0.0]), atol=1e-9)


def test_one_view_gives_the_rotation_and_says_why_it_gives_no_position(rng):
    truth = random_pose(rng)
    [sighting] = exact_sightings(rng, 1, truth)
    averaged = average_pose([sighting])
    assert rotation_angle(averaged.rotation.T @ rotation_matrix(truth)) < 1e-9
    assert averaged.position is None
    assert averaged.world_from_cam is None
    assert averaged.covariance is None
    assert averaged.position_unknown == "1 of 1 views give a direction, 2 needed for a position"


def test_views_without_a_direction_still_have_their_say_in_the_rotation(rng):
    truth = random_pose(rng)
    poses = [random_pose(rng) for _ in range(3)]
    averaged = average_pose([RelativePoseObservation(p, estimate_of(p, truth, known=False)) for p in poses])
    assert rotation_angle(averaged.rotation.T @ rotation_matrix(truth)) < 1e-9
    assert averaged.position_unknown == "0 of 3 views give a direction, 2 needed for a position"


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_two_wrong_pairs_in_five_change_nothing(seed):
    rng = np.random.default_rng(seed)
    truth = random_pose(rng)
    sightings = [
        *exact_sightings(rng, 6, truth),
        *[RelativePoseObservation(random_pose(rng), wrong(rng)) for _ in range(4)],
    ]
    averaged = average_pose([sightings[k] for k in rng.permutation(10)])
    assert averaged.world_from_cam is not None, averaged.position_unknown
    assert max(off(averaged.world_from_cam, truth)) < 1e-6


def test_cameras_on_one_line_with_the_unknown_one_leave_its_place_on_the_line_open(rng):
    truth = rigid(np.eye(3), [0.0, 0.0, 5.0])
    poses = [rigid(exp_so3(rng.normal(0, 0.2, 3)), [0.0, 0.0, z]) for z in (0.0, 1.0, 2.0, 7.0)]
    averaged = average_pose([RelativePoseObservation(p, estimate_of(p, truth)) for p in poses])
    assert averaged.position is None
    assert averaged.position_unknown == "4 rays lie within 0.0 deg of one line: no position along it"
    assert rotation_angle(averaged.rotation) < 1e-9


def test_no_sightings_are_refused():
    with pytest.raises(ValueError, match="no sightings"):
        average_pose([])


def test_the_stated_covariance_is_that_of_the_errors():
    """Mean squared error in units of the covariance: 1 when it is right, whitened on all six axes."""
    rng = np.random.default_rng(5)
    truth = random_pose(rng)
    poses = [random_pose(rng) for _ in range(8)]
    squared = []
    for _ in range(300):
        sightings = []
        for pose in poses:
            e = estimate_of(pose, truth, rotation_sigma=0.02, direction_sigma=0.03)
            across = rng.normal(0, 0.03, 3)
            across -= (across @ e.i_from_j_direction) * e.i_from_j_direction
            noisy = PairEstimate(
                i_from_j_rotation=e.i_from_j_rotation @ exp_so3(rng.normal(0, 0.02, 3)),
                i_from_j_direction=exp_so3(across) @ e.i_from_j_direction,
                confidence=0.9,
                rotation_sigma_rad=0.02,
                direction_sigma_rad=0.03,
            )
            sightings.append(RelativePoseObservation(pose, noisy))
        averaged = average_pose(sightings, AveragingConfig(rotation_gate_deg=10, direction_gate_deg=15))
        true_from_found = truth.inv() * averaged.world_from_cam
        error = np.concatenate([log_so3(rotation_matrix(true_from_found)), translation_of(true_from_found)])
        squared.append(error @ np.linalg.solve(averaged.covariance, error) / 6)
    assert 0.6 < np.mean(squared) < 1.4


@pytest.mark.parametrize("variant", [512, 224])
def test_ten_views_at_the_published_errors_of_reloc3r_beat_one_by_far(variant):
    rng = np.random.default_rng(variant)
    errors = {1: [], 10: []}
    for _ in range(60):
        truth = random_pose(rng, 0.3)
        sightings = []
        for _ in range(10):
            pose = random_pose(rng, 1.0)
            e = estimate_of(pose, truth)
            R, d = RELOC3R[variant].answer(rng, e.i_from_j_rotation, e.i_from_j_direction)
            sigmas = (RELOC3R[variant].rotation_sigma_rad, RELOC3R[variant].direction_sigma_rad)
            sightings.append(
                RelativePoseObservation(
                    pose,
                    PairEstimate(
                        i_from_j_rotation=R, i_from_j_direction=d, confidence=0.9,
                        rotation_sigma_rad=sigmas[0], direction_sigma_rad=sigmas[1],
                    ),
                )
            )  # fmt: skip
        for count, found in errors.items():
            rotation = average_pose(sightings[:count]).rotation
            found.append(rotation_angle(rotation.T @ rotation_matrix(truth)))
    assert np.median(errors[10]) < 0.6 * np.median(errors[1])
    assert np.max(errors[10]) < np.radians(6.0)


# Rotations


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_rotations_by_half_a_turn_average_whatever_the_signs_of_their_quaternions(seed):
    """Near half a turn the quaternions of close rotations have w of either sign; a mean per component breaks there."""
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    truth = exp_so3(np.pi * axis / np.linalg.norm(axis))
    samples = np.array([truth @ exp_so3(rng.normal(0, 0.02, 3)) for _ in range(9)])
    averaged = average_rotations(samples, np.full(9, 0.02), gate_rad=0.2)
    assert rotation_angle(averaged.rotation.T @ truth) < 0.05
    assert averaged.inliers.all()


def test_the_chordal_mean_of_two_rotations_lies_halfway():
    a, b = exp_so3([0.0, 0.0, 0.4]), exp_so3([0.0, 0.0, 1.0])
    np.testing.assert_allclose(chordal_mean(np.array([a, b]), np.ones(2)), exp_so3([0.0, 0.0, 0.7]), atol=1e-12)


def test_the_geodesic_median_on_one_axis_is_the_median_angle():
    angles = [0.1, 0.2, 0.25, 0.9, 2.5]
    samples = np.array([exp_so3([a, 0.0, 0.0]) for a in angles])
    median = geodesic_median(samples, np.ones(5), chordal_mean(samples[:3], np.ones(3)))
    assert log_so3(median)[0] == pytest.approx(0.25, abs=0.01)


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_two_of_five_rotations_may_agree_with_each_other_and_be_wrong(seed):
    rng = np.random.default_rng(seed)
    truth = Rotation.random(rng=rng).as_matrix()
    lie = truth @ exp_so3([0.0, 0.6, 0.0])
    samples = np.array([truth, truth, truth, lie, lie])[rng.permutation(5)]
    averaged = average_rotations(samples, np.full(5, 0.01), gate_rad=0.05)
    assert rotation_angle(averaged.rotation.T @ truth) < 1e-6
    assert averaged.inliers.sum() == 3


def test_rotations_average_the_same_when_the_world_turns(rng):
    samples = np.array([exp_so3(rng.normal(0, 0.1, 3)) for _ in range(7)])
    turn = Rotation.random(rng=rng).as_matrix()
    plain = average_rotations(samples, np.full(7, 0.05), gate_rad=0.3).rotation
    turned = average_rotations(turn @ samples, np.full(7, 0.05), gate_rad=0.3).rotation
    np.testing.assert_allclose(turned, turn @ plain, atol=1e-8)


def test_the_sigma_of_an_average_falls_with_the_root_of_the_count():
    one = average_rotations(np.array([np.eye(3)]), np.array([0.04]), gate_rad=0.1)
    sixteen = average_rotations(np.array([np.eye(3)] * 16), np.full(16, 0.04), gate_rad=0.1)
    assert one.sigma_rad == pytest.approx(0.04)
    assert sixteen.sigma_rad == pytest.approx(0.01)


def test_rotations_that_disagree_more_than_they_say_make_the_average_less_sure(rng):
    samples = np.array([exp_so3(rng.normal(0, 0.05, 3)) for _ in range(10)])
    honest = average_rotations(samples, np.full(10, 0.05), gate_rad=0.4)
    boasting = average_rotations(samples, np.full(10, 0.005), gate_rad=0.4)
    assert boasting.sigma_rad > 0.5 * honest.sigma_rad


# Rays


def test_rays_that_would_meet_behind_the_cameras_do_not_meet():
    centers = np.array([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    directions = np.array([[-1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]) / np.sqrt(2)
    met = intersect_rays(centers, directions, np.full(2, 0.02), **GATES)
    assert met == NoIntersection("no two of 2 rays meet in front of their cameras")


def test_rays_almost_along_one_line_are_refused_with_how_little_they_tell():
    target = np.array([0.0, 0.0, 10.0])
    centers = np.array([[-0.2, 0.0, 0.0], [0.2, 0.0, 0.0]])
    sight = target - centers
    directions = sight / np.linalg.norm(sight, axis=1, keepdims=True)
    met = intersect_rays(centers, directions, np.full(2, 0.05), **GATES)
    assert isinstance(met, NoIntersection)
    assert met.reason.startswith("2 rays lie within 1.1 deg of one line: the position along it is ")
    assert met.reason.endswith("(limit 40%)")


def test_the_same_rays_are_good_enough_when_they_are_sharp():
    target = np.array([0.0, 0.0, 10.0])
    centers = np.array([[-0.8, 0.0, 0.0], [0.8, 0.0, 0.0]])
    sight = target - centers
    directions = sight / np.linalg.norm(sight, axis=1, keepdims=True)
    met = intersect_rays(centers, directions, np.full(2, 0.01), **GATES)
    assert isinstance(met, RayIntersection)
    np.testing.assert_allclose(met.point, target, atol=1e-6)
    assert met.covariance[2, 2] > 20 * met.covariance[0, 0]


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_the_intersection_moves_with_the_world_and_grows_with_its_unit(seed):
    rng = np.random.default_rng(seed)
    centers, target = rng.normal(0, 1, (6, 3)), rng.normal(0, 1, 3) + np.array([0.0, 0.0, 4.0])
    noisy = target + rng.normal(0, 0.05, (6, 3)) - centers
    directions = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
    turn, shift, unit = Rotation.random(rng=rng).as_matrix(), rng.normal(size=3), 7.0
    plain = intersect_rays(centers, directions, np.full(6, 0.03), **GATES)
    moved = intersect_rays(unit * centers @ turn.T + shift, directions @ turn.T, np.full(6, 0.03), **GATES)
    assert isinstance(plain, RayIntersection)
    assert isinstance(moved, RayIntersection)
    np.testing.assert_allclose(moved.point, unit * turn @ plain.point + shift, atol=1e-6)
    np.testing.assert_allclose(moved.covariance, unit**2 * turn @ plain.covariance @ turn.T, rtol=1e-4, atol=1e-9)


def test_a_ray_that_points_elsewhere_is_named(rng):
    target = np.array([0.5, -0.2, 4.0])
    centers = rng.normal(0, 1, (5, 3))
    directions = (target - centers) / np.linalg.norm(target - centers, axis=1, keepdims=True)
    directions[2] = exp_so3([0.0, 0.5, 0.0]) @ directions[2]
    met = intersect_rays(centers, directions, np.full(5, 0.02), **GATES)
    assert isinstance(met, RayIntersection)
    assert met.inliers.tolist() == [True, True, False, True, True]
    assert direction_angle(met.point, target) < 1e-6
