"""Verdict on the quality of a run, used by its report, its summary and its exit code.

The grade is the worst of all findings. The limits are policy, not measurement: they separate runs that can be used
directly from runs that need inspection. docs/results.md lists the verdicts of all measured runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Grade(StrEnum):
    """Quality of a run, from worst to best."""

    FAILED = "failed"  # There is no result, or it is meaningless.
    POOR = "poor"  # Most frames have no pose in the map, or the map is inconsistent with its observations.
    PARTIAL = "partial"  # Usable in part; see the reasons.
    GOOD = "good"

    @property
    def rank(self) -> int:
        return list(Grade).index(self)

    def is_below(self, other: Grade) -> bool:
        return self.rank < other.rank


@dataclass(frozen=True, slots=True)
class Finding:
    """One deficiency of a run: the best grade it allows, and a sentence with the numbers."""

    grade: Grade
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """A grade and the reasons for it, the worst first; a good run may have remarks."""

    grade: Grade
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.grade}: {'; '.join(self.reasons)}" if self.reasons else str(self.grade)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Statistics of a finished run.

    Attributes:
        frames: number of input frames.
        tracked: number of frames with a pose in the largest segment.
        other_segments: number of frames with a pose in each other segment, none of which is connected to the largest.
        lost_times: number of tracking losses.
        lost_frames: number of frames without a live pose because tracking was lost.
        weak_frames: number of live poses from fewer than `WEAK_LANDMARKS` landmarks, or from none (position held).
        overlay_share: fraction of the tracked points that are static in the image while the scene moves.
        moving_share: fraction of the points that are on moving objects.
        unexplained_share: fraction of the points followed for long that disagree with the pose, median of the frames.
        refuted_keyframes: number of keyframes with a verified loop that no drift explains.
        contradicted_keyframes: number of the other keyframes with a verified loop that was held back, because the path
            leads elsewhere.
        outweighed: number of loops that were closed although the path leads elsewhere by more than drift explains.
        loops: number of closed loops.
        reprojection_px: RMS reprojection error over the largest segment's observations, pixels; None if the run was
            aborted and it was not measured.
        noise_px: assumed standard deviation of an observation, pixels.
        no_result: why the result cannot be used at all; empty if it can.
        notes: findings of other parts, such as the lens or the ground truth.
    """

    frames: int
    tracked: int
    other_segments: tuple[int, ...] = ()
    lost_times: int = 0
    lost_frames: int = 0
    weak_frames: int = 0
    overlay_share: float = 0.0
    moving_share: float = 0.0
    unexplained_share: float = 0.0
    refuted_keyframes: int = 0
    contradicted_keyframes: int = 0
    outweighed: int = 0
    loops: int = 0
    reprojection_px: float | None = 0.0
    noise_px: float = 1.0
    no_result: str = ""
    notes: tuple[Finding, ...] = ()


WEAK_LANDMARKS = 30  # Number of inlier landmarks below which a pose is weak.
# Fractions of the frames at which a finding makes a run partial, and poor.
_COVERAGE = (0.9, 0.5)
_WEAK = (0.2, 0.6)
_LOST = (0.1, 0.4)
_OVERLAY = 0.1  # Fraction of static points at which a run is partial.
_MOVING = 0.25  # Fraction of points on moving objects at which a run is partial.
_UNEXPLAINED = (0.5, 0.75)
_LOSSES = 3  # Number of tracking losses at which a run is partial, regardless of their duration.
_REPEATING = 10  # Number of keyframes with refuted loops from which the scene repeats itself.
_CONTRADICTED = 3  # Number of keyframes with loops that were held back, and none closed, at which a run is partial.
# RMS reprojection error relative to the assumed noise at which a run is partial, and poor. Outliers beyond three
# standard deviations are excluded from it.
_REPROJECTION = (1.35, 2.0)


def judge(evidence: Evidence) -> Verdict:
    """The verdict of a run."""
    if evidence.no_result:
        return Verdict(Grade.FAILED, (evidence.no_result,))
    findings = sorted([*_findings(evidence), *evidence.notes], key=lambda finding: finding.grade.rank)
    grade = findings[0].grade if findings else Grade.GOOD
    return Verdict(grade, tuple(finding.reason for finding in findings))


def _findings(evidence: Evidence) -> Iterator[Finding]:
    for found in (
        _coverage(evidence),
        _losses(evidence),
        _weakness(evidence),
        _overlay(evidence),
        _moving(evidence),
        _unexplained(evidence),
        _repetition(evidence),
        _drift(evidence),
        _reprojection(evidence),
    ):
        if found is not None:
            yield found


