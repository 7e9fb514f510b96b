"""Frames relative_to_keyframe off keyframes in the keyframe's own units, so that they move with the graph."""

from __future__ import annotations

import numpy as np
import pytest

from relocalizer.camera import Camera
from relocalizer.geometry import Similarity, exp_so3, rigid, rotation_matrix, stack_matrices, translation_of
from relocalizer.intrinsics_correction import CorrectionStep, IntrinsicsCorrection
from slam.map.frame_log import FRAMES_AT_ONCE, MAX_OBSERVATIONS_PER_FRAME, FrameLog, relative_to_keyframe
from slam.map.frames import Frame
from slam.map.keyframe_graph import KeyframeGraph
from slam.map.tracks import Tracks

CAMERA = Camera(width=8, height=6, fx=5.0, fy=5.0, cx=3.5, cy=2.5)
IMAGE = np.zeros((6, 8, 3), np.uint8)


def frame(index):
    return Frame(index=index, timestamp_ns=1000 * index, image=IMAGE, camera=CAMERA)


def seen(count):
    return Tracks(np.arange(count), np.zeros((count, 2), np.float32))


def some_rigid(rng):
    return rigid(exp_so3(rng.normal(size=3)), rng.normal(size=3))


def some_similarity(rng):
    return Similarity(exp_so3(rng.normal(size=3)), rng.normal(size=3), float(np.exp(rng.normal())))


def same(a, b, atol=1e-12):
    return np.allclose(a.as_matrix(), b.as_matrix(), atol=atol)


def as_they_are(frames):
    return stack_matrices([logged.world_from_cam for logged in frames])


@pytest.fixture
def graph(rng):
    """Poses alone: a log asks a graph for nothing else."""
    graph = KeyframeGraph()
    for k, segment in [(0, 0), (1, 0), (2, 1)]:
        graph.world_from_keyframe[k] = some_similarity(rng)
        graph.segment_of[k] = segment
    return graph


def test_frames_are_straightened_by_the_lens_of_their_keyframe(graph, rng):
    log, pixels, placed = FrameLog(), np.float32([[0.0, 0.0], [7.0, 5.0]]), []
    for k in (0, 2):
        log.add(frame(k), some_rigid(rng), Tracks(np.arange(2), pixels), k, graph)
    distorted = IntrinsicsCorrection().then(CorrectionStep((1.1, 1.1), (-0.02, 0.0)), CAMERA)
    log.undistort(lambda k: distorted if k == 2 else IntrinsicsCorrection())
    log.refit(
        graph, lambda frames: placed.extend((f.observations.pixels, f.camera) for f in frames) or as_they_are(frames)
    )
    assert [camera for _, camera in placed] == [CAMERA, distorted.camera]
    assert np.array_equal(placed[0][0], pixels)
    assert np.allclose(placed[1][0], distorted.undistorted_pixels(pixels), atol=1e-5)


def test_hanging_by_hand():
    # The keyframe is at x = 10 and one of its units is two of the map's; the frame is at x = 14.
    keyframe = Similarity(np.eye(3), [10.0, 0.0, 0.0], 2.0)
    assert np.allclose(
        translation_of(relative_to_keyframe(keyframe, rigid(np.eye(3), [14.0, 0.0, 0.0]))), [2.0, 0.0, 0.0]
    )


def test_composing_undoes_hanging_under_any_scale(rng):
    for _ in range(20):
        keyframe, pose = some_similarity(rng), some_rigid(rng)
        assert same(keyframe.compose_rigid(relative_to_keyframe(keyframe, pose)), pose)


def test_hanging_undoes_composing_under_any_scale(rng):
    for _ in range(20):
        keyframe, hung = some_similarity(rng), some_rigid(rng)
        assert same(relative_to_keyframe(keyframe, keyframe.compose_rigid(hung)), hung)


