"""The map as one object: what is removed leaves nothing behind that names it."""

from __future__ import annotations

import numpy as np
import pytest
from oracle_map import build, room
from small_graphs import at, circle, graph_of, keyframe, true_edge

from relocalizer.interfaces import PairEstimate
from slam.map.keyframe_graph import EdgeKind
from slam.map.slam_map import SlamMap


def test_an_incomplete_keyframe_leaves_no_pair_estimate_behind():
    """One that bundle adjustment would look up, and not find."""
    mapper = build(room(), range(0, 24, 6)).mapper
    newest = mapper.map.graph.last_id
    members = list(mapper.map.graph.keyframes)
    estimate = PairEstimate(
        i_from_j_rotation=np.eye(3),
        i_from_j_direction=np.array([0.0, 0.0, 1.0]),
        confidence=0.9,
        rotation_sigma_rad=0.01,
        direction_sigma_rad=0.01,
    )
    mapper.map.pairs.add(newest - 1, newest, estimate)
    mapper.map.pairs.add(0, newest - 1, estimate)
    mapper.map.pairs.add(1, newest - 1, estimate)
    mapper.map.remove_incomplete(lambda k: k not in (newest, 0))
    assert sorted(mapper.map.graph.keyframes) == members[1:-1]
    assert [pair[:2] for pair in mapper.map.pairs.among(members, members)] == sorted(mapper.map.pairs)
    assert list(mapper.map.pairs) == [(1, newest - 1)]


@pytest.mark.parametrize("scale", [1e-11, 1e11])
def test_segments_are_not_joined_where_the_scale_leaves_the_range_of_a_map(scale):
    """Collapsed maps that are merged again and again multiply their scales until they are zero or infinite."""
    slam_map = SlamMap()
    slam_map.graph.add_keyframe(keyframe(0), at(0.0))
    slam_map.graph.add_keyframe(keyframe(1), at(1.0), segment=1)
    slam_map.graph.add_keyframe(keyframe(2), at(2.0, scale=scale), segment=1)
    assert not slam_map.join_segments(0, 1, at(0.0, scale=scale))
    assert slam_map.graph.segment_of == {0: 0, 1: 1, 2: 1}
    assert slam_map.graph.world_from_keyframe[1].scale == 1.0
    assert slam_map.join_segments(0, 1, at(0.0, scale=0.5))
    assert slam_map.graph.segment_of == {0: 0, 1: 0, 2: 0}
    assert slam_map.graph.world_from_keyframe[2].scale == pytest.approx(scale / 2)


def test_keyframes_before_a_loss_are_no_neighbors_in_the_sequence_of_those_after_it():
    """Loops between them are searched for, however few keyframes lie between."""
    poses, slam_map = circle(20), SlamMap()
    steps = [true_edge(poses, k, k + 1) for k in range(19) if k != 14]
    slam_map.graph = graph_of(poses, [*steps, true_edge(poses, 0, 15)])  # lost after 14, relocalized at 0
    assert slam_map.graph.sequence_neighbors(14, 4) == {11, 12, 13, 14}
    assert slam_map.graph.sequence_neighbors(16, 4) == {15, 16, 17, 18, 19}
    slam_map.set_edge(true_edge(poses, 13, 15))
    assert slam_map.graph.sequence_neighbors(16, 4) == {13, 14, 15, 16, 17, 18, 19}


def test_the_variance_of_odometry_is_inflated_and_that_of_loops_is_not():
    poses, slam_map = circle(4), SlamMap()
    loop = true_edge(poses, 0, 3, EdgeKind.LOOP)
    slam_map.graph = graph_of(poses, [true_edge(poses, 0, 1), true_edge(poses, 1, 2), loop])
    slam_map.inflate_odometry(4.0)
    assert slam_map.graph.odometry_variance == 4.0
    assert slam_map.graph.edges[0, 1].sigmas == pytest.approx(0.02)
    assert slam_map.graph.edges[0, 3] is loop
