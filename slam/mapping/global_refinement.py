"""The last refinement of the whole map, when a run ends: rounds of recognizing and refining, as many as pay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from relocalizer.self_calibration import PRIOR_SIGMA
from slam.config.schema import BundleAdjustmentConfig
from slam.map.lens_evidence import LensEvidence, LensState
from slam.mapping.bundle import CALIBRATED, IntrinsicsPrior
from slam.mapping.lens_examination import (
    LEFT_BY_CALIBRATIONS,
    LensFinding,
    changed_between,
    examine_assumed,
    examine_given,
    matched_pairs,
)
from slam.mapping.mapper import Mapper

# CPU seconds on one core of a server, rounded; only their ratios matter. They are counted and not timed, because the
# same input has to give the same bytes on any machine and under any load.
FRAME_S = 0.012
KEYFRAME_S = 0.15
LENS_COST = 1.5  # times that of a round in which the camera is held
OBSERVATION_S = 4e-6  # in each iteration of a round, the recognizing before it included
PAIR_S = 0.04  # a pair of keyframes that the lens is judged by
EVIDENCE_SHARE = 0.1  # of what the run cost, for judging a camera that was given
FEWEST_PAIRS, MOST_PAIRS = 32, 48


def refine_map(
    mapper: Mapper,
    config: BundleAdjustmentConfig,
    *,
    frames: int,
    keyframes: int,
    may_calibrate: bool,
    tell: Callable[[float, float, str], None],
    on_round: Callable[[int, int], None] = lambda done, of: None,
) -> int:
    """Rounds over every segment of the map; `tell` hears the errors before and after each (pixels), and its name.

    With `final: auto` the rounds stop before they would have taken longer than the run itself, by the costs above;
    `always` does `final_rounds` of them and `never` none. A map whose focal length has been corrected is bent until it
    is refined, so that is worth any time.

    Args:
        frames, keyframes: of this run. A large map that a short run went on in is not refined for its sake.
        on_round: called before each round with how many are done, of how many at most.
        may_calibrate: whether the keyframes are this run's alone, whose cameras may then be found.

    Returns:
        How many rounds there were.
    """
    segments = sorted(set(mapper.map.graph.segment_of.values()), key=lambda s: (-len(mapper.map.graph.segment(s)), s))
    budget_s = FRAME_S * frames + KEYFRAME_S * keyframes
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
        tell(before, after, f"final refinement, round {done} of {config.final_rounds} (errors: pixels)")
    return done


def calibrate(
    mapper: Mapper, segments: list[int], config: BundleAdjustmentConfig, budget_s: float
) -> dict[int, IntrinsicsPrior]:
    """Judge the camera of each segment by its own footage, and correct it where that tells how.

    Returns:
        What a joint refinement may find of distortion, for the segments whose footage wants some.
    """
    priors = {}
    for segment in segments:
        camera = mapper.map.graph.keyframes[mapper.map.graph.segment(segment)[0]].camera
        finding = _examined(mapper, segment, config, budget_s)
        mapper.map.lens_evidence[segment] = finding.evidence
        if problem := "" if finding.step.is_nothing else mapper.adjustment.correct_lens(segment, finding.step):
            state = LensState.GUESS if camera.assumed else LensState.CALIBRATED
            mapper.map.lens_evidence[segment] = LensEvidence(state, reason=problem)
        if finding.may_have_distortion:
            half_diagonal = 0.5 * float(np.hypot(camera.width, camera.height))
            priors[segment] = replace(CALIBRATED, most_px=LEFT_BY_CALIBRATIONS * half_diagonal)
    _compare_segments(mapper, segments)
    return priors


def _compare_segments(mapper: Mapper, segments: list[int]) -> None:
    """Note it when segments want different focal lengths."""
    frames = {s: [mapper.map.graph.keyframes[k].frame_index for k in mapper.map.graph.segment(s)] for s in segments}
    change = changed_between([(mapper.map.lens_evidence[s], min(frames[s]), max(frames[s])) for s in segments])
    for s in segments if change is not None else []:
        evidence = mapper.map.lens_evidence[s]
        mapper.map.lens_evidence[s] = replace(evidence, change=evidence.change or change)


def _examined(mapper: Mapper, segment: int, config: BundleAdjustmentConfig, budget_s: float) -> LensFinding:
    """What the footage of a segment says of its camera."""
    keyframes = [mapper.map.graph.keyframes[k] for k in mapper.map.graph.segment(segment)]
    camera = keyframes[0].camera
    if camera.assumed:
        prior_sigma = mapper.map.assumed_focal_sigma or PRIOR_SIGMA
        return examine_assumed(matched_pairs(keyframes, MOST_PAIRS), camera, prior_sigma=prior_sigma)
    if config.calibrate == "always":
        return examine_given(matched_pairs(keyframes, MOST_PAIRS), camera, may_refocus=True)
    most = int(np.clip(EVIDENCE_SHARE * budget_s / PAIR_S, FEWEST_PAIRS, MOST_PAIRS))
    return examine_given(matched_pairs(keyframes, most), camera)


def round_cost_s(config: BundleAdjustmentConfig, mapper: Mapper, priors: dict[int, IntrinsicsPrior]) -> float:
    """What one round over the map as it stands is counted at, seconds."""
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