def test_a_frame_keeps_its_pose_while_the_graph_stands_still(rng, graph):
    log, pose = FrameLog(), some_rigid(rng)
    log.add(frame(3), pose, seen(5), 1, graph)
    assert same(log.pose(log.records[0], graph), pose)


def test_frames_follow_their_keyframe_when_the_map_moves_turns_and_grows(rng, graph):
    log, poses = FrameLog(), [some_rigid(rng) for _ in range(4)]
    for n, pose in enumerate(poses):
        log.add(frame(n), pose, seen(5), n % 2, graph)
    change = some_similarity(rng)
    for k in (0, 1):
        graph.world_from_keyframe[k] = change @ graph.world_from_keyframe[k]
    for record, pose in zip(log.records, poses, strict=True):
        moved = log.pose(record, graph)
        assert np.allclose(translation_of(moved), change.apply(translation_of(pose)))
        assert np.allclose(rotation_matrix(moved), change.rotation @ rotation_matrix(pose))


def test_only_the_frames_of_the_keyframe_that_moved_move(rng, graph):
    log, pose = FrameLog(), some_rigid(rng)
    log.add(frame(0), pose, seen(5), 0, graph)
    log.add(frame(1), pose, seen(5), 1, graph)
    graph.world_from_keyframe[1] = some_similarity(rng)
    assert same(log.pose(log.records[0], graph), pose)
    assert not same(log.pose(log.records[1], graph), pose, atol=1e-3)


def test_the_live_trajectory_stays_as_it_was_when_the_graph_moves(rng, graph):
    log, pose = FrameLog(), some_rigid(rng)
    log.add(frame(0), pose, seen(5), 0, graph)
    graph.world_from_keyframe[0] = some_similarity(rng)
    assert np.allclose(log.live_trajectory(0).world_from_cam[0], pose.as_matrix())
    assert not np.allclose(log.trajectory(graph, 0).world_from_cam[0], pose.as_matrix())


def test_a_trajectory_holds_the_frames_of_its_segment_in_order_of_time(rng, graph):
    log = FrameLog()
    for n, k in enumerate([0, 2, 1, 2]):
        log.add(frame(n), some_rigid(rng), seen(5), k, graph)
    assert log.trajectory(graph, 0).timestamps_ns.tolist() == [0, 2000]
    assert log.trajectory(graph, 1).timestamps_ns.tolist() == [1000, 3000]
    assert [r.index for r in log.of_segment(graph, 1)] == [1, 3]
    assert len(log) == 4


def test_a_segment_without_frames_gives_an_empty_trajectory(graph):
    assert len(FrameLog().trajectory(graph, 0)) == 0


def test_placing_again_is_given_the_landmarks_the_camera_and_the_pose_under_the_moved_graph(rng, graph):
    log, pose, change = FrameLog(), some_rigid(rng), some_similarity(rng)
    log.add(frame(0), pose, seen(5), 0, graph)
    graph.world_from_keyframe[0] = change @ graph.world_from_keyframe[0]
    asked = []
    log.refit(graph, lambda frames: asked.extend(frames) or as_they_are(frames))
    [reported] = asked
    assert reported.observations.ids.tolist() == [0, 1, 2, 3, 4]
    assert reported.camera is CAMERA
    assert np.allclose(translation_of(reported.world_from_cam), change.apply(translation_of(pose)))


def test_a_frame_placed_again_is_where_it_was_put(rng, graph):
    log, better = FrameLog(), some_rigid(rng)
    log.add(frame(7), some_rigid(rng), seen(5), 0, graph)
    log.refit(graph, lambda frames: better.as_matrix()[None])
    assert same(log.pose(log.records[0], graph), better)
    assert (log.records[0].index, log.records[0].timestamp_ns, log.records[0].keyframe_id) == (7, 7000, 0)


