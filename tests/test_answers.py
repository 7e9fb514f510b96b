"""A predictor's answers where they come in: what is no pose is no estimate, what is no unit vector no description."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from relocalizer.interfaces import NoEstimate, PairEstimate
from slam.predictor_checks import describe, relate

GOOD = PairEstimate(
    i_from_j_rotation=np.eye(3),
    i_from_j_direction=np.array([0.0, 0.0, 1.0]),
    confidence=0.9,
    rotation_sigma_rad=0.01,
    direction_sigma_rad=0.05,
)


class Answers:
    """A predictor with one answer, whatever it is asked."""

    name = "one"

    def __init__(self, answer):
        self.answer = answer

    def relate(self, pairs):
        return [self.answer]

    def describe(self, encoded):
        return self.answer


def unchecked(**fields):
    """An estimate as of a predictor whose own values are checked by nobody."""
    wrong = replace(GOOD)
    for name, content in fields.items():
        object.__setattr__(wrong, name, content)
    return wrong


@pytest.mark.parametrize("answer", [GOOD, NoEstimate("9 matches, 20 needed")])
def test_an_answer_that_can_be_is_passed_on(answer):
    assert relate(Answers(answer), None, None) is answer


def test_a_direction_that_is_unknown_can_be():
    unknown = replace(GOOD, i_from_j_direction=None, direction_unknown="it only turned", direction_sigma_rad=np.pi)
    assert relate(Answers(unknown), None, None) is unknown


@pytest.mark.parametrize(
    ("field", "content"),
    [
        ("i_from_j_rotation", np.full((3, 3), np.nan)),
        ("i_from_j_rotation", np.zeros((3, 3))),
        ("i_from_j_direction", np.array([np.inf, 0.0, 0.0])),
        ("i_from_j_direction", np.zeros(3)),
        ("i_from_j_direction", np.array([0.0, 3.0, 0.0])),
        ("confidence", np.nan),
        ("rotation_sigma_rad", np.inf),
        ("direction_sigma_rad", 0.0),
    ],
)
def test_an_answer_that_is_no_pose_is_no_estimate_and_says_so(field, content):
    outcome = relate(Answers(unchecked(**{field: content})), None, None)
    assert outcome == NoEstimate("the predictor's answer is no pose with finite sigmas")


def test_a_unit_vector_describes_a_place():
    vector = np.array([0.6, 0.8, 0.0], np.float32)
    described, usable = describe(Answers(vector), None)
    assert described is vector
    assert usable


@pytest.mark.parametrize("entry", [np.nan, np.inf, 0.0, 2.0])
def test_anything_else_gives_a_unit_vector_that_is_said_not_to_be_the_predictors(entry):
    described, usable = describe(Answers(np.full(5, entry, np.float32)), None)
    assert described.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert not usable
