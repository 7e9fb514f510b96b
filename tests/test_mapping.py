"""The map grows: tracks get places, known points are found again, and the recent part is refined."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oracle import OraclePredictor
from oracle_map import build, room
from scipy.spatial import cKDTree
from scipy.spatial.transform import RigidTransform

from relocalizer.geometry import Similarity, exp_so3, rigid, rotation_angle, translation_of
from relocalizer.interfaces import NoEstimate, PairEstimate
from relocalizer.intrinsics_correction import CorrectionStep
from slam.config.schema import BundleAdjustmentConfig, LandmarksConfig, SlamConfig, TracksConfig
from slam.events import EstimateRefused
from slam.map.tracks import Tracks
from slam.mapping.bundle import CALIBRATED
from slam.mapping.bundle_adjustment import reprojection_px
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster

STEP = 6  # frames between keyframes of the walk around the room


@pytest.fixture(scope="module")
def walk():
    """Eight keyframes at their true poses. Read only."""
    return build(room(), range(0, 8 * STEP, STEP))


@pytest.fixture
def fresh():
    """Five keyframes at their true poses, to be changed."""
    return build(room(), range(0, 5 * STEP, STEP))


def truth_of(builder, ids):
    """The world's point (N, 3) behind each track: the one seen where the track was first observed."""
    points = np.full((len(ids), 3), np.nan)
    for row, track in enumerate(ids.tolist()):
        for k, keyframe in builder.mapper.map.graph.keyframes.items():
            tracks = builder.mapper.map.landmarks.observed[k]
            at = np.flatnonzero(tracks.ids == track)
            if len(at):
                seen, pixels = builder.world.visible(keyframe.frame_index)
                points[row] = builder.world.points[seen[cKDTree(pixels).query(tracks.pixels[at[0]])[1]]]
                break
    return points


# A new keyframe


def test_keyframes_are_numbered_in_order_and_carry_their_frame(walk):
    keyframes = walk.mapper.map.graph.keyframes
    assert list(keyframes) == list(range(8))
    assert [k.frame_index for k in keyframes.values()] == [STEP * k for k in range(8)]
    assert keyframes[3].camera == walk.world.camera
    assert np.linalg.norm(keyframes[3].descriptor) == pytest.approx(1.0, abs=1e-6)


def test_the_first_keyframe_starts_tracks_and_places_none():
    first = build(room(), [0]).mapper
    assert len(first.map.landmarks.observed[0]) > 100
    assert len(first.map.landmarks.landmark_ids()) == 0


def test_the_second_keyframe_gives_the_tracks_a_place():
    two = build(room(), [0, STEP]).mapper
    assert len(two.map.landmarks.landmark_ids()) > 50
    assert (two.map.landmarks.anchor[two.map.landmarks.landmark_ids()] == 0).all()


def test_landmarks_lie_where_the_points_are(walk):
    landmarks = walk.mapper.map.landmarks
    ids = landmarks.landmark_ids()
    error = np.linalg.norm(landmarks.points_world(ids, walk.mapper.map.graph) - truth_of(walk, ids), axis=1)
    assert len(ids) > 300
    assert np.median(error) < 0.02
    assert np.percentile(error, 95) < 0.15


def test_the_depth_of_a_landmark_scatters_as_its_sigma_says(walk):
    landmarks, graph = walk.mapper.map.landmarks, walk.mapper.map.graph
    ids = landmarks.landmark_ids()
    own = landmarks.point_in_anchor[ids, 2]
    truth = truth_of(walk, ids)
    true_depth = np.array(
        [
            graph.world_from_keyframe[int(a)].inverse().apply(p)[2]
            for a, p in zip(landmarks.anchor[ids], truth, strict=True)
        ]
    )
    in_sigmas = (1 / own - 1 / true_depth) / landmarks.inverse_depth_sigma[ids]
    # The sigma speaks of 1.5 x 0.8 px, the world has 0.3 px in each of two images.
    assert 0.1 < np.median(np.abs(in_sigmas)) / 0.6745 < 1.0