def test_more_frames_than_are_placed_at_once_each_get_their_own_pose(rng, graph):
    log, better = FrameLog(), [some_rigid(rng) for _ in range(FRAMES_AT_ONCE + 3)]
    for n in range(len(better)):
        log.add(frame(n), some_rigid(rng), Tracks(np.array([n]), np.zeros((1, 2), np.float32)), n % 3, graph)
    log.refit(graph, lambda frames: stack_matrices([better[f.observations.ids[0]] for f in frames]))
    for record, pose in zip(log.records, better, strict=True):
        assert same(log.pose(record, graph), pose)


@pytest.mark.parametrize(
    "count", [0, 1, MAX_OBSERVATIONS_PER_FRAME, MAX_OBSERVATIONS_PER_FRAME + 1, 5 * MAX_OBSERVATIONS_PER_FRAME + 3]
)
def test_a_long_run_remembers_a_bounded_spread_of_what_a_frame_saw(rng, graph, count):
    log = FrameLog()
    log.add(frame(0), some_rigid(rng), seen(count), 0, graph)
    kept = []
    log.refit(graph, lambda frames: kept.extend(f.observations.ids for f in frames) or as_they_are(frames))
    assert len(kept[0]) <= MAX_OBSERVATIONS_PER_FRAME
    assert len(kept[0]) >= min(count, MAX_OBSERVATIONS_PER_FRAME // 2)
    if count > MAX_OBSERVATIONS_PER_FRAME:
        assert kept[0][-1] > 0.98 * count  # from all over, not the first ones


def test_what_a_frame_saw_does_not_follow_the_arrays_it_was_given(rng, graph):
    log, tracks = FrameLog(), seen(5)
    log.add(frame(0), some_rigid(rng), tracks, 0, graph)
    tracks.ids[:] = -9
    kept = []
    log.refit(graph, lambda frames: kept.extend(f.observations.ids.tolist() for f in frames) or as_they_are(frames))
    assert kept == [[0, 1, 2, 3, 4]]


def test_a_frame_added_after_the_stream_is_in_its_place_but_has_no_live_pose(rng, graph):
    log, poses = FrameLog(), [some_rigid(rng) for _ in range(3)]
    log.add(frame(3), poses[0], seen(5), 0, graph)
    log.add(frame(9), poses[1], seen(5), 0, graph)
    log.live = False
    log.add(frame(6), poses[2], seen(5), 0, graph)
    assert [r.index for r in log.records] == [3, 6, 9]
    assert same(log.pose(log.records[1], graph), poses[2])
    assert log.live_trajectory(0).timestamps_ns.tolist() == [3000, 9000]


def test_the_live_trajectory_is_of_one_world(rng, graph):
    """Keyframes 0 and 1 are of segment 0, keyframe 2 of segment 1, which a loop joins to the first later."""
    log, poses = FrameLog(), [some_rigid(rng) for _ in range(3)]
    for n, k in enumerate([0, 2, 1]):
        log.add(frame(n), poses[n], seen(5), k, graph)
    graph.segment_of[2] = 0
    log.add(frame(3), some_rigid(rng), seen(5), 2, graph)
    assert log.live_trajectory(0).timestamps_ns.tolist() == [0, 2000, 3000]
    assert log.live_trajectory(1).timestamps_ns.tolist() == [1000]


def test_frames_of_a_keyframe_that_is_gone_are_dropped(rng, graph):
    log, poses = FrameLog(), [some_rigid(rng) for _ in range(3)]
    for n, k in enumerate([0, 2, 1]):
        log.add(frame(n), poses[n], seen(5), k, graph)
    log.keep_frames_of({0, 1})
    assert [record.index for record in log.records] == [0, 2]
    assert len(log.live_trajectory(0)) == 2


@pytest.mark.parametrize(("time", "index"), [(0, 3), (5000, 3), (6000, 3), (6001, 9), (20000, 9)])
def test_the_nearest_frame_in_time_is_found(rng, graph, time, index):
    log = FrameLog()
    for n in (3, 9):
        log.add(frame(n), some_rigid(rng), seen(5), 0, graph)
    assert log.nearest(time).index == index
