"""Confidence of a pose: the probability that it is correct, from its evidence.

A pose is correct when its place is the right one and its error is within the bound. The probability of the former is
a logistic regression on poses from sparse maps and degraded images of five sequences, and on images of other places;
that of the latter follows from the position's standard deviation. docs/experiments.md has the reliability on another
sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, exp, log, radians, sqrt

import numpy as np

from relocalizer.geometry import FloatArray

# Logistic coefficients of 1, log(inliers - rival), log(cells), from docs/experiments/relocalization.py fit.
_RIGHT_PLACE = (-6.2, 2.42, 2.43)
# Inlier lead over the rival pose, as a fraction of the inliers, below which the confidence is reduced in proportion:
# two places with similar support are ambiguous, independent of the number of landmarks.
_CLEAR_LEAD_RATIO = 0.3
# Ratio of actual errors to the estimated sigmas, because feature errors are correlated and map poses have errors.
_SIGMA_INFLATION = 2.0
# Decrease of the log probability of a wrong place per additional consistent view. Not fitted: with local features two
# consistent views were always right, but a network's errors are less independent. Gives 0.70, 0.91, 0.97 for two,
# three, four views.
_LOG_FALSE_RATE_PER_VIEW = 1.2


# Error bounds of a correct pose: the position in meters, or as a fraction of the scene depth in a map without metric
# scale; the rotation in degrees.
BOUND_M, BOUND_DEPTHS, BOUND_DEG = 0.25, 0.1, 5.0


@dataclass(frozen=True, slots=True)
class ErrorBound:
    """The bound of a confidence: a pose is correct when both of its errors are below it.

    Attributes:
        distance: bound of the position error, in `units`.
        angle_rad: bound of the rotation error.
        units: units of the segment of the pose, 'meters' or 'map units'.
    """

    distance: float
    angle_rad: float
    units: str

    @staticmethod
    def of_segment(depth: float, units: str) -> ErrorBound:
        """The bound in a segment.

        Args:
            depth: median distance of its landmarks, in its units.
            units: 'meters' or 'map units'.
        """
        distance = BOUND_M if units == "meters" else BOUND_DEPTHS * depth
        return ErrorBound(distance, radians(BOUND_DEG), units)

    def relative_position_sigma(self, covariance: FloatArray) -> float:
        """Largest standard deviation of the position of a pose, in units of `distance`."""
        return float(np.sqrt(np.linalg.eigvalsh(covariance[3:, 3:])[-1])) / self.distance


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarkEvidence:
    """Evidence for a pose estimated from landmarks.

    Attributes:
        inliers: number of inlier features. matches: number of features matched to landmarks.
        cells: number of cells of the image, of 48, that contain inliers.
        rival: number of inliers of the best pose at a different place.
        views: number of keyframes whose rotation estimates are consistent with their average.
        disagreement_deg: angle between that average and the pose; NaN without an average.
        position_sigma: largest standard deviation of the position, in units of the error bound.
    """

    inliers: int
    matches: int
    cells: int
    rival: int
    views: int
    disagreement_deg: float
    position_sigma: float

    @property
    def confidence(self) -> float:
        constant, count, spread = _RIGHT_PLACE
        lead = max(self.inliers - self.rival, 1)
        place = 1.0 / (1.0 + exp(-(constant + count * log(lead) + spread * log(max(self.cells, 1)))))
        lead_ratio = max(0.0, 1.0 - self.rival / max(self.inliers, 1))
        return place * min(1.0, lead_ratio / _CLEAR_LEAD_RATIO) * _within_bound(self.position_sigma)


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragedEvidence:
    """Evidence for a pose averaged from pair estimates.

    Attributes:
        views: number of keyframes consistent with it in rotation and direction.
        covisible: number of keyframes with a pair estimate.
        position_sigma: largest standard deviation of the position, in units of the error bound.
    """

    views: int
    covisible: int
    position_sigma: float

    @property
    def confidence(self) -> float:
        place = 1.0 - exp(-_LOG_FALSE_RATE_PER_VIEW * max(self.views - 1, 0))
        return place * _within_bound(self.position_sigma)


def _within_bound(position_sigma: float) -> float:
    """Probability that the error along the most uncertain direction is within the bound."""
    return erf(1.0 / (sqrt(2.0) * _SIGMA_INFLATION * max(position_sigma, 1e-9)))
