"""Examination of the camera of a segment by self-calibration: evidence for its focal length, and its correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from relocalizer.calibration_pairs import ViewPair
from relocalizer.calibration_windows import FocalChange, FocalStretch
from relocalizer.camera import Camera
from relocalizer.features import match_features
from relocalizer.intrinsics_correction import CorrectionStep, radial_of
from relocalizer.lens_estimates import KNOWN_SIGMA, AspectEstimate, Distortion, FocalEstimate, PrincipalEstimate
from relocalizer.self_calibration import PRIOR_SIGMA, SelfCalibration
from slam.map.frames import Keyframe
from slam.map.lens_evidence import CHANGES, LensEvidence, LensState

# Distances in the sequence of keyframes that are matched, in keyframes: far enough for the camera to have rotated, and
# near enough for a common view.
GAPS = (2, 3, 5)
FEW_KEYFRAMES = 12  # maximum number of keyframes of a segment for which adjacent keyframes are matched too
MATCH_RATIO = 0.8  # maximum ratio of Lowe's ratio test
# Maximum displacement of the image corners by the distortion that a calibration leaves uncorrected, as a fraction of
# half the diagonal; it is 0.013 in KITTI and 0.018 in 7-Scenes.
LEFT_BY_CALIBRATIONS = 0.025
# Minimum difference of the log focal lengths for the footage to contradict a given one; also of their ratio in x and y.
CONTRADICTION = 0.04
UNKNOWN = 0.15  # minimum standard deviation of an estimate that says nothing
CONTRADICTION_SIGMAS = 4.0  # minimum of the same difference, standard deviations
# Minimum distance of the principal point from a given one for the footage to contradict it, relative to the longer side
# and in standard deviations; of right calibrations it is 0.033 at most (24 sequences). Beyond the maximum a pattern in
# the images repeats itself.
OFF_CENTER, OFF_CENTER_SIGMAS, FAR_OFF_CENTER = 0.06, 5.0, 0.15
# Minimum difference of the log focal lengths for a given one to be doubtful, and in standard deviations. It is
# contradicted if bundle adjustment wants another one too, of at least this difference in the same direction; for right
# calibrations it wants at most 0.9 % (seven sequences).
DOUBT, DOUBT_SIGMAS, BUNDLE_CONTRADICTION = 0.025, 1.5, 0.02
# Difference of two estimates of a focal length at which one of them must be wrong, standard deviations.
DISAGREEMENT_SIGMAS = 4.0


@dataclass(frozen=True, slots=True)
class LensFinding:
    """Result of an examination.

    Attributes:
        evidence: evidence for the focal length.
        step: correction of the intrinsics, to apply before bundle adjustment.
        may_have_distortion: whether bundle adjustment should refine the distortion.
        is_undecided: whether more pairs may show that there is a distortion.
        distortion: the distortion if it is clear; zero without one. `step` has what k1 and k2 can represent of it.
        stretches: stretches of one focal length, pixels of the examined camera, if it changes along the footage.
        is_uneven: whether parts of the footage determine a focal length that all of it together does not.
    """

    evidence: LensEvidence
    step: CorrectionStep = field(default_factory=CorrectionStep)
    may_have_distortion: bool = False
    distortion: Distortion = field(default_factory=Distortion)
    stretches: tuple[FocalStretch, ...] = ()
    is_uneven: bool = False
    is_undecided: bool = False


def matched_pairs(keyframes: Sequence[Keyframe], most: int) -> list[ViewPair]:
    """Up to `most` pairs of keyframes, evenly distributed over the footage, with their feature matches."""
    ordered = sorted(keyframes, key=lambda keyframe: keyframe.timestamp_ns)
    gaps = GAPS if len(ordered) > FEW_KEYFRAMES else (1, *GAPS)
    pairs = [(n, n + gap) for n in range(len(ordered)) for gap in gaps if n + gap < len(ordered)]
    if len(pairs) > most:
        pairs = [pairs[n] for n in np.linspace(0, len(pairs) - 1, most).round().astype(int)]
    return [_matched(ordered[i], ordered[j]) for i, j in pairs]


def _matched(first: Keyframe, second: Keyframe) -> ViewPair:
    rows = match_features(first.features, second.features, ratio=MATCH_RATIO)
    return ViewPair(
        first.frame_index,
        second.frame_index,
        first.features.pixels[rows[:, 0]].astype(np.float64),
        second.features.pixels[rows[:, 1]].astype(np.float64),
    )


def examine_assumed(pairs: Sequence[ViewPair], camera: Camera, *, prior_sigma: float = PRIOR_SIGMA) -> LensFinding:
    """Examine an assumed camera: the estimated focal length is applied, weighted against the assumption.

    Args:
        prior_sigma: standard deviation of the logarithm of the camera's focal length. One below the default is that of
            an earlier estimate from the same footage.
    """
    found = SelfCalibration(pairs, camera).estimate()
    if not isinstance(found, FocalEstimate):
        return _keeping(prior_sigma, found.reason)
    if found.change is not None:
        reason = found.flaw or CHANGES
        evidence = LensEvidence(LensState.GUESS, reason=reason, change=replace(found.change, focal_px=None))
        return LensFinding(evidence, stretches=found.stretches)
    if found.flaw:
        evidence = replace(_keeping(prior_sigma, found.flaw).evidence, state=LensState.GUESS, reason=found.flaw)
        return LensFinding(evidence, is_uneven=found.is_uneven)
    if abs(np.log(found.focal_px / camera.mean_focal)) > DISAGREEMENT_SIGMAS * np.hypot(found.sigma, prior_sigma):
        prior_sigma = PRIOR_SIGMA  # one of them is wrong, and the prior rests on fewer images
    # The assumption is a weak prior, whose weight grows with the uncertainty of the estimate.
    weight = 1.0 / (1.0 + (found.sigma / prior_sigma) ** 2)
    ratio = float((found.focal_px / camera.mean_focal) ** weight)
    # Two estimates from the same footage are not independent, so together they are no better than the better one.
    sigma = float(found.sigma * np.sqrt(weight)) if prior_sigma == PRIOR_SIGMA else min(found.sigma, prior_sigma)
    is_known = found.is_known or sigma <= KNOWN_SIGMA
    reason = "" if is_known else found.rejection
    evidence = LensEvidence(LensState.KNOWN if is_known else LensState.GUESS, ratio, sigma, reason=reason)
    step = _step(found, camera, ratio, is_guess=not is_known)
    clear = found.distortion if found.distortion.is_clear else Distortion()
    return LensFinding(evidence, step, found.distortion.is_significant, clear, is_uneven=found.is_uneven)


def _keeping(prior_sigma: float, reason: str) -> LensFinding:
    """The finding where the footage gives no estimate: the camera stays, known if it was known before."""
    if prior_sigma >= PRIOR_SIGMA:
        return LensFinding(LensEvidence(LensState.GUESS, reason=reason))
    return LensFinding(LensEvidence.before_run(prior_sigma, reason))


def _step(found: FocalEstimate, camera: Camera, ratio: float, *, is_guess: bool) -> CorrectionStep:
    """The correction by a ratio of the focal lengths, and by the distortion if it is clear."""
    radial = (0.0, 0.0)
    if found.distortion.is_clear:
        distortion = found.distortion
        radial = radial_of(distortion.division, distortion.division_r4, camera.refocused((ratio, ratio)))
    return CorrectionStep((ratio, ratio), radial, is_guess=is_guess)


def examine_given(pairs: Sequence[ViewPair], camera: Camera, *, may_refocus: bool = False) -> LensFinding:
    """Examine a given camera: it is not corrected, but contradictions are reported.

    Residual distortion is accepted only if it is significant in the matches of all parts of the footage, and as small
    as calibrations leave it.

    Args:
        may_refocus: whether a focal length that the footage determines replaces the given one.
    """
    if may_refocus:
        finding = examine_assumed(pairs, camera)
        if finding.evidence.state is LensState.KNOWN:
            return finding
    calibration = SelfCalibration(pairs, camera)
    found = calibration.check()
    if not isinstance(found, FocalEstimate):
        return LensFinding(LensEvidence())
    start = found
    if found.change is None and (found.flaw or found.sigma > UNKNOWN):
        found = _searched(calibration, found)
    if found.change is None and (reason := _contradicted_aspect(calibration.aspect(), camera)):
        return LensFinding(LensEvidence(LensState.CONTRADICTED, reason=reason))
    ratio = found.focal_px / camera.mean_focal
    if found.change is not None:
        change = replace(found.change, focal_px=None)
        return LensFinding(LensEvidence(LensState.CONTRADICTED, ratio, found.sigma, CHANGES, change))
    if found.flaw:
        return LensFinding(LensEvidence(is_uneven=found.is_uneven))
    if reason := _contradicted_center(found.center, camera):
        return LensFinding(LensEvidence(LensState.CONTRADICTED, ratio, found.sigma, reason))
    if abs(np.log(ratio)) > max(CONTRADICTION, CONTRADICTION_SIGMAS * found.sigma):
        return LensFinding(_contradicted(ratio, found.sigma))
    left = calibration.distortion() if found is start else found.distortion
    if left.is_significant and abs(left.division) > LEFT_BY_CALIBRATIONS + CONTRADICTION_SIGMAS * left.sigma:
        reason = (
            f"the footage wants the corners moved by {100 * abs(left.division):.1f} % of half the diagonal, "
            "more than a calibration leaves"
        )
        return LensFinding(LensEvidence(LensState.CONTRADICTED, ratio, found.sigma, reason))
    evidence = LensEvidence(LensState.CALIBRATED, ratio, found.sigma, is_uneven=found.is_uneven)
    if found is not start:
        return LensFinding(evidence)
    return LensFinding(evidence, may_have_distortion=left.is_significant, is_undecided=left.is_undecided)


def _searched(calibration: SelfCalibration, found: FocalEstimate) -> FocalEstimate:
    """The estimate of a search where the given focal length is no start from which `found` is one; else `found`."""
    searched = calibration.estimate()
    is_better = isinstance(searched, FocalEstimate) and not searched.flaw and searched.sigma <= UNKNOWN
    return searched if is_better and isinstance(searched, FocalEstimate) else found


def _contradicted_aspect(aspect: AspectEstimate, camera: Camera) -> str:
    """Why the ratio of fx and fy of a given camera is contradicted; empty if it is not."""
    if abs(np.log(aspect.ratio)) <= max(CONTRADICTION, CONTRADICTION_SIGMAS * aspect.sigma):
        return ""
    given = camera.fx / camera.fy
    wanted = f"{given * aspect.ratio:.2f} (+- {100 * aspect.sigma:.0f} %)"
    return f"the footage wants an fx of {wanted} times fy, not of {given:.2f} times; is it of images of another shape?"


def _contradicted_center(center: PrincipalEstimate, camera: Camera) -> str:
    """Why the principal point of a given camera is contradicted; empty if it is not."""
    distance = float(np.hypot(*center.offset_px))
    side = max(camera.width, camera.height)
    if not max(OFF_CENTER * side, OFF_CENTER_SIGMAS * center.sigma_px) < distance < FAR_OFF_CENTER * side:
        return ""
    x, y = (share + offset for share, offset in zip((camera.cx, camera.cy), center.offset_px, strict=True))
    return (
        f"the footage wants the principal point at {100 * x / camera.width:.0f} % of the width and "
        f"{100 * y / camera.height:.0f} % of the height (+- {100 * center.sigma_px / side:.0f} %), not at "
        f"{100 * camera.cx / camera.width:.0f} % and {100 * camera.cy / camera.height:.0f} %; are the images cropped?"
    )


def _contradicted(ratio: float, sigma: float) -> LensEvidence:
    reason = f"the footage wants a focal length {ratio:.2f} times as long (+- {100 * sigma:.1f} %)"
    return LensEvidence(LensState.CONTRADICTED, ratio, sigma, reason)


def is_doubtful(evidence: LensEvidence) -> bool:
    """Whether self-calibration speaks against a given focal length, but not beyond doubt."""
    ratio, sigma = evidence.focal_ratio, evidence.focal_sigma
    if evidence.state is not LensState.CALIBRATED or evidence.change is not None or ratio is None or sigma is None:
        return False
    return bool(abs(np.log(ratio)) > max(DOUBT, DOUBT_SIGMAS * sigma))


def confirmed(evidence: LensEvidence, bundle_ratio: float) -> LensEvidence:
    """Doubtful evidence, contradicted if bundle adjustment wants another focal length in the same direction.

    Two views at a time and all views together fail in different ways, so together they need less of a difference.

    Args:
        bundle_ratio: as `BundleAdjustment.wanted_focal_ratio` gives it.
    """
    ratio, sigma = evidence.focal_ratio, evidence.focal_sigma
    if ratio is None or sigma is None:
        return evidence
    wanted = float(np.log(bundle_ratio)) * float(np.sign(np.log(ratio)))
    return _contradicted(ratio, sigma) if wanted > BUNDLE_CONTRADICTION else evidence


def changed_between(segments: Sequence[tuple[LensEvidence, int, int]]) -> FocalChange | None:
    """The largest clear change of the focal length between consecutive segments; None if there is no clear one.

    Args:
        segments: (evidence, first frame, last frame) of each segment; all began with the same camera.
    """
    estimates = [(e.focal_ratio, e.focal_sigma, first, last) for e, first, last in sorted(segments, key=lambda s: s[1])]
    changes = [
        FocalChange(late / early - 1.0, float(np.hypot(early_sigma, late_sigma)), last, first)
        for (early, early_sigma, _, last), (late, late_sigma, first, _) in pairwise(estimates)
        if early is not None and late is not None and early_sigma is not None and late_sigma is not None
    ]
    changes = [change for change in changes if change.is_clear]
    return max(changes, key=lambda change: abs(change.share), default=None)
