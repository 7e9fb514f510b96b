"""Triangulation on exact rays, and the table that keeps places, names and observations together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relocalizer.geometry import Similarity, exp_so3, rigid, rotation_matrix, translation_of
from relocalizer.triangulation import triangulate
from slam.map.keyframe_graph import KeyframeGraph
from slam.map.landmarks import LandmarkMap
from slam.map.tracks import Tracks

NOISE = 1.0 / 500
DEGREE = float(np.radians(1.0))


def on_plane(points):
    return points[:, :2] / points[:, 2:]


def seen_by_both(points_i, i_from_j):
    return on_plane(points_i), on_plane(np.asarray(i_from_j.inv().apply(points_i)))


def found(points_i, i_from_j, *, noise=NOISE, min_parallax_rad=DEGREE):
    return triangulate(*seen_by_both(points_i, i_from_j), i_from_j, noise=noise, min_parallax_rad=min_parallax_rad)


def some_points(rng, count=50):
    return rng.uniform([-2, -1.5, 3], [2, 1.5, 8], (count, 3))


# Triangulation


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.2, 1.5), st.floats(0.0, 0.3))
def test_without_noise_points_are_where_they_are(seed, length, turn):
    rng = np.random.default_rng(seed)
    d = rng.normal(size=3)
    i_from_j = rigid(exp_so3(turn * rng.normal(size=3)), length * d / np.linalg.norm(d))
    points = some_points(rng)
    points = points[np.asarray(i_from_j.inv().apply(points))[:, 2] > 0.5]
    result = found(points, i_from_j)
    wide = result.parallax_rad > DEGREE
    assert np.allclose(result.points_i[wide], points[wide], rtol=1e-9)
    assert np.array_equal(result.good, wide)


def test_a_point_straight_ahead_of_a_step_to_the_right_by_hand():
    result = found(np.array([[0.0, 0.0, 1.0]]), rigid(np.eye(3), [1.0, 0.0, 0.0]))
    assert np.allclose(result.points_i, [[0, 0, 1]])
    assert result.parallax_rad[0] == pytest.approx(np.pi / 4)


def test_points_are_in_units_of_the_baseline(rng):
    points, i_from_j = some_points(rng), rigid(exp_so3([0.0, 0.1, 0.0]), [0.5, 0.1, 0.0])
    tenfold = rigid(rotation_matrix(i_from_j), 10 * translation_of(i_from_j))
    rays = seen_by_both(points, i_from_j)
    result = triangulate(*rays, tenfold, noise=NOISE, min_parallax_rad=DEGREE)
    assert np.allclose(result.points_i, 10 * points)


def test_points_of_little_parallax_are_not_trusted(rng):
    near, far = some_points(rng), some_points(rng) * 100
    result = found(np.vstack([near, far]), rigid(np.eye(3), [0.5, 0.0, 0.0]))
    assert result.good[:50].all()
    assert not result.good[50:].any()


def test_the_least_parallax_is_what_is_asked_for():
    point, i_from_j = np.array([[0.0, 0.0, 10.0]]), rigid(np.eye(3), [1.0, 0.0, 0.0])
    parallax = np.arctan(0.1)
    assert found(point, i_from_j, min_parallax_rad=parallax - 1e-6).good[0]
    assert not found(point, i_from_j, min_parallax_rad=parallax + 1e-6).good[0]


def test_points_behind_the_cameras_are_refused(rng):
    assert not found(-some_points(rng), rigid(np.eye(3), [0.5, 0.0, 0.0])).good.any()


def test_points_behind_the_second_camera_are_refused():
    points = np.array([[0.5, 0.2, 1.0], [0.5, 0.2, 6.0]])  # the camera walks past the first
    assert found(points, rigid(np.eye(3), [0.0, 0.0, 2.0])).good.tolist() == [False, True]


@pytest.mark.parametrize("parallax_deg", [0.35, 0.5, 1.0, 5.0])
def test_rays_that_part_in_front_meet_nowhere_whatever_the_noise_allows(parallax_deg):
    # The second camera is to the right and sees the point farther right: the rays meet behind.
    rays = np.array([[0.0, 0.0]]), np.array([[np.tan(np.radians(parallax_deg)), 0.0]])
    result = triangulate(
        *rays, rigid(np.eye(3), [1.0, 0.0, 0.0]), noise=1.2 / 500, min_parallax_rad=float(np.radians(0.3))
    )
    assert not result.good[0]


@pytest.mark.parametrize(("off_by", "good"), [(4.0, True), (8.0, False)])
def test_rays_that_miss_each_other_by_more_than_the_noise_are_refused(off_by, good):
    rays_i, rays_j = seen_by_both(np.array([[0.0, 0.0, 4.0]]), rigid(np.eye(3), [1.0, 0.0, 0.0]))
    rays_j[:, 1] += off_by * NOISE  # across the epipolar line: shared between the two, half each
    result = triangulate(rays_i, rays_j, rigid(np.eye(3), [1.0, 0.0, 0.0]), noise=NOISE, min_parallax_rad=DEGREE)
    assert result.good[0] == good


def test_without_a_baseline_nothing_is_good(rng):
    assert not found(some_points(rng), rigid(exp_so3([0.0, 0.1, 0.0]), np.zeros(3))).good.any()


def test_no_rays_give_no_points():
    result = found(np.zeros((0, 3)), rigid(np.eye(3), [1.0, 0.0, 0.0]))
    assert result.points_i.shape == (0, 3)
    assert result.good.shape == (0,)


# Places


@pytest.fixture
def graph(rng):
    """Poses alone: the table asks a graph for nothing else."""
    graph = KeyframeGraph()
    for k, scale in enumerate([1.0, 2.5, 0.3]):
        graph.world_from_keyframe[k] = Similarity(exp_so3(rng.normal(size=3)), rng.normal(size=3), scale)
    return graph


def placed(landmarks, rng, count, anchor):
    ids, points = landmarks.new_ids(count), some_points(rng, count)
    landmarks.set_points(ids, points, anchor, np.full(count, 0.1))
    return ids, points


@pytest.mark.parametrize("far", [1e12, -1e20, np.inf, np.nan])
def test_a_landmark_farther_than_a_map_can_say_has_no_place(graph, rng, far):
    landmarks = LandmarkMap()
    ids, points = placed(landmarks, rng, 4, 1)
    points[2, 1] = far
    landmarks.set_points(ids, points, 1, np.full(4, 0.1))
    assert landmarks.is_triangulated(ids).tolist() == [True, True, False, True]
    moved = landmarks.points_world(ids[:2], graph)
    moved[0, 2] = 10 * far
    landmarks.move_to(ids[:2], moved, graph)
    assert landmarks.is_triangulated(ids).tolist() == [False, True, False, True]


def test_ids_are_fresh_and_in_order():
    landmarks = LandmarkMap()
    assert landmarks.new_ids(3).tolist() == [0, 1, 2]
    assert landmarks.new_ids(0).tolist() == []
    assert landmarks.new_ids(2).tolist() == [3, 4]


@pytest.mark.parametrize("second", [1, 24, 25, 1000, 5000])
def test_growing_keeps_what_is_there_and_starts_the_rest_empty(rng, graph, second):
    landmarks = LandmarkMap()
    ids, points = placed(landmarks, rng, 1000, 1)
    landmarks.descriptor[ids], landmarks.color[ids] = 0.5, 7
    new = landmarks.new_ids(second)
    assert np.array_equal(landmarks.point_in_anchor[ids], points)
    assert (landmarks.descriptor[ids] == 0.5).all()
    assert (landmarks.color[ids] == 7).all()
    assert landmarks.is_triangulated(ids).all()
    assert not landmarks.is_triangulated(new).any()
    assert np.isinf(landmarks.inverse_depth_sigma[new]).all()
    assert landmarks.landmark_ids().tolist() == ids.tolist()
    tracks = Tracks(new, np.zeros((second, 2), np.float32))
    assert landmarks.with_current_ids(tracks).ids.tolist() == new.tolist()


def test_a_point_is_stored_in_its_keyframes_own_units(graph):
    landmarks = LandmarkMap()
    graph.world_from_keyframe[1] = Similarity(np.eye(3), [10.0, 0.0, 0.0], 2.0)
    [k] = landmarks.new_ids(1)
    landmarks.set_points(np.array([k]), np.array([[0.0, 0.0, 3.0]]), 1, np.array([0.1]))
    assert landmarks.points_world(np.array([k]), graph).tolist() == [[10.0, 0.0, 6.0]]


def test_landmarks_of_several_keyframes_come_in_the_order_asked_for(rng, graph):
    landmarks = LandmarkMap()
    a, in_a = placed(landmarks, rng, 20, 2)
    b, in_b = placed(landmarks, rng, 20, 0)
    order = rng.permutation(40)
    ids = np.concatenate([a, b])[order]
    poses = graph.world_from_keyframe
    expected = np.vstack([poses[2].apply(in_a), poses[0].apply(in_b)])[order]
    assert np.allclose(landmarks.points_world(ids, graph), expected)


def test_landmarks_move_with_their_keyframe(rng, graph):
    landmarks = LandmarkMap()
    ids, _ = placed(landmarks, rng, 20, 1)
    before = landmarks.points_world(ids, graph)
    change = Similarity(exp_so3(rng.normal(size=3)), rng.normal(size=3), 1.7)
    graph.world_from_keyframe[1] = change @ graph.world_from_keyframe[1]
    assert np.allclose(landmarks.points_world(ids, graph), change.apply(before))


def test_landmarks_moved_to_a_place_are_there_and_keep_their_anchors(rng, graph):
    landmarks = LandmarkMap()
    ids = np.concatenate([placed(landmarks, rng, 10, k)[0] for k in (0, 1, 2)])
    target = rng.normal(size=(30, 3))
    landmarks.move_to(ids, target, graph)
    assert np.allclose(landmarks.points_world(ids, graph), target)
    assert landmarks.anchor[ids].tolist() == [0] * 10 + [1] * 10 + [2] * 10


def test_moving_some_leaves_the_others(rng, graph):
    landmarks = LandmarkMap()
    ids, points = placed(landmarks, rng, 10, 1)
    landmarks.move_to(ids[:5], np.zeros((5, 3)), graph)
    assert np.array_equal(landmarks.point_in_anchor[ids[5:]], points[5:])


def test_a_forgotten_place_is_gone_and_the_track_stays(rng):
    landmarks = LandmarkMap()
    ids, _ = placed(landmarks, rng, 4, 0)
    landmarks.remove_points(ids[1:3])
    assert landmarks.is_triangulated(ids).tolist() == [True, False, False, True]
    assert landmarks.landmark_ids().tolist() == [0, 3]
    assert landmarks.new_ids(1).tolist() == [4]


def test_no_landmarks_have_no_places(graph):
    none = np.zeros(0, np.int64)
    landmarks = LandmarkMap()
    assert landmarks.points_world(none, graph).shape == (0, 3)
    landmarks.move_to(none, np.zeros((0, 3)), graph)
    assert landmarks.landmark_ids().tolist() == []


# Names


def tracks(*ids):
    return Tracks(np.array(ids, np.int64), np.array([[10.0 * k, 1.0] for k in ids], np.float32).reshape(-1, 2))


def ids(*numbers):
    return np.array(numbers, np.int64)


@pytest.fixture
def ten(rng):
    landmarks = LandmarkMap()
    placed(landmarks, rng, 10, 0)
    return landmarks


def test_shared_landmarks_are_counted_keyframe_by_keyframe(ten):
    ten.observed = {0: tracks(0, 1, 2), 1: tracks(2, 3), 2: tracks(9)}
    assert ten.shared_with(ids(1, 2, 3), [0, 1, 2]) == {0: 2, 1: 2, 2: 0}


def test_merging_renames_every_observation(ten):
    ten.observed = {0: tracks(1, 2), 1: tracks(3, 7)}
    ten.feature_tracks = {0: ids(1, -1, 2), 1: ids(-1, 7, 3)}
    ten.merge(ids(1), ids(7))
    assert ten.observed[1].ids.tolist() == [3, 1]
    assert ten.observed[1].pixels[:, 0].tolist() == [30.0, 70.0]
    assert ten.feature_tracks[1].tolist() == [-1, 1, 3]
    assert ten.feature_tracks[0].tolist() == [1, -1, 2]


def test_the_name_that_is_gone_has_no_place_and_the_kept_one_stays_where_it_was(ten):
    before = ten.point_in_anchor[1].copy()
    ten.merge(ids(1), ids(7))
    assert ten.is_triangulated(ids(1, 7)).tolist() == [True, False]
    assert np.array_equal(ten.point_in_anchor[1], before)


@pytest.mark.parametrize("order", [(1, 7), (7, 1)])
def test_a_keyframe_that_saw_both_keeps_what_it_saw_under_the_kept_name(ten, order):
    ten.observed = {0: tracks(5, *order, 6)}
    ten.merge(ids(1), ids(7))
    assert sorted(ten.observed[0].ids.tolist()) == [1, 5, 6]
    assert ten.observed[0].pixels[ten.observed[0].ids == 1, 0].tolist() == [10.0]


@pytest.mark.parametrize("steps", [[(3, 2), (2, 1), (1, 0)], [(1, 0), (2, 1), (3, 2)], [(2, 1), (3, 2), (1, 0)]])
def test_chains_of_merges_end_at_one_name(ten, steps):
    ten.observed = {0: tracks(0, 9), 1: tracks(3), 2: tracks(2, 3), 3: tracks(1)}
    for gone, kept in steps:
        kept = int(ten.with_current_ids(tracks(kept)).ids[0])  # callers name what is there
        ten.merge(ids(kept), ids(gone))
    assert [ten.observed[k].ids.tolist() for k in range(4)] == [[0, 9], [0], [0], [0]]
    assert ten.with_current_ids(tracks(3)).ids.tolist() == [0]


def test_a_chain_within_one_merge_ends_at_one_name(ten):
    ten.observed = {0: tracks(4), 1: tracks(3)}
    ten.merge(kept=ids(0, 1, 2, 3), gone=ids(1, 2, 3, 4))
    assert [ten.observed[k].ids.tolist() for k in (0, 1)] == [[0], [0]]
    assert ten.is_triangulated(ids(0, 1, 2, 3, 4)).tolist() == [True, False, False, False, False]


def test_two_names_that_each_give_way_to_the_other_do_not_both_vanish(ten):
    ten.observed = {0: tracks(3), 1: tracks(4)}
    ten.merge(kept=ids(3, 4), gone=ids(4, 3))
    left = {k: ten.observed[k].ids.tolist() for k in (0, 1)}
    assert left[0] == left[1]
    assert ten.is_triangulated(np.array(left[0])).all()


def test_tracks_held_elsewhere_learn_the_new_names(ten):
    ten.merge(ids(1), ids(7))
    live = ten.with_current_ids(tracks(8, 7, 2))
    assert live.ids.tolist() == [8, 1, 2]
    assert live.pixels[:, 0].tolist() == [80.0, 70.0, 20.0]


def test_of_two_tracks_that_became_one_the_kept_name_continues(ten):
    ten.merge(ids(1), ids(7))
    live = ten.with_current_ids(tracks(7, 2, 1))
    assert sorted(live.ids.tolist()) == [1, 2]
    assert live.pixels[live.ids == 1, 0].tolist() == [10.0]


def test_merging_nothing_changes_nothing(ten):
    ten.observed, ten.feature_tracks = {0: tracks(1, 2)}, {0: ids(-1, 1)}
    ten.merge(ids(), ids())
    assert ten.observed[0].ids.tolist() == [1, 2]
    assert ten.feature_tracks[0].tolist() == [-1, 1]
    assert len(ten.landmark_ids()) == 10


def test_started_tracks_remember_how_they_look_even_at_the_border():
    landmarks = LandmarkMap()
    image = np.zeros((6, 8, 3), np.uint8)
    image[2, 3] = (10, 20, 30)
    image[5, 7] = (1, 2, 3)
    pixels = np.array([[3.2, 1.9], [7.9, 5.6]], np.float32)
    descriptors = np.eye(2, 128, dtype=np.float32)
    tracks = landmarks.start(pixels, descriptors, image)
    assert landmarks.color[tracks.ids].tolist() == [[10, 20, 30], [1, 2, 3]]
    assert np.array_equal(landmarks.descriptor[tracks.ids], descriptors)


def sharing(landmarks, asked):
    """The keyframes that saw any of the landmarks, in order, and how many of them each did."""
    counts = landmarks.shared_with(asked, landmarks.observed.observers_of(asked))
    return {k: count for k, count in counts.items() if count}


def test_keyframes_that_share_landmarks_are_found_without_being_named(ten):
    ten.observed = {4: tracks(0, 1, 2), 2: tracks(2, 3), 7: tracks(9), 5: tracks()}
    assert sharing(ten, ids(1, 2, 3)) == {2: 2, 4: 2}
    assert list(sharing(ten, ids(1, 2, 3))) == [2, 4]
    assert sharing(ten, ids()) == {}


def test_a_keyframe_that_forgot_a_landmark_does_not_share_it(ten):
    ten.observed = {0: tracks(0, 1), 1: tracks(1)}
    ten.observed[0] = tracks(0)
    assert sharing(ten, ids(1)) == {1: 1}
    ten.observed[0] = tracks(0, 1)
    assert sharing(ten, ids(1)) == {0: 1, 1: 1}


def test_keyframes_share_a_landmark_under_the_name_that_merging_left(ten):
    ten.observed = {0: tracks(1), 1: tracks(7), 2: tracks(8)}
    ten.merge(ids(1), ids(7))
    assert sharing(ten, ids(1)) == {0: 1, 1: 1}
    assert sharing(ten, ids(7)) == {}


def test_a_track_that_no_keyframe_saw_is_seen_by_none(ten):
    ten.observed = {0: tracks(1)}
    assert ten.observed.observers_of(ids(2, 1_000_000)) == []


def test_counting_leaves_nothing_behind_for_the_next_count(ten):
    ten.observed = {0: tracks(1, 2), 1: tracks(3)}
    ten.shared_with(ids(1, 2), [0])
    assert ten.shared_with(ids(3), [0, 1]) == {0: 0, 1: 1}


def test_many_sightings_are_found_as_counting_them_all_would(rng):
    landmarks = LandmarkMap()
    landmarks.new_ids(5000)
    for k in range(60):
        landmarks.observed[k] = tracks(*np.sort(rng.choice(5000, 80, replace=False)).tolist())
    asked = rng.choice(5000, 100, replace=False)
    by_hand = {k: int(np.isin(t.ids, asked).sum()) for k, t in landmarks.observed.items()}
    assert sharing(landmarks, asked) == {k: count for k, count in by_hand.items() if count}