@pytest.mark.parametrize("scale", [0.2, 5.0])
def test_keyframes_of_another_scale_hold_the_same_landmarks_in_their_own_units(walk, scale):
    other = build(
        room(),
        range(0, 8 * STEP, STEP),
        pose=lambda index: Similarity.from_rigid(walk.world.poses[index], scale),
    ).mapper
    ids = walk.mapper.map.landmarks.landmark_ids()
    assert np.array_equal(other.map.landmarks.landmark_ids(), ids)
    here, there = (m.map.landmarks.points_world(ids, m.map.graph) for m in (walk.mapper, other))
    assert np.allclose(here, there, atol=1e-9)
    assert np.allclose(other.map.landmarks.point_in_anchor[ids], walk.mapper.map.landmarks.point_in_anchor[ids] / scale)
    sigmas = (m.map.landmarks.inverse_depth_sigma[ids] for m in (walk.mapper, other))
    assert np.divide(*sigmas) == pytest.approx(1 / scale)


def test_tracks_without_enough_parallax_wait_for_a_place():
    config = SlamConfig(landmarks=LandmarksConfig(min_parallax_deg=25.0))
    few = build(room(), [0, STEP], config=config).mapper
    assert len(few.map.landmarks.landmark_ids()) < 10
    assert len(few.map.landmarks.observed[1]) > 50


def test_a_keyframe_holds_no_track_twice_and_no_feature_two_tracks(walk):
    for k, tracks in walk.mapper.map.landmarks.observed.items():
        assert len(np.unique(tracks.ids)) == len(tracks)
        named = walk.mapper.map.landmarks.feature_tracks[k]
        assert len(named) == len(walk.mapper.map.graph.keyframes[k].features)
        assert len(np.unique(named[named >= 0])) == (named >= 0).sum()


def test_the_number_of_tracks_stays_within_what_the_settings_say():
    config = SlamConfig(tracks=TracksConfig(max_tracks=80), landmarks=LandmarksConfig(search_keyframes=0))
    small = build(room(), range(0, 4 * STEP, STEP), config=config).mapper
    assert all(len(tracks) <= 80 for tracks in small.map.landmarks.observed.values())


def test_a_new_track_takes_its_color_from_the_image_in_rgb():
    builder = build(room())
    seen = builder.seen(0)
    image = seen.frame.image.copy()
    image[20:, :320] = [200, 100, 50]
    builder.mapper.insert(
        replace(seen, frame=replace(seen.frame, image=image)), Tracks.none(), Similarity.identity(), 0
    )
    tracks = builder.mapper.map.landmarks.observed[0]
    inner = (tracks.pixels[:, 0] < 318) & (tracks.pixels[:, 1] > 22)
    assert (builder.mapper.map.landmarks.color[tracks.ids[inner]] == [200, 100, 50]).all()


# Found again


def test_a_keyframe_that_follows_nothing_is_related_to_nobody(fresh):
    k = fresh.add(4 * STEP + 2, follow=False)
    assert fresh.mapper.map.covisible(k, 10) == []
    assert len(fresh.mapper.map.landmarks.observed[k]) > 100


def test_a_followed_keyframe_also_finds_what_its_predecessor_had_lost(fresh):
    half = fresh.followed(4 * STEP + 3)
    half = half.where(np.arange(len(half)) % 2 == 0)
    seen = fresh.seen(4 * STEP + 3)
    k = fresh.mapper.insert(seen, half, Similarity.from_rigid(fresh.world.poses[4 * STEP + 3]), 0).id
    landmarks = fresh.mapper.map.landmarks
    again = np.setdiff1d(landmarks.observed[k].ids, half.ids)
    again = again[again < half.ids.max()]  # names that were there before
    assert len(again) > 30
    tracks = landmarks.observed[k].where(np.isin(landmarks.observed[k].ids, again))
    seen, pixels = fresh.world.visible(4 * STEP + 3)
    there = fresh.world.points[seen[cKDTree(pixels).query(tracks.pixels)[1]]]
    assert (truth_of(fresh, tracks.ids) == there).all(axis=1).mean() > 0.98


