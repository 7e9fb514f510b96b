"""The values that pass the seams: what they refuse, and that they cannot be changed afterwards."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from relocalizer.geometry import exp_so3
from relocalizer.interfaces import Candidate, NoEstimate, PairEstimate


def estimate(**changes):
    values = {
        "i_from_j_rotation": np.eye(3),
        "i_from_j_direction": np.array([1.0, 0.0, 0.0]),
        "confidence": 0.5,
        "rotation_sigma_rad": 0.01,
        "direction_sigma_rad": 0.05,
    }
    return PairEstimate(**(values | changes))


MIRROR = np.diag([1.0, 1.0, -1.0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"i_from_j_rotation": np.eye(4)}, "PairEstimate.i_from_j_rotation: expected shape (3, 3), got (4, 4)"),
        ({"i_from_j_rotation": np.full((3, 3), np.nan)}, "PairEstimate.i_from_j_rotation: holds NaN or infinity"),
        ({"i_from_j_rotation": 1.001 * np.eye(3)}, "PairEstimate.i_from_j_rotation: not a rotation"),
        ({"i_from_j_rotation": MIRROR}, "PairEstimate.i_from_j_rotation: not a rotation"),
        ({"i_from_j_direction": [1.0, 0.0]}, "PairEstimate.i_from_j_direction: expected shape (3), got (2,)"),
        ({"i_from_j_direction": [np.inf, 0, 0]}, "PairEstimate.i_from_j_direction: holds NaN or infinity"),
        ({"i_from_j_direction": [0.0, 0.0, 2.0]}, "PairEstimate.i_from_j_direction: not a unit vector"),
        ({"i_from_j_direction": np.zeros(3)}, "PairEstimate.i_from_j_direction: not a unit vector"),
        ({"i_from_j_direction": None}, "PairEstimate: no direction and no reason for it in direction_unknown"),
        ({"confidence": -0.1}, "PairEstimate.confidence: expected 0 to 1, got -0.1"),
        ({"confidence": 1.1}, "PairEstimate.confidence: expected 0 to 1, got 1.1"),
        ({"confidence": float("nan")}, "PairEstimate.confidence: expected 0 to 1, got nan"),
        ({"rotation_sigma_rad": 0.0}, "PairEstimate: sigmas must be positive"),
        ({"direction_sigma_rad": -1.0}, "PairEstimate: sigmas must be positive"),
        ({"direction_sigma_rad": float("nan")}, "PairEstimate: sigmas must be positive"),
    ],
)
def test_what_is_no_pair_estimate_is_refused_by_name(changes, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        estimate(**changes)


def test_a_direction_may_be_unknown_when_the_reason_is_given():
    e = estimate(i_from_j_direction=None, direction_unknown="it only turned", direction_sigma_rad=np.pi)
    assert e.i_from_j_direction is None


def test_the_arrays_of_an_estimate_cannot_be_written_to():
    e = estimate()
    with pytest.raises(ValueError, match="read-only"):
        e.i_from_j_rotation[0, 0] = 2.0
    with pytest.raises(ValueError, match="read-only"):
        e.i_from_j_direction[0] = 2.0


def test_an_estimate_does_not_follow_the_array_it_was_made_from():
    direction = np.array([0.0, 0.0, 1.0])
    e = estimate(i_from_j_direction=direction)
    direction[:] = [1.0, 0.0, 0.0]
    assert e.i_from_j_direction.tolist() == [0.0, 0.0, 1.0]


def test_the_fields_of_the_values_cannot_be_replaced():
    for value, name in [(estimate(), "confidence"), (NoEstimate("dark"), "reason"), (Candidate(1, 0.5), "key")]:
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, 0)


def test_reversed_by_hand():
    # j lies one unit to the right of i and is turned a quarter to the right (its z axis along i's x axis).
    quarter = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    back = estimate(i_from_j_rotation=quarter, i_from_j_direction=[1.0, 0.0, 0.0]).reversed()
    assert np.allclose(back.i_from_j_direction, [0.0, 0.0, -1.0])  # from j, i is straight behind
    assert np.allclose(back.i_from_j_rotation @ [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0])  # and looks to j's left


def test_reversing_twice_gives_the_estimate_back(rng):
    R, d = exp_so3(rng.normal(size=3)), rng.normal(size=3)
    there = estimate(i_from_j_rotation=R, i_from_j_direction=d / np.linalg.norm(d), inliers=40)
    back = there.reversed().reversed()
    assert np.allclose(back.i_from_j_rotation, R)
    assert np.allclose(back.i_from_j_direction, d / np.linalg.norm(d))
    assert (back.confidence, back.rotation_sigma_rad, back.inliers) == (0.5, 0.01, 40)


def test_reversing_keeps_an_unknown_direction_unknown_and_its_reason():
    e = estimate(i_from_j_direction=None, direction_unknown="it only turned").reversed()
    assert e.i_from_j_direction is None
    assert e.direction_unknown == "it only turned"
