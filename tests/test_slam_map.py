"""The map as one object: what is removed leaves nothing behind that names it."""

from __future__ import annotations

import numpy as np
from oracle_map import build, room

from relocalizer.interfaces import PairEstimate


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
    mapper.map.add_pair(newest - 1, newest, estimate)
    mapper.map.add_pair(0, newest - 1, estimate)
    mapper.map.add_pair(1, newest - 1, estimate)
    mapper.map.remove_incomplete(lambda k: k not in (newest, 0))
    assert sorted(mapper.map.graph.keyframes) == members[1:-1]
    assert [pair[:2] for pair in mapper.map.pairs_among(members, members)] == sorted(mapper.map.pairs)
    assert list(mapper.map.pairs) == [(1, newest - 1)]
