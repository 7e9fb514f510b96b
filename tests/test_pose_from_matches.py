"""Pose of an image from matched features: with a good estimate, a bad one or none, and refined by guided matching."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from oracle_map import pose_error, refined_walk

from relocalizer.features import match_features
from relocalizer.geometry import exp_so3, rigid
from relocalizer.interfaces import NoEstimate
from relocalizer.pose_from_matches import (
    EstimatedPose,
    GuidedSearch,
    ObservedImage,
    PoseRejected,
    estimate_pose,
    match_keyframes,
    refine_with_guided_matching,
)
from relocalizer.triangulation import depths_in

STEP = 6
RATIO = 0.85
NEAR = 4 * STEP + 3  # a frame between keyframes 4 and 5


@pytest.fixture(scope="module")
def walk():
    """Eight keyframes at their true poses, refined. Read only."""
    return refined_walk(8, STEP)


def estimate_of(builder, c, index):
    [encoded] = builder.predictor.encode([builder.world.frame(index).view])
    [estimate] = builder.predictor.relate([(builder.mapper.map.graph.keyframes[c].encoded, encoded)])
    return estimate


def seen(builder, index):
    return ObservedImage(builder.seen(index).features, builder.world.camera)


def matched(builder, index, keyframes, earlier=None):
    features = builder.seen(index).features
    return match_keyframes(features, keyframes, builder.mapper.map, ratio=RATIO, earlier=earlier)


def localized(builder, index, *, keyframes=(4, 5), estimate=None, min_inliers=20, matches=None):
    return estimate_pose(
        matches or matched(builder, index, keyframes),
        seen(builder, index),
        builder.mapper.map,
        reference=keyframes[0],
        estimate=estimate or estimate_of(builder, keyframes[0], index),
        min_inliers=min_inliers,
    )


def match(a, b, ratio):
    return match_features(a, b, ratio=ratio)


def point_of(world, index, pixels):
    """Index (N,) of the world's point at each pixel of frame `index`."""
    seen, places = world.visible(index)
    return seen[np.linalg.norm(places[None] - pixels[:, None], axis=2).argmin(axis=1)]


# Matches


def test_matches_are_the_same_points(walk):
    features, matches = walk.seen(NEAR).features, matched(walk, NEAR, [4])
    assert len(matches) > 50
    at_k = walk.mapper.map.landmarks.feature_tracks[4]
    pixels_k = walk.mapper.map.graph.keyframes[4].features.pixels
    then = np.array([pixels_k[np.flatnonzero(at_k == t)[0]] for t in matches.landmark])
    same = point_of(walk.world, 4 * STEP, then) == point_of(walk.world, NEAR, features.pixels[matches.feature])
    assert same.mean() > 0.98


def test_one_to_one_matches_of_several_keyframes_name_no_track_and_no_feature_twice(walk):
    one = matched(walk, NEAR, [4])
    many = matched(walk, NEAR, [4, 5, 3, 6]).one_to_one()
    assert len(np.unique(many.landmark)) == len(many)
    assert len(np.unique(many.feature)) == len(many.feature)
    assert len(many) > len(one)


def test_the_keyframe_named_first_wins(walk):
    first = matched(walk, NEAR, [4])
    both = matched(walk, NEAR, [4, 6]).one_to_one()
    named = dict(zip(both.feature.tolist(), both.landmark.tolist(), strict=True))
    assert all(named[f] == t for f, t in zip(first.feature.tolist(), first.landmark.tolist(), strict=True))


@pytest.mark.parametrize("keyframes", [(4,), (4, 5, 3, 6), (2, 7)])
def test_matches_that_are_known_already_are_not_made_again_and_change_nothing(walk, keyframes, monkeypatch):
    at_once, known = matched(walk, NEAR, keyframes), matched(walk, NEAR, keyframes[:1])
    made = []
    monkeypatch.setattr(
        "relocalizer.pose_from_matches.match_features", lambda a, b, ratio: made.append(a) or match(a, b, ratio)
    )
    in_two = matched(walk, NEAR, keyframes[1:], earlier=known)
    assert made == [walk.mapper.map.graph.keyframes[k].features for k in keyframes[1:]]
    assert in_two.landmark.tobytes() == at_once.landmark.tobytes()
    assert in_two.feature.tobytes() == at_once.feature.tobytes()


def test_no_keyframes_give_no_matches(walk):
    assert len(matched(walk, NEAR, [])) == 0


# Localizing


def test_a_frame_near_the_map_is_placed_to_a_centimetre(walk):
    found = localized(walk, NEAR)
    assert isinstance(found, EstimatedPose)
    degrees, meters = pose_error(found.fit.world_from_cam, walk, NEAR)
    assert degrees < 0.3
    assert meters < 0.02


def test_without_an_estimate_it_is_placed_by_search(walk):
    found = localized(walk, NEAR, estimate=NoEstimate("the predictor gave up"))
    assert isinstance(found, EstimatedPose)
    assert pose_error(found.fit.world_from_cam, walk, NEAR)[1] < 0.02