def test_finding_again_twice_finds_nothing_new(fresh):
    k = fresh.mapper.map.graph.last_id
    fresh.mapper.fusion.search_by_projection(k)
    before = fresh.mapper.map.landmarks.observed[k]
    assert fresh.mapper.fusion.search_by_projection(k) == 0
    assert np.array_equal(fresh.mapper.map.landmarks.observed[k].ids, before.ids)


def test_what_looks_different_is_not_taken_for_the_point(fresh):
    fresh.mapper.map.landmarks.descriptor[:] = np.roll(fresh.mapper.map.landmarks.descriptor, 1, axis=0)
    half = fresh.followed(4 * STEP + 3)
    half = half.where(np.arange(len(half)) % 2 == 0)
    names = fresh.mapper.map.landmarks.landmark_ids()
    seen = fresh.seen(4 * STEP + 3)
    k = fresh.mapper.insert(seen, half, Similarity.from_rigid(fresh.world.poses[4 * STEP + 3]), 0).id
    again = np.setdiff1d(np.intersect1d(fresh.mapper.map.landmarks.observed[k].ids, names), half.ids)
    assert len(again) < 5


# One point, one name


@pytest.fixture
def twice():
    """Keyframes after the third follow only every other track, so that many points get a second name."""
    config = SlamConfig(landmarks=LandmarksConfig(search_keyframes=0))
    builder = build(room(), range(0, 3 * STEP, STEP), config=config)
    tracks = builder.followed(3 * STEP)
    tracks = tracks.where(np.arange(len(tracks)) % 2 == 0)
    pose = Similarity.from_rigid(builder.world.poses[3 * STEP])
    builder.mapper.insert(builder.seen(3 * STEP), tracks, pose, 0)
    builder.add(4 * STEP)
    return builder


def surplus(builder):
    """How many placed landmarks are second names of a point that has one already."""
    truth = truth_of(builder, builder.mapper.map.landmarks.landmark_ids())
    return len(truth) - len(np.unique(truth, axis=0))


def test_two_names_of_one_point_become_one(twice):
    before = surplus(twice)
    old = twice.mapper.map.landmarks.landmark_ids()
    truth = truth_of(twice, old)
    twice.mapper.fusion.search_by_projection(4, covisible=12)
    gone = ~twice.mapper.map.landmarks.is_triangulated(old)
    assert before > 20
    assert surplus(twice) < 0.5 * before
    names = twice.mapper.map.landmarks.with_current_ids(Tracks(old[gone], np.zeros((int(gone.sum()), 2), np.float32)))
    kept = truth[np.searchsorted(old, names.ids)]
    assert (np.sort(kept, axis=0) == np.sort(truth[gone], axis=0)).all(axis=1).mean() > 0.95
    assert (names.ids < old[gone].max()).all()


def test_names_whose_depths_disagree_stay_two(twice):
    landmarks = twice.mapper.map.landmarks
    second = landmarks.landmark_ids()
    second = second[landmarks.anchor[second] == 3]
    landmarks.point_in_anchor[second] *= 2.0
    before = surplus(twice)
    twice.mapper.fusion.search_by_projection(4, covisible=12)
    assert len(second) > 20
    assert surplus(twice) == before


# Relations


def test_relatives_are_ranked_by_the_landmarks_they_share(walk):
    landmarks = walk.mapper.map.landmarks
    covisible = walk.mapper.map.covisible(5, 10)
    mine = landmarks.observed[5].ids[landmarks.is_triangulated(landmarks.observed[5].ids)]
    shares = [len(np.intersect1d(mine, landmarks.observed[i].ids)) for i in covisible]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] > 0
    assert 5 not in covisible
    assert walk.mapper.map.covisible(5, 2) == covisible[:2]


