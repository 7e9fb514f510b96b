"""Evidence for the focal length of a segment, and its findings in the verdict on a run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from relocalizer.calibration_windows import FocalChange
from relocalizer.lens_estimates import KNOWN_SIGMA
from slam.evaluation.verdict import Finding, Grade

# Relative standard deviation of a guessed focal length from which the map's shape may be visibly wrong.
UNDETERMINED_SIGMA = 0.1


# Reason why the focal length of a segment is not known: it is not one for all its images.
CHANGES = "the focal length changes along the footage"


class LensState(StrEnum):
    """Source of a focal length."""

    CALIBRATED = "given"  # given by the camera file and not contradicted by the footage
    KNOWN = "known"  # determined by self-calibration
    GUESS = "guess"  # assumed, and not determined by the footage
    CONTRADICTED = "contradicted"  # given by the camera file, but the footage supports another one


@dataclass(frozen=True, slots=True)
class LensEvidence:
    """Evidence for the focal length of a segment at the end of a run.

    Attributes:
        focal_ratio: ratio of the self-calibrated focal length to the initial one; None without an estimate.
        focal_sigma: standard deviation of the logarithm of `focal_ratio`, accounting for correlated errors; None
            without an estimate.
        reason: why the state is not better; empty if the focal length is known, or given and not contradicted.
        change: a change of the focal length within the footage, in which case it was not corrected.
        is_uneven: whether parts of the footage determine a focal length that all of it together does not.
    """

    state: LensState = LensState.CALIBRATED
    focal_ratio: float | None = None
    focal_sigma: float | None = None
    reason: str = ""
    change: FocalChange | None = None
    is_uneven: bool = False

    @property
    def may_change(self) -> bool:
        """Whether the focal length changes within the footage, or may do so."""
        return self.reason == CHANGES or self.is_uneven

    @staticmethod
    def before_run(sigma: float, reason: str) -> LensEvidence:
        """The evidence of an estimate before the run alone; `reason` is why the run itself gave none."""
        if sigma <= KNOWN_SIGMA:
            return LensEvidence(LensState.KNOWN, 1.0, sigma)
        return LensEvidence(LensState.GUESS, 1.0, sigma, reason)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Findings that lower the verdict; none if the focal length is known, or given and not contradicted."""
        if self.change is not None:
            return (Finding(Grade.PARTIAL, f"{self.change}: no one camera fits this footage"),)
        if self.state is LensState.CONTRADICTED:
            return (Finding(Grade.PARTIAL, f"the given calibration does not fit: {self.reason}"),)
        if self.state is not LensState.GUESS:
            return ()
        if self.focal_sigma is not None and self.focal_sigma < UNDETERMINED_SIGMA:
            return (Finding(Grade.GOOD, f"the focal length is known to {100 * self.focal_sigma:.1f} % only"),)
        reason = f"the focal length is a guess, and the footage does not determine it ({self.reason})"
        return (Finding(Grade.PARTIAL, f"{reason}: the map's shape may be wrong; give one with --camera"),)