def test_an_estimate_without_a_direction_is_no_hindrance(walk):
    good = estimate_of(walk, 4, NEAR)
    blind = replace(good, i_from_j_direction=None, direction_unknown="one plane", direction_sigma_rad=np.pi)
    found = localized(walk, NEAR, estimate=blind)
    assert isinstance(found, EstimatedPose)
    assert pose_error(found.fit.world_from_cam, walk, NEAR)[1] < 0.02


@pytest.mark.parametrize("seed", range(12))
def test_a_wild_estimate_said_with_confidence_does_not_misplace_the_frame(walk, seed):
    rng = np.random.default_rng(seed)
    d = rng.normal(size=3)
    wild = replace(
        estimate_of(walk, 4, NEAR),
        i_from_j_rotation=exp_so3(rng.normal(size=3)),
        i_from_j_direction=d / np.linalg.norm(d),
    )
    found = localized(walk, NEAR, estimate=wild)
    assert isinstance(found, EstimatedPose)
    degrees, meters = pose_error(found.fit.world_from_cam, walk, NEAR)
    assert degrees < 0.5
    assert meters < 0.03


def test_an_estimate_off_by_a_few_of_its_sigmas_does_not_drag_the_frame(walk):
    good = estimate_of(walk, 4, NEAR)
    off = replace(good, i_from_j_rotation=good.i_from_j_rotation @ exp_so3([0.0, 3 * good.rotation_sigma_rad, 0.0]))
    found = localized(walk, NEAR, estimate=off)
    assert isinstance(found, EstimatedPose)
    assert pose_error(found.fit.world_from_cam, walk, NEAR)[0] < 0.3


def test_the_landmarks_returned_are_those_that_agree(walk):
    found = localized(walk, NEAR)
    points = walk.mapper.map.landmarks.points_world(found.matches.landmark, walk.mapper.map.graph)
    expected = walk.world.camera.project(np.asarray(found.fit.world_from_cam.inv().apply(points)))
    off = np.linalg.norm(expected - walk.seen(NEAR).features.pixels[found.matches.feature], axis=1)
    assert len(off) == found.fit.inlier_count
    assert off.max() < 1.2 * np.sqrt(5.991) + 1e-3


def test_too_few_recognized_landmarks_are_counted(walk):
    matches = matched(walk, NEAR, [4])
    placed = matches.where(walk.mapper.map.landmarks.is_triangulated(matches.landmark))
    few = placed.where(np.arange(len(placed)) < 7)
    assert localized(walk, NEAR, matches=few) == PoseRejected("7 landmarks matched, 20 needed", landmarks=7)


def test_landmarks_that_agree_on_no_pose_are_refused_with_both_numbers(walk):
    matches = matched(walk, NEAR, [4, 5])
    mixed = np.random.default_rng(1).permutation(len(matches))
    wrong = replace(matches, feature=matches.feature[mixed])
    found = localized(walk, NEAR, matches=wrong, min_inliers=30)
    assert isinstance(found, PoseRejected)
    assert re.search(
        r"^\d+ of \d+ matched landmarks agree, 30 needed$|^no pose agrees with the \d+ landmarks matched$",
        found.reason,
    )


def test_depths_are_along_the_cameras_axis_by_hand():
    # The camera at x = 1 looks along the world's x axis.
    pose = rigid(np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]), [1.0, 0.0, 0.0])
    assert depths_in(np.array([[4.0, 7.0, -2.0], [0.0, 0.0, 0.0]]), pose) == pytest.approx([3.0, -1.0])


# A closer look


def all_landmarks(builder):
    return builder.mapper.map.landmarks.landmark_ids()


def looked_closer(builder, index, first, ids):
    pose, image = first.fit.world_from_cam, seen(builder, index)
    return refine_with_guided_matching(pose, image, ids, builder.mapper.map, GuidedSearch(10.0, 0.8))


def test_a_closer_look_finds_more_of_the_same_landmarks_and_the_same_pose(walk):
    first = localized(walk, NEAR, keyframes=(4,))
    found = looked_closer(walk, NEAR, first, all_landmarks(walk))
    assert len(found.matches) > len(first.matches)
    assert found.fit.inlier_count > 0.9 * len(found.fit.inliers)
    assert pose_error(found.fit.world_from_cam, walk, NEAR)[1] < 0.01


def test_a_closer_look_at_a_wrong_pose_finds_next_to_nothing(walk):
    first = localized(walk, NEAR, keyframes=(4,))
    elsewhere = first.fit.world_from_cam * rigid(exp_so3(np.array([0.0, 0.3, 0.0])), np.array([0.2, 0.0, 0.0]))
    wrong = replace(first, fit=replace(first.fit, world_from_cam=elsewhere))
    found = looked_closer(walk, NEAR, wrong, all_landmarks(walk))
    assert len(found.matches) < 8
