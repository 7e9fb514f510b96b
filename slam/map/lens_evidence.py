"""How the focal length of a segment is known, and what that says against a run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from relocalizer.calibration_windows import FocalChange
from relocalizer.self_calibration import KNOWN_SIGMA
from slam.evaluation.verdict import Finding, Grade

UNDETERMINED_SIGMA = 0.1  # of a guessed focal length: from here on a map may be bent or stretched so that it is seen


class LensState(StrEnum):
    """How a focal length is known."""

    CALIBRATED = "given"  # by the camera file, and nothing speaks against it
    KNOWN = "known"  # the footage determines it
    GUESS = "guess"
    CONTRADICTED = "contradicted"  # given, and the footage wants another


@dataclass(frozen=True, slots=True)
class LensEvidence:
    """What is known of the camera of a segment when the run ends.

    Attributes:
        focal_ratio: the focal length that the footage wants, over that which the run began with; None without one.
        focal_sigma: standard deviation of its logarithm, a share of it, by errors that are correlated; None without.
        reason: why the state is no better; empty when it is known, or given and nothing is wrong.
        change: it is not one focal length, so nothing was made of it.
    """

    state: LensState = LensState.CALIBRATED
    focal_ratio: float | None = None
    focal_sigma: float | None = None
    reason: str = ""
    change: FocalChange | None = None

    @staticmethod
    def before_run(sigma: float, reason: str) -> LensEvidence:
        """The evidence of an estimate before the run alone; `reason` is why the run itself gave none."""
        if sigma <= KNOWN_SIGMA:
            return LensEvidence(LensState.KNOWN, 1.0, sigma)
        return LensEvidence(LensState.GUESS, 1.0, sigma, reason)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What of it speaks against a run; none where the focal length is known, or given and not contradicted."""
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
