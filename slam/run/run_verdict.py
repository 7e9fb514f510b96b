"""Verdict on a finished run: collects the evidence for `slam.evaluation.verdict`."""

from __future__ import annotations

from collections.abc import Sequence

from slam.components.predictor_choice import RANDOM_WEIGHTS
from slam.config.schema import SlamConfig
from slam.evaluation.verdict import Evidence, Finding, Grade, Verdict, judge
from slam.run.run_statistics import RunStatistics
from slam.run.runner import RunOutcome

SCATTERED = 0.5  # fraction of images that hardly overlap with the one before from which they may have no order
MAPPED = 0.9  # fraction of the images with a pose in one map from which there is no need for another order


def verdict_of(
    outcome: RunOutcome, statistics: RunStatistics, config: SlamConfig, findings: Sequence[Finding] = ()
) -> Verdict:
    """Quality grade of a run, with reasons; `findings` are additional findings of the caller."""
    lens = outcome.result.lens_evidence
    random = config.predictor.random_weights
    early = [Finding(Grade.PARTIAL, f"the run ended early: {failure.sentence}") for failure in outcome.failures[:1]]
    advice = _advice(outcome, statistics, config)
    evidence = Evidence(
        frames=outcome.frames,
        tracked=len(outcome.result.trajectory),
        other_segments=tuple(len(segment) for segment in outcome.result.segments),
        lost_times=len(statistics.lost),
        lost_frames=statistics.lost_frames,
        weak_frames=statistics.weak_frames,
        overlay_share=statistics.overlay_share,
        moving_share=statistics.moving_share,
        unexplained_share=statistics.unexplained_share,
        refuted_keyframes=len(statistics.refuted_keyframes),
        contradicted_keyframes=len(statistics.contradicted_keyframes - statistics.refuted_keyframes),
        outweighed=statistics.outweighed,
        loops=statistics.loops_accepted,
        reprojection_px=outcome.result.reprojection_px,
        noise_px=config.tracks.noise_px,
        no_result=RANDOM_WEIGHTS
        if random
        else _with_advice(no_result(outcome, statistics, photos=config.input.unordered), advice),
        notes=(*early, *lens.findings, *(Finding(Grade.PARTIAL, sentence) for sentence in advice), *findings),
    )
    return judge(evidence)


def _advice(outcome: RunOutcome, statistics: RunStatistics, config: SlamConfig) -> list[str]:
    """The advice to map images as photos, where most consecutive ones do not overlap and not all have a pose."""
    is_mapped = len(outcome.result.trajectory) >= MAPPED * outcome.frames
    if config.input.unordered or is_mapped or statistics.torn < SCATTERED * outcome.frames:
        return []
    return [
        f"{statistics.torn} of {outcome.frames} images hardly overlap with the one before: if they are photos without "
        "an order, slam run --photos maps them"
    ]


def _with_advice(no_result: str, advice: Sequence[str]) -> str:
    return "; ".join([no_result, *advice]) if no_result else ""


def no_result(outcome: RunOutcome, statistics: RunStatistics, *, photos: bool = False) -> str:
    """Reason why the result is not usable; empty if it is.

    Args:
        photos: whether the frames were mapped as photos without an order.
    """
    if len(outcome.result.trajectory) >= 2:
        return ""
    if statistics.start_map and statistics.found_in_map < 0 and not statistics.initialized:
        return f"no frame was relocalized in the map {statistics.start_map} (the last: {statistics.reason})"
    if statistics.initialized:
        return "the camera was lost right after the map was initialized" + (
            f" ({statistics.lost[-1].reason})" if statistics.lost else ""
        )
    if photos:
        return f"no map could be begun: no two of the {outcome.frames} photos match with enough inliers and parallax"
    why = f": {statistics.reason}" if statistics.reason else ""
    return f"no map was initialized in {outcome.frames} frames{why}"