def test_relatives_can_be_limited_to_some(walk):
    assert set(walk.mapper.map.covisible(5, 10, among=[1, 4])) <= {1, 4}
    assert walk.mapper.map.covisible(5, 10, among=[]) == []


def test_keyframes_of_other_segments_are_no_relatives(fresh):
    k = fresh.add(4 * STEP + 3, segment=1)
    assert fresh.mapper.map.covisible(k, 10) == []
    assert fresh.mapper.map.segment_keyframes(k) == [k]


def test_only_an_estimate_is_remembered_as_a_pair(fresh):
    [estimate] = fresh.predictor.relate(
        [(fresh.mapper.map.graph.keyframes[0].encoded, fresh.mapper.map.graph.keyframes[1].encoded)]
    )
    assert isinstance(estimate, PairEstimate)
    fresh.mapper.remember_pair(0, 1, estimate)
    fresh.mapper.remember_pair(1, 2, NoEstimate("dark"))
    assert list(fresh.mapper.map.pairs) == [(0, 1)]


def test_without_pair_priors_no_estimate_is_remembered():
    config = SlamConfig(bundle_adjustment=BundleAdjustmentConfig(pair_priors=False))
    builder = build(room(), [0, STEP], config=config)
    encoded = [keyframe.encoded for keyframe in builder.mapper.map.graph.keyframes.values()]
    [estimate] = builder.predictor.relate([tuple(encoded)])
    assert isinstance(estimate, PairEstimate)
    builder.mapper.remember_pair(0, 1, estimate)
    assert not builder.mapper.map.pairs


def test_a_window_with_no_iterations_is_left_as_it_is():
    def a_little_off(index):
        pose = Similarity.from_rigid(room().poses[index])
        up = np.array([0.0, 0.01 * (index > 2 * STEP), 0.0])
        return Similarity(pose.rotation, pose.translation + up)

    config = SlamConfig(bundle_adjustment=BundleAdjustmentConfig(iterations=0))
    mapper = build(room(), range(0, 5 * STEP, STEP), config=config, pose=a_little_off).mapper
    before = mapper.map.graph.positions()
    mapper.adjustment.local_bundle_adjustment(4)
    assert np.array_equal(mapper.map.graph.positions(), before)


def test_a_segment_that_joins_another_moves_with_its_landmarks_and_keeps_its_shape(fresh):
    graph, landmarks = fresh.mapper.map.graph, fresh.mapper.map.landmarks
    k = fresh.add(5 * STEP, segment=1, follow=False)
    m = fresh.add(6 * STEP, segment=1)
    ids = landmarks.landmark_ids()
    mine = ids[landmarks.anchor[ids] >= k]
    others = ids[landmarks.anchor[ids] < k]
    before, before_others = landmarks.points_world(mine, graph), landmarks.points_world(others, graph)
    poses = [graph.world_from_keyframe[i] for i in (k, m)]
    change = Similarity(exp_so3([0.1, 0.2, 0.3]), [1.0, 2.0, 3.0], 2.5)
    fresh.mapper.map.join_segments(0, k, change)
    assert len(mine) > 20
    assert np.allclose(landmarks.points_world(mine, graph), change.apply(before))
    assert np.allclose(landmarks.points_world(others, graph), before_others)
    assert all(graph.world_from_keyframe[i].is_close(change @ p) for i, p in zip((k, m), poses, strict=True))
    assert graph.segment(0) == list(range(m + 1))


# Refinement


def disturb(builder, ids, rng, angle=0.004, distance=0.01):
    graph = builder.mapper.map.graph
    for k in ids:
        pose = graph.world_from_keyframe[k]
        off = rigid(exp_so3(angle * rng.normal(size=3)), distance * rng.normal(size=3))
        graph.world_from_keyframe[k] = Similarity.from_rigid(pose.rigid * off, pose.scale)


