"""Keyframes and landmarks refined together, on small bundles whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from failing_solvers import SINGULAR, NoNumbers, SingularSystem, solver_that

from relocalizer.camera import Camera
from relocalizer.geometry import (
    align_points,
    direction_angle,
    exp_so3,
    rigid,
    rotation_angle,
    rotation_matrix,
    translation_of,
)
from relocalizer.interfaces import PairEstimate
from relocalizer.intrinsics_correction import CorrectionStep
from slam.mapping.bundle import (
    CALIBRATED,
    Bundle,
    FocalPrior,
    IntrinsicsPrior,
    PrincipalPrior,
    reprojection_errors,
    structure_only_adjustment,
    undistorted_pixels,
)
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster

CAMERA = Camera(width=640, height=480, fx=500.0, fy=490.0, cx=320.0, cy=240.0)


def arc(count):
    """Cameras on an arc in front of the points, all looking at them."""
    return {k: rigid(exp_so3([0.0, -0.1 * k, 0.0]), [0.5 * k, 0.05 * k, 0.03 * k * k]) for k in range(count)}


def bundle_of(poses, points, *, fixed=(), noise=0.0, seed=0, pairs=()):
    """Everybody sees everything."""
    rng = np.random.default_rng(seed)
    keyframe_of, point_of, pixels = [], [], []
    for k, pose in poses.items():
        keyframe_of += [k] * len(points)
        point_of += range(len(points))
        seen = CAMERA.project(np.asarray(pose.inv().apply(points)).reshape(-1, 3))
        pixels.append(seen + noise * rng.normal(size=seen.shape))
    return Bundle(
        world_from_cam=poses,
        cameras=dict.fromkeys(poses, CAMERA),
        fixed=frozenset(fixed),
        points_world=points,
        keyframe_of=np.array(keyframe_of, np.int64),
        point_of=np.array(point_of, np.int64),
        pixels=np.concatenate(pixels),
        pairs=pairs,
    )


def perturbed(bundle, *, angle=0.02, distance=0.05, seed=1, keep=(0,)):
    """The same observations, from worse poses and points; the keyframes in `keep` stay."""
    rng = np.random.default_rng(seed)
    poses = {
        k: pose if k in keep else pose * rigid(exp_so3(angle * rng.normal(size=3)), distance * rng.normal(size=3))
        for k, pose in bundle.world_from_cam.items()
    }
    return replace(
        bundle,
        world_from_cam=poses,
        points_world=bundle.points_world + distance * rng.normal(size=(len(bundle.points_world), 3)),
    )


def refine(bundle, *, noise_px=0.8, iterations=50):
    return SchurBundleAdjuster().refine(bundle, noise_px=noise_px, iterations=iterations)


def centers(poses):
    return np.array([translation_of(poses[k]) for k in sorted(poses)])


@pytest.fixture
def points(rng):
    return rng.uniform([-1.5, -1, 3], [3.0, 1, 6], (60, 3))


# The truth is found again


def test_without_noise_poses_and_points_come_back_up_to_size(points):
    truth = bundle_of(arc(5), points)
    refined = refine(perturbed(truth))
    size = align_points(points, refined.points_world)
    assert np.allclose(size.apply(refined.points_world), points, atol=1e-3)
    assert np.allclose(size.apply(centers(refined.world_from_cam)), centers(truth.world_from_cam), atol=1e-3)
    assert np.median(refined.error_px) < 0.02


def test_with_two_fixed_the_size_comes_back_too(points):
    truth = bundle_of(arc(5), points, fixed=(0, 4))
    refined = refine(perturbed(truth, keep=(0, 4)))
    assert np.allclose(refined.points_world, points, atol=1e-3)
    for k, pose in truth.world_from_cam.items():
        between = pose.inv() * refined.world_from_cam[k]
        assert np.linalg.norm(translation_of(between)) < 1e-3
        assert rotation_angle(rotation_matrix(between)) < 1e-3


def test_refining_lowers_the_error_of_noisy_observations_to_the_noise(points):
    start = perturbed(bundle_of(arc(5), points, noise=0.8))
    before = reprojection_errors(start, start.world_from_cam, start.points_world)
    refined = refine(start)
    assert np.sqrt(np.mean(before**2)) > 5
    # 600 numbers and 203 unknowns: what is left of sigma 0.8 per coordinate.
    assert np.sqrt(np.mean(refined.error_px**2) / 2) == pytest.approx(0.8 * np.sqrt(1 - 203 / 600), rel=0.12)


# What is held


def test_fixed_keyframes_do_not_move(points):
    start = perturbed(bundle_of(arc(5), points, fixed=(1, 3), noise=0.5), keep=())
    refined = refine(start)
    for k in (1, 3):
        assert np.allclose(refined.world_from_cam[k].as_matrix(), start.world_from_cam[k].as_matrix(), atol=1e-4)


@pytest.mark.parametrize("fixed", [(), (0,), (2,)])
def test_with_fewer_than_two_fixed_one_stays_and_its_farthest_keeps_its_distance(points, fixed):
    start = perturbed(bundle_of(arc(5), points, fixed=fixed, noise=0.5), keep=())
    refined = refine(start)
    held = fixed[0] if fixed else 0
    assert np.allclose(refined.world_from_cam[held].as_matrix(), start.world_from_cam[held].as_matrix(), atol=1e-4)
    before, after = (
        np.linalg.norm(centers(poses) - centers(poses)[held], axis=1)
        for poses in (start.world_from_cam, refined.world_from_cam)
    )
    far = before.argmax()
    assert after[far] == pytest.approx(before[far], rel=1e-4)


@pytest.mark.parametrize("size", [1e-2, 1.0, 1e3])
def test_the_size_of_the_map_does_not_matter(points, size):
    poses = {k: rigid(rotation_matrix(p), size * translation_of(p)) for k, p in arc(5).items()}
    refined = refine(perturbed(bundle_of(poses, size * points), distance=0.02 * size))
    found = align_points(points, refined.points_world)
    assert np.allclose(found.apply(refined.points_world), points, atol=5e-3)


# Outliers


def test_gross_observations_are_recognized_by_their_error_and_pull_nobody(points):
    truth = bundle_of(arc(5), points, fixed=(0, 4))
    rng = np.random.default_rng(2)
    bad = rng.choice(len(truth.pixels), 15, replace=False)
    pixels = truth.pixels.copy()
    pixels[bad] += rng.choice([-1, 1], (15, 2)) * rng.uniform(30, 80, (15, 2))
    refined = refine(perturbed(replace(truth, pixels=pixels), angle=0.005, distance=0.01, keep=(0, 4)))
    clean = np.setdiff1d(np.arange(len(pixels)), bad)
    hit = np.unique(truth.point_of[bad])
    assert refined.error_px[bad].min() > 15
    others = clean[~np.isin(truth.point_of[clean], hit)]
    assert refined.error_px[others].max() < 0.8
    assert np.abs(np.delete(refined.points_world - points, hit, axis=0)).max() < 0.02


# Pairs


def pair_of(poses, i, j, *, turn=(0.0, 0.0, 0.0), direction=True, rotation_sigma=0.001, direction_sigma=0.01):
    i_from_j = poses[i].inv() * poses[j]
    t = translation_of(i_from_j)
    return (
        i,
        j,
        PairEstimate(
            i_from_j_rotation=rotation_matrix(i_from_j) @ exp_so3(turn),
            i_from_j_direction=t / np.linalg.norm(t) if direction else None,
            confidence=0.9,
            rotation_sigma_rad=rotation_sigma,
            direction_sigma_rad=direction_sigma,
            direction_unknown="" if direction else "it only turned",
        ),
    )


def relative(refined, i, j):
    return refined.world_from_cam[i].inv() * refined.world_from_cam[j]


def test_with_too_few_points_the_pairs_rotation_and_direction_decide(rng):
    poses, few = arc(2), np.array([[0.0, 0.0, 4.0], [0.5, 0.2, 5.0]])
    start = perturbed(bundle_of(poses, few), angle=0.05, distance=0.02)
    alone, with_pair = refine(start), refine(replace(start, pairs=[pair_of(poses, 0, 1)]))
    truth = poses[0].inv() * poses[1]

    def off(refined):
        got = relative(refined, 0, 1)
        turn = rotation_angle(rotation_matrix(truth).T @ rotation_matrix(got))
        return turn, direction_angle(translation_of(got), translation_of(truth))

    assert off(alone)[0] > 0.01
    assert max(off(with_pair)) < 0.002


def test_a_pair_without_a_direction_tells_its_rotation_alone():
    poses, few = arc(2), np.array([[0.0, 0.0, 4.0], [0.5, 0.2, 5.0]])
    start = perturbed(bundle_of(poses, few), angle=0.05, distance=0.02)
    refined = refine(replace(start, pairs=[pair_of(poses, 0, 1, direction=False)]))
    truth = poses[0].inv() * poses[1]
    assert rotation_angle(rotation_matrix(truth).T @ rotation_matrix(relative(refined, 0, 1))) < 0.002


def test_a_pair_says_nothing_about_length(points):
    poses = arc(2)
    start = bundle_of(poses, np.zeros((0, 3)), pairs=[pair_of(poses, 0, 1)])
    longer = {0: poses[0], 1: poses[0] * rigid(rotation_matrix(poses[1]), 3 * translation_of(poses[1]))}
    refined = refine(replace(start, world_from_cam=longer))
    assert np.linalg.norm(translation_of(relative(refined, 0, 1))) == pytest.approx(
        3 * np.linalg.norm(translation_of(poses[1])), rel=1e-3
    )


def test_many_points_outvote_a_wrong_pair(points):
    truth = bundle_of(arc(5), points, fixed=(0, 4))
    wrong = pair_of(truth.world_from_cam, 1, 2, turn=(0.3, 0.2, 0.0), rotation_sigma=0.01)
    refined = refine(perturbed(replace(truth, pairs=[wrong]), keep=(0, 4)))
    for k, pose in truth.world_from_cam.items():
        assert rotation_angle(rotation_matrix(pose.inv() * refined.world_from_cam[k])) < 0.003


# Degenerate


def same_as_start(refined, start, atol=1e-12):
    poses = start.world_from_cam.items()
    return all(np.allclose(refined.world_from_cam[k].as_matrix(), pose.as_matrix(), atol=atol) for k, pose in poses)


# Distortion that is not known


@pytest.fixture
def many(rng):
    return rng.uniform([-2.0, -1.5, 3.0], [2.0, 1.5, 6.0], (200, 3))


def distorted_pixels(refined, truth):
    """How far points lie from the truth after a similarity, root mean square."""
    away = align_points(truth, refined.points_world).apply(refined.points_world) - truth
    return np.sqrt((away**2).sum(axis=1).mean())


def test_the_focal_length_stays(many):
    assert refine(replace(bundle_of(arc(8), many, noise=0.3), lens=CALIBRATED)).lens.focal_ratio == (1.0, 1.0)


def bent_by(bundle, *radial):
    """The bundle as a lens with that distortion shows it; its camera knows nothing of it."""
    lens = replace(CAMERA, model="radtan", distortion=(*radial, 0.0, 0.0))
    return replace(bundle, pixels=lens.distorted(CAMERA.normalized(bundle.pixels)))


@pytest.mark.parametrize("radial", [(0.04, 0.0), (-0.03, 0.01)])
def test_a_distortion_that_the_calibration_leaves_is_found(many, radial):
    bundle = bent_by(bundle_of(arc(8), many, noise=0.3), *radial)
    refined, held = refine(replace(bundle, lens=CALIBRATED)), refine(bundle)
    at_the_side = np.array([[CAMERA.cx + 0.5 * CAMERA.fx, CAMERA.cy]])  # the two are determined together, not apart
    true = CorrectionStep(radial=radial).distorted_pixels(at_the_side, CAMERA)
    assert refined.lens.distorted_pixels(at_the_side, CAMERA) == pytest.approx(true, abs=0.5)
    assert distorted_pixels(refined, many) < 0.5 * distorted_pixels(held, many)
    assert np.median(refined.error_px) == pytest.approx(0.3 * np.sqrt(2 * np.log(2)), rel=0.2)


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_no_distortion(many, seed):
    assert refine(replace(bundle_of(arc(8), many, noise=0.5, seed=seed), lens=CALIBRATED)).lens.is_nothing


def test_with_the_distortion_known_the_rest_of_it_needs_no_proof(many):
    rest = bent_by(bundle_of(arc(8), many, noise=0.5), 5e-4, 0.0)
    assert refine(replace(rest, lens=CALIBRATED)).lens.is_nothing
    assert any(refine(replace(rest, lens=replace(CALIBRATED, significant=0.0))).lens.radial)


# A focal length that is an estimate


def seen_with(bundle, ratio):
    """The bundle whose camera is said to have the true focal length divided by `ratio`."""
    camera = replace(CAMERA, fx=CAMERA.fx / ratio, fy=CAMERA.fy / ratio, assumed=True)
    return replace(bundle, cameras=dict.fromkeys(bundle.cameras, camera))


@pytest.fixture
def round_trip(many):
    """Points seen from all around them, which determines the focal length well."""
    around = {
        k: rigid(exp_so3([0.0, -0.3 * k, 0.0]), [4.5 * np.sin(0.3 * k), 0.2 * np.cos(k), 4.5 - 4.5 * np.cos(0.3 * k)])
        for k in range(21)
    }
    return bundle_of(around, many, noise=0.3)


def focal_prior(ratio, sigma, **more):
    return IntrinsicsPrior(focal=FocalPrior(CAMERA.mean_focal / ratio, sigma, **more))


@pytest.mark.parametrize("ratio", [0.96, 1.05])
def test_all_views_together_find_the_focal_length_near_its_estimate(many, round_trip, ratio):
    start = seen_with(round_trip, ratio)
    refined, held = refine(replace(start, lens=focal_prior(ratio, 0.03))), refine(start)
    x, y = refined.lens.focal_ratio
    assert x == y == pytest.approx(ratio, rel=3e-3)
    assert not refined.lens.has_distortion
    assert not refined.lens.camera(start.cameras[0]).assumed
    assert distorted_pixels(refined, many) < 0.3 * distorted_pixels(held, many)
    assert np.median(refined.error_px) == pytest.approx(0.3 * np.sqrt(2 * np.log(2)), rel=0.2)


def test_a_guess_stays_one(round_trip):
    start = seen_with(round_trip, 1.02)
    refined = refine(replace(start, lens=focal_prior(1.02, 0.03, is_guess=True)))
    assert refined.lens.camera(start.cameras[0]).assumed


def test_focal_length_and_distortion_are_found_together(round_trip):
    start = seen_with(bent_by(round_trip, -0.03, 0.0), 1.03)
    lens = replace(focal_prior(1.03, 0.03), radial_sigma=CALIBRATED.radial_sigma)
    refined = refine(replace(start, lens=lens))
    assert refined.lens.focal_ratio[0] == pytest.approx(1.03, rel=5e-3)
    assert refined.lens.radial[0] == pytest.approx(-0.03, abs=0.01)


@pytest.mark.parametrize("radial_sigma", [0.0, CALIBRATED.radial_sigma])
def test_all_views_together_find_the_principal_point(many, round_trip, radial_sigma):
    middle = replace(CAMERA, cx=CAMERA.cx - 9.0, cy=CAMERA.cy + 5.0, assumed=True)
    start = replace(round_trip, cameras=dict.fromkeys(round_trip.cameras, middle))
    lens = replace(focal_prior(1.0, 0.03), principal=PrincipalPrior(middle.cx, middle.cy, 8.0))
    refined, held = refine(replace(start, lens=replace(lens, radial_sigma=radial_sigma))), refine(start)
    found = refined.lens.camera(middle)
    assert found.cx == pytest.approx(CAMERA.cx, abs=0.5)
    assert abs(found.cy - CAMERA.cy) < 5.0  # a turn about the vertical alone hardly tells it from a tilt
    assert found.mean_focal == pytest.approx(CAMERA.mean_focal, rel=3e-3)
    assert np.median(refined.error_px) == pytest.approx(0.3 * np.sqrt(2 * np.log(2)), rel=0.2)
    assert np.median(refined.error_px) < 0.9 * np.median(held.error_px)


def test_a_principal_point_far_from_the_middle_is_not_applied(round_trip):
    off = replace(CAMERA, cx=CAMERA.cx - 40.0, assumed=True)
    start = replace(round_trip, cameras=dict.fromkeys(round_trip.cameras, off))
    refined = refine(replace(start, lens=IntrinsicsPrior(principal=PrincipalPrior(off.cx, off.cy, 4.0))))
    assert refined.lens.is_nothing
    assert not refined.problem


def test_a_motion_that_does_not_determine_the_principal_point_leaves_it(rng):
    """Without a turn, another principal point is another direction of the motion."""
    points = rng.uniform([-3.0, -2.0, 4.0], [3.0, 2.0, 9.0], (200, 3))
    forward = {k: rigid(np.eye(3), [0.02 * k, 0.0, 0.1 * k]) for k in range(6)}
    start = bundle_of(forward, points, noise=0.3)
    refined = refine(replace(start, lens=IntrinsicsPrior(principal=PrincipalPrior(CAMERA.cx, CAMERA.cy, 8.0))))
    assert np.abs(refined.lens.principal_px).max() < 4.0


def test_a_focal_length_that_contradicts_its_estimate_is_not_applied(round_trip):
    start = seen_with(round_trip, 1.05)
    refined = refine(replace(start, lens=focal_prior(1.05, 0.01)))
    assert refined.lens.is_nothing
    assert not refined.problem


def test_a_motion_that_does_not_determine_the_focal_length_leaves_its_estimate(rng):
    """Forward motion toward a wall: focal length and distance trade against each other."""
    wall = np.column_stack([rng.uniform(-1.0, 1.0, (60, 2)), np.full(60, 9.0)])
    forward = {k: rigid(np.eye(3), [0.0, 0.0, 0.02 * k]) for k in range(5)}
    start = seen_with(bundle_of(forward, wall, noise=0.3), 1.0)
    refined = refine(replace(start, lens=focal_prior(1.0, 0.03)))
    assert refined.lens.focal_ratio[0] == pytest.approx(1.0, abs=0.03)


def test_a_bundle_and_its_straightened_one_have_the_same_errors(many):
    step = CorrectionStep((1.02, 1.01), (0.01, -0.005))
    true = bundle_of(arc(4), many)
    camera = replace(CAMERA, fx=CAMERA.fx / 1.02, fy=CAMERA.fy / 1.01)
    seen = replace(true, cameras=dict.fromkeys(true.cameras, camera), pixels=step.distorted_pixels(true.pixels, camera))
    straight = undistorted_pixels(seen, step)
    assert reprojection_errors(straight, straight.world_from_cam, many).max() < 1e-6


def test_a_bundle_that_holds_nan_gives_the_start_back(points):
    start = bundle_of(arc(3), points)
    pixels = start.pixels.copy()
    pixels[7] = np.nan
    start = perturbed(replace(start, pixels=pixels))
    refined = refine(start)
    assert same_as_start(refined, start)
    assert np.allclose(refined.points_world, start.points_world)


def test_one_point_seen_once_breaks_nothing(points):
    start = bundle_of(arc(3), points)
    extra = np.vstack([points, [[0.0, 0.0, 5.0]]])
    start = perturbed(
        replace(
            start,
            points_world=extra,
            keyframe_of=np.append(start.keyframe_of, 1),
            point_of=np.append(start.point_of, len(points)),
            pixels=np.vstack([start.pixels, [[300.0, 200.0]]]),
        )
    )
    refined = refine(start)
    assert np.isfinite(refined.points_world).all()
    assert np.median(refined.error_px) < 0.05


def test_points_behind_a_camera_break_nothing_and_have_infinite_error(points):
    start = bundle_of(arc(3), points)
    flipped = start.points_world.copy()
    flipped[0] = [0.0, 0.0, -4.0]
    refined = refine(replace(start, points_world=flipped), iterations=5)
    assert all(np.isfinite(pose.as_matrix()).all() for pose in refined.world_from_cam.values())
    others = start.point_of != 0
    assert refined.error_px[others].max() < 1.0


def test_all_keyframes_at_one_place_break_nothing(points):
    still = {k: rigid(np.eye(3), np.zeros(3)) for k in range(3)}
    refined = refine(bundle_of(still, points, noise=0.5))
    assert np.isfinite(refined.points_world).all()
    assert all(np.isfinite(pose.as_matrix()).all() for pose in refined.world_from_cam.values())


def test_a_single_keyframe_stays_where_it_is(points):
    start = bundle_of({4: arc(5)[4]}, points)
    assert same_as_start(refine(start), start, atol=1e-6)


# Errors


def test_reprojection_errors_by_hand():
    poses = {0: rigid(np.eye(3), np.zeros(3)), 1: rigid(np.eye(3), [0.0, 0.0, 10.0])}
    bundle = Bundle(
        world_from_cam=poses,
        cameras=dict.fromkeys(poses, CAMERA),
        fixed=frozenset(),
        points_world=np.array([[0.0, 0.0, 5.0]]),
        keyframe_of=np.array([0, 1]),
        point_of=np.array([0, 0]),
        pixels=np.array([[323.0, 236.0], [320.0, 240.0]]),
    )
    errors = reprojection_errors(bundle, poses, bundle.points_world)
    assert errors[0] == pytest.approx(5.0)  # 3 to the right, 4 up
    assert errors[1] == np.inf  # behind


def test_inputs_are_left_as_they_were_and_the_answer_is_the_same_every_time(points):
    start = perturbed(bundle_of(arc(4), points, noise=0.5))
    poses = {k: p.as_matrix().copy() for k, p in start.world_from_cam.items()}
    places = start.points_world.copy()
    a, b = refine(start), refine(start)
    assert a.points_world.tobytes() == b.points_world.tobytes()
    assert np.array_equal(start.points_world, places)
    assert all(np.array_equal(start.world_from_cam[k].as_matrix(), poses[k]) for k in poses)


# Points alone


def test_points_moved_alone_return_to_where_their_observations_put_them(rng):
    points = rng.uniform([-1, -1, 4], [2, 1, 8], (40, 3))
    bundle = bundle_of(arc(4), points)
    off = replace(bundle, points_world=points + 0.1 * rng.normal(size=points.shape))
    assert np.abs(structure_only_adjustment(off, noise_px=0.8, iterations=20) - points).max() < 1e-3


def test_one_wrong_observation_hardly_moves_a_point(rng):
    points = rng.uniform([-1, -1, 4], [2, 1, 8], (10, 3))
    bundle = bundle_of(arc(6), points)
    pixels = bundle.pixels.copy()
    pixels[3] += 60.0
    moved = structure_only_adjustment(replace(bundle, pixels=pixels), noise_px=0.8, iterations=20)
    assert np.linalg.norm(moved[3] - points[3]) < 0.05
    assert np.abs(np.delete(moved - points, 3, axis=0)).max() < 1e-6


def test_a_point_behind_every_camera_stays_where_it_was(rng):
    points = rng.uniform([-1, -1, 4], [2, 1, 8], (10, 3))
    bundle = bundle_of(arc(3), points)
    behind = bundle.points_world.copy()
    behind[2] = [0.0, 0.0, -5.0]
    moved = structure_only_adjustment(replace(bundle, points_world=behind), noise_px=0.8)
    assert np.array_equal(moved[2], behind[2])


@pytest.mark.parametrize("fixed", [(), (0, 1)])
def test_a_keyframe_that_sees_nothing_and_a_point_that_nobody_sees_stay_where_they_are(points, fixed):
    poses = arc(4)
    truth = bundle_of(poses, points, fixed=fixed)
    seen = (truth.keyframe_of != 3) & (truth.point_of != 5)
    idle = replace(truth, keyframe_of=truth.keyframe_of[seen], point_of=truth.point_of[seen], pixels=truth.pixels[seen])
    start = perturbed(idle, keep=(0, 1))
    refined = refine(start)
    np.testing.assert_allclose(
        refined.world_from_cam[3].as_matrix(), start.world_from_cam[3].as_matrix(), atol=1e-9, rtol=0
    )
    np.testing.assert_allclose(refined.points_world[5], start.points_world[5], atol=1e-9, rtol=0)
    assert refined.error_px.max() < 1e-3


# A solver that fails


@pytest.mark.parametrize(("kind", "said"), [(SingularSystem, SINGULAR), (NoNumbers, "the solution is not finite")])
@pytest.mark.parametrize("lens", [None, CALIBRATED])
def test_a_solver_that_fails_moves_nothing_and_says_why(kind, said, lens, rng):
    bundle = replace(perturbed(bundle_of(arc(4), rng.uniform([-1, -1, 4], [1, 1, 6], (30, 3)))), lens=lens)
    bundle = replace(bundle, pairs=[pair_of(arc(4), 0, 1)])
    with solver_that(kind):
        refined = refine(bundle)
    assert refined.problem == said
    assert refined.world_from_cam == bundle.world_from_cam
    assert np.array_equal(refined.points_world, bundle.points_world)
    errors = reprojection_errors(bundle, bundle.world_from_cam, bundle.points_world)
    assert np.array_equal(refined.error_px, errors)
    assert refined.lens == CorrectionStep()
