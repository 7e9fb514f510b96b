"""What is counted of the events of a run."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from slam.events import FrameProcessed, LoopExamined
from slam.loop_closing.pairwise_consistency import DISTANCE_GATE
from slam.map.frame_measurement import Gate
from slam.map.frames import Frame
from slam.map.image_points import MatchedPoints
from slam.map.tracking_status import TrackingState
from slam.run.run_statistics import LONG_FOLLOWED, RunStatistics

CAMERA = Camera(width=8, height=8, fx=8, fy=8, cx=3.5, cy=3.5)


def processed(index: int, agreeing: int, points: int = 100, *, first_id: int = 0, reason: str = "") -> FrameProcessed:
    return FrameProcessed(
        frame=Frame(index=index, timestamp_ns=index, image=np.zeros((8, 8, 3), np.uint8), camera=CAMERA),
        state=TrackingState.TRACKING,
        reason=reason,
        world_from_cam=RigidTransform.identity(),
        keyframe_id=0,
        pixels=np.zeros((points, 2), np.float32),
        track_ids=np.arange(first_id, first_id + points),
        is_inlier=np.arange(points) < agreeing,
        depth=1.0,
        stage_ms={},
    )


def counted(events: list[FrameProcessed]) -> RunStatistics:
    statistics = RunStatistics()
    for event in events:
        statistics(event)
    return statistics


def test_points_followed_for_long_that_disagree_with_the_pose_are_unexplained():
    statistics = counted([processed(k, agreeing=70) for k in range(LONG_FOLLOWED + 5)])
    assert len(statistics.unexplained) == 6
    assert statistics.unexplained_share == pytest.approx(0.3)


def test_new_points_are_not_unexplained_because_they_cannot_have_a_depth_yet():
    assert counted([processed(k, 10, first_id=50 * k) for k in range(40)]).unexplained == []


def test_frames_tracked_without_landmarks_say_nothing():
    assert counted([processed(k, 0, reason="orientation only") for k in range(40)]).unexplained_share == 0.0


def test_a_few_old_points_say_nothing():
    assert counted([processed(k, 0, points=20) for k in range(40)]).unexplained == []


def examined(j: int, name: str, *, passed: bool) -> LoopExamined:
    gates = (Gate(name="landmarks that agree", value=80, limit=30, passed=True),)
    gates += (Gate(name=name, value=300, limit=73, passed=passed),)
    return LoopExamined(
        frame_index=j, i=0, j=j, is_accepted=passed, reason="", gates=gates, matches=MatchedPoints.none()
    )


def test_keyframes_whose_verified_loops_the_path_contradicts_are_counted_once():
    statistics = RunStatistics()
    for event in (
        examined(7, DISTANCE_GATE, passed=False),
        examined(7, DISTANCE_GATE, passed=False),
        examined(8, DISTANCE_GATE, passed=True),
        examined(9, "cells of the image", passed=False),
    ):
        statistics(event)
    assert statistics.contradicted_keyframes == {7}