def errors(builder, ids):
    """(radians, units) of keyframes against the truth."""
    graph = builder.mapper.map.graph
    truth = [builder.world.poses[graph.keyframes[k].frame_index] for k in ids]
    between = [t.inv() * graph.world_from_keyframe[k].rigid for k, t in zip(ids, truth, strict=True)]
    angles = [rotation_angle(np.asarray(b.rotation.as_matrix())) for b in between]
    return max(angles), max(float(np.linalg.norm(translation_of(b))) for b in between)


def test_refining_the_window_puts_disturbed_keyframes_right_and_leaves_older_ones():
    config = SlamConfig(bundle_adjustment=BundleAdjustmentConfig(window=3, iterations=20))
    builder, rng = build(room(), range(0, 8 * STEP, STEP), config=config), np.random.default_rng(1)
    disturb(builder, [5, 6, 7], rng)
    before = errors(builder, [5, 6, 7])
    older = {k: builder.mapper.map.graph.world_from_keyframe[k] for k in range(5)}
    builder.mapper.adjustment.local_bundle_adjustment(7)
    after = errors(builder, [5, 6, 7])
    assert after[0] < 0.5 * before[0]
    assert after[1] < 0.5 * before[1]
    assert all(builder.mapper.map.graph.world_from_keyframe[k] is pose for k, pose in older.items())


@pytest.mark.parametrize(("times", "same_place"), [(1, False), (3, True)])
def test_keyframes_that_hold_a_window_are_not_all_at_one_place_however_often_the_camera_was_there(
    monkeypatch, times, same_place
):
    config = SlamConfig(bundle_adjustment=BundleAdjustmentConfig(window=3, covisible=3))
    builder = build(room(), [STEP * n for n in (0, 1, 2, *[3] * times, 4, 5, 6)], config=config)
    mapper, bundles, refine = builder.mapper, [], SchurBundleAdjuster.refine
    k = mapper.map.graph.last_id
    most = [i for i in mapper.map.covisible(k, 20) if i not in mapper.map.latest(k, 3)][:3]
    assert (spread(builder, most) < 1e-9) is same_place
    monkeypatch.setattr(
        SchurBundleAdjuster, "refine", lambda *args, **kw: bundles.append(args[1]) or refine(*args, **kw)
    )
    mapper.adjustment.local_bundle_adjustment(k)
    [bundle] = bundles
    assert len(bundle.fixed) == len(most)
    assert spread(builder, bundle.fixed) > 0.1
    assert len(bundle.fixed - {*most}) == same_place  # as few others as it takes


def spread(builder, ids):
    """The greatest distance between the true places of keyframes."""
    centers = np.array(
        [translation_of(builder.world.poses[builder.mapper.map.graph.keyframes[k].frame_index]) for k in ids]
    )
    return max(float(np.linalg.norm(a - b)) for a in centers for b in centers)


def test_refining_keeps_the_scales_of_the_keyframes(fresh):
    graph = fresh.mapper.map.graph
    for k, pose in list(graph.world_from_keyframe.items()):
        fresh.mapper.map.landmarks.point_in_anchor[fresh.mapper.map.landmarks.anchor == k] /= 1 + 0.1 * k
        graph.world_from_keyframe[k] = Similarity.from_rigid(pose.rigid, 1 + 0.1 * k)
    fresh.mapper.adjustment.local_bundle_adjustment(4)
    assert [graph.world_from_keyframe[k].scale for k in range(5)] == pytest.approx([1.0, 1.1, 1.2, 1.3, 1.4])
    assert errors(fresh, range(5))[1] < 0.02


