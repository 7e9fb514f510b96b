"""What is concluded of a camera from an estimate of its focal length, and what it makes of a verdict."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from relocalizer.calibration_windows import FocalChange, FocalStretch
from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures
from relocalizer.lens_estimates import AspectEstimate, Distortion, FocalEstimate, NotDetermined, PrincipalEstimate
from slam.config.schema import BundleAdjustmentConfig
from slam.evaluation.verdict import Grade
from slam.map.lens_evidence import LensEvidence, LensState
from slam.map.observations import Observations
from slam.map.tracks import Tracks
from slam.mapping import global_refinement
from slam.mapping.lens_examination import (
    LensFinding,
    changed_between,
    confirmed,
    examine_assumed,
    examine_given,
    is_doubtful,
    matched_pairs,
)

CAMERA = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)
ASSUMED = Camera.assume(640, 480, fov_deg=60.0)
NONE = Distortion(0.001, 0.01)
SQUARE = AspectEstimate(1.005, 0.01)
ZOOM = FocalChange(0.3, 0.02, 80, 120)
STRETCHES = (FocalStretch(0, 80, 460.0, 0.01), FocalStretch(120, 200, 598.0, 0.01))


@pytest.fixture
def footage(monkeypatch):
    """Says what a self-calibration of the footage finds, and which distortion and aspect."""

    def says(found, left=NONE, aspect=SQUARE, searched=None):
        stub = SimpleNamespace(
            estimate=lambda: searched or found, check=lambda: found, distortion=lambda: left, aspect=lambda: aspect
        )
        monkeypatch.setattr("slam.mapping.lens_examination.SelfCalibration", lambda pairs, camera: stub)

    return says


def estimate(focal_px, sigma=0.01, **changes):
    return FocalEstimate(**{"focal_px": focal_px, "sigma": sigma, "distortion": NONE, "pairs": 30, **changes})


# An assumed camera


def test_a_focal_length_that_is_determined_is_known_and_taken(footage):
    footage(estimate(460.0))
    finding = examine_assumed([], ASSUMED)
    assert finding.evidence.state is LensState.KNOWN
    assert finding.step.camera(ASSUMED).mean_focal == pytest.approx(460.0, rel=1e-3)
    assert not finding.step.camera(ASSUMED).assumed


def test_a_focal_length_that_is_determined_badly_stays_a_guess_between_it_and_what_was_assumed(footage):
    footage(estimate(460.0, sigma=0.3))
    finding = examine_assumed([], ASSUMED)
    assert finding.evidence.state is LensState.GUESS
    assert finding.evidence.reason == "its standard deviation is 30.0 %, 3 % needed"
    guess = finding.step.camera(ASSUMED)
    assert 460.0 < guess.mean_focal < ASSUMED.mean_focal
    assert guess.assumed


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (NotDetermined("one plane"), "one plane"),
        (estimate(460.0, flaw="no focal length explains it"), "no focal length explains it"),
        (estimate(460.0, stretches=STRETCHES), "the focal length changes along the footage"),
    ],
)
def test_where_nothing_is_determined_what_was_assumed_stays_a_guess(found, reason, footage):
    footage(found)
    finding = examine_assumed([], ASSUMED)
    assert (finding.evidence.state, finding.evidence.reason) == (LensState.GUESS, reason)
    assert finding.step.is_nothing


def test_an_estimate_before_the_run_is_the_prior_of_that_at_its_end(footage):
    footage(estimate(1.1 * ASSUMED.mean_focal, sigma=0.06))
    finding = examine_assumed([], ASSUMED, prior_sigma=0.02)
    assert finding.evidence.state is LensState.KNOWN
    assert finding.evidence.focal_sigma == 0.02  # of the same footage, so not better than the better one
    assert finding.evidence.focal_ratio == pytest.approx(1.1**0.1)


def test_estimates_that_contradict_each_other_leave_that_of_the_keyframes(footage):
    footage(estimate(1.3 * ASSUMED.mean_focal, sigma=0.01))
    assert examine_assumed([], ASSUMED, prior_sigma=0.02).evidence.focal_ratio == pytest.approx(1.3, rel=1e-3)


@pytest.mark.parametrize(
    ("found", "sigma", "state"),
    [
        (NotDetermined("one plane"), 0.02, LensState.KNOWN),
        (NotDetermined("one plane"), 0.08, LensState.GUESS),
        (estimate(460.0, flaw="no focal length explains it"), 0.02, LensState.GUESS),
    ],
)
def test_a_run_that_determines_nothing_keeps_the_estimate_before_it(found, sigma, state, footage):
    footage(found)
    finding = examine_assumed([], ASSUMED, prior_sigma=sigma)
    assert (finding.evidence.state, finding.evidence.focal_sigma) == (state, sigma)
    assert finding.step.is_nothing


# A given camera


def test_a_given_camera_that_the_footage_agrees_with_stays(footage):
    footage(estimate(505.0))
    assert examine_given([], CAMERA) == LensFinding(LensEvidence(LensState.CALIBRATED, 1.01, 0.01))


@pytest.mark.parametrize("found", [NotDetermined("one plane"), estimate(300.0, flaw="a rival")])
def test_footage_that_tells_nothing_says_nothing_against_a_given_camera(found, footage):
    footage(found)
    assert examine_given([], CAMERA) == LensFinding(LensEvidence())


@pytest.mark.parametrize(
    ("ratio", "sigma", "contradicted"), [(1.3, 0.02, True), (1.03, 0.001, False), (1.3, 0.1, False)]
)
def test_a_given_focal_length_is_contradicted_by_far_and_surely_or_not_at_all(ratio, sigma, contradicted, footage):
    footage(estimate(ratio * 500.0, sigma))
    finding = examine_given([], CAMERA)
    assert (finding.evidence.state is LensState.CONTRADICTED) == contradicted
    assert finding.step.is_nothing


def test_distortion_that_a_calibration_leaves_is_searched_for_and_more_contradicts_it(footage):
    footage(estimate(500.0), Distortion(-0.015, 0.003))
    assert examine_given([], CAMERA).may_have_distortion
    footage(estimate(500.0), Distortion(-0.1, 0.003))
    finding = examine_given([], CAMERA)
    assert not finding.may_have_distortion
    assert finding.evidence.reason.startswith("the footage wants the corners moved by 10.0 % of half the diagonal")


@pytest.mark.parametrize(("share", "undecided"), [(0.001, False), (0.002, True), (-0.0029, True), (0.0031, False)])
def test_a_distortion_between_chance_and_significance_is_undecided(share, undecided, footage):
    footage(estimate(500.0), Distortion(share, 0.001))
    assert examine_given([], CAMERA).is_undecided == undecided


def test_where_a_distortion_is_undecided_more_pairs_decide(monkeypatch):
    def examined(pairs, camera):
        counts.append(len(pairs))
        return LensFinding(LensEvidence(), is_undecided=len(counts) == 1, may_have_distortion=len(counts) == 2)

    counts = []
    monkeypatch.setattr(global_refinement, "matched_pairs", lambda keyframes, most: [None] * most)
    monkeypatch.setattr(global_refinement, "examine_given", examined)
    slam_map = map_of_shifts([0.0, 100.0, 200.0])
    finding = global_refinement._examine(SimpleNamespace(map=slam_map), 0, BundleAdjustmentConfig(), 0.0)
    assert finding.may_have_distortion
    assert counts == [32, 96]


def map_of_shifts(shifts_px, shared=50):
    """A map whose keyframes show the same points, shifted sideways in each."""
    tracks = Tracks(np.arange(shared), np.random.default_rng(3).uniform(0, 400, (shared, 2)).astype(np.float32))
    keyframes = {k: SimpleNamespace(camera=CAMERA, timestamp_ns=k) for k in range(len(shifts_px))}
    observed = {k: replace(tracks, pixels=tracks.pixels + np.float32([x, 0])) for k, x in enumerate(shifts_px)}
    graph = SimpleNamespace(keyframes=keyframes, segment=lambda s: list(keyframes))
    return SimpleNamespace(graph=graph, landmarks=SimpleNamespace(observed=Observations(observed)))


def test_keyframes_of_nearly_one_view_are_not_paired():
    """Of 640 pixels, 2 % are 12.8; the displacement counts from the last one that is kept."""
    burst = map_of_shifts([0.0, 6.0, 12.0, 18.0, 24.0, 30.0, 90.0])
    assert global_refinement.distinct_views(burst, 0) == [0, 3, 6]
    assert global_refinement.distinct_views(map_of_shifts([0.0, 40.0, 80.0]), 0) == [0, 1, 2]


def test_keyframes_that_share_hardly_a_track_are_distinct():
    assert global_refinement.distinct_views(map_of_shifts([0.0, 1.0, 2.0], shared=9), 0) == [0, 1, 2]


@pytest.mark.parametrize(("sigma", "contradicted"), [(0.01, False), (0.004, True)])
def test_a_distortion_contradicts_a_given_camera_only_where_it_is_certainly_too_large(sigma, contradicted, footage):
    """2.5 % of half the diagonal are what calibrations leave."""
    footage(estimate(500.0), Distortion(0.045, sigma))
    finding = examine_given([], CAMERA)
    assert (finding.evidence.state is LensState.CONTRADICTED) is contradicted
    assert finding.may_have_distortion is not contradicted


def test_a_given_camera_is_refocused_only_when_that_is_allowed(footage):
    footage(estimate(650.0))
    assert examine_given([], CAMERA).step.is_nothing
    allowed = examine_given([], CAMERA, may_refocus=True)
    assert (allowed.evidence.state, allowed.step.is_nothing) == (LensState.KNOWN, False)


@pytest.mark.parametrize("flaw", ["", "no focal length explains it"])
def test_an_aspect_that_the_footage_contradicts_is_named(flaw, footage):
    footage(estimate(540.0, flaw=flaw), aspect=AspectEstimate(1.33, 0.02))
    evidence = examine_given([], CAMERA).evidence
    assert evidence.state is LensState.CONTRADICTED
    assert evidence.reason.startswith("the footage wants an fx of 1.33 (+- 2 %) times fy, not of 1.00 times")


def test_a_search_decides_where_the_given_camera_is_no_start(footage):
    lost = estimate(300.0, sigma=0.4)
    footage(lost, searched=estimate(400.0))
    assert examine_given([], CAMERA).evidence.state is LensState.CONTRADICTED
    footage(lost, searched=estimate(500.0, distortion=Distortion(-0.3, 0.01)))
    assert "corners moved by 30.0 %" in examine_given([], CAMERA).evidence.reason
    footage(lost, searched=estimate(500.0))
    finding = examine_given([], CAMERA)
    assert finding.evidence.state is LensState.CALIBRATED
    assert not finding.may_have_distortion


@pytest.mark.parametrize(
    ("offset_px", "sigma_px", "contradicted"),
    [((60.0, 0.0), 5.0, True), ((0.0, -60.0), 5.0, True), ((25.0, 0.0), 2.0, False), ((60.0, 0.0), 15.0, False),
     ((150.0, 0.0), 5.0, False)],
)  # fmt: skip
def test_a_principal_point_that_the_footage_contradicts_is_named(offset_px, sigma_px, contradicted, footage):
    footage(estimate(500.0, center=PrincipalEstimate(offset_px, sigma_px)))
    evidence = examine_given([], CAMERA).evidence
    assert (evidence.state is LensState.CONTRADICTED) is contradicted
    assert ("are the images cropped?" in evidence.reason) is contradicted


@pytest.mark.parametrize("aspect", [AspectEstimate(1.33, 0.1), AspectEstimate(1.03, 0.005), AspectEstimate()])
def test_an_aspect_that_is_hardly_determined_contradicts_nothing(aspect, footage):
    footage(estimate(500.0), aspect=aspect)
    assert examine_given([], CAMERA).evidence.state is LensState.CALIBRATED


@pytest.mark.parametrize(
    ("ratio", "sigma", "doubtful"),
    [(1.05, 0.02, True), (0.95, 0.02, True), (1.02, 0.005, False), (1.05, 0.04, False), (1.0, 0.01, False)],
)
def test_a_given_focal_length_is_doubtful_by_less_than_what_contradicts_it(ratio, sigma, doubtful):
    assert is_doubtful(LensEvidence(LensState.CALIBRATED, ratio, sigma)) is doubtful


@pytest.mark.parametrize(
    "evidence",
    [
        LensEvidence(),
        LensEvidence(LensState.KNOWN, 1.05, 0.01),
        LensEvidence(LensState.CONTRADICTED, 1.2, 0.01),
        LensEvidence(LensState.CALIBRATED, 1.05, 0.02, change=ZOOM),
    ],
)
def test_only_a_given_focal_length_is_doubtful(evidence):
    assert not is_doubtful(evidence)


@pytest.mark.parametrize(("bundle_ratio", "contradicted"), [(0.97, True), (0.985, False), (1.0, False), (1.03, False)])
def test_a_doubt_is_settled_by_all_views_together(bundle_ratio, contradicted):
    doubt = LensEvidence(LensState.CALIBRATED, 0.94, 0.03)
    settled = confirmed(doubt, bundle_ratio)
    if contradicted:
        reason = "the footage wants a focal length 0.94 times as long (+- 3.0 %)"
        assert settled == LensEvidence(LensState.CONTRADICTED, 0.94, 0.03, reason)
    else:
        assert settled == doubt


# Segments, and pairs


def test_a_change_is_between_segments_that_both_tell_their_focal_length():
    early, late = LensEvidence(focal_ratio=1.0, focal_sigma=0.01), LensEvidence(focal_ratio=0.8, focal_sigma=0.01)
    change = changed_between([(late, 150, 290), (early, 0, 140)])
    assert change.share == pytest.approx(-0.2)
    assert (change.from_frame, change.to_frame) == (140, 150)
    assert changed_between([(LensEvidence(), 0, 140), (late, 150, 290)]) is None
    assert changed_between([(early, 0, 140)]) is None


def test_pairs_are_matched_in_order_of_time_and_no_more_than_asked(rng):
    descriptors = rng.normal(size=(50, 16)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    pixels = rng.uniform(0, 480, (50, 2)).astype(np.float32)
    features = LocalFeatures(pixels, descriptors, np.ones(50, np.float32))
    keyframes = [SimpleNamespace(timestamp_ns=n, frame_index=n, features=features) for n in (3, 1, 0, 2, *range(4, 20))]
    pairs = matched_pairs(keyframes, 8)
    assert len(pairs) == 8
    assert all(pair.second - pair.first in (2, 3, 5) for pair in pairs)
    assert np.array_equal(pairs[0].pixels_first, pairs[0].pixels_second)
    assert len(pairs[0].pixels_first) == 50


# The verdict


@pytest.mark.parametrize(
    ("evidence", "grade", "reason"),
    [
        (
            LensEvidence(LensState.GUESS, reason="one plane"),
            Grade.PARTIAL,
            "the focal length is a guess, and the footage does not determine it (one plane): the map's shape may be "
            "wrong; give one with --camera",
        ),
        (LensEvidence(LensState.GUESS, 0.9, 0.2, "20 %"), Grade.PARTIAL, "the focal length is a guess"),
        (LensEvidence(LensState.GUESS, 0.9, 0.04, "4 %"), Grade.GOOD, "the focal length is known to 4.0 % only"),
        (
            LensEvidence(LensState.CONTRADICTED, 1.3, 0.01, "it is longer"),
            Grade.PARTIAL,
            "the given calibration does not fit: it is longer",
        ),
        (
            LensEvidence(LensState.CONTRADICTED, 1.2, 0.05, "it changes", ZOOM),
            Grade.PARTIAL,
            "the focal length changes by +30 % (+- 2 %) between frames 80 and 120: no one camera fits this footage",
        ),
    ],
)
def test_what_speaks_against_a_run(evidence, grade, reason):
    [finding] = evidence.findings
    assert finding.grade is grade
    assert finding.reason.startswith(reason)


@pytest.mark.parametrize("evidence", [LensEvidence(), LensEvidence(LensState.KNOWN, 0.8, 0.01)])
def test_a_given_or_known_focal_length_speaks_against_nothing(evidence):
    assert evidence.findings == ()
