"""An image placed by what it recognizes: with a good estimate, a bad one or none, and after a loss."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from oracle import OraclePredictor, OracleWorld
from oracle_map import build, room

from relocalizer.features import match_features
from relocalizer.geometry import exp_so3, rigid, rotation_angle, rotation_matrix, translation_of
from relocalizer.interfaces import Candidate, NoEstimate
from relocalizer.retrieval import FaissRetriever
from relocalizer.triangulation import depths_in
from slam.config.schema import RelocalizationConfig
from slam.map.frames import PoseNotFound
from slam.relocalization.frame_relocalizer import (
    FrameRelocalizer,
    RelocalizedFrame,
    estimate_pose_at_place,
    match_place,
    needed_landmarks,
    needed_share,
)
from slam.relocalization.pose_from_matches import (
    EstimatedPose,
    PlaceNotMatched,
    estimate_pose,
    match_keyframes,
    refine_with_guided_matching,
)

STEP = 6
NEAR = 4 * STEP + 3  # a frame between keyframes 4 and 5
FAR = 120  # half a turn later: it sees nothing of the map


@pytest.fixture(scope="module")
def walk():
    """Eight keyframes at their true poses, refined. Read only."""
    builder = build(room(), range(0, 8 * STEP, STEP), rotation_sigma_deg=0.3, direction_sigma_deg=2.0)
    builder.mapper.adjustment.local_bundle_adjustment(7)
    return builder


def error_of(pose, builder, index):
    """(degrees, meters) of a pose against frame `index`."""
    between = builder.world.poses[index].inv() * pose
    return np.degrees(rotation_angle(rotation_matrix(between))), float(np.linalg.norm(translation_of(between)))


def estimate_of(builder, c, index):
    [encoded] = builder.predictor.encode([builder.world.frame(index).view])
    [estimate] = builder.predictor.relate([(builder.mapper.map.graph.keyframes[c].encoded, encoded)])
    return estimate


def localized(builder, index, *, keyframes=(4, 5), estimate=None, min_inliers=20, matches=None):
    features = builder.seen(index).features
    matches = matches or match_keyframes(features, keyframes, builder.mapper.map.graph, builder.mapper.map.landmarks)
    return estimate_pose(
        matches,
        builder.world.camera,
        builder.mapper.map.landmarks,
        builder.mapper.map.graph,
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
    features = walk.seen(NEAR).features
    matches = match_keyframes(features, [4], walk.mapper.map.graph, walk.mapper.map.landmarks)
    assert len(matches.tracks) > 50
    at_k = walk.mapper.map.landmarks.feature_tracks[4]
    pixels_k = walk.mapper.map.graph.keyframes[4].features.pixels
    then = np.array([pixels_k[np.flatnonzero(at_k == t)[0]] for t in matches.tracks.ids])
    same = point_of(walk.world, 4 * STEP, then) == point_of(walk.world, NEAR, matches.tracks.pixels)
    assert same.mean() > 0.98
    assert np.array_equal(matches.tracks.pixels, features.pixels[matches.feature])


def test_matches_of_several_keyframes_name_no_track_and_no_feature_twice(walk):
    one = match_keyframes(walk.seen(NEAR).features, [4], walk.mapper.map.graph, walk.mapper.map.landmarks)
    many = match_keyframes(walk.seen(NEAR).features, [4, 5, 3, 6], walk.mapper.map.graph, walk.mapper.map.landmarks)
    assert len(np.unique(many.tracks.ids)) == len(many.tracks)
    assert len(np.unique(many.feature)) == len(many.feature)
    assert len(many.tracks) > len(one.tracks)


def test_the_keyframe_named_first_wins(walk):
    first = match_keyframes(walk.seen(NEAR).features, [4], walk.mapper.map.graph, walk.mapper.map.landmarks)
    both = match_keyframes(walk.seen(NEAR).features, [4, 6], walk.mapper.map.graph, walk.mapper.map.landmarks)
    named = dict(zip(both.feature.tolist(), both.tracks.ids.tolist(), strict=True))
    assert all(named[f] == t for f, t in zip(first.feature.tolist(), first.tracks.ids.tolist(), strict=True))


@pytest.mark.parametrize("keyframes", [(4,), (4, 5, 3, 6), (2, 7)])
def test_matches_that_are_known_already_are_not_made_again_and_change_nothing(walk, keyframes, monkeypatch):
    features, graph, landmarks = walk.seen(NEAR).features, walk.mapper.map.graph, walk.mapper.map.landmarks
    at_once = match_keyframes(features, keyframes, graph, landmarks)
    known = match_keyframes(features, keyframes[:1], graph, landmarks)
    made = []
    monkeypatch.setattr(
        "slam.relocalization.pose_from_matches.match_features", lambda a, b, ratio: made.append(a) or match(a, b, ratio)
    )
    in_two = match_keyframes(features, keyframes[1:], graph, landmarks, earlier=known)
    assert made == [graph.keyframes[k].features for k in keyframes[1:]]
    assert in_two.tracks.ids.tobytes() == at_once.tracks.ids.tobytes()
    assert in_two.tracks.pixels.tobytes() == at_once.tracks.pixels.tobytes()
    assert in_two.feature.tobytes() == at_once.feature.tobytes()


def test_no_keyframes_give_no_matches(walk):
    assert (
        len(match_keyframes(walk.seen(NEAR).features, [], walk.mapper.map.graph, walk.mapper.map.landmarks).tracks) == 0
    )


# Localizing


def test_a_frame_near_the_map_is_placed_to_a_centimetre(walk):
    found = localized(walk, NEAR)
    assert isinstance(found, EstimatedPose)
    degrees, meters = error_of(found.fit.world_from_cam, walk, NEAR)
    assert degrees < 0.3
    assert meters < 0.02


def test_without_an_estimate_it_is_placed_by_search(walk):
    found = localized(walk, NEAR, estimate=NoEstimate("the predictor gave up"))
    assert isinstance(found, EstimatedPose)
    assert error_of(found.fit.world_from_cam, walk, NEAR)[1] < 0.02


def test_an_estimate_without_a_direction_is_no_hindrance(walk):
    good = estimate_of(walk, 4, NEAR)
    blind = replace(good, i_from_j_direction=None, direction_unknown="one plane", direction_sigma_rad=np.pi)
    found = localized(walk, NEAR, estimate=blind)
    assert isinstance(found, EstimatedPose)
    assert error_of(found.fit.world_from_cam, walk, NEAR)[1] < 0.02


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
    degrees, meters = error_of(found.fit.world_from_cam, walk, NEAR)
    assert degrees < 0.5
    assert meters < 0.03


def test_an_estimate_off_by_a_few_of_its_sigmas_does_not_drag_the_frame(walk):
    good = estimate_of(walk, 4, NEAR)
    off = replace(good, i_from_j_rotation=good.i_from_j_rotation @ exp_so3([0.0, 3 * good.rotation_sigma_rad, 0.0]))
    found = localized(walk, NEAR, estimate=off)
    assert isinstance(found, EstimatedPose)
    assert error_of(found.fit.world_from_cam, walk, NEAR)[0] < 0.3


def test_the_landmarks_returned_are_those_that_agree(walk):
    found = localized(walk, NEAR)
    points = walk.mapper.map.landmarks.points_world(found.matches.tracks.ids, walk.mapper.map.graph)
    expected = walk.world.camera.project(np.asarray(found.fit.world_from_cam.inv().apply(points)))
    off = np.linalg.norm(expected - found.matches.tracks.pixels, axis=1)
    assert len(off) == found.fit.inlier_count
    assert off.max() < 1.2 * np.sqrt(5.991) + 1e-3


def test_recognized_points_without_a_place_are_kept_apart(walk):
    found = localized(walk, NEAR)
    is_triangulated = walk.mapper.map.landmarks.is_triangulated
    assert is_triangulated(found.matches.tracks.ids).all()
    assert len(found.untriangulated) > 0
    assert not is_triangulated(found.untriangulated.ids).any()


def test_too_few_recognized_landmarks_are_counted(walk):
    matches = match_keyframes(walk.seen(NEAR).features, [4], walk.mapper.map.graph, walk.mapper.map.landmarks)
    placed = matches.where(walk.mapper.map.landmarks.is_triangulated(matches.tracks.ids))
    few = placed.where(np.arange(len(placed.tracks)) < 7)
    assert localized(walk, NEAR, matches=few) == PlaceNotMatched("7 landmarks recognized, 20 needed", landmarks=7)


def test_landmarks_that_agree_on_no_pose_are_refused_with_both_numbers(walk):
    matches = match_keyframes(walk.seen(NEAR).features, [4, 5], walk.mapper.map.graph, walk.mapper.map.landmarks)
    mixed = np.random.default_rng(1).permutation(len(matches.tracks))
    wrong = replace(matches, tracks=replace(matches.tracks, pixels=matches.tracks.pixels[mixed]))
    found = localized(walk, NEAR, matches=wrong, min_inliers=30)
    assert isinstance(found, PlaceNotMatched)
    assert re.search(
        r"^\d+ of \d+ recognized landmarks agree, 30 needed$|^no pose agrees with the \d+ landmarks recognized$",
        found.reason,
    )


def test_depths_are_along_the_cameras_axis_by_hand():
    # The camera at x = 1 looks along the world's x axis.
    pose = rigid(np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]), [1.0, 0.0, 0.0])
    assert depths_in(np.array([[4.0, 7.0, -2.0], [0.0, 0.0, 0.0]]), pose) == pytest.approx([3.0, -1.0])


# A place recognized


def recognized(builder, c, index, min_inliers=25):
    estimate, features = estimate_of(builder, c, index), builder.seen(index).features
    matches = match_place(features, c, builder.mapper.map, min_inliers=min_inliers)
    if isinstance(matches, PlaceNotMatched):
        return matches
    return estimate_pose_at_place(
        features, builder.world.camera, c, matches, estimate, builder.mapper.map, min_inliers=min_inliers
    )


def test_a_place_is_recognized_with_the_help_of_relatives(walk):
    alone, helped = localized(walk, NEAR, keyframes=(2,)), recognized(walk, 2, NEAR)
    assert isinstance(helped, EstimatedPose)
    assert helped.fit.inlier_count > alone.fit.inlier_count
    assert error_of(helped.fit.world_from_cam, walk, NEAR)[1] < 0.02


def test_another_place_is_refused_before_anything_dear_is_tried(walk):
    found = recognized(walk, 4, FAR)
    assert isinstance(found, PlaceNotMatched)
    assert re.fullmatch(r"\d points of keyframe 4 recognized, 12 needed", found.reason)


# Recognizer


class Fixed:
    """A retriever that answers what it is told, and remembers what it was asked to leave out."""

    def __init__(self, *keys):
        self.keys, self.excluded = keys, None

    def add(self, key, descriptor):
        raise AssertionError("a recognizer only asks")

    def query(self, descriptor, k, exclude):
        self.excluded = exclude
        return [Candidate(key, 0.9) for key in self.keys if key not in exclude][:k]


CONFIG = RelocalizationConfig(candidates=5, min_inliers=25)


def relocalizer(builder, retriever):
    return FrameRelocalizer(CONFIG, builder.mapper.map, builder.predictor, retriever)


def test_the_active_keyframe_is_tried_first(walk):
    found = relocalizer(walk, Fixed(3, 5)).relocalize(walk.seen(NEAR), active=4)
    assert isinstance(found, RelocalizedFrame)
    assert found.keyframe_id == 4


def test_the_active_keyframe_is_not_asked_for_twice(walk):
    retriever = Fixed(4, 5)
    relocalizer(walk, retriever).relocalize(walk.seen(NEAR), active=4)
    assert retriever.excluded == frozenset([4])


def test_a_place_that_looks_alike_is_tried_when_the_active_keyframe_fails(walk):
    found = relocalizer(walk, Fixed(6)).relocalize(walk.seen(6 * STEP + 2), active=0)
    assert isinstance(found, RelocalizedFrame)
    assert found.keyframe_id == 6
    assert error_of(found.world_from_cam, walk, 6 * STEP + 2)[1] < 0.02


def test_a_real_retriever_finds_the_place_among_all(walk):
    retriever = FaissRetriever()
    for k, keyframe in walk.mapper.map.graph.keyframes.items():
        retriever.add(k, keyframe.descriptor)
    found = relocalizer(walk, retriever).relocalize(walk.seen(6 * STEP + 2), active=0)
    assert isinstance(found, RelocalizedFrame)
    assert found.keyframe_id in (5, 6, 7)


def test_what_is_recognized_goes_on_as_tracks_with_and_without_a_place(walk):
    found = relocalizer(walk, Fixed()).relocalize(walk.seen(NEAR), active=4)
    is_triangulated = walk.mapper.map.landmarks.is_triangulated
    assert is_triangulated(found.landmarks.ids).all()
    assert len(found.landmarks) >= 25
    assert np.isin(found.landmarks.ids, found.tracks.ids).all()
    assert not is_triangulated(np.setdiff1d(found.tracks.ids, found.landmarks.ids)).any()
    assert len(np.unique(found.tracks.ids)) == len(found.tracks)


def test_a_frame_of_nowhere_is_not_located_and_a_reason_is_told(walk):
    found = relocalizer(walk, Fixed(7, 5)).relocalize(walk.seen(FAR), active=4)
    assert isinstance(found, PoseNotFound)
    assert re.fullmatch(r"\d+ points of keyframe 4 recognized, 12 needed", found.reason)


def test_a_dark_frame_is_not_located():
    world = room()
    dark = build(OracleWorld(world.poses, world.points, pixel_noise=0.3, blind=frozenset([STEP + 1])), [0, STEP])
    found = relocalizer(dark, Fixed(0)).relocalize(dark.seen(STEP + 1), active=1)
    assert found == PoseNotFound("0 points in the image, 12 needed")


def test_a_frame_that_is_nowhere_is_told_of_by_the_keyframe_that_came_nearest(walk):
    strict = FrameRelocalizer(
        CONFIG.model_copy(update={"min_inliers": 1000, "min_confirming": 1000}),
        walk.mapper.map,
        walk.predictor,
        Fixed(0),
    )
    found = strict.relocalize(walk.seen(NEAR), active=4)
    assert isinstance(found, PoseNotFound)
    assert re.search(r"landmarks around keyframe 4 agree, 1000 and \d+% needed", found.reason)


def test_recognizing_changes_nothing_in_the_map(walk):
    landmarks, graph = walk.mapper.map.landmarks, walk.mapper.map.graph
    poses, observed = dict(graph.world_from_keyframe), {k: t.ids.copy() for k, t in landmarks.observed.items()}
    places = landmarks.point_in_anchor.copy()
    relocalizer(walk, Fixed(5)).relocalize(walk.seen(NEAR), active=4)
    assert graph.world_from_keyframe == poses
    assert all(np.array_equal(landmarks.observed[k].ids, ids) for k, ids in observed.items())
    assert np.array_equal(landmarks.point_in_anchor, places)


def test_a_predictor_that_knows_nothing_still_leaves_the_search(walk):
    class Mute(OraclePredictor):
        def relate(self, pairs):
            return [NoEstimate("mute")] * len(pairs)

    mute = FrameRelocalizer(CONFIG, walk.mapper.map, Mute(walk.world), Fixed())
    found = mute.relocalize(walk.seen(NEAR), active=4)
    assert isinstance(found, RelocalizedFrame)
    assert error_of(found.world_from_cam, walk, NEAR)[1] < 0.02


# A closer look


def all_landmarks(builder):
    return builder.mapper.map.landmarks.landmark_ids()


def looked_closer(builder, index, first, ids):
    landmarks, graph = builder.mapper.map.landmarks, builder.mapper.map.graph
    features, camera = builder.seen(index).features, builder.world.camera
    return refine_with_guided_matching(
        first, features, camera, ids, landmarks, graph, radius_px=10.0, min_similarity=0.8
    )


def test_a_closer_look_finds_more_of_the_same_landmarks_and_the_same_pose(walk):
    first = localized(walk, NEAR, keyframes=(4,))
    found = looked_closer(walk, NEAR, first, all_landmarks(walk))
    assert len(found.matches.tracks) > len(first.matches.tracks)
    assert found.share > 0.9
    assert error_of(found.fit.world_from_cam, walk, NEAR)[1] < 0.01
    assert np.array_equal(walk.seen(NEAR).features.pixels[found.matches.feature], found.matches.tracks.pixels)


def test_a_closer_look_at_a_wrong_pose_finds_next_to_nothing(walk):
    first = localized(walk, NEAR, keyframes=(4,))
    elsewhere = first.fit.world_from_cam * rigid(exp_so3(np.array([0.0, 0.3, 0.0])), np.array([0.2, 0.0, 0.0]))
    wrong = replace(first, fit=replace(first.fit, world_from_cam=elsewhere))
    found = looked_closer(walk, NEAR, wrong, all_landmarks(walk))
    assert len(found.matches.tracks) < 8


def test_what_becomes_a_landmarks_observation_is_no_longer_a_point_without_a_place(walk):
    first = localized(walk, NEAR, keyframes=(4, 5))
    found = looked_closer(walk, NEAR, first, all_landmarks(walk))
    both = np.concatenate([found.matches.tracks.pixels, found.untriangulated.pixels])
    assert len(np.unique(both, axis=0)) == len(both)


def test_the_share_that_must_agree_falls_from_a_half_towards_chance_as_landmarks_grow_many():
    assert needed_share(10, 0.5) == 0.5
    assert needed_share(94, 0.5) == pytest.approx(1 / 3 + 2 * np.sqrt(2 / 9 / 94))
    assert 0.33 < needed_share(100_000, 0.5) < 0.34


def test_beside_an_estimate_that_leaves_little_doubt_a_smaller_share_suffices():
    assert needed_share(94, 0.5, 0.95) == pytest.approx(1 / 3 + np.sqrt(2 / 9 / 94))
    assert needed_share(94, 0.5, 0.85) == needed_share(94, 0.5)


def test_the_surer_an_estimate_that_agrees_the_fewer_landmarks_are_needed():
    config = RelocalizationConfig(min_inliers=40, min_confirming=10)
    assert [needed_landmarks(c, config) for c in (0.0, 0.45, 0.9, 1.0)] == [40, 25, 10, 10]


@pytest.mark.parametrize("config", [{"min_cells": 48}, {"min_inliers": 1000}])
def test_landmarks_that_speak_alone_must_be_many_and_all_over_the_image(walk, config):
    class Mute(OraclePredictor):
        def relate(self, pairs):
            return [NoEstimate("mute")] * len(pairs)

    strict = FrameRelocalizer(CONFIG.model_copy(update=config), walk.mapper.map, Mute(walk.world), Fixed())
    found = strict.relocalize(walk.seen(NEAR), active=4)
    assert isinstance(found, PoseNotFound)
    assert f"{next(iter(config.values()))}" in found.reason


def test_a_keyframe_is_recognized_in_another_map_by_an_older_one_alone():
    world = room()
    builder = build(world, range(0, 5 * STEP, STEP), rotation_sigma_deg=0.3, direction_sigma_deg=2.0)
    builder.mapper.adjustment.local_bundle_adjustment(4)
    builder.add(2 * STEP + 1, segment=1, follow=False)
    builder.add(3 * STEP + 1, segment=1)
    searching = relocalizer(builder, Fixed(2, 3))
    place = next(searching.find_in_other_segments(5, min_inliers=30))
    assert place.keyframe_id == 2
    assert place.confidence >= 0.9
    assert error_of(place.found.fit.world_from_cam, builder, 2 * STEP + 1)[1] < 0.01


def test_a_keyframe_of_another_map_is_looked_for_beside_it_in_time_though_nothing_looks_alike():
    world = room()
    builder = build(world, range(0, 5 * STEP, STEP), rotation_sigma_deg=0.3, direction_sigma_deg=2.0)
    builder.mapper.adjustment.local_bundle_adjustment(4)
    builder.add(4 * STEP + 2, segment=1, follow=False)
    builder.add(4 * STEP + 4, segment=1)
    places = list(relocalizer(builder, Fixed()).find_in_other_segments(5, min_inliers=30))
    assert [place.keyframe_id for place in places] == [4, 3]