def test_refining_everything_improves_a_disturbed_map_up_to_its_size(rng):
    builder = build(room(), range(0, 8 * STEP, STEP))
    disturb(builder, range(1, 8), rng, distance=0.02)
    before = errors(builder, range(8))
    builder.mapper.adjustment.global_bundle_adjustment(0)
    after = errors(builder, range(8))
    assert after[0] < 0.5 * before[0]
    assert builder.mapper.map.graph.world_from_keyframe[0].is_close(
        Similarity.from_rigid(builder.world.poses[0]), atol=1e-4
    )


def test_a_segment_of_one_keyframe_is_left_alone():
    builder = build(room(), [0])
    builder.mapper.adjustment.global_bundle_adjustment(0)
    builder.mapper.adjustment.local_bundle_adjustment(0)
    assert builder.mapper.map.graph.world_from_keyframe[0].is_close(Similarity.from_rigid(builder.world.poses[0]))


def test_observations_the_refined_map_contradicts_are_forgotten(fresh):
    landmarks = fresh.mapper.map.landmarks
    tracks = landmarks.observed[3]
    placed = np.flatnonzero(landmarks.is_triangulated(tracks.ids))[:8]
    observers_of = np.array([sum(t in o.ids for o in landmarks.observed.values()) for t in tracks.ids[placed]])
    pixels = tracks.pixels.copy()
    pixels[placed] += np.float32([25, -20])
    wrong = tracks.ids[placed]
    landmarks.observed[3] = Tracks(tracks.ids, pixels)
    fresh.mapper.adjustment.local_bundle_adjustment(4)
    assert not np.isin(wrong[observers_of >= 3], landmarks.observed[3].ids).any()
    assert not np.isin(wrong[observers_of >= 3], landmarks.feature_tracks[3]).any()
    assert len(landmarks.observed[3]) > len(tracks) - 30


def test_a_landmark_with_fewer_than_two_observations_left_loses_its_place(fresh):
    landmarks = fresh.mapper.map.landmarks
    ids = landmarks.landmark_ids()
    counts = {t: [k for k, o in landmarks.observed.items() if t in o.ids] for t in ids.tolist()}
    track, keyframes = next((t, ks) for t, ks in counts.items() if len(ks) == 2)
    tracks = landmarks.observed[keyframes[1]]
    pixels = tracks.pixels.copy()
    pixels[tracks.ids == track] += np.float32([60, 60])
    landmarks.observed[keyframes[1]] = Tracks(tracks.ids, pixels)
    fresh.mapper.adjustment.local_bundle_adjustment(4)
    assert not landmarks.is_triangulated(np.array([track]))[0]


def test_landmarks_beyond_the_windows_limit_are_placed_under_the_new_poses_too():
    config = SlamConfig(bundle_adjustment=BundleAdjustmentConfig(window=5, iterations=20, max_landmarks=50))
    builder, rng = build(room(), range(0, 5 * STEP, STEP), config=config), np.random.default_rng(2)
    landmarks, graph = builder.mapper.map.landmarks, builder.mapper.map.graph
    ids = landmarks.landmark_ids()
    landmarks.point_in_anchor[ids] *= 1 + 0.05 * rng.normal(size=(len(ids), 1))
    builder.mapper.adjustment.local_bundle_adjustment(4)
    left = ids[landmarks.is_triangulated(ids)]
    assert len(left) > 3 * 50
    observed = landmarks.observed[4]
    rows = np.isin(observed.ids, left)
    points = landmarks.points_world(observed.ids[rows], graph)
    seen = builder.world.camera.project(np.asarray(graph.world_from_keyframe[4].rigid.inv().apply(points)))
    assert np.median(np.linalg.norm(seen - observed.pixels[rows], axis=1)) < 1.0


# The lens of a segment


@pytest.fixture
def halves(fresh):
    """Keyframes 0 to 2 and 3 to 4 in segments of their own."""
    fresh.mapper.map.graph.segment_of.update({3: 1, 4: 1})
    return fresh.mapper