def _coverage(evidence: Evidence) -> Finding | None:
    share = evidence.tracked / max(evidence.frames, 1)
    if share >= _COVERAGE[0]:
        return None
    of = f"the largest of {1 + len(evidence.other_segments)} maps" if evidence.other_segments else "the map"
    reason = f"{evidence.tracked} of {evidence.frames} frames ({share:.0%}) have a pose in {of}"
    return Finding(Grade.POOR if share < _COVERAGE[1] else Grade.PARTIAL, reason)


def _losses(evidence: Evidence) -> Finding | None:
    share = evidence.lost_frames / max(evidence.frames, 1)
    if share < _LOST[0] and evidence.lost_times < _LOSSES:
        return None
    times = f"{evidence.lost_times} time{'s' * (evidence.lost_times != 1)}"
    reason = f"tracking was lost {times}, for {share:.0%} of the frames"
    return Finding(Grade.POOR if share >= _LOST[1] else Grade.PARTIAL, reason)


def _weakness(evidence: Evidence) -> Finding | None:
    share = evidence.weak_frames / max(evidence.frames, 1)
    if share < _WEAK[0]:
        return None
    reason = f"{share:.0%} of the frames rest on fewer than {WEAK_LANDMARKS} landmarks"
    return Finding(Grade.POOR if share >= _WEAK[1] else Grade.PARTIAL, reason)


def _overlay(evidence: Evidence) -> Finding | None:
    if evidence.overlay_share < _OVERLAY:
        return None
    reason = (
        f"{evidence.overlay_share:.0%} of the points stand still in the image while the world moves (an overlay, or a "
        "part of the vehicle): they were left out, and --mask names such a region for good"
    )
    return Finding(Grade.PARTIAL, reason)


def _moving(evidence: Evidence) -> Finding | None:
    if evidence.moving_share < _MOVING:
        return None
    reason = (
        f"{evidence.moving_share:.0%} of the points are on moving objects: they were left out, but where few "
        "others were left the map may be deformed"
    )
    return Finding(Grade.PARTIAL, reason)


def _unexplained(evidence: Evidence) -> Finding | None:
    if evidence.unexplained_share < _UNEXPLAINED[0]:
        return None
    reason = (
        f"{evidence.unexplained_share:.0%} of the points with long tracks do not move as the scene "
        "would with these poses: much of the image moves by itself, and the map may be that of a moving object"
    )
    return Finding(Grade.POOR if evidence.unexplained_share >= _UNEXPLAINED[1] else Grade.PARTIAL, reason)


def _repetition(evidence: Evidence) -> Finding | None:
    if evidence.refuted_keyframes < _REPEATING:
        return None
    repeats = (
        f"{evidence.refuted_keyframes} keyframes matched places where the camera was not: the scene repeats itself"
    )
    if evidence.loops == 0:
        return Finding(Grade.GOOD, f"{repeats}, and no loop could be closed")
    number = f"{evidence.loops} closed loop{'s' * (evidence.loops != 1)}"
    return Finding(Grade.PARTIAL, f"{repeats}, and the {number} may be false")


def _drift(evidence: Evidence) -> Finding | None:
    if evidence.outweighed:
        reason = (
            "whole views of earlier places were recognized where the path did not lead, and the loops were closed: "
            "the map had drifted by more than it should (a zoom, a wrong calibration, moving objects)"
        )
        return Finding(Grade.PARTIAL, reason)
    count = evidence.contradicted_keyframes
    if count < _CONTRADICTED or evidence.loops or evidence.refuted_keyframes >= _REPEATING:
        return None
    reason = (
        f"{count} keyframes recognized earlier places, but the path leads elsewhere and no loop was closed: the map "
        "has drifted by more than it should (a zoom, a wrong calibration, moving objects), or places look alike"
    )
    return Finding(Grade.PARTIAL, reason)


def _reprojection(evidence: Evidence) -> Finding | None:
    if evidence.reprojection_px is None:
        return Finding(Grade.PARTIAL, "the run was aborted: the map was not refined as a whole, nor its error measured")
    ratio = evidence.reprojection_px / evidence.noise_px
    if ratio < _REPROJECTION[0]:
        return None
    reason = (
        f"landmarks miss their observations by {evidence.reprojection_px:.2f} px where {evidence.noise_px:g} px are "
        "expected: the camera's calibration may be wrong, or the scene moves"
    )
    return Finding(Grade.POOR if ratio >= _REPROJECTION[1] else Grade.PARTIAL, reason)
