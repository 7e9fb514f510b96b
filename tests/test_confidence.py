"""How sure a pose is: surer with more that speaks for it, and never sure of what a rival place explains as well."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from relocalizer.confidence import AveragedEvidence, LandmarkEvidence
from relocalizer.config import RelocalizationConfig
from relocalizer.landmark_localizer import LandmarkLocalizer
from slam.map.slam_map import SlamMap

WELL = LandmarkEvidence(inliers=80, matches=120, cells=25, rival=4, views=6, disagreement_deg=0.4, position_sigma=0.02)
AVERAGED = AveragedEvidence(views=6, covisible=8, position_sigma=0.05)


def test_many_landmarks_all_over_the_image_are_almost_certain():
    assert WELL.confidence > 0.99


def test_a_handful_of_landmarks_that_images_of_other_places_have_too_are_not_believed():
    assert replace(WELL, inliers=5, cells=4, rival=3).confidence < 0.3


@pytest.mark.parametrize(
    "worse",
    [
        {"inliers": 14},
        {"cells": 4},
        {"rival": 70},
        {"position_sigma": 1.0},
    ],
)
def test_less_evidence_is_less_confidence(worse):
    assert replace(WELL, **worse).confidence < WELL.confidence


def test_a_second_place_with_as_many_landmarks_leaves_nothing():
    assert replace(WELL, rival=80).confidence < 0.1


def test_a_position_hardly_known_cannot_be_within_the_bound():
    assert replace(WELL, position_sigma=5.0).confidence < 0.3
    assert replace(AVERAGED, position_sigma=5.0).confidence < 0.3


def test_more_keyframes_that_agree_are_more_confidence():
    said = [replace(AVERAGED, views=views).confidence for views in (2, 3, 5, 8)]
    assert said == sorted(said)
    assert said[-1] > 0.95


@pytest.mark.parametrize("evidence", [WELL, AVERAGED, replace(WELL, inliers=0, cells=0), replace(AVERAGED, views=0)])
def test_a_confidence_is_a_probability(evidence):
    assert 0.0 <= evidence.confidence <= 1.0


def test_few_matches_without_a_pair_estimate_are_judged_after_guided_matching():
    """15 of 60 matches on a plane agreed with a pose that was 23 degrees off, while no pair could be related."""
    localizer = LandmarkLocalizer(SlamMap(), RelocalizationConfig())
    evidence = LandmarkEvidence(
        inliers=15, matches=60, cells=7, rival=4, views=0, disagreement_deg=np.nan, position_sigma=0.26
    )
    assert "needed without a pair estimate" in localizer._insufficiency(evidence)
    agreeing = replace(evidence, views=1, disagreement_deg=2.0)
    assert localizer._insufficiency(agreeing) == ""
    assert "needed without a pair estimate" in localizer._insufficiency(replace(agreeing, disagreement_deg=26.0))
    assert localizer._insufficiency(replace(evidence, inliers=30)) == ""
