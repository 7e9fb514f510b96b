"""Global refinement of the map at the end of a run: self-calibration and rounds of global bundle adjustment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from relocalizer.camera import Camera
from relocalizer.self_calibration import PRIOR_SIGMA
from slam.config.schema import BundleAdjustmentConfig
from slam.map.lens_evidence import LensEvidence, LensState
from slam.map.observations import Observations
from slam.map.slam_map import SlamMap
from slam.mapping.bundle import CALIBRATED, FocalPrior, IntrinsicsPrior, PrincipalPrior
from slam.mapping.lens_examination import (
    LEFT_BY_CALIBRATIONS,
    LensFinding,
    changed_between,
    confirmed,
    examine_assumed,
    examine_given,
    is_doubtful,
    matched_pairs,
)
from slam.mapping.mapper import Mapper

# Costs in CPU seconds on one core of a server, rounded; only their ratios matter. Costs are computed and not measured,
# because the same input must give the same bytes on any machine and under any load.
FRAME_S = 0.012  # cost per frame of a run
KEYFRAME_S = 0.15  # cost per keyframe of a run
OBSERVATION_S = 2e-6  # cost per observation and iteration of a round, its search by projection included
LENS_COST = 1.5  # ratio of the cost of a round that refines intrinsics to that of one that does not
PAIR_S = 0.04  # cost per pair of keyframes in the self-calibration
EVIDENCE_SHARE = 0.1  # maximum cost of the examination of a given camera, as a fraction of the cost of the run
# Standard deviation of a principal point about the middle of the image, as a fraction of its longer side; KITTI's lies
# 0.009 off, those of TUM RGB-D 0.012 and 0.024, fox's 0.008.
PRINCIPAL_SIGMA = 0.0125
FEWEST_PAIRS, MOST_PAIRS = 32, 48  # minimum and maximum number of keyframe pairs in the self-calibration
# Minimum median displacement of shared tracks between two views that are paired, as a fraction of the width, and least
# number of such tracks to tell it. Keyframes of a video are 3 to 16 % apart, and 2 % of them less than this.
LEAST_VIEW_CHANGE, FEWEST_SHARED = 0.02, 10
# The same where they leave open whether a given camera leaves distortion: KITTI's is 3 standard deviations with 32.
DECIDING_PAIRS = 96


def refine_map(
    mapper: Mapper,
    config: BundleAdjustmentConfig,
    *,
    budget_s: float,
    may_calibrate: bool,
    notify: Callable[[float, float, str], None],
    on_round: Callable[[int, int], None] = lambda done, of: None,
) -> int:
    """Run rounds of global bundle adjustment over every segment of the map.

    With `final: auto` the rounds stop before their total cost exceeds that of the run, by the costs above; `always`
    runs `final_rounds` of them and `never` none. After a correction of the focal length all rounds are run, because
    the map is deformed until it is refined.

    Args:
        budget_s: cost of the run, as `run_cost_s`.
        may_calibrate: whether all keyframes are from this run, so that their cameras may be self-calibrated.
        notify: called after each round with the reprojection errors before and after (pixels), and its name.
        on_round: called before each round with the number of completed rounds and their maximum number.

    Returns:
        Number of rounds.
    """
    segments = sorted(set(mapper.map.graph.segment_of.values()), key=lambda s: (-len(mapper.map.graph.segment(s)), s))
    priors: dict[int, IntrinsicsPrior] = {}
    if may_calibrate and config.final != "never" and config.calibrate != "never":
        priors = calibrate(mapper, segments, config, budget_s)
    corrected = bool(mapper.map.lenses)
    done = 0
    while done < config.final_rounds and _is_worth_it(config, mapper, budget_s, priors, corrected):
        budget_s -= round_cost_s(config, mapper, priors)
        on_round(done, config.final_rounds)
        errors = [mapper.adjustment.global_bundle_adjustment(s, lens=priors.get(s)) for s in segments]
        done += 1
        before, after = max(before for before, _ in errors), max(after for _, after in errors)
        notify(before, after, f"final refinement, round {done} of {config.final_rounds} (errors: pixels)")
    _settle_doubts(mapper, segments)
    return done


def run_cost_s(*, frames: int, keyframes: int) -> float:
    """Cost of a run, CPU seconds.

    Args:
        frames, keyframes: their numbers in this run, which exclude a continued map: a short run does not pay for the
            refinement of a large map.
    """
    return FRAME_S * frames + KEYFRAME_S * keyframes


def calibrate(
    mapper: Mapper, segments: list[int], config: BundleAdjustmentConfig, budget_s: float
) -> dict[int, IntrinsicsPrior]:
    """Self-calibrate the camera of each segment, and correct it where the footage determines it.

    Returns:
        Prior of the intrinsics in bundle adjustment: of the distortion where it was detected, and otherwise of the
        focal length where it was estimated and not given. Two views at a time determine a focal length without a bias
        from the map; all views together determine it better, unless the images are distorted: then the two trade
        against each other.
    """
    priors = {}
    for segment in segments:
        first = mapper.map.graph.segment(segment)[0]
        camera = mapper.map.graph.keyframes[first].camera
        finding = _examine(mapper, segment, config, budget_s)
        evidence = finding.evidence
        if problem := "" if finding.step.is_nothing else mapper.adjustment.correct_lens(segment, finding.step):
            state = LensState.GUESS if camera.assumed else LensState.CALIBRATED
            evidence = LensEvidence(state, reason=problem)
        mapper.map.set_lens_evidence(segment, evidence)
        if finding.may_have_distortion:
            half_diagonal = 0.5 * float(np.hypot(camera.width, camera.height))
            priors[segment] = replace(CALIBRATED, most_px=LEFT_BY_CALIBRATIONS * half_diagonal)
        elif focal := _focal_prior(mapper.map.graph.keyframes[first].camera, evidence):
            priors[segment] = IntrinsicsPrior(focal=focal)
        if segment in priors and camera.assumed:
            focal = _focal_prior(mapper.map.graph.keyframes[first].camera, evidence)
            priors[segment] = replace(priors[segment], focal=focal, principal=_principal_prior(camera))
    _compare_segments(mapper, segments)
    return priors


def _settle_doubts(mapper: Mapper, segments: list[int]) -> None:
    """Ask bundle adjustment where self-calibration doubts a given focal length."""
    for s in segments:
        evidence = mapper.map.lens_evidence.get(s)
        if evidence is not None and is_doubtful(evidence):
            mapper.map.set_lens_evidence(s, confirmed(evidence, mapper.adjustment.wanted_focal_ratio(s)))


def _focal_prior(camera: Camera, evidence: LensEvidence) -> FocalPrior | None:
    """The focal length of a camera as it was estimated; None if it was given, only assumed, or changes."""
    if evidence.state not in (LensState.KNOWN, LensState.GUESS) or evidence.focal_sigma is None:
        return None
    if evidence.change is not None:
        return None
    return FocalPrior(camera.mean_focal, evidence.focal_sigma, is_guess=evidence.state is LensState.GUESS)


def _principal_prior(camera: Camera) -> PrincipalPrior:
    """The principal point of a camera that was not given: all views together determine it, two views do not."""
    return PrincipalPrior(camera.cx, camera.cy, PRINCIPAL_SIGMA * max(camera.width, camera.height))


def _compare_segments(mapper: Mapper, segments: list[int]) -> None:
    """Record a change of the focal length in the evidence of all segments if their estimates differ."""
    frames = {s: [mapper.map.graph.keyframes[k].frame_index for k in mapper.map.graph.segment(s)] for s in segments}
    change = changed_between([(mapper.map.lens_evidence[s], min(frames[s]), max(frames[s])) for s in segments])
    for s in segments if change is not None else []:
        evidence = mapper.map.lens_evidence[s]
        mapper.map.set_lens_evidence(s, replace(evidence, change=evidence.change or change))


def _examine(mapper: Mapper, segment: int, config: BundleAdjustmentConfig, budget_s: float) -> LensFinding:
    """Examine the camera of a segment by the matches between its keyframes."""
    keyframes = [mapper.map.graph.keyframes[k] for k in distinct_views(mapper.map, segment)]
    camera = keyframes[0].camera
    if camera.assumed:
        prior_sigma = mapper.map.assumed_focal_sigma or PRIOR_SIGMA
        return examine_assumed(matched_pairs(keyframes, MOST_PAIRS), camera, prior_sigma=prior_sigma)
    if config.calibrate == "always":
        return examine_given(matched_pairs(keyframes, MOST_PAIRS), camera, may_refocus=True)
    most = int(np.clip(EVIDENCE_SHARE * budget_s / PAIR_S, FEWEST_PAIRS, MOST_PAIRS))
    finding = examine_given(matched_pairs(keyframes, most), camera)
    return examine_given(matched_pairs(keyframes, DECIDING_PAIRS), camera) if finding.is_undecided else finding


def distinct_views(slam_map: SlamMap, segment: int) -> list[int]:
    """The keyframes of a segment in order of time, without those whose view is nearly that of the one before.

    Between two such views the noise of the matches is as large as their parallax, which biases a self-calibration.
    Photos taken in bursts become keyframes that are so near.
    """
    ordered = sorted(slam_map.graph.segment(segment), key=lambda k: slam_map.graph.keyframes[k].timestamp_ns)
    kept: list[int] = []
    for k in ordered:
        least_px = LEAST_VIEW_CHANGE * slam_map.graph.keyframes[k].camera.width
        if not kept or displacement_px(slam_map.landmarks.observed, kept[-1], k) >= least_px:
            kept.append(k)
    return kept


def displacement_px(observed: Observations, i: int, k: int) -> float:
    """Median displacement of the tracks that keyframes i and k share, pixels; infinite if they share hardly any."""
    _, rows_i, rows_k = np.intersect1d(observed[i].ids, observed[k].ids, return_indices=True)
    if len(rows_i) < FEWEST_SHARED:
        return float("inf")
    return float(np.median(np.linalg.norm(observed[i].pixels[rows_i] - observed[k].pixels[rows_k], axis=1)))


def round_cost_s(config: BundleAdjustmentConfig, mapper: Mapper, priors: dict[int, IntrinsicsPrior]) -> float:
    """Cost of one round over the current map, CPU seconds."""
    landmarks = mapper.map.landmarks
    observations = sum(int(landmarks.is_triangulated(tracks.ids).sum()) for tracks in landmarks.observed.values())
    return (LENS_COST if priors else 1.0) * OBSERVATION_S * config.final_iterations * observations


def _is_worth_it(
    config: BundleAdjustmentConfig, mapper: Mapper, budget_s: float, priors: dict[int, IntrinsicsPrior], corrected: bool
) -> bool:
    match config.final:
        case "always":
            return True
        case "never":
            return False
        case "auto":
            return corrected or round_cost_s(config, mapper, priors) <= budget_s
