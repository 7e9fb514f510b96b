"""A map grows with the space that was seen: known views need no new keyframe."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import room_path
from test_system import of, run, world_of

from slam.evaluation.metrics import evaluate
from slam.events import EdgeAccepted, FrameProcessed, KeyframeAdded
from slam.map.keyframe_graph import EdgeKind

ONE_WAY = 45


@pytest.fixture(scope="module")
def passes():
    """A walk along a part of the room and back, three times."""
    there = list(room_path(ONE_WAY, turns=0.3))
    world = world_of((there + there[::-1]) * 3)
    return world, *run(world)


def test_the_passes_after_the_first_add_few_keyframes(passes):
    _, _, events = passes
    frames = np.array([e.keyframe.frame_index for e in of(events, KeyframeAdded)])
    first = int((frames < 2 * ONE_WAY).sum())
    assert first >= 5
    assert len(frames) <= 1.2 * first


def test_frames_are_tracked_from_the_keyframes_of_the_first_pass(passes):
    _, result, events = passes
    last = [e for e in of(events, FrameProcessed) if e.frame.index >= 4 * ONE_WAY]
    old = [result.graph.keyframes[e.keyframe_id].frame_index < 2 * ONE_WAY for e in last]
    assert np.mean(old) > 0.8


def test_the_poses_of_all_passes_agree_with_the_truth(passes):
    world, result, _ = passes
    found = evaluate(result.trajectory, world.ground_truth)
    assert len(result.trajectory) == len(world.poses)
    assert found.ate_sim3.rmse < 0.001 * world.ground_truth.length


def test_a_walk_that_only_sees_new_space_has_the_keyframes_that_its_motion_needs():
    world = world_of(room_path(120, turns=0.6))
    _, events = run(world)
    added = of(events, KeyframeAdded)
    assert len(added) > 8
    assert not [e for e in of(events, EdgeAccepted) if e.edge.kind is EdgeKind.LOOP]