def test_the_lens_of_one_segment_leaves_the_keyframes_of_another(halves):
    cameras = {k: keyframe.camera for k, keyframe in halves.map.graph.keyframes.items()}
    pixels = {k: tracks.pixels for k, tracks in halves.map.landmarks.observed.items()}
    assert halves.adjustment.correct_lens(1, CorrectionStep((1.02, 1.02), (0.01, 0.0))) == ""
    assert not halves.map.lens_of(0).has_corrections
    assert halves.map.lens_of(4).has_distortion
    for k, keyframe in halves.map.graph.keyframes.items():
        ratio = keyframe.camera.mean_focal / cameras[k].mean_focal
        assert ratio == pytest.approx(1.02 if k >= 3 else 1.0)
        assert (k >= 3) or np.array_equal(halves.map.landmarks.observed[k].pixels, pixels[k])


def test_a_wrong_focal_length_is_put_right_and_the_map_follows():
    """Seen by a camera that is taken for one with a lens a tenth too long."""
    true, builder = room(), build(room(), range(0, 5 * STEP, STEP))
    mapper, given = builder.mapper, true.camera
    wrong = replace(given, fx=1.1 * given.fx, fy=1.1 * given.fy, assumed=True)
    for k, keyframe in mapper.map.graph.keyframes.items():
        mapper.map.graph.keyframes[k] = replace(keyframe, camera=wrong)
    before = reprojection_px(mapper.map, list(mapper.map.graph.keyframes))
    mapper.adjustment.correct_lens(0, CorrectionStep((1 / 1.1, 1 / 1.1)))
    assert reprojection_px(mapper.map, list(mapper.map.graph.keyframes)) < 0.1 * before
    assert {keyframe.camera.assumed for keyframe in mapper.map.graph.keyframes.values()} == {False}


@pytest.mark.parametrize("ratio", [1.0, 1.05])
def test_all_views_together_tell_the_focal_length_they_want_and_nothing_changes(ratio):
    mapper = build(room(), range(0, 8 * STEP, STEP)).mapper
    for k, keyframe in mapper.map.graph.keyframes.items():
        given = keyframe.camera.refocused((ratio, ratio))
        mapper.map.graph.keyframes[k] = replace(keyframe, camera=given)
    poses, error_px = dict(mapper.map.graph.world_from_keyframe), reprojection_px(mapper.map, list(range(8)))
    assert mapper.adjustment.wanted_focal_ratio(0) == pytest.approx(1.0 / ratio, abs=0.01)
    assert mapper.map.graph.world_from_keyframe == poses
    assert reprojection_px(mapper.map, list(range(8))) == error_px
    assert mapper.map.lenses == {}


def test_two_keyframes_without_landmarks_want_no_other_focal_length(halves):
    halves.map.remove_landmarks(halves.map.landmarks.landmark_ids())
    assert halves.adjustment.wanted_focal_ratio(1) == 1.0


def test_a_correction_that_is_no_lens_changes_nothing_and_says_why(halves):
    cameras = [keyframe.camera for keyframe in halves.map.graph.keyframes.values()]
    assert halves.adjustment.correct_lens(1, CorrectionStep(radial=(-3.0, 0.0))) == "the lens found has no inverse"
    assert [keyframe.camera for keyframe in halves.map.graph.keyframes.values()] == cameras
    assert halves.map.lenses == {}


def test_distortion_beyond_what_calibrations_leave_is_refused_and_said(fresh):
    fresh.mapper.adjustment._adjuster = Answers(lens=lambda refined: CorrectionStep(radial=(0.1, 0.0)))
    fresh.mapper.adjustment.global_bundle_adjustment(0, lens=replace(CALIBRATED, most_px=5.0))
    assert fresh.mapper.map.lens_evidence[0].reason.startswith("the distortion found moves the corners by 2")


# Results that cannot be


class Answers(SchurBundleAdjuster):
    """A refiner whose results come out changed."""

    def __init__(self, **changes):
        self.changes = changes

    def refine(self, bundle, **options):
        refined = super().refine(bundle, **options)
        return replace(refined, **{name: change(refined) for name, change in self.changes.items()})


def spoilt(array):
    array = array.copy()
    array[::5] = np.nan
    return array


def nowhere(refined):
    return dict.fromkeys(refined.world_from_cam, RigidTransform.from_translation([0.0, np.nan, 0.0]))


def far_away(refined):
    return {k: rigid(np.eye(3), [1e13, 0.0, 0.0]) for k in refined.world_from_cam}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"problem": lambda refined: "singular"}, "singular"),
        ({"points_world": lambda refined: spoilt(refined.points_world)}, "landmarks are not finite"),
        ({"error_px": lambda refined: spoilt(refined.error_px)}, "reprojection errors are not finite"),
        ({"world_from_cam": nowhere}, "poses are not finite"),
        ({"world_from_cam": far_away}, "poses are beyond 1e+12 map units"),
        ({"lens": lambda refined: CorrectionStep(focal_ratio=(np.nan, 1.0))}, "the lens found has no inverse"),
        ({"lens": lambda refined: CorrectionStep(focal_ratio=(-1.0, -1.0))}, "the lens found has no inverse"),
        ({"lens": lambda refined: CorrectionStep(radial=(0.0, -1.0))}, "the lens found has no inverse"),
    ],
)
def test_a_refinement_that_cannot_be_changes_nothing_and_is_reported(changes, said, rng):
    reported = []
    builder = build(room(), adjuster=Answers(**changes), emit=reported.append)
    for index in range(0, 5 * STEP, STEP):
        builder.add(index)
    mapper = builder.mapper
    ids = mapper.map.landmarks.landmark_ids()
    before, places = (
        dict(mapper.map.graph.world_from_keyframe),
        mapper.map.landmarks.points_world(ids, mapper.map.graph),
    )
    cameras = [keyframe.camera for keyframe in mapper.map.graph.keyframes.values()]
    assert mapper.adjustment.global_bundle_adjustment(0) != (0.0, 0.0)
    assert mapper.map.graph.world_from_keyframe == before
    assert np.array_equal(mapper.map.landmarks.landmark_ids(), ids)
    assert np.array_equal(mapper.map.landmarks.points_world(ids, mapper.map.graph), places)
    assert [keyframe.camera for keyframe in mapper.map.graph.keyframes.values()] == cameras
    assert reported == [EstimateRefused(frame_index=4 * STEP, reason=f"bundle adjustment: {said}")]


def test_a_place_that_the_predictor_cannot_describe_is_reported():
    class Blind(OraclePredictor):
        def describe(self, encoded):
            return np.full_like(super().describe(encoded), np.nan)

    reported, world = [], room()
    builder = build(world, predictor=Blind(world), emit=reported.append)
    builder.add(0)
    assert np.linalg.norm(builder.mapper.map.graph.keyframes[0].descriptor) == 1.0
    [event] = reported
    assert event.reason == "the place descriptor is no unit vector: its place will hardly be recognized"


def test_a_lens_that_has_no_inverse_after_the_corrections_before_it_is_refused():
    reported = []
    has_distortion = Answers(lens=lambda refined: CorrectionStep(radial=(-0.16, 0.0)))
    builder = build(room(), adjuster=has_distortion, emit=reported.append)
    for index in range(0, 5 * STEP, STEP):
        builder.add(index)
    mapper = builder.mapper
    mapper.adjustment.global_bundle_adjustment(0)
    assert len(mapper.map.lenses[0].steps) == 1
    assert not reported
    mapper.adjustment.global_bundle_adjustment(0)
    assert len(mapper.map.lenses[0].steps) == 1
    assert [event.reason for event in reported] == ["bundle adjustment: the lens found has no inverse"]
    assert all(np.isfinite(tracks.pixels).all() for tracks in mapper.map.landmarks.observed.values())
